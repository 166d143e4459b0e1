"""Volumes through the engine: intent on record, the driver's answer, what an error leaves behind."""

from __future__ import annotations

import anyio
import msgspec
import pytest
from engine_kit import NODE, PLUGIN, running_kit

from moorage.errors import BadRequest, Conflict, DeadlineExceeded, NotFound, Rejected, Unavailable
from moorage.model import steps
from moorage.model.claim import Allocation, VolumeRequest
from moorage.model.ids import AllocationId, NamespaceName, NodeId, PluginId, VolumeId
from moorage.model.volume import Capability, Fault, Secrets, Volume
from moorage.rules.backoff import UNCLEAR_MAX
from moorage.state.memory import MemoryStore
from moorage.testing.scripted import fault

replace = msgspec.structs.replace
pytestmark = pytest.mark.anyio
WRITER = Capability(access_mode="single-node-writer", attachment_mode="file-system")


def a_volume(volume_id: str, **fields: object) -> Volume:
    return Volume(
        id=VolumeId(volume_id),
        namespace=NamespaceName("default"),
        plugin_id=PLUGIN,
        name=volume_id,
        capabilities=(WRITER,),
        **fields,  # type: ignore[arg-type]
    )


def a_use(volume_id: str, allocation_id: str = "", **fields: object) -> Allocation:
    return Allocation(
        id=AllocationId(allocation_id),
        namespace=NamespaceName("default"),
        node_id=NodeId(""),
        volumes=(VolumeRequest(name="data", source=VolumeId(volume_id), **fields),),  # type: ignore[arg-type]
    )


async def test_create_delete() -> None:
    async with running_kit() as kit:
        written = await kit.service.registrations.create([a_volume("web")])
        assert written.volumes[0].record.value.external_id == "vol-1"
        assert [r.record.value.id for r in kit.service.reads.list_volumes("default")] == ["web"]
        await kit.service.removals.delete("default", "web", secrets=Secrets())
        assert kit.driver.volumes == {}
        assert kit.service.reads.find_volume("default", "web") is None
        with pytest.raises(NotFound, match="volume not found: web"):
            await kit.service.removals.delete("default", "web", secrets=Secrets())


async def test_create_refused_leaves_nothing() -> None:
    async with running_kit() as kit:
        kit.driver.fail(steps.CreateVolume, fault("OUT_OF_RANGE", final=True, message="too big"))
        with pytest.raises(Rejected, match="unsupported capacity_range"):
            await kit.service.registrations.create([a_volume("web")])
        with anyio.fail_after(5):
            while list(kit.repo.view.volumes):
                await anyio.sleep(0.01)
        await kit.service.registrations.create([a_volume("web")])
        assert len(kit.driver.volumes) == 1


async def test_create_answer_lost_is_repeated_not_doubled() -> None:
    async with running_kit() as kit:
        kit.driver.fail(steps.CreateVolume, fault("UNAVAILABLE", final=False), after_effect=True)
        await kit.service.registrations.create([a_volume("web")])
        assert len(kit.driver.volumes) == 1
        assert [type(c).__name__ for c in kit.driver.calls] == ["CreateVolume", "CreateVolume"]


async def test_create_survives_restart_between_intent_and_call() -> None:
    store = MemoryStore()
    async with running_kit(store, request_s=0.2) as kit:
        kit.is_calling = False
        with pytest.raises(Unavailable, match="is not created yet"):
            await kit.service.registrations.create([a_volume("web")])
        assert kit.service.reads.find_volume("default", "web") is None
    async with running_kit(store) as kit:
        with anyio.fail_after(5):
            while kit.service.reads.find_volume("default", "web") is None:
                await anyio.sleep(0.01)
        assert len(kit.driver.volumes) == 1


async def test_second_create_of_the_same_joins_the_first() -> None:
    async with running_kit() as kit:
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(kit.service.registrations.create, [a_volume("web")])
        assert len(kit.driver.volumes) == 1


async def test_external_id_of_another_volume_is_refused() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume("one")])
        twin = a_volume("two")
        same_name = Volume(**{f: getattr(twin, f) for f in twin.__struct_fields__} | {"name": "one"})
        with pytest.raises(Rejected, match="registered already"):
            await kit.service.registrations.create([same_name])
        assert len(kit.driver.volumes) == 1
        assert kit.service.reads.find_volume("default", "one") is not None


