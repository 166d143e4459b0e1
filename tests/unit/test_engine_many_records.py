"""What is more than a store takes: records in one transaction, by each way that can, and bytes of one record."""

from __future__ import annotations

import anyio
import msgspec
import pytest
from engine_kit import NODE, PLUGIN, Kit, running_kit
from lost_node_kit import CAPABILITIES, claim, silence, status_of, wait_for

from moorage.errors import BadRequest, Conflict
from moorage.model.claim import Allocation, VolumeRequest
from moorage.model.ids import AllocationId, NamespaceName, NodeId, PluginId, VolumeId
from moorage.model.node import Node
from moorage.model.volume import Volume
from moorage.rules.nodes import FencingSettings
from moorage.state.store import TXN_OPS_MAX

replace = msgspec.structs.replace
pytestmark = pytest.mark.anyio
MANY = TXN_OPS_MAX + 30
READER = "multi-node-reader-only"


def a_volume(name: str, external_id: str = "") -> Volume:
    return Volume(
        id=VolumeId(name),
        namespace=NamespaceName("default"),
        plugin_id=PLUGIN,
        name=name,
        capabilities=CAPABILITIES,
        external_id=external_id,
    )


async def start(kit: Kit, *requests: VolumeRequest) -> str:
    use = Allocation(id=AllocationId(""), namespace=NamespaceName("default"), node_id=NODE, volumes=requests)
    return (await kit.service.allocations.start(use)).value.id


async def test_a_lost_node_with_many_uses_of_several_volumes_is_freed() -> None:
    """Each use reads one volume and writes another: the readers' claims are freed by the grace, and with each go its
    allocation and the writer's claim."""
    fencing = FencingSettings(lease_s=3.0, grace_s=0.2)
    async with running_kit(fencing=fencing) as kit:
        names = [f"w{number:02}" for number in range(60)]
        await kit.service.registrations.create([a_volume(name) for name in ("shared", *names)])
        reading = VolumeRequest(name="in", source="shared", read_only=True, access_mode=READER)  # type: ignore[arg-type]
        uses = []
        for name in names:
            writing = VolumeRequest(name="out", source=name, access_mode="single-node-writer")  # type: ignore[arg-type]
            uses.append(await start(kit, reading, writing))
            await kit.register()  # the lease begins anew
        await wait_for(lambda: {status_of(kit, use) for use in uses} == {"running"})
        await silence(kit)
        with anyio.fail_after(10):
            await wait_for(lambda: {status_of(kit, use) for use in uses} == {"lost"})


async def test_many_plugins_that_are_reported_or_lost_at_once_are_on_record() -> None:
    async with running_kit(fencing=FencingSettings(lease_s=0.5, grace_s=60.0)) as kit:
        other = NodeId("99999999-2222-3333-4444-555555555555")
        await kit.service.nodes.register(Node(id=other, name="n2", boot_id="b2"))
        told = {PluginId(f"p{number:03}"): kit.driver.instance(other) for number in range(MANY)}
        await kit.service.nodes.report_plugins(other, told)

        def count_healthy() -> int:
            plugins = [record.value for record in kit.service.reads.list_plugins()]
            return sum(other in p.instances and p.instances[other].healthy for p in plugins)

        assert count_healthy() == MANY
        await wait_for(lambda: count_healthy() == 0)


async def test_a_volume_with_many_ended_uses_is_deregistered_by_force() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume("web")])
        uses = [await claim(kit, NODE, read_only=True) for _ in range(MANY)]
        await wait_for(lambda: {status_of(kit, use) for use in uses} == {"running"})
        kit.is_mounting = False
        for use in uses:
            await kit.service.allocations.stop(use)
        await kit.service.removals.deregister("default", "web", force=True)
        assert kit.service.reads.find_volume("default", "web") is None
        assert not list(kit.repo.view.claims)


async def test_a_use_of_a_disk_with_too_many_records_is_refused_with_what_helps() -> None:
    async with running_kit() as kit:
        one_disk = [a_volume(f"v{number:03}", external_id="ext") for number in range(MANY)]
        await kit.service.registrations.register(one_disk)
        with pytest.raises(Conflict, match=rf"have {MANY + 2} records.*at most {TXN_OPS_MAX} can be: deregister"):
            await claim(kit, NODE, name="v000")
        for volume in one_disk[40:]:
            await kit.service.removals.deregister("default", volume.id, force=False)
        assert await claim(kit, NODE, name="v000")


async def test_a_record_that_is_larger_than_a_store_keeps_is_refused_by_name() -> None:
    async with running_kit() as kit:
        large = replace(a_volume("web"), parameters={f"p{number}": "secret" * 100 for number in range(3000)})
        with pytest.raises(
            BadRequest, match=r"volumes/default/web takes .* most of them in parameters.*may have"
        ) as told:
            await kit.service.registrations.create([large])
        assert "secret" not in str(told.value)
        assert kit.service.reads.find_volume("default", "web") is None
        assert kit.driver.volumes == {}
