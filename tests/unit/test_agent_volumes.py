"""The whole agent mounting and releasing. Server and driver are scripted, mounts in memory."""

from __future__ import annotations

import errno
from pathlib import Path

import anyio
import msgspec
import pytest
from agent_kit import A, B, World

from moorage.model import steps
from moorage.model.assignment import MountedReport
from moorage.model.ids import VolumeId
from moorage.testing.agent_world import ScriptedFacts

pytestmark = pytest.mark.anyio
replace = msgspec.structs.replace


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- mounts ----------------------------------------------------------------------------------------------------------


async def test_mount_and_release(world: World) -> None:
    async with world.agent():
        path = await world.mount()
        assert world.mounter.origin(path) == str(world.data_dir / "ext-1")
        assert world.driver.names() == ["Stage", "Publish"]
        stage = world.driver.calls[0]
        assert isinstance(stage, steps.StageVolume)
        assert stage.publish_context == {"lun": "7"}
        assert len(path) < 128
        await world.release()
        assert world.driver.names() == ["Stage", "Publish", "Unpublish", "Unstage"]
        assert not any(world.mounter.mounts.values())
        await world.until(lambda: not world.journal())
        assert list((world.state_dir / "p").iterdir()) == []
        assert list((world.state_dir / "s").iterdir()) == []


async def test_two_claims_of_one_volume_share_a_staging(world: World) -> None:
    async with world.agent():
        await world.mount(A)
        await world.mount(B, read_only=True)
        assert world.driver.names().count("Stage") == 1
        await world.release(A)
        assert "Unstage" not in world.driver.names()
        assert world.mounter.find_mounted([world.pages.path_of(B)])
        await world.release(B)
        assert world.driver.names()[-1] == "Unstage"


async def test_a_driver_that_does_not_stage(world: World) -> None:
    world.driver.facts = ScriptedFacts(requires_stage=False)
    async with world.agent():
        await world.mount()
        await world.release()
    assert world.driver.names() == ["Publish", "Unpublish"]


async def test_a_target_is_bound_and_taken_away_again(world: World) -> None:
    async with world.agent():
        path = await world.mount(target=str(world.target), read_only=True)
        assert path == str(world.target)
        assert world.mounter.mounts[path] == [(str(world.data_dir / "ext-1"), True)]
        await world.release()
        assert not world.target.parent.exists()


async def test_a_target_that_was_there_stays(world: World) -> None:
    world.target.mkdir(parents=True)
    async with world.agent():
        await world.mount(target=str(world.target))
        await world.release()
        assert world.target.is_dir()


async def test_a_published_link_becomes_a_link_at_the_target(world: World) -> None:
    world.driver.publishes_links = True
    world.driver.facts = ScriptedFacts(requires_stage=False)
    world.target.mkdir(parents=True)
    async with world.agent():
        await world.mount(target=str(world.target))
        assert world.target.is_symlink()
        assert world.target.resolve() == world.data_dir / "ext-1"
        await world.release()
        assert world.target.is_dir()
        assert not world.target.is_symlink()


async def test_a_target_with_data_is_refused_and_nothing_is_left(world: World) -> None:
    world.target.mkdir(parents=True)
    (world.target / "precious").write_text("x")
    async with world.agent():
        world.pages.put_claim(world.claim(target=str(world.target)))
        await world.until(lambda: A not in world.pages.claims)
        fault = world.pages.faults()[0]
        assert fault.final
        assert "not empty" in fault.message
        assert world.driver.calls == []
        assert (world.target / "precious").read_text() == "x"


async def test_a_relative_target_is_refused(world: World) -> None:
    async with world.agent():
        world.pages.put_claim(world.claim(target="srv/data"))
        await world.until(lambda: A not in world.pages.claims)
    assert "'srv/data'" in world.pages.faults()[0].message


async def test_a_failing_driver_is_tried_again_and_each_failure_told(world: World) -> None:
    world.driver.fail(steps.StageVolume, message="array is busy", times=2)
    async with world.agent():
        await world.mount()
    assert [f.message for f in world.pages.faults()] == ["array is busy"] * 2
    assert world.pages.faults()[0].at_ns == 42
    assert world.driver.names() == ["Stage", "Stage", "Stage", "Publish"]


