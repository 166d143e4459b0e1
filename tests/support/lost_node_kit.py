"""An engine with a use on a node, and the node falling silent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from engine_kit import NODE, PLUGIN, Kit, running_kit

from moorage.model.assignment import Report, StepReport
from moorage.model.claim import Allocation, VolumeRequest
from moorage.model.ids import AllocationId, NamespaceName, NodeId, VolumeId
from moorage.model.node import Node
from moorage.model.volume import Capability, Volume
from moorage.rules.nodes import FencingSettings

QUICK = FencingSettings(lease_s=0.2, grace_s=0.2)
OTHER = NodeId("99999999-2222-3333-4444-555555555555")
CAPABILITIES = (
    Capability(access_mode="single-node-writer", attachment_mode="file-system"),
    Capability(access_mode="multi-node-reader-only", attachment_mode="file-system"),
)


async def wait_for(what: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not what():
            await anyio.sleep(0.01)


async def start_use(kit: Kit, *, read_only: bool = False, name: str = "web") -> str:
    volume = Volume(
        id=VolumeId(name),
        namespace=NamespaceName("default"),
        plugin_id=PLUGIN,
        name=name,
        capabilities=CAPABILITIES,
    )
    await kit.service.registrations.create([volume])
    return await claim(kit, NODE, read_only=read_only, name=name)


async def claim(kit: Kit, node_id: NodeId, *, read_only: bool = False, name: str = "web") -> str:
    mode = "multi-node-reader-only" if read_only else "single-node-writer"
    request = VolumeRequest(name="data", source=VolumeId(name), read_only=read_only, access_mode=mode)
    use = Allocation(id=AllocationId(""), namespace=NamespaceName("default"), node_id=node_id, volumes=(request,))
    started = await kit.service.allocations.start(use)
    return started.value.id


def status_of(kit: Kit, allocation_id: str) -> str:
    found = kit.service.reads.find_allocation(allocation_id)
    return found.value.status if found else "gone"


def is_down(kit: Kit) -> bool:
    found = kit.service.reads.find_node(NODE)
    return found is not None and found.value.status == "down"


async def silence(kit: Kit) -> None:
    """The node falls silent, with its agent's queries: until the server has noticed."""
    kit.is_mounting = False
    await wait_for(lambda: is_down(kit))
    await kit.service.nodes.register(Node(id=OTHER, name="n2", boot_id="b2"))
    await kit.service.nodes.report_plugins(OTHER, {PLUGIN: kit.driver.instance(OTHER)})


@asynccontextmanager
async def losing_node(
    fencing: FencingSettings = QUICK, *, uses: int = 1, read_only: bool = False, has_controller: bool = False
) -> AsyncIterator[tuple[Kit, list[str]]]:
    """An engine, and uses that ran on the node when it fell silent; the other node lives on until the block ends."""
    async with running_kit(fencing=fencing) as kit, anyio.create_task_group() as group:
        started = [await start_use(kit, read_only=read_only)]
        started += [await claim(kit, NODE, read_only=read_only) for _ in range(uses - 1)]
        await wait_for(lambda: {status_of(kit, use) for use in started} == {"running"})
        await silence(kit)
        group.start_soon(keep_alive, kit, OTHER)
        if has_controller:
            group.start_soon(run_controller_of, kit, OTHER)
        yield kit, started
        group.cancel_scope.cancel()


async def keep_alive(kit: Kit, node_id: NodeId) -> None:
    """A node whose agent renews its lease."""
    while True:
        await kit.service.nodes.register(Node(id=node_id, name="n", boot_id="b2"))
        await anyio.sleep(0.05)


async def run_controller_of(kit: Kit, node_id: NodeId) -> None:
    """The other node's agent makes the controller calls now."""
    index = 0
    while True:
        found = await kit.service.nodes.wait_steps(node_id, index=index, wait_s=60)
        index = found.index
        reports: tuple[Report, ...] = tuple(
            StepReport(key=a.key, revision=a.revision, outcome=kit.driver.run(a.step)) for a in found.steps
        )
        if reports:
            await kit.service.nodes.report(node_id, reports)
