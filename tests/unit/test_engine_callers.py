"""Nobody is given a volume's call while another controller may still be at one: after a start of the server, and when
that controller's driver is sick."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from app_asking import a_body, ask, read
from engine_kit import NODE, PLUGIN, Kit
from lost_node_kit import OTHER, wait_for

from moorage.engine.callers import CALLERS_MAX, Callers
from moorage.engine.plugin_facts import Facts
from moorage.engine.ports import EngineSettings
from moorage.model.assignment import NodeRegistered, PluginsReported
from moorage.model.ids import NodeId
from moorage.model.node import Node
from moorage.model.plugin import ControllerInfo, Instance, Plugin
from moorage.rules.nodes import FencingSettings, lose
from moorage.state.keys import node_key
from moorage.state.memory import MemoryStore
from moorage.state.repo import Write

pytestmark = pytest.mark.anyio
NAMES = {NODE: "n1", OTHER: "n2"}
KEY = "volumes/default/web"
SERIAL = f"volume/{PLUGIN}/name:web"


def facts(*healthy: str, sick: tuple[str, ...] = ()) -> Facts:
    instances = {
        NodeId(n): Instance(node_id=NodeId(n), healthy=n in healthy, controller=ControllerInfo())
        for n in sorted((*healthy, *sick))
    }
    return Facts(Plugin(id=PLUGIN, instances=instances))


def test_who_tells_decides_who_calls() -> None:
    callers, plugin = Callers(), facts("n1", "n2", "n3")
    assert callers.choose(plugin, "v") is None
    assert callers.find_silent(plugin) == ["n1", "n2", "n3"]
    assert callers.hear(NodeId("n1"), ())
    assert callers.hear(NodeId("n3"), ("v",))
    assert callers.choose(plugin, "v") is None
    assert callers.find_silent(plugin) == ["n2"]
    # What a node tells later is of calls that this run gave it.
    assert not callers.hear(NodeId("n1"), ("v",))
    assert callers.hear(NodeId("n2"), ())
    assert callers.choose(plugin, "v") == "n3"
    assert callers.choose(plugin, "w") == "n1"
    assert callers.find_silent(plugin) == []


def test_one_controller_waits_for_nobody_and_a_lost_one_is_not_waited_for() -> None:
    callers = Callers()
    assert callers.choose(facts("n1"), "v") == "n1"
    assert callers.choose(facts("n1", "n2"), "v") is None
    callers.hear(NodeId("n2"), ())
    assert callers.choose(facts("n1", "n2"), "v") is None
    assert callers.choose(facts("n2"), "v") == "n2"
    assert callers.choose(facts(), "v") is None
    # What this run gave out itself is not given to who tells of an older call.
    callers.hear(NodeId("n1"), ("v",))
    assert callers.choose(facts("n1", "n2"), "v") == "n2"


def test_a_sick_controller_keeps_what_it_is_at_until_it_tells_otherwise() -> None:
    callers, both, one = Callers(), facts("n1", "n2"), facts("n2", sick=("n1",))
    for name in ("n1", "n2"):
        callers.hear(NodeId(name), ())
    names = [f"v{n}" for n in range(20)]
    own = [name for name in names if callers.choose(both, name) == "n1"]
    assert 2 < len(own) < 18
    # Its report comes before the record says that it is sick.
    assert not callers.tell(NodeId("n1"), own[:2])
    assert [callers.choose(both, name) for name in own[:2]] == ["n1", "n1"]
    assert [callers.choose(one, name) for name in own[:3]] == [None, None, "n2"]
    assert callers.find_busy(one, own[0]) == "n1"
    assert callers.find_busy(both, own[0]) is None
    # One call has ended; then the driver is well again, and its volume stays with it.
    assert callers.tell(NodeId("n1"), own[1:2])
    assert [callers.choose(one, name) for name in own[:2]] == ["n2", None]
    assert callers.choose(both, own[1]) == "n1"
    # What went to another one meanwhile is not held by an old word.
    assert callers.tell(NodeId("n1"), own[:1])
    assert callers.choose(one, own[0]) == "n2"


def test_a_lost_controller_holds_nothing_and_a_new_server_hears_the_sick_ones_too() -> None:
    lost: set[NodeId] = set()
    callers, one = Callers(lost.__contains__), facts("n2", sick=("n1",))
    callers.hear(NodeId("n2"), ())
    assert callers.choose(one, "v") is None
    assert callers.find_silent(one) == ["n1"]
    assert not callers.has_opened(one)
    callers.hear(NodeId("n1"), ("v",))
    assert callers.has_opened(one)
    assert not callers.has_opened(one)
    assert [callers.choose(one, name) for name in ("v", "w")] == [None, "n2"]
    lost.add(NodeId("n1"))
    assert callers.release(NodeId("n1"))
    assert not callers.release(NodeId("n1"))
    assert callers.choose(one, "v") == "n2"
    # A silent one that is lost is not waited for.
    anew = Callers(lost.__contains__)
    anew.hear(NodeId("n2"), ())
    assert anew.choose(facts("n2", sick=("n1",)), "v") == "n2"


def test_a_nodes_own_report_counts_more_than_a_registration_that_comes_later() -> None:
    callers, one = Callers(), facts("n2", sick=("n1",))
    callers.hear(NodeId("n2"), ())
    callers.tell(NodeId("n1"), ("v",))
    callers.hear(NodeId("n1"), ("w",))
    assert [callers.choose(one, name) for name in ("v", "w")] == [None, "n2"]


def test_what_is_remembered_is_bounded() -> None:
    callers = Callers()
    callers.hear(NodeId("n1"), (f"v{n}" for n in range(CALLERS_MAX + 10)))
    assert len(callers._last) == CALLERS_MAX


@asynccontextmanager
async def engine(store: MemoryStore, *, lease_s: float = 60.0) -> AsyncIterator[Kit]:
    """A run of the server whose nodes have not spoken yet."""
    settings = EngineSettings(request_s=0.1, fencing=FencingSettings(lease_s=lease_s, grace_s=60.0))
    kit = Kit(store, settings)
    async with anyio.create_task_group() as group:
        await group.start(kit.service.run)
        yield kit
        group.cancel_scope.cancel()


async def tell(kit: Kit, node_id: NodeId, epoch: int | None, *calling: str) -> NodeRegistered:
    node = Node(id=node_id, name=NAMES[node_id], boot_id="b1")
    return await kit.service.nodes.register(node, epoch=epoch, calling=calling)


def caller_of(kit: Kit) -> NodeId | None:
    planned = kit.service.reconciler.assigned.get(KEY)
    return planned.node_id if planned else None


@asynccontextmanager
async def restarted(*, lease_s: float = 60.0) -> AsyncIterator[Kit]:
    """A server that was started anew with a create under way, which one of two controllers may be at."""
    store = MemoryStore()
    async with engine(store) as kit:
        for node_id in (NODE, OTHER):
            await tell(kit, node_id, None)
            await kit.service.nodes.report_plugins(node_id, {PLUGIN: kit.driver.instance(node_id)})
        assert (await ask(kit, "PUT", "/v1/volume/csi/web/create", a_body("web"))).status >= 500
        assert caller_of(kit) is not None
    async with engine(store, lease_s=lease_s) as kit:
        yield kit


async def test_a_new_server_hears_everybody_before_it_hands_out_a_call() -> None:
    async with restarted() as kit:
        assert caller_of(kit) is None
        # Neither has dropped what the run before gave to it: the first word only makes the new run known.
        epoch = (await tell(kit, NODE, 7)).epoch
        assert epoch == (await tell(kit, OTHER, 0, SERIAL)).epoch
        assert caller_of(kit) is None
        await tell(kit, NODE, epoch)
        found = await read(kit, "GET", "/v1/volume/csi/web/why")
        assert any("until n2 has told its calls, or is lost" in text for text in found["Blocks"])
        assert "moorage node status" in [c["Command"] for c in found["Commands"]]
        assert caller_of(kit) is None
        await tell(kit, OTHER, epoch, SERIAL)
        assert caller_of(kit) == OTHER


async def test_a_new_server_waits_for_a_silent_controller_as_long_as_its_lease() -> None:
    async with restarted(lease_s=0.5) as kit:
        epoch = (await tell(kit, NODE, 0)).epoch
        await tell(kit, NODE, epoch)
        assert caller_of(kit) is None

        async def keep() -> None:
            while True:
                await tell(kit, NODE, epoch)
                await anyio.sleep(0.05)

        async with anyio.create_task_group() as group:
            group.start_soon(keep)
            await wait_for(lambda: caller_of(kit) == NODE)
            group.cancel_scope.cancel()


async def report(kit: Kit, node_id: NodeId, after: int, *calling: str, is_well: bool = True) -> PluginsReported:
    instances = {PLUGIN: kit.driver.instance(node_id, healthy=is_well)}
    return await kit.service.nodes.report_plugins(node_id, instances, calling=calling, after=after)


@asynccontextmanager
async def called() -> AsyncIterator[tuple[Kit, NodeId, NodeId, int]]:
    """A create under way at one of two controllers: it, the other one, and the count of its last report."""
    async with engine(MemoryStore()) as kit:
        epoch = kit.service.reconciler.epoch
        counts = {}
        for node_id in (NODE, OTHER):
            await tell(kit, node_id, epoch)
            counts[node_id] = (await report(kit, node_id, epoch)).count
        assert (await ask(kit, "PUT", "/v1/volume/csi/web/create", a_body("web"))).status >= 500
        first = caller_of(kit)
        assert first is not None
        yield kit, first, OTHER if first == NODE else NODE, counts[first]


async def test_the_call_of_a_driver_that_is_told_sick_is_left_where_it_is() -> None:
    async with called() as (kit, first, other, count):
        count = (await report(kit, first, count, SERIAL, is_well=False)).count
        assert caller_of(kit) is None
        found = await read(kit, "GET", "/v1/volume/csi/web/why")
        text = f'node {NAMES[first]} is at a call for this disk, and its driver of plugin "{PLUGIN}" does not answer'
        assert any(text in block for block in found["Blocks"]), found
        await report(kit, first, count, is_well=False)
        assert caller_of(kit) == other


async def test_a_driver_that_is_told_sick_without_a_call_loses_its_steps_at_once() -> None:
    async with called() as (kit, first, other, count):
        await report(kit, first, count, "volume/another", is_well=False)
        assert caller_of(kit) == other


async def test_a_report_that_was_overtaken_is_not_taken() -> None:
    async with called() as (kit, first, _other, count):
        sick = await report(kit, first, count, SERIAL, is_well=False)
        assert sick == PluginsReported(count=count + 1)
        # It comes once more, or for the first time after the agent has given it up and told something else.
        assert await report(kit, first, count, is_well=False) == PluginsReported(count=count + 1, is_taken=False)
        assert caller_of(kit) is None
        # An agent of an earlier version does not count; what it tells is taken, and moves the count.
        await kit.service.nodes.report_plugins(first, {PLUGIN: kit.driver.instance(first)})
        assert not (await report(kit, first, count + 1, is_well=False)).is_taken
        assert caller_of(kit) == first


async def test_the_volumes_of_a_node_that_is_lost_at_its_calls_go_to_another_one() -> None:
    async with called() as (kit, first, other, count):
        await report(kit, first, count, SERIAL, is_well=False)
        assert caller_of(kit) is None
        record = kit.service.reads.find_node(first)
        assert record is not None
        write = Write().put(node_key(first), lose(record.value, now_ns=1), revision=record.modified)
        await kit.repo.commit(write)
        assert caller_of(kit) == other
