"""The Controller service's calls on volumes.

Shapes: a volume is usable on this driver's node only, and says so by its topology. Its size is recorded, not
    enforced; a block volume has its size.
    Parameters: ``mode`` (octal), ``uid`` and ``gid`` of a new empty volume's directory; others are kept and ignored.
Raises Rejected with the gRPC status as its code; OSError from the disk.
Source: CSI spec 1.12, "Controller Service RPC".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import anyio.to_thread
import msgspec
from google.protobuf import wrappers_pb2

from moorage.csi import mounting
from moorage.csi.local import checks
from moorage.csi.local.checks import Mode, Range, refuse
from moorage.csi.local.creating import Asked, check_compatible, origin_of
from moorage.csi.local.devices import Devices
from moorage.csi.local.identity import TOPOLOGY_KEY
from moorage.csi.local.keeper import Keeper
from moorage.csi.local.records import Origin, Publication, SnapshotRecord, VolumeRecord
from moorage.csi.local.storage import Change
from moorage.csi.proto import csi_pb2 as csi
from moorage.errors import Rejected

_Rpc = csi.ControllerServiceCapability.RPC
_ABILITIES = (
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.PUBLISH_UNPUBLISH_VOLUME,
    _Rpc.LIST_VOLUMES,
    _Rpc.GET_CAPACITY,
    _Rpc.CREATE_DELETE_SNAPSHOT,
    _Rpc.LIST_SNAPSHOTS,
    _Rpc.CLONE_VOLUME,
    _Rpc.PUBLISH_READONLY,
    _Rpc.EXPAND_VOLUME,
    _Rpc.LIST_VOLUMES_PUBLISHED_NODES,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
)


class Volumes:
    """Answers the controller calls on volumes."""

    def __init__(self, keeper: Keeper, devices: Devices, *, node_id: str) -> None:
        self._keeper = keeper
        self._devices = devices
        self._node_id = node_id
        self._segments = {TOPOLOGY_KEY: node_id}
        self._topology = (csi.Topology(segments=self._segments),)

    async def controller_get_capabilities(
        self, _: csi.ControllerGetCapabilitiesRequest
    ) -> csi.ControllerGetCapabilitiesResponse:
        """What this controller can do."""
        capability = csi.ControllerServiceCapability
        return csi.ControllerGetCapabilitiesResponse(
            capabilities=[capability(rpc=_Rpc(type=ability)) for ability in _ABILITIES]
        )

    async def create_volume(self, request: csi.CreateVolumeRequest) -> csi.CreateVolumeResponse:
        """Make an empty volume, or one filled from a volume or snapshot; the same volume again for the same name."""
        name = checks.check_name(request.name)
        is_block = self._check_accesses(request.volume_capabilities)
        wanted = checks.check_range(request)
        if request.mutable_parameters:
            raise refuse("INVALID_ARGUMENT", "mutable_parameters are not supported by the local driver")
        checks.check_ownership(request.parameters.items())
        origin = origin_of(request)
        self._check_topology(request)
        asked, key = Asked(wanted, origin, is_block, dict(request.parameters)), f"name:{name}"
        if origin is None:
            await self._measure_for(name, asked)
            volume = await self._keeper.change(key, lambda: self._decide_empty(name, asked))
        else:
            volume = await self._keeper.run(key, lambda: self._create_from(name, asked, origin))
        return csi.CreateVolumeResponse(volume=self._message(volume))

    async def delete_volume(self, request: csi.DeleteVolumeRequest) -> csi.DeleteVolumeResponse:
        """Delete a volume that is neither published nor mounted. Its snapshots stay usable."""
        volume_id = checks.require(request.volume_id, "volume_id")
        if self._keeper.volumes.find(volume_id) is not None:
            await self._keeper.run(f"volume:{volume_id}", partial(self._delete, volume_id))
        return csi.DeleteVolumeResponse()

    async def controller_publish_volume(
        self, request: csi.ControllerPublishVolumeRequest
    ) -> csi.ControllerPublishVolumeResponse:
        """Record that the node may use the volume."""
        volume_id = checks.require(request.volume_id, "volume_id")
        node_id = checks.require(request.node_id, "node_id")
        if not request.HasField("volume_capability"):
            raise refuse("INVALID_ARGUMENT", "volume_capability is required")
        access = self._devices.read_access(request.volume_capability, self._keeper.volumes.find(volume_id))
        wanted = Publication(node_id=node_id, mode=access.mode, readonly=request.readonly)
        await self._keeper.change(f"volume:{volume_id}", lambda: (None, self._decide_publish(volume_id, wanted)))
        return csi.ControllerPublishVolumeResponse()

    async def controller_unpublish_volume(
        self, request: csi.ControllerUnpublishVolumeRequest
    ) -> csi.ControllerUnpublishVolumeResponse:
        """Record that the node, or every node when none is named, uses the volume no more."""
        volume_id = checks.require(request.volume_id, "volume_id")
        if self._keeper.volumes.find(volume_id) is not None:
            change = partial(self._decide_unpublish, volume_id, request.node_id)
            await self._keeper.change(f"volume:{volume_id}", lambda: (None, change()))
        return csi.ControllerUnpublishVolumeResponse()

    async def validate_volume_capabilities(
        self, request: csi.ValidateVolumeCapabilitiesRequest
    ) -> csi.ValidateVolumeCapabilitiesResponse:
        """Confirm what was asked, whole; or say why not."""
        volume_id = checks.require(request.volume_id, "volume_id")
        if not request.volume_capabilities:
            raise refuse("INVALID_ARGUMENT", "volume_capabilities is required")
        volume = self._get(volume_id)
        answer = csi.ValidateVolumeCapabilitiesResponse
        try:
            for number, access in enumerate(checks.check_accesses(request.volume_capabilities)):
                checks.check_kind(access, is_block=volume.is_block, field=f"volume_capabilities[{number}]")
        except Rejected as error:
            return answer(message=error.message)
        if request.mutable_parameters:
            return answer(message="volumes of the local driver have no mutable_parameters")
        if request.volume_context and dict(request.volume_context) != volume.parameters:
            return answer(message="volume_context differs from the one that the volume was created with")
        if request.parameters and dict(request.parameters) != volume.parameters:
            return answer(message="parameters differ from those the volume was created with")
        return answer(
            confirmed=answer.Confirmed(
                volume_capabilities=request.volume_capabilities,
                volume_context=dict(request.volume_context),
                parameters=dict(request.parameters),
            )
        )

    async def list_volumes(self, request: csi.ListVolumesRequest) -> csi.ListVolumesResponse:
        """One page of the volumes, oldest first, from memory."""
        limit, after = checks.check_page(request.max_entries, request.starting_token)
        page, token = checks.cut_page(self._keeper.volumes.ordered(), limit, after)
        entry, status = csi.ListVolumesResponse.Entry, csi.ListVolumesResponse.VolumeStatus
        return csi.ListVolumesResponse(
            entries=[
                entry(
                    volume=self._message(volume),
                    status=status(published_node_ids=[one.node_id for one in volume.publications]),
                )
                for volume in page
            ],
            next_token=token,
        )

    async def get_capacity(self, request: csi.GetCapacityRequest) -> csi.GetCapacityResponse:
        """What the directory's filesystem has free; 0 for another node, and for block access where it is refused."""
        block = any(one.WhichOneof("access_type") == "block" for one in request.volume_capabilities)
        segments = request.accessible_topology.segments
        if (block and not self._devices.is_supported) or segments.get(TOPOLOGY_KEY, self._node_id) != self._node_id:
            return csi.GetCapacityResponse(available_capacity=0)
        storage = self._keeper.storage
        free_bytes = await anyio.to_thread.run_sync(storage.measure)
        return csi.GetCapacityResponse(
            available_capacity=free_bytes, maximum_volume_size=wrappers_pb2.Int64Value(value=storage.size_bytes)
        )

    async def controller_expand_volume(
        self, request: csi.ControllerExpandVolumeRequest
    ) -> csi.ControllerExpandVolumeResponse:
        """Record a larger size; a volume that is large enough stays as it is. The node lets a device grow."""
        volume_id = checks.require(request.volume_id, "volume_id")
        if not request.HasField("capacity_range"):
            raise refuse("INVALID_ARGUMENT", "capacity_range is required")
        wanted = checks.check_range(request)
        if request.HasField("volume_capability"):
            self._devices.read_access(request.volume_capability, self._keeper.volumes.find(volume_id))
        size = await self._keeper.run(f"volume:{volume_id}", partial(self._expand, volume_id, wanted))
        volume = self._keeper.volumes.find(volume_id)
        return csi.ControllerExpandVolumeResponse(
            capacity_bytes=size, node_expansion_required=volume is not None and volume.is_block
        )

    def _decide_empty(self, name: str, asked: Asked) -> tuple[VolumeRecord, Change | None]:
        existing = self._find_same(name, asked)
        if existing is not None:
            return existing, None
        volume = self._make_record(name, asked, source_bytes=0)
        self._check_fits(volume.capacity_bytes)
        return volume, Change(action="create", record=volume)

    async def _measure_for(self, name: str, asked: Asked) -> None:
        """Look how large the filesystem is now, where a new volume would not fit into what it was."""
        storage, required = self._keeper.storage, asked.range.required_bytes
        if required > storage.size_bytes and self._keeper.volumes.find_name(name) is None:
            await anyio.to_thread.run_sync(storage.measure)

    async def _create_from(self, name: str, asked: Asked, origin: Origin) -> VolumeRecord:
        keeper = self._keeper
        existing = self._find_same(name, asked)
        if existing is not None:
            return existing
        source = self._get_source(origin)
        if source.is_block != asked.is_block:
            text = "volume_content_source: a volume for block access and one for mounts cannot hold each other's data"
            raise refuse("INVALID_ARGUMENT", text)
        source_bytes = source.capacity_bytes if isinstance(source, VolumeRecord) else source.size_bytes
        volume = self._make_record(name, asked, source_bytes=source_bytes)
        await self._measure_and_check(volume.capacity_bytes)
        async with keeper.copying_from(source.id):
            self._get_source(origin)  # it may have been deleted while this waited for its turn
            if asked.is_block and isinstance(source, VolumeRecord):
                await anyio.to_thread.run_sync(self._devices.flush, source)
            await keeper.copy(keeper.storage.data_path(source), volume, image_bytes=volume.capacity_bytes)
        await keeper.commit(Change(action="place", record=volume))
        return volume

    def _find_same(self, name: str, asked: Asked) -> VolumeRecord | None:
        """The volume of this name, which must be as asked."""
        existing = self._keeper.volumes.find_name(name)
        if existing is not None:
            check_compatible(existing, asked)
        return existing

    def _make_record(self, name: str, asked: Asked, *, source_bytes: int) -> VolumeRecord:
        keeper, wanted = self._keeper, asked.range
        choose = checks.choose_image_size if asked.is_block else checks.choose_capacity
        return VolumeRecord(
            id=keeper.new_id(),
            name=name,
            serial=keeper.next_serial(),
            capacity_bytes=choose(wanted, source_bytes),
            created_at_ns=keeper.now_ns(),
            required_bytes=wanted.required_bytes,
            limit_bytes=wanted.limit_bytes,
            parameters=asked.parameters,
            origin=asked.origin,
            is_block=asked.is_block,
            is_handed_out=asked.origin is not None,
        )

    async def _delete(self, volume_id: str) -> None:
        keeper = self._keeper
        volume = keeper.volumes.find(volume_id)
        if volume is None:
            return
        if volume.publications:
            nodes = ", ".join(one.node_id for one in volume.publications)
            raise refuse("FAILED_PRECONDITION", f"volume {volume_id} is published on node {nodes}: unpublish it first")
        keeper.check_not_copied(volume_id)
        if volume.is_block:
            await anyio.to_thread.run_sync(self._devices.release, volume)
        data = keeper.storage.data_path(volume)
        seen = await anyio.to_thread.run_sync(lambda: mounting.mounts_of(mounting.read_mounts(), data))
        if seen:
            raise refuse("FAILED_PRECONDITION", f"volume {volume_id} is mounted at {seen[0].target}: unmount it first")
        await keeper.commit(Change(action="remove", record=volume))

    def _decide_publish(self, volume_id: str, wanted: Publication) -> Change | None:
        volume = self._get(volume_id)
        if wanted.node_id != self._node_id:
            raise refuse("NOT_FOUND", f"node {wanted.node_id!r} is unknown: this driver serves node {self._node_id!r}")
        for one in volume.publications:
            if one == wanted:
                return None
            _check_beside(volume_id, one, wanted)
        return _rewrite(volume, publications=(*volume.publications, wanted))

    def _decide_unpublish(self, volume_id: str, node_id: str) -> Change | None:
        volume = self._keeper.volumes.find(volume_id)
        if volume is None:
            return None
        left = tuple(one for one in volume.publications if node_id and one.node_id != node_id)
        return None if left == volume.publications else _rewrite(volume, publications=left)

    async def _expand(self, volume_id: str, wanted: Range) -> int:
        volume = self._get(volume_id)
        if wanted.limit_bytes and volume.capacity_bytes > wanted.limit_bytes:
            raise refuse(
                "OUT_OF_RANGE",
                f"volume {volume_id} has {volume.capacity_bytes} bytes, above capacity_range.limit_bytes; "
                "volumes cannot shrink",
            )
        if volume.capacity_bytes >= wanted.required_bytes:
            return volume.capacity_bytes
        size = wanted.required_bytes
        if volume.is_block:
            size = checks.round_up_sectors(size, wanted)
        await self._measure_and_check(size)
        if volume.is_block:
            await anyio.to_thread.run_sync(self._keeper.storage.grow_image, volume, size)
        await self._keeper.commit(_rewrite(volume, capacity_bytes=size))
        return size

    def _check_accesses(self, capabilities: Sequence[csi.VolumeCapability]) -> bool:
        """Whether a new volume with these capabilities is for block access."""
        found = checks.check_accesses(capabilities)
        self._devices.check_supported((f"volume_capabilities[{number}]", one) for number, one in enumerate(found))
        return found[0].is_block

    async def _measure_and_check(self, size: int) -> None:
        storage = self._keeper.storage
        if size > storage.size_bytes:
            await anyio.to_thread.run_sync(storage.measure)
        self._check_fits(size)

    def _check_fits(self, size: int) -> None:
        has = self._keeper.storage.size_bytes
        if size > has:
            raise refuse("OUT_OF_RANGE", f"{size} bytes are more than the {has} bytes of the driver's filesystem")

    def _get(self, volume_id: str) -> VolumeRecord:
        volume = self._keeper.volumes.find(volume_id)
        if volume is None:
            raise refuse("NOT_FOUND", f"volume {volume_id!r} does not exist")
        return volume

    def _get_source(self, origin: Origin) -> VolumeRecord | SnapshotRecord:
        if origin.kind == "volume":
            return self._get(origin.id)
        snapshot = self._keeper.snapshots.find(origin.id)
        if snapshot is None:
            raise refuse("NOT_FOUND", f"snapshot {origin.id!r} does not exist")
        return snapshot

    def _check_topology(self, request: csi.CreateVolumeRequest) -> None:
        """Some requisite topology must hold this node; an empty requirement is none."""
        requisite = request.accessibility_requirements.requisite
        if requisite and not any(dict(one.segments).items() <= self._segments.items() for one in requisite):
            raise refuse(
                "RESOURCE_EXHAUSTED",
                f"accessibility_requirements.requisite: this driver can only make volumes on node {self._node_id!r}",
            )

    def _message(self, volume: VolumeRecord) -> csi.Volume:
        source: csi.VolumeContentSource | None = None
        kinds = csi.VolumeContentSource
        if volume.origin is not None and volume.origin.kind == "volume":
            source = kinds(volume=kinds.VolumeSource(volume_id=volume.origin.id))
        elif volume.origin is not None:
            source = kinds(snapshot=kinds.SnapshotSource(snapshot_id=volume.origin.id))
        return csi.Volume(
            capacity_bytes=volume.capacity_bytes,
            volume_id=volume.id,
            # The parameters come back as the context, so that a listing shows what a volume was made with.
            volume_context=volume.parameters,
            content_source=source,
            accessible_topology=self._topology,
        )


def _rewrite(volume: VolumeRecord, **fields: object) -> Change:
    return Change(action="rewrite", record=msgspec.structs.replace(volume, **fields))


def _check_beside(volume_id: str, held: Publication, wanted: Publication) -> None:
    """Whether ``wanted`` may be added while ``held`` is there."""
    if held.node_id == wanted.node_id:
        raise refuse(
            "ALREADY_EXISTS",
            f"volume {volume_id} is published on node {held.node_id!r} with another access mode or readonly flag",
        )
    writers = not held.readonly and not wanted.readonly
    one_writer = Mode.MULTI_NODE_SINGLE_WRITER in (held.mode, wanted.mode) and writers
    if {held.mode, wanted.mode} & checks.SINGLE_NODE_MODES or one_writer:
        raise refuse("FAILED_PRECONDITION", f"volume {volume_id} is published on node {held.node_id!r}: free it first")
