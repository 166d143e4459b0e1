"""An engine with a use on a node, and the node falling silent."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from engine_kit import NODE, PLUGIN, Kit

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


async def start_use(kit: Kit, *, read_only: bool = False) -> str:
    volume = Volume(
        id=VolumeId("web"),
        namespace=NamespaceName("default"),
        plugin_id=PLUGIN,
        name="web",
        capabilities=CAPABILITIES,
    )
    await kit.service.registrations.create([volume])
    return await claim(kit, NODE, read_only=read_only)


async def claim(kit: Kit, node_id: NodeId, *, read_only: bool = False) -> str:
    mode = "multi-node-reader-only" if read_only else "single-node-writer"
    request = VolumeRequest(name="data", source=VolumeId("web"), read_only=read_only, access_mode=mode)
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
