"""The whole agent on a node that the server had lost: it lets go of what is not its own, and then comes back."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec
import pytest
from agent_kit import FAST, NODE, A, B, World

from moorage.model import steps
from moorage.model.claim import NodeDetached
from moorage.model.ids import VolumeId

pytestmark = pytest.mark.anyio
replace = msgspec.structs.replace


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def lose(world: World) -> int:
    """The server loses the node; returns how often it had registered."""
    world.pages.lost.add(NODE.id)
    world.pages.node_revision += 1
    world.pages.lease_s = 0.06
    world.pages.change()
    return len(world.pages.registrations)


def take_away(world: World) -> None:
    """The server gives claim A to somebody else."""
    claim = world.pages.claims[A].claim
    world.pages.node_revision += 1
    world.pages.put_claim(replace(claim, wanted="released", state=NodeDetached(evidence="operator: sure")))


async def test_what_was_taken_goes_before_the_node_comes_back_and_the_rest_stays(world: World) -> None:
    world.pages.lease_s = 0.06
    async with world.agent():
        taken = await world.mount(A)
        kept = await world.mount(B, external_id="ext-2", volume_id=VolumeId("other"))
        calls = len(world.driver.calls)
        gate = world.driver.gates[steps.UnpublishVolume] = anyio.Event()
        before = lose(world)
        take_away(world)
        await world.until(lambda: world.driver.names()[calls:] == ["Unpublish"])
        await world.until(lambda: world.pages.requests.count("GET claims") > 2)
        assert True not in world.pages.registrations[before:]
        assert world.mounter.find_mounted([kept])
        assert NODE.id in world.pages.lost
        gate.set()
        await world.until(lambda: NODE.id not in world.pages.lost)
        assert not world.mounter.find_mounted([taken])
        assert True in world.pages.registrations[before:]
    assert world.mounter.find_mounted([kept])
    assert world.driver.names()[calls:] == ["Unpublish", "Unstage"]


async def test_a_claim_that_is_still_its_own_stays_mounted_throughout(world: World) -> None:
    world.pages.lease_s = 0.06
    async with world.agent():
        path = await world.mount(A, target=str(world.target))
        calls = len(world.driver.calls)
        lose(world)
        await world.until(lambda: NODE.id not in world.pages.lost)
        again = len(world.pages.registrations)
        await world.until(lambda: len(world.pages.registrations) > again)
        assert world.mounter.find_mounted([path])
    assert len(world.driver.calls) == calls


async def test_an_agent_that_starts_while_its_node_is_lost_keeps_what_the_server_lists(world: World) -> None:
    async with world.agent():
        kept = await world.mount(A)
        await world.mount(B, external_id="ext-2", volume_id=VolumeId("other"))
    calls = len(world.driver.calls)
    before = lose(world)
    claim = world.pages.claims[B].claim
    world.pages.put_claim(replace(claim, wanted="released", state=NodeDetached(evidence="operator: sure")))
    async with world.agent():
        assert world.mounter.find_mounted([kept])
        assert world.driver.names()[calls:] == ["Unpublish", "Unstage"]
        assert world.pages.registrations[before:] == [True]
    assert world.mounter.find_mounted([kept])


async def test_a_lost_node_does_not_come_back_with_something_that_is_not_its_own(world: World) -> None:
    async with world.agent():
        path = await world.mount(A)
    world.mounter.busy.add(path)
    world.settings = replace(FAST, clean_first_s=0.05)
    before = lose(world)
    take_away(world)
    async with world.agent(is_awaited=False):
        await world.until(lambda: len(world.pages.registrations) >= before + 2)
        assert True not in world.pages.registrations[before:]
        assert NODE.id in world.pages.lost
        world.mounter.busy.clear()
        await world.until(lambda: NODE.id not in world.pages.lost)
        assert not world.mounter.find_mounted([path])


async def test_nothing_is_mounted_before_the_server_has_taken_the_node(world: World) -> None:
    """Simulation, seed 539: an agent of a new boot mounted what a fence hook's word was about to free."""
    async with world.agent():
        await world.mount(A)
    world.mounter.reboot()
    world.node = replace(NODE, boot_id="boot-2")
    calls = len(world.driver.calls)
    world.settings = replace(FAST, clean_first_s=0.05)
    lose(world)
    world.pages.is_refusing = True
    before = len(world.pages.registrations)
    async with world.agent(is_awaited=False):
        await world.until(lambda: len(world.pages.registrations) >= before + 3)
        assert world.driver.calls[calls:] == []
        assert set(world.pages.empty[before:]) == {True}
        world.pages.is_refusing = False
        await world.until(lambda: world.driver.names()[calls:] == ["Stage", "Publish"])
        again = len(world.pages.empty)
        await world.until(lambda: len(world.pages.empty) > again)
        assert world.pages.empty[-1] is False


async def test_a_lost_node_mounts_nothing_new_until_it_is_taken_back(world: World) -> None:
    world.pages.lease_s = 0.06
    async with world.agent():
        kept = await world.mount(A)
        world.pages.is_refusing = True
        before = lose(world)
        await world.until(lambda: len(world.pages.registrations) >= before + 3)
        calls = len(world.driver.calls)
        world.pages.put_claim(world.claim(B, external_id="ext-2", volume_id=VolumeId("other")))
        seen = len(world.pages.registrations)
        await world.until(lambda: len(world.pages.registrations) >= seen + 3)
        assert world.driver.calls[calls:] == []
        assert world.mounter.find_mounted([kept])
        world.pages.is_refusing = False
        await world.until(lambda: world.pages.path_of(B))


async def test_a_node_that_was_taken_back_mounts_by_a_list_from_after_that_only(world: World) -> None:
    """Property: a claim that the return itself freed was mounted by the list from before it."""
    world.pages.lease_s = 0.06
    async with world.agent():
        world.pages.is_refusing = True
        before = lose(world)
        await world.until(lambda: len(world.pages.registrations) >= before + 2)
        world.pages.put_claim(world.claim(A))
        world.pages.ahead = 1
        world.pages.is_refusing = False
        await world.until(lambda: NODE.id not in world.pages.lost)
        seen = len(world.pages.registrations)
        await world.until(lambda: len(world.pages.registrations) >= seen + 3)
        assert world.driver.calls == []
        world.pages.ahead = 0
        world.pages.node_revision += 1
        world.pages.change()
        await world.until(lambda: world.pages.path_of(A))


async def test_a_node_that_was_lost_before_it_heard_that_it_was_taken_comes_back(world: World) -> None:
    """Simulation, seeds 8729 and 9490: the agent waited for its registration before it read the list to be clean by."""
    world.pages.is_losing_answers = True
    async with world.agent(is_awaited=False):
        await world.until(lambda: NODE.id in world.pages.lost)
        world.pages.is_losing_answers = False
        await world.until(lambda: NODE.id not in world.pages.lost)
        assert world.pages.registrations[-1] is True
        world.pages.put_claim(world.claim(A))
        await world.until(lambda: world.pages.path_of(A))