async def test_a_bind_that_fails_half_way_is_undone_at_release(world: World) -> None:
    bind = world.mounter.bind
    refusals = [OSError(errno.ENOMEM, "no memory")]

    def failing(source: str, target: str, *, read_only: bool) -> None:
        if target == str(world.target) and refusals:
            raise refusals.pop()
        bind(source, target, read_only=read_only)

    world.mounter.bind = failing  # type: ignore[method-assign]
    async with world.agent():
        await world.mount(target=str(world.target))
        assert [f.status for f in world.pages.faults()] == ["ENOMEM"]
        await world.release()
        assert not world.target.parent.exists()


async def test_a_final_failure_ends_the_claim(world: World) -> None:
    world.driver.fail(steps.PublishVolume, final=True)
    async with world.agent():
        world.pages.put_claim(world.claim())
        await world.until(lambda: A not in world.pages.claims)
    assert world.driver.names() == ["Stage", "Publish", "Unpublish", "Unstage"]
    assert world.pages.faults()[0].final


async def test_a_failing_volume_does_not_hold_up_another(world: World) -> None:
    world.driver.gates[steps.StageVolume] = anyio.Event()
    async with world.agent():
        world.pages.put_claim(world.claim(A))
        await world.until(lambda: world.driver.calls)
        del world.driver.gates[steps.StageVolume]
        await world.mount(B, external_id="ext-2", volume_id=VolumeId("other"))
        assert not world.pages.path_of(A)


async def test_a_busy_release_is_told_and_ends_when_it_can(world: World) -> None:
    async with world.agent():
        await world.mount(target=str(world.target))
        world.mounter.busy.add(str(world.target))
        world.pages.release(A)
        await world.until(world.pages.faults)
        fault = world.pages.faults()[0]
        assert fault.status == "EBUSY"
        assert str(world.target) in fault.message
        assert not fault.final
        assert "Unpublish" not in world.driver.names()
        world.mounter.busy.clear()
        await world.until(lambda: A not in world.pages.claims)


async def test_a_driver_that_lies_about_publishing_is_caught(world: World) -> None:
    world.driver._publish = lambda step: None  # type: ignore[method-assign]
    async with world.agent():
        world.pages.put_claim(world.claim())
        await world.until(world.pages.faults)
    assert "nothing is there" in world.pages.faults()[0].message
    assert not world.pages.path_of(A)


async def test_a_filesystem_grows_after_it_is_mounted(world: World) -> None:
    async with world.agent():
        world.pages.put_claim(world.claim(), grow_to_bytes=100)
        await world.until(
            lambda: any(isinstance(r, MountedReport) and r.grown_bytes == 100 for r in world.pages.reports)
        )
    assert world.driver.names() == ["Stage", "Publish", "ExpandNode"]


async def test_growth_that_is_refused_does_not_cost_the_mount(world: World) -> None:
    world.driver.fail(steps.ExpandNodeVolume, final=True)
    async with world.agent():
        world.pages.put_claim(world.claim(), grow_to_bytes=100)
        await world.until(lambda: world.driver.names().count("ExpandNode") == 2)
    assert not world.pages.faults()[0].final
    assert world.pages.claims[A].claim.wanted == "held"


async def test_nothing_is_touched_while_the_server_is_away(world: World) -> None:
    async with world.agent():
        path = await world.mount()
        world.pages.is_down = True
        world.pages.change()
        asked = len(world.pages.requests)
        await world.until(lambda: len(world.pages.requests) > asked + 5)
        assert world.mounter.find_mounted([path])
        world.pages.is_down = False
        await world.mount(B)


async def test_a_mount_that_vanished_is_made_again(world: World) -> None:
    async with world.agent():
        path = await world.mount()
        world.mounter.unmount(path)
        await world.until(lambda: world.mounter.find_mounted([path]))
    reports = [r for r in world.pages.reports if isinstance(r, MountedReport)]
    assert len(reports) == 1
