"""The Controller service's calls on snapshots.

Shapes: a snapshot is a copy of the volume's tree or image, with shared extents where the filesystem has
    them. Files are read one after the other: freeze or stop writers first when several files must fit together.
Raises Rejected with the gRPC status as its code; OSError from the disk.
Source: CSI spec 1.12, "CreateSnapshot", "DeleteSnapshot", "ListSnapshots".
"""

from __future__ import annotations

from functools import partial

import anyio.to_thread
from google.protobuf import timestamp_pb2

from moorage.csi.local import checks
from moorage.csi.local.checks import refuse
from moorage.csi.local.devices import Devices
from moorage.csi.local.keeper import Keeper
from moorage.csi.local.records import SnapshotRecord
from moorage.csi.local.storage import Change
from moorage.csi.proto import csi_pb2 as csi


class Snapshots:
    """Answers the controller calls on snapshots."""

    def __init__(self, keeper: Keeper, devices: Devices) -> None:
        self._keeper = keeper
        self._devices = devices

    async def create_snapshot(self, request: csi.CreateSnapshotRequest) -> csi.CreateSnapshotResponse:
        """Copy a volume; ready when answered. The same snapshot again for the same name and source."""
        source_id = checks.require(request.source_volume_id, "source_volume_id")
        name = checks.check_name(request.name)
        snapshot = await self._keeper.run(f"snapshot-name:{name}", partial(self._create, name, source_id))
        return csi.CreateSnapshotResponse(snapshot=_message(snapshot))

    async def delete_snapshot(self, request: csi.DeleteSnapshotRequest) -> csi.DeleteSnapshotResponse:
        """Delete a snapshot. Volumes made from it stay."""
        snapshot_id = checks.require(request.snapshot_id, "snapshot_id")
        if self._keeper.snapshots.find(snapshot_id) is not None:
            await self._keeper.run(f"snapshot:{snapshot_id}", partial(self._delete, snapshot_id))
        return csi.DeleteSnapshotResponse()

    async def list_snapshots(self, request: csi.ListSnapshotsRequest) -> csi.ListSnapshotsResponse:
        """One page of the snapshots, oldest first; a filter that matches nothing gives an empty page."""
        limit, after = checks.check_page(request.max_entries, request.starting_token)
        found = self._keeper.snapshots.ordered()
        if request.snapshot_id:
            one = self._keeper.snapshots.find(request.snapshot_id)
            found = () if one is None else (one,)
        if request.source_volume_id:
            found = tuple(snapshot for snapshot in found if snapshot.source_volume_id == request.source_volume_id)
        page, token = checks.cut_page(found, limit, after)
        entry = csi.ListSnapshotsResponse.Entry
        return csi.ListSnapshotsResponse(entries=[entry(snapshot=_message(one)) for one in page], next_token=token)

    async def _create(self, name: str, source_id: str) -> SnapshotRecord:
        keeper = self._keeper
        existing = keeper.snapshots.find_name(name)
        if existing is not None:
            if existing.source_volume_id != source_id:
                raise refuse(
                    "ALREADY_EXISTS", f"snapshot {name!r} exists with another source_volume_id: choose another name"
                )
            return existing
        async with keeper.copying_from(source_id):
            volume = keeper.volumes.find(source_id)
            if volume is None:
                raise refuse("NOT_FOUND", f"volume {source_id!r} does not exist")
            snapshot = SnapshotRecord(
                id=keeper.new_id(),
                name=name,
                serial=keeper.next_serial(),
                source_volume_id=source_id,
                size_bytes=volume.capacity_bytes,
                created_at_ns=keeper.now_ns(),
                is_block=volume.is_block,
            )
            if volume.is_block:
                await anyio.to_thread.run_sync(self._devices.flush, volume)
            await keeper.copy(keeper.storage.data_path(volume), snapshot, image_bytes=volume.capacity_bytes)
        await keeper.commit(Change(action="place", record=snapshot))
        return snapshot

    async def _delete(self, snapshot_id: str) -> None:
        snapshot = self._keeper.snapshots.find(snapshot_id)
        if snapshot is not None:
            self._keeper.check_not_copied(snapshot_id)
            await self._keeper.commit(Change(action="remove", record=snapshot))


def _message(snapshot: SnapshotRecord) -> csi.Snapshot:
    created = timestamp_pb2.Timestamp()
    created.FromNanoseconds(snapshot.created_at_ns)
    return csi.Snapshot(
        size_bytes=snapshot.size_bytes,
        snapshot_id=snapshot.id,
        source_volume_id=snapshot.source_volume_id,
        creation_time=created,
        ready_to_use=True,
    )