async def test_delete_refused_keeps_the_volume() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume("web")])
        kit.driver.fail(steps.DeleteVolume, fault("FAILED_PRECONDITION", final=True, message="has snapshots"))
        with pytest.raises(Rejected, match="is in use"):
            await kit.service.removals.delete("default", "web", secrets=Secrets())
        found = kit.service.reads.find_volume("default", "web")
        assert found is not None
        assert found.record.value.wanted == "present"


def unclear_faults(count: int) -> list[Fault]:
    return [fault("INTERNAL", final=False, message="backend is cross")] * count


async def wait_no_volumes(kit) -> None:  # type: ignore[no-untyped-def]
    with anyio.fail_after(5):
        while list(kit.repo.view.volumes):
            await anyio.sleep(0.01)


async def test_a_passing_internal_error_is_not_seen() -> None:
    async with running_kit() as kit:
        kit.driver.fail(steps.CreateVolume, *unclear_faults(UNCLEAR_MAX - 1))
        written = await kit.service.registrations.create([a_volume("web")])
        assert written.volumes[0].record.value.external_id == "vol-1"


async def test_a_lasting_internal_error_is_told_as_recorded_and_what_it_left_is_deleted() -> None:
    async with running_kit() as kit:
        # The driver makes the volume and says INTERNAL each time: the volume must not stay.
        kit.driver.fail(steps.CreateVolume, *unclear_faults(UNCLEAR_MAX), after_effect=True)
        with pytest.raises(Rejected, match="Internal desc = backend is cross") as caught:
            await kit.service.registrations.create([a_volume("web")])
        assert caught.value.code == "driver_refused"
        await wait_no_volumes(kit)
        assert kit.driver.volumes == {}
        assert [type(c) for c in kit.driver.calls][-1] is steps.DeleteVolume


async def test_a_mended_create_takes_the_place_of_one_that_was_told_to_have_failed() -> None:
    async with running_kit() as kit:
        kit.driver.fail(steps.CreateVolume, *unclear_faults(UNCLEAR_MAX))
        kit.driver.fail(steps.CreateVolume, *unclear_faults(1))
        with pytest.raises(Rejected, match="backend is cross"):
            await kit.service.registrations.create([a_volume("web")])
        written = await kit.service.registrations.create([a_volume("web", parameters={"pool": "right"})])
        assert written.volumes[0].record.value.wanted == "present"
        assert len(kit.driver.volumes) == 1
        found = kit.service.reads.find_volume("default", "web")
        assert found is not None
        assert found.record.value.parameters == {"pool": "right"}


async def test_a_lasting_internal_error_of_a_deletion_is_told_and_it_can_be_asked_again() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume("web")])
        kit.driver.fail(steps.DeleteVolume, *unclear_faults(UNCLEAR_MAX))
        with pytest.raises(Rejected, match="backend is cross"):
            await kit.service.removals.delete("default", "web", secrets=Secrets())
        await kit.service.removals.delete("default", "web", secrets=Secrets())
        assert kit.driver.volumes == {}


async def test_claim_blocks_delete_before_the_driver_is_called() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume("web")])
        await kit.service.allocations.start(a_use("web"))
        with pytest.raises(Conflict, match="volume in use: web"):
            await kit.service.removals.delete("default", "web", secrets=Secrets())
        assert not [c for c in kit.driver.calls if isinstance(c, steps.DeleteVolume)]


async def wait_status(kit, allocation_id: str, status: str) -> Allocation:  # type: ignore[no-untyped-def]
    with anyio.fail_after(5):
        while True:
            found = kit.service.reads.find_allocation(allocation_id)
            if found is not None and found.value.status == status:
                return found.value  # type: ignore[no-any-return]
            await anyio.sleep(0.005)


