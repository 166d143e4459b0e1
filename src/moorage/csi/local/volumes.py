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
        origin = _origin_of(request)
        self._check_topology(request)
        operation = partial(self._create, request, name, (wanted, origin, is_block))
        return csi.CreateVolumeResponse(volume=self._message(await self._keeper.run(f"name:{name}", operation)))

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
        await self._keeper.run(f"volume:{volume_id}", partial(self._publish, volume_id, wanted))
        return csi.ControllerPublishVolumeResponse()

    async def controller_unpublish_volume(
        self, request: csi.ControllerUnpublishVolumeRequest
    ) -> csi.ControllerUnpublishVolumeResponse:
        """Record that the node, or every node when none is named, uses the volume no more."""
        volume_id = checks.require(request.volume_id, "volume_id")
        if self._keeper.volumes.find(volume_id) is not None:
            await self._keeper.run(f"volume:{volume_id}", partial(self._unpublish, volume_id, request.node_id))
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

    async def _create(
        self, request: csi.CreateVolumeRequest, name: str, asked: tuple[Range, Origin | None, bool]
    ) -> VolumeRecord:
        keeper, parameters = self._keeper, dict(request.parameters)
        wanted, origin, is_block = asked
        existing = keeper.volumes.find_name(name)
        if existing is not None:
            _check_compatible(existing, asked, parameters)
            return existing
        source = None if origin is None else self._get_source(origin)
        source_bytes = 0
        if source is not None:
            if source.is_block != is_block:
                text = (
                    "volume_content_source: a volume for block access and one for mounts cannot hold each other's data"
                )
                raise refuse("INVALID_ARGUMENT", text)
            source_bytes = source.capacity_bytes if isinstance(source, VolumeRecord) else source.size_bytes
        choose = checks.choose_image_size if is_block else checks.choose_capacity
        volume = VolumeRecord(
            id=keeper.new_id(),
            name=name,
            serial=keeper.next_serial(),
            capacity_bytes=choose(wanted, source_bytes),
            created_at_ns=keeper.now_ns(),
            required_bytes=wanted.required_bytes,
            limit_bytes=wanted.limit_bytes,
            parameters=parameters,
            origin=origin,
            is_block=is_block,
            is_handed_out=source is not None,
        )
        await self._check_fits(volume.capacity_bytes)
        if source is None:
            await keeper.commit(Change(action="create", record=volume))
        else:
            async with keeper.copying_from(source.id):
                if origin is not None:
                    self._get_source(origin)  # it may have been deleted while this waited for its turn
                if is_block and isinstance(source, VolumeRecord):
                    await anyio.to_thread.run_sync(self._devices.flush, source)
                await keeper.copy(keeper.storage.data_path(source), volume, image_bytes=volume.capacity_bytes)
            await keeper.commit(Change(action="place", record=volume))
        return volume

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

    async def _publish(self, volume_id: str, wanted: Publication) -> None:
        volume = self._get(volume_id)
        if wanted.node_id != self._node_id:
            raise refuse("NOT_FOUND", f"node {wanted.node_id!r} is unknown: this driver serves node {self._node_id!r}")
        for one in volume.publications:
            if one == wanted:
                return
            _check_beside(volume_id, one, wanted)
        await self._rewrite(volume, publications=(*volume.publications, wanted))

    async def _unpublish(self, volume_id: str, node_id: str) -> None:
        volume = self._keeper.volumes.find(volume_id)
        if volume is None:
            return
        left = tuple(one for one in volume.publications if node_id and one.node_id != node_id)
        if left != volume.publications:
            await self._rewrite(volume, publications=left)

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
        await self._check_fits(size)
        if volume.is_block:
            await anyio.to_thread.run_sync(self._keeper.storage.grow_image, volume, size)
        await self._rewrite(volume, capacity_bytes=size)
        return size

    def _check_accesses(self, capabilities: Sequence[csi.VolumeCapability]) -> bool:
        """Whether a new volume with these capabilities is for block access."""
        found = checks.check_accesses(capabilities)
        self._devices.check_supported((f"volume_capabilities[{number}]", one) for number, one in enumerate(found))
        return found[0].is_block

    async def _rewrite(self, volume: VolumeRecord, **fields: object) -> None:
        record = msgspec.structs.replace(volume, **fields)
        await self._keeper.commit(Change(action="rewrite", record=record))

    async def _check_fits(self, size: int) -> None:
        storage = self._keeper.storage
        if size > storage.size_bytes:
            await anyio.to_thread.run_sync(storage.measure)
        if size > storage.size_bytes:
            text = f"{size} bytes are more than the {storage.size_bytes} bytes of the driver's filesystem"
            raise refuse("OUT_OF_RANGE", text)

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
        if requisite and not any(dict(one.segments).items() <= self._segments().items() for one in requisite):
            raise refuse(
                "RESOURCE_EXHAUSTED",
                f"accessibility_requirements.requisite: this driver can only make volumes on node {self._node_id!r}",
            )

    def _segments(self) -> dict[str, str]:
        return {TOPOLOGY_KEY: self._node_id}

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
            accessible_topology=[csi.Topology(segments=self._segments())],
        )


def _origin_of(request: csi.CreateVolumeRequest) -> Origin | None:
    if not request.HasField("volume_content_source"):
        return None
    source = request.volume_content_source
    kind = source.WhichOneof("type")
    if kind == "volume":
        field, found = "volume.volume_id", source.volume.volume_id
    elif kind == "snapshot":
        field, found = "snapshot.snapshot_id", source.snapshot.snapshot_id
    else:
        raise refuse("INVALID_ARGUMENT", "volume_content_source needs a snapshot or a volume")
    return Origin(kind=kind, id=checks.require(found, f"volume_content_source.{field}"))


def _check_compatible(
    volume: VolumeRecord, asked: tuple[Range, Origin | None, bool], parameters: dict[str, str]
) -> None:
    """Raise ALREADY_EXISTS unless the volume fits; the range may be the first one, or hold the size it has now."""
    wanted, origin, is_block = asked
    differing = ""
    as_before = (wanted.required_bytes, wanted.limit_bytes) == (volume.required_bytes, volume.limit_bytes)
    if not as_before and not wanted.holds(volume.capacity_bytes):
        differing = f"capacity_range (it has {volume.capacity_bytes} bytes)"
    elif volume.parameters != parameters:
        differing = "parameters"
    elif volume.origin != origin:
        differing = "volume_content_source"
    elif volume.is_block != is_block:
        differing = "access type in volume_capabilities"
    if differing:
        raise refuse("ALREADY_EXISTS", f"volume {volume.name!r} exists with another {differing}")


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
