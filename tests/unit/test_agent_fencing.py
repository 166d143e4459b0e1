"""An agent's own fence, by a clock that the test sets: when it begins, what it takes away, how it is lifted."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from agent_kit import FAST, NODE, A, B, World

from moorage.agent.fencing import Lease, SelfFence
from moorage.model import steps
from moorage.model.assignment import NodeRegistered
from moorage.model.claim import NodeDetached
from moorage.model.ids import VolumeId

pytestmark = pytest.mark.anyio
replace = msgspec.structs.replace


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.settings = replace(FAST, is_self_fencing=True)
    made.pages.lease_s, made.pages.grace_s = 0.06, 30.0
    return made


@pytest.mark.parametrize(
    ("silent_s", "stage"),
    [(0, "keep"), (10, "keep"), (19, "keep"), (19.1, "end"), (28, "end"), (28.1, "kill"), (39, "kill"), (9999, "kill")],
)
def test_the_stages_of_a_silence(silent_s: float, stage: str) -> None:
    lease = Lease(sent_s=100.0, lease_s=10.0, grace_s=30.0)
    assert lease.stage(100.0 + silent_s) == stage


async def test_the_count_outlives_the_agent_but_not_the_boot(tmp_path: Path) -> None:
    file = tmp_path / "lease.json"
    first = SelfFence(is_on=True, file=file, boot_id="b1", ticks=lambda: 0.0)
    await first.renewed(7.0, NodeRegistered(lease_s=10.0, grace_s=30.0))
    same = SelfFence(is_on=True, file=file, boot_id="b1", ticks=lambda: 0.0)
    await same.load()
    assert same._lease == Lease(sent_s=7.0, boot_id="b1", lease_s=10.0, grace_s=30.0)
    other = SelfFence(is_on=True, file=file, boot_id="b2", ticks=lambda: 0.0)
    await other.load()
    assert other._lease is None


async def test_a_silent_server_makes_the_agent_let_go_and_its_return_brings_all_back(world: World) -> None:
    async with world.agent():
        assert world.pages.nodes[NODE.id].is_self_fencing
        path = await world.mount(A, target=str(world.target))
        world.pages.is_down = True
        world.pages.change()
        world.now_s += 8.0  # beyond the lease, not yet beyond a third of the grace
        asked = len(world.pages.requests)
        await world.until(lambda: len(world.pages.requests) > asked + 5)
        assert world.mounter.find_mounted([path])
        world.now_s += 2.0
        await world.until(lambda: not any(world.mounter.mounts.values()) and not world.journal())
        assert not world.target.exists()
        assert world.driver.names()[-2:] == ["Unpublish", "Unstage"]
        world.pages.is_down = False
        world.pages.change()
        await world.until(lambda: world.mounter.find_mounted([path]))
    assert world.pages.claims[A].claim.wanted == "held"


async def test_what_was_taken_meanwhile_is_not_mounted_again(world: World) -> None:
    async with world.agent():
        await world.mount(A)
        kept = await world.mount(B, external_id="ext-2", volume_id=VolumeId("other"))
        world.pages.is_down = True
        world.pages.change()
        world.now_s += 20.0
        await world.until(lambda: not any(world.mounter.mounts.values()))
        world.pages.lost.add(NODE.id)
        claim = world.pages.claims[A].claim
        world.pages.node_revision += 1
        world.pages.put_claim(replace(claim, wanted="released", state=NodeDetached(evidence="self_fence: over")))
        world.pages.is_down = False
        published = world.driver.names().count("Publish")
        await world.until(lambda: world.mounter.find_mounted([kept]))
        assert NODE.id not in world.pages.lost
        assert world.driver.names().count("Publish") == published + 1


async def test_an_agent_that_did_not_promise_it_leaves_mounts_alone(world: World) -> None:
    world.settings = FAST
    async with world.agent():
        assert not world.pages.nodes[NODE.id].is_self_fencing
        path = await world.mount(A)
        world.pages.is_down = True
        world.pages.change()
        world.now_s += 100_000.0
        asked = len(world.pages.requests)
        await world.until(lambda: len(world.pages.requests) > asked + 8)
        assert world.mounter.find_mounted([path])
    assert not (world.state_dir / "lease.json").exists()


async def test_a_restarted_agent_goes_on_counting_without_a_server(world: World) -> None:
    async with world.agent():
        path = await world.mount(A)
    world.pages.is_down = True
    world.now_s += 5.0
    async with world.agent(is_awaited=False):
        asked = len(world.pages.requests)
        await world.until(lambda: len(world.pages.requests) > asked + 5)
        assert world.mounter.find_mounted([path])
        world.now_s += 10.0
        await world.until(lambda: not any(world.mounter.mounts.values()))
        world.pages.is_down = False
        await world.until(lambda: world.mounter.find_mounted([path]))


async def test_a_fence_lifted_before_the_server_told_its_claims_unmounts_nothing_more(world: World) -> None:
    async with world.agent():
        path = await world.mount(A)
    world.settings = replace(world.settings, clean_first_s=0.05)
    world.pages.is_down = world.pages.are_claims_kept_back = True
    world.mounter.busy.add(path)
    world.now_s += 10.0
    async with world.agent(is_awaited=False):
        await world.until(lambda: "Unpublish" in world.driver.names())
        registered = len(world.pages.registrations)
        world.pages.is_down = False
        await world.until(lambda: len(world.pages.registrations) > registered)
        calls = len(world.driver.calls)
        world.mounter.busy.clear()
        asked = world.pages.requests.count("PUT register")
        await world.until(lambda: world.pages.requests.count("PUT register") > asked + 5)
        assert len(world.driver.calls) <= calls + 1  # one may have been under way
        world.pages.are_claims_kept_back = False
        told = world.pages.requests.count("GET claims")
        await world.until(lambda: world.pages.requests.count("GET claims") > told)
        # The one that was under way may have got through: then it is mounted again.
        await world.until(lambda: world.mounter.find_mounted([path]))
        await world.release(A)


async def test_a_driver_that_does_not_unpublish_is_cut_off_in_the_end(world: World) -> None:
    async with world.agent():
        path = await world.mount(A)
        world.driver.fail(steps.UnpublishVolume, times=10_000)
        world.pages.is_down = True
        world.pages.change()
        world.now_s += 12.0
        await world.until(lambda: world.driver.names().count("Unpublish") >= 2)
        assert world.mounter.find_mounted([path])
        world.now_s += 12.0
        await world.until(lambda: not world.mounter.find_mounted([path]))