async def test_claim_mount_release() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume("web")])
        started = await kit.service.allocations.start(a_use("web", target="/srv/data"))
        running = await wait_status(kit, started.value.id, "running")
        assert running.paths == {"data": "/srv/data"}
        assert kit.driver.volumes["vol-1"].nodes == {f"ext-{NODE}"}
        read = kit.service.reads.find_volume("default", "web")
        assert read.record.value.access_mode == "single-node-writer"
        with pytest.raises(Conflict, match=f"held by allocation {started.value.id} on node {NODE}"):
            await kit.service.allocations.start(a_use("web"))
        await kit.service.allocations.stop(started.value.id)
        await wait_status(kit, started.value.id, "complete")
        assert kit.driver.volumes["vol-1"].nodes == set()
        read = kit.service.reads.find_volume("default", "web")
        assert (read.claims, read.record.value.access_mode) == ((), "")


async def test_per_alloc_takes_the_volume_of_the_index() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume("data[3]")])
        use = msgspec.structs.replace(a_use("data", per_alloc=True), name="web.db[3]")
        started = await kit.service.allocations.start(use)
        running = await wait_status(kit, started.value.id, "running")
        request = running.volumes[0]
        assert (request.source, request.per_alloc, request.volume_id) == ("data", True, "data[3]")
        assert [claim.volume_id for claim in kit.service.reads.claims_of(running)] == ["data[3]"]
        for name, error, text in (
            ("web.db[4]", NotFound, r'Volumes\[0\].Source: no such volume "data\[4\]".*PerAlloc: "data"'),
            ("web.db", BadRequest, r"Allocation.Volumes\[0\]: PerAlloc takes the index"),
        ):
            with pytest.raises(error, match=text):
                await kit.service.allocations.start(msgspec.structs.replace(use, name=name))


async def test_a_node_takes_no_more_volumes_than_its_driver_says() -> None:
    async with running_kit() as kit:
        told = kit.driver.instance(NODE)
        assert told.node is not None
        full = msgspec.structs.replace(told, node=msgspec.structs.replace(told.node, max_volumes=2))
        await kit.service.nodes.report_plugins(NODE, {PLUGIN: full})
        shared = Capability(access_mode="multi-node-multi-writer", attachment_mode="file-system")
        for name in ("one", "two", "three"):
            volume = msgspec.structs.replace(a_volume(name), capabilities=(shared,))
            await kit.service.registrations.create([volume])
        first = await kit.service.allocations.start(a_use("one"))
        await kit.service.allocations.start(a_use("two"))
        await kit.service.allocations.start(a_use("two"))
        with pytest.raises(Conflict, match=f'"three" has no room on node {NODE}: 2 volumes of plugin "{PLUGIN}"'):
            await kit.service.allocations.start(a_use("three"))
        await wait_status(kit, first.value.id, "running")
        await kit.service.allocations.stop(first.value.id)
        await wait_status(kit, first.value.id, "complete")
        await kit.service.allocations.start(a_use("three"))


async def test_same_allocation_id_twice_is_one_use() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume("web")])
        use = a_use("web", "99999999-2222-3333-4444-555555555555")
        first = await kit.service.allocations.start(use)
        second = await kit.service.allocations.start(use)
        assert (first.value.id, first.created) == (second.value.id, second.created)
        assert len(kit.repo.view.claims) == 1


async def test_exactly_one_of_many_claimants_wins() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume("web")])
        won: list[str] = []
        lost: list[str] = []

        async def claim() -> None:
            try:
                won.append((await kit.service.allocations.start(a_use("web"))).value.id)
            except Conflict as error:
                lost.append(error.code)

        async with anyio.create_task_group() as group:
            for _ in range(12):
                group.start_soon(claim)
        assert (len(won), lost) == (1, ["volume_claimed"] * 11)


async def test_refused_attach_fails_the_allocation_and_releases_it() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume("web")])
        kit.driver.fail(steps.AttachVolume, fault("INVALID_ARGUMENT", final=True, message="bad node"))
        started = await kit.service.allocations.start(a_use("web"))
        failed = await wait_status(kit, started.value.id, "failed")
        assert "bad node" in failed.description
        with anyio.fail_after(5):
            while len(kit.repo.view.claims):
                await anyio.sleep(0.005)


async def test_expand() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume("web", requested_min_bytes=10)])
        grown = await kit.service.registrations.create([a_volume("web", requested_min_bytes=30)])
        record = grown.volumes[0].record.value
        assert (record.capacity_bytes, record.requested_min_bytes, record.node_expansion_bytes) == (30, 30, 30)
        kit.driver.fail(steps.ExpandVolume, fault("OUT_OF_RANGE", final=True))
        with pytest.raises(Rejected, match="unable to expand volume"):
            await kit.service.registrations.create([a_volume("web", requested_min_bytes=50)])
        assert kit.service.reads.find_volume("default", "web").record.value.requested_min_bytes == 30


