"""What is decided again when a plugin's record changes: what rests on the change, and nothing else.

A plugin has an instance for each node, so that its record changes with every node; records that wait are as many as
there are volumes.
"""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from engine_kit import NODE, PLUGIN, Kit, running_kit

from moorage.model.ids import NamespaceName, NodeId, VolumeId
from moorage.model.node import Node
from moorage.model.plugin import Instance
from moorage.model.volume import Capability, Volume
from moorage.state import keys
from moorage.state.memory import MemoryStore
from moorage.state.repo import Write

pytestmark = pytest.mark.anyio
replace = msgspec.structs.replace

FIRST, SECOND = (NodeId(f"{n}0000000-2222-3333-4444-555555555555") for n in (0, 2))
COUNT = 40


async def put_new(kit: Kit, count: int = COUNT) -> None:
    """Volumes that are to be created."""
    write = Write()
    for number in range(count):
        name = f"new-{number}"
        volume = Volume(
            id=VolumeId(name),
            namespace=NamespaceName("default"),
            plugin_id=PLUGIN,
            name=name,
            capabilities=(Capability(access_mode="single-node-writer", attachment_mode="file-system"),),
        )
        write.put(keys.volume_key(*volume.key), volume, revision=0)
    await kit.repo.commit(write)


async def register(kit: Kit, node_id: NodeId) -> None:
    await kit.service.nodes.register(Node(id=node_id, name=node_id[:4], boot_id="b1"))


async def report(kit: Kit, node_id: NodeId, *, healthy: bool = True, is_controller: bool = True) -> None:
    """A node comes and tells of its driver."""
    await register(kit, node_id)
    instance: Instance = kit.driver.instance(node_id, healthy=healthy)
    if not is_controller:
        instance = replace(instance, controller=None)
    await kit.service.nodes.report_plugins(node_id, {PLUGIN: instance})


def find_places(kit: Kit) -> dict[str, NodeId]:
    """The node that each step is with."""
    return {key: planned.node_id for key, planned in kit.service.reconciler.assigned.items()}


def count_plans(kit: Kit) -> list[str]:
    """The keys that are planned from now on."""
    planned: list[str] = []
    planner = kit.service.reconciler.planner
    plan = planner.plan

    def note(key: str, *, now_ns: int) -> object:
        planned.append(key)
        return plan(key, now_ns=now_ns)

    planner.plan = note  # type: ignore[assignment,method-assign]
    return planned


async def test_another_node_s_driver_decides_nothing_again() -> None:
    async with running_kit() as kit:
        kit.is_calling = False
        await put_new(kit)
        before = find_places(kit)
        assert len(before) == COUNT
        planned = count_plans(kit)
        await report(kit, FIRST, is_controller=False)
        await report(kit, FIRST, healthy=False, is_controller=False)
        assert planned == []
        assert find_places(kit) == before


async def test_steps_stay_where_they_are_when_a_controller_comes() -> None:
    async with running_kit() as kit:
        kit.is_calling = False
        await put_new(kit)
        planned = count_plans(kit)
        await report(kit, FIRST)
        assert planned == []
        assert set(find_places(kit).values()) == {NODE}


async def test_steps_of_a_controller_that_fails_go_to_the_others_and_no_other_step_moves() -> None:
    async with running_kit() as kit:
        kit.is_calling = False
        await report(kit, FIRST)
        await report(kit, SECOND)
        await put_new(kit)
        before = find_places(kit)
        shares = Counter(before.values())
        assert set(shares) == {NODE, FIRST, SECOND}
        planned = count_plans(kit)
        await report(kit, FIRST, healthy=False)
        after = find_places(kit)
        assert len(planned) == shares[FIRST]
        assert {key for key in before if before[key] != after[key]} == set(planned)
        assert set(after.values()) == {NODE, SECOND}


async def test_what_waits_for_a_controller_gets_the_first_that_comes() -> None:
    async with running_kit() as kit:
        kit.is_calling = False
        await report(kit, NODE, healthy=False)
        await put_new(kit)
        assert find_places(kit) == {}
        await report(kit, FIRST, is_controller=False)
        assert find_places(kit) == {}
        await report(kit, NODE)
        assert len(find_places(kit)) == COUNT


async def test_all_is_decided_again_when_the_driver_is_another_one() -> None:
    async with running_kit() as kit:
        kit.is_calling = False
        await put_new(kit)
        planned = count_plans(kit)
        instance = kit.driver.instance(NODE)
        assert instance.controller is not None
        other = replace(instance, controller=replace(instance.controller, supports_attach_detach=False))
        await kit.service.nodes.report_plugins(NODE, {PLUGIN: other})
        assert len(set(planned)) == COUNT


async def test_after_a_restart_the_last_controller_that_is_heard_decides_and_no_other_node_does() -> None:
    store = MemoryStore()
    async with running_kit(store) as kit:
        await report(kit, FIRST)
        await report(kit, SECOND, is_controller=False)
    async with running_kit(store) as kit:
        kit.is_calling = False
        await put_new(kit)
        assert find_places(kit) == {}, "the other controller may be at one of them"
        planned = count_plans(kit)
        await register(kit, SECOND)
        assert planned == []
        await register(kit, FIRST)
        assert len(set(planned)) == len(find_places(kit)) == COUNT
        planned.clear()
        await register(kit, NodeId("30000000-2222-3333-4444-555555555555"))
        assert planned == []


async def test_nodes_that_are_heard_after_the_controllers_decide_nothing_again() -> None:
    store = MemoryStore()
    async with running_kit(store) as kit:
        await report(kit, SECOND, is_controller=False)
    async with running_kit(store) as kit:
        kit.is_calling = False
        await put_new(kit)
        planned = count_plans(kit)
        await register(kit, SECOND)
        assert planned == []
        assert len(find_places(kit)) == COUNT
