"""The whole agent across its own end: restarts, kills, reboots, orphans. Server and driver are scripted."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec
import pytest
from agent_kit import FAST, NODE, A, B, World

from moorage.errors import BadRequest
from moorage.model import steps
from moorage.model.assignment import UnmountedReport
from moorage.model.volume import Secrets

pytestmark = pytest.mark.anyio
replace = msgspec.structs.replace


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def files_below(path: Path) -> list[Path]:
    return [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]


# -- restarts --------------------------------------------------------------------------------------------------------


async def test_a_restart_disturbs_no_mount(world: World) -> None:
    async with world.agent():
        await world.mount(target=str(world.target))
    calls, reports = len(world.driver.calls), len(world.pages.reports)
    async with world.agent():
        await world.mount(B)
        assert world.driver.names()[calls:] == ["Publish"]
        assert len(world.pages.reports) == reports + 1
        await world.release(A)
        assert not world.target.exists()


@pytest.mark.parametrize("step", [steps.StageVolume, steps.PublishVolume])
async def test_killed_in_a_driver_call_it_goes_on(world: World, step: type) -> None:
    world.driver.gates[step] = anyio.Event()
    async with world.agent():
        world.pages.put_claim(world.claim(target=str(world.target)))
        await world.until(lambda: any(isinstance(c, step) for c in world.driver.calls))
    world.driver.gates.clear()
    async with world.agent():
        await world.until(lambda: world.pages.path_of(A))
        await world.release()
        assert not any(world.mounter.mounts.values())


@pytest.mark.parametrize("step", [steps.UnpublishVolume, steps.UnstageVolume])
async def test_killed_in_a_release_it_goes_on(world: World, step: type) -> None:
    async with world.agent():
        await world.mount()
        world.driver.gates[step] = anyio.Event()
        world.pages.release(A)
        await world.until(lambda: any(isinstance(c, step) for c in world.driver.calls))
    world.driver.gates.clear()
    async with world.agent():
        await world.until(lambda: A not in world.pages.claims)
        await world.until(lambda: not world.journal())
    assert not any(world.mounter.mounts.values())
    assert sum(isinstance(r, UnmountedReport) for r in world.pages.reports) == 1


async def test_after_a_reboot_everything_is_mounted_again_and_not_told_again(world: World) -> None:
    async with world.agent():
        path = await world.mount(target=str(world.target))
    world.mounter.reboot()
    world.node = replace(NODE, boot_id="boot-2")
    reports = len(world.pages.reports)
    async with world.agent():
        await world.until(lambda: world.mounter.find_mounted([path]))
        assert world.driver.names() == ["Stage", "Publish"] * 2
        await world.release()
    assert [type(r) for r in world.pages.reports[reports:]] == [UnmountedReport]
    assert not world.target.exists()


async def test_orphans_are_cleaned_before_the_node_registers(world: World) -> None:
    async with world.agent():
        await world.mount(target=str(world.target))
    world.pages.claims.clear()
    world.driver.gates[steps.UnpublishVolume] = anyio.Event()
    registered = world.pages.requests.count("PUT register")
    async with world.agent(is_awaited=False):
        await world.until(lambda: world.driver.names()[-1] == "Unpublish")
        assert world.pages.requests.count("PUT register") == registered
        world.driver.gates.pop(steps.UnpublishVolume).set()
        await world.until(lambda: world.pages.requests.count("PUT register") > registered)
        assert world.driver.names()[-1] == "Unstage"
        assert not any(world.mounter.mounts.values())
        assert not world.target.exists()
        assert world.journal() == []


async def test_an_orphan_that_cannot_go_does_not_keep_the_node_away_for_ever(world: World) -> None:
    async with world.agent():
        path = await world.mount()
    world.pages.claims.clear()
    world.mounter.busy.add(path)
    world.settings = replace(FAST, clean_first_s=0.1)
    async with world.agent():
        assert world.mounter.find_mounted([path])
        world.mounter.busy.clear()
        await world.until(lambda: not world.mounter.find_mounted([path]))


async def test_a_lost_journal_does_not_lose_the_mount(world: World) -> None:
    async with world.agent():
        path = await world.mount()
    for file in (world.state_dir / "u").iterdir():
        file.unlink()
    async with world.agent():
        await world.until(lambda: len(world.journal()) == 2)
        assert world.mounter.find_mounted([path])
        await world.release()
    assert not any(world.mounter.mounts.values())


async def test_a_journal_entry_that_cannot_be_read_is_put_aside(world: World) -> None:
    (world.state_dir / "u").mkdir(parents=True)
    (world.state_dir / "u" / "torn.json").write_text("{")
    async with world.agent():
        await world.mount()
    assert "torn.unreadable" in world.journal()


async def test_the_journal_holds_no_secret(world: World) -> None:
    secrets = msgspec.convert({"values": {"key": "hunter2"}}, type=Secrets)
    async with world.agent():
        world.pages.put_claim(world.claim(), secrets=secrets)
        await world.until(lambda: world.pages.path_of(A))
        stage = world.driver.calls[0]
        assert isinstance(stage, steps.StageVolume)
        assert stage.secrets.values == {"key": "hunter2"}
    assert not [p for p in files_below(world.state_dir) if "hunter2" in p.read_text()]


async def test_a_state_directory_that_is_too_long_is_refused_at_start(world: World) -> None:
    world.state_dir = world.state_dir / ("x" * 120)
    with pytest.raises(ExceptionGroup) as caught:
        async with world.agent():
            pass
    assert caught.group_contains(BadRequest, match="too long")
