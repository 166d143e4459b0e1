"""After a start, nobody is given a volume's call while another controller may still be at one."""

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
from moorage.model.assignment import NodeRegistered
from moorage.model.ids import NodeId
from moorage.model.node import Node
from moorage.model.plugin import ControllerInfo, Instance, Plugin
from moorage.rules.nodes import FencingSettings
from moorage.state.memory import MemoryStore

pytestmark = pytest.mark.anyio
NAMES = {NODE: "n1", OTHER: "n2"}
KEY = "volumes/default/web"
SERIAL = f"volume/{PLUGIN}/name:web"


def facts(*healthy: str) -> Facts:
    instances = {NodeId(n): Instance(node_id=NodeId(n), healthy=True, controller=ControllerInfo()) for n in healthy}
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