async def test_operations_leave_no_record() -> None:
    async with running_kit() as kit:
        page = await kit.service.listings.list_external("hostpath", entries_max=0, starting_token="")
        assert page.volumes == ()
        with anyio.fail_after(5):
            while len(kit.repo.view.operations):
                await anyio.sleep(0.005)


async def test_unanswered_operation_says_that_asking_again_is_safe() -> None:
    async with running_kit(request_s=0.2) as kit:
        kit.is_calling = False
        with pytest.raises(DeadlineExceeded, match="asking again is safe"):
            await kit.service.listings.list_external("hostpath", entries_max=0, starting_token="")


async def test_a_disk_with_two_records_is_not_deleted() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume("web")])
        await kit.service.registrations.register([a_volume("twin", external_id="vol-1")])
        with pytest.raises(Conflict, match='"twin" are records of one disk'):
            await kit.service.removals.delete("default", "web", secrets=Secrets())
        assert list(kit.driver.volumes) == ["vol-1"]
        await kit.service.removals.deregister("default", "twin", force=False)
        await kit.service.removals.delete("default", "web", secrets=Secrets())
        assert kit.driver.volumes == {}


async def test_a_disk_that_is_being_deleted_takes_no_new_record_and_no_claim() -> None:
    async with running_kit(request_s=0.3) as kit:
        await kit.service.registrations.create([a_volume("web")])
        kit.driver.fail(steps.DeleteVolume, *[fault("UNAVAILABLE", final=False)] * 9)
        with pytest.raises(Unavailable):
            await kit.service.removals.delete("default", "web", secrets=Secrets())
        with pytest.raises(Conflict, match="is being deleted"):
            await kit.service.registrations.register([a_volume("twin", external_id="vol-1")])
        with pytest.raises(Conflict, match="is being deleted"):
            await kit.service.allocations.start(a_use("web"))


async def test_a_create_that_finds_no_room_can_be_given_up() -> None:
    async with running_kit() as kit:
        kit.driver.fail(steps.CreateVolume, *[fault("RESOURCE_EXHAUSTED", final=False)] * 99)
        with pytest.raises(Unavailable, match="to give up"):
            await kit.service.registrations.create([a_volume("web")])
        await kit.service.removals.delete("default", "web", secrets=Secrets())
        assert list(kit.repo.view.volumes) == []


async def test_a_driver_is_asked_the_same_once_a_request() -> None:
    async with running_kit() as kit:
        created = await kit.service.registrations.create([a_volume("base")])
        external_id = created.volumes[0].record.value.external_id
        kit.driver.calls.clear()
        same = [a_volume(f"v{n}", external_id=external_id, context={"zone": f"z{n % 2}"}) for n in range(40)]
        await kit.service.registrations.register(same)
        asked = [call for call in kit.driver.calls if isinstance(call, steps.ValidateVolume)]
        assert sorted(call.context["zone"] for call in asked) == ["z0", "z1"]


async def test_more_volumes_than_one_transaction_takes_are_registered() -> None:
    """300 in one request; then again with what is new on the disks of the others, each of which is touched for it."""
    async with running_kit() as kit:
        register, reads = kit.service.registrations.register, kit.service.reads
        first = [a_volume(f"a{number:03}", external_id=f"ext-{number}") for number in range(300)]
        assert len((await register(first)).volumes) == 300
        again = [
            a_volume(f"{kind}{number:03}", external_id=f"ext-{number}") for kind in ("b", "a") for number in range(300)
        ]
        for _ in range(3):
            written = await register(again)
            assert [seen.record.value.id for seen in written.volumes] == [volume.id for volume in again]
        assert len(list(reads.list_volumes("default"))) == 600
        with pytest.raises(NotFound, match="no CSI plugin named"):
            await register([*(a_volume(f"c{n}") for n in range(300)), replace(a_volume("d"), plugin_id=PluginId("x"))])
        assert len(list(reads.list_volumes("default"))) == 600
