"""The three services of the shared driver.

Raises Rejected with the gRPC status as its code; OSError from the kernel.
Source: CSI spec 1.12.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread
import msgspec
from google.protobuf import wrappers_pb2

import moorage
from moorage.csi import mounting
from moorage.csi.local import checks
from moorage.csi.local.checks import Mode, refuse
from moorage.csi.local.places import Place
from moorage.csi.local.publishing import Publisher
from moorage.csi.local.records import Publication, VolumeRecord
from moorage.csi.proto import csi_pb2 as csi
from moorage.testing.shared_state import SharedStorage

T = TypeVar("T")

DRIVER_NAME = "shared.csi.moorage"
_Controller = csi.ControllerServiceCapability
_Node = csi.NodeServiceCapability
CONTROLLER_ABILITIES = (
    _Controller.RPC.CREATE_DELETE_VOLUME,
    _Controller.RPC.PUBLISH_UNPUBLISH_VOLUME,
    _Controller.RPC.LIST_VOLUMES,
    _Controller.RPC.LIST_VOLUMES_PUBLISHED_NODES,
    _Controller.RPC.PUBLISH_READONLY,
    _Controller.RPC.SINGLE_NODE_MULTI_WRITER,
)
NODE_ABILITIES = (_Node.RPC.STAGE_UNSTAGE_VOLUME, _Node.RPC.SINGLE_NODE_MULTI_WRITER)


class SharedIdentity:
    """Who the driver is."""

    async def get_plugin_info(self, _: csi.GetPluginInfoRequest) -> csi.GetPluginInfoResponse:
        """The driver's name and version."""
        return csi.GetPluginInfoResponse(name=DRIVER_NAME, vendor_version=moorage.__version__)

    async def get_plugin_capabilities(self, _: csi.GetPluginCapabilitiesRequest) -> csi.GetPluginCapabilitiesResponse:
        """A controller; volumes are reached from every node."""
        service = csi.PluginCapability.Service
        capability = csi.PluginCapability(service=service(type=service.CONTROLLER_SERVICE))
        return csi.GetPluginCapabilitiesResponse(capabilities=[capability])

    async def probe(self, _: csi.ProbeRequest) -> csi.ProbeResponse:
        """Ready."""
        return csi.ProbeResponse(ready=wrappers_pb2.BoolValue(value=True))


class SharedController:
    """Volumes and where they are attached."""

    def __init__(self, storage: SharedStorage) -> None:
        self._storage = storage

    async def controller_get_capabilities(
        self, _: csi.ControllerGetCapabilitiesRequest
    ) -> csi.ControllerGetCapabilitiesResponse:
        """What the controller can do."""
        rpc = _Controller.RPC
        return csi.ControllerGetCapabilitiesResponse(
            capabilities=[_Controller(rpc=rpc(type=ability)) for ability in CONTROLLER_ABILITIES]
        )

    async def create_volume(self, request: csi.CreateVolumeRequest) -> csi.CreateVolumeResponse:
        """An empty volume; the same one again for the same name."""
        name = checks.check_name(request.name)
        checks.check_accesses(request.volume_capabilities)
        wanted = checks.check_range(request)
        if request.HasField("volume_content_source"):
            raise refuse("INVALID_ARGUMENT", "volume_content_source is not supported by the shared driver")
        parameters = dict(request.parameters)

        def work() -> VolumeRecord:
            with self._storage.changing() as changes:
                existing = changes.find_name(name)
                if existing is not None:
                    if existing.parameters != parameters or not wanted.holds(existing.capacity_bytes):
                        raise refuse("ALREADY_EXISTS", f"volume {name!r} exists with other parameters or another size")
                    return existing
                volume = VolumeRecord(
                    id=f"shared-{uuid.uuid4()}",
                    name=name,
                    serial=changes.next_serial(),
                    capacity_bytes=checks.choose_capacity(wanted, 0),
                    created_at_ns=0,
                    parameters=parameters,
                )
                changes.put(volume)
                return volume

        return csi.CreateVolumeResponse(volume=_describe(await anyio.to_thread.run_sync(work)))

    async def delete_volume(self, request: csi.DeleteVolumeRequest) -> csi.DeleteVolumeResponse:
        """Delete a volume that is attached nowhere."""
        volume_id = checks.require(request.volume_id, "volume_id")

        def work() -> None:
            with self._storage.changing() as changes:
                volume = changes.volumes.get(volume_id)
                if volume is None:
                    return
                if volume.publications:
                    raise refuse("FAILED_PRECONDITION", _say_attached(volume, volume.publications[0].node_id))
                changes.remove(volume)

        await anyio.to_thread.run_sync(work)
        return csi.DeleteVolumeResponse()

    async def controller_publish_volume(
        self, request: csi.ControllerPublishVolumeRequest
    ) -> csi.ControllerPublishVolumeResponse:
        """Attach a volume to a node."""
        volume_id = checks.require(request.volume_id, "volume_id")
        node_id = checks.require(request.node_id, "node_id")
        access = checks.check_access(request.volume_capability)
        wanted = Publication(node_id=node_id, mode=access.mode, readonly=request.readonly)

        def work() -> None:
            if not self._storage.knows_node(node_id):
                raise refuse("NOT_FOUND", f"node {node_id!r} is unknown: no driver has served there")
            with self._storage.changing() as changes:
                volume = changes.volumes.get(volume_id)
                if volume is None:
                    raise refuse("NOT_FOUND", f"volume {volume_id!r} does not exist")
                if wanted in volume.publications:
                    return
                for held in volume.publications:
                    _check_beside(volume, held, wanted)
                changes.put(msgspec.structs.replace(volume, publications=(*volume.publications, wanted)))

        await anyio.to_thread.run_sync(work)
        # What drivers tell nodes here is often a secret, such as a password of CHAP.
        context = {"node": node_id} | self._storage.read_context()
        return csi.ControllerPublishVolumeResponse(publish_context=context)

    async def controller_unpublish_volume(
        self, request: csi.ControllerUnpublishVolumeRequest
    ) -> csi.ControllerUnpublishVolumeResponse:
        """Detach a volume from a node, or from every node when none is named."""
        volume_id = checks.require(request.volume_id, "volume_id")

        def work() -> None:
            with self._storage.changing() as changes:
                volume = changes.volumes.get(volume_id)
                if volume is not None:
                    left = tuple(p for p in volume.publications if request.node_id and p.node_id != request.node_id)
                    changes.put(msgspec.structs.replace(volume, publications=left))

        await anyio.to_thread.run_sync(work)
        return csi.ControllerUnpublishVolumeResponse()

    async def validate_volume_capabilities(
        self, request: csi.ValidateVolumeCapabilitiesRequest
    ) -> csi.ValidateVolumeCapabilitiesResponse:
        """Confirm what was asked."""
        if await anyio.to_thread.run_sync(self._storage.find, request.volume_id) is None:
            raise refuse("NOT_FOUND", f"volume {request.volume_id!r} does not exist")
        checks.check_accesses(request.volume_capabilities)
        answer = csi.ValidateVolumeCapabilitiesResponse
        return answer(confirmed=answer.Confirmed(volume_capabilities=request.volume_capabilities))

    async def list_volumes(self, request: csi.ListVolumesRequest) -> csi.ListVolumesResponse:
        """One page of the volumes, oldest first, with the nodes that they are attached to."""
        limit, after = checks.check_page(request.max_entries, request.starting_token)
        volumes = await anyio.to_thread.run_sync(self._storage.volumes)
        page, token = checks.cut_page(tuple(volumes), limit, after)
        entry, status = csi.ListVolumesResponse.Entry, csi.ListVolumesResponse.VolumeStatus
        return csi.ListVolumesResponse(
            entries=[
                entry(
                    volume=_describe(volume),
                    status=status(published_node_ids=[one.node_id for one in volume.publications]),
                )
                for volume in page
            ],
            next_token=token,
        )


class SharedNode:
    """Bind mounts of the volumes on this node."""

    def __init__(self, storage: SharedStorage, publisher: Publisher, *, node_id: str) -> None:
        self._storage = storage
        self._publisher = publisher
        self._node_id = node_id
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def node_get_capabilities(self, _: csi.NodeGetCapabilitiesRequest) -> csi.NodeGetCapabilitiesResponse:
        """What this node can do."""
        rpc = _Node.RPC
        return csi.NodeGetCapabilitiesResponse(
            capabilities=[_Node(rpc=rpc(type=ability)) for ability in NODE_ABILITIES]
        )

    async def node_get_info(self, _: csi.NodeGetInfoRequest) -> csi.NodeGetInfoResponse:
        """The node's ID."""
        return csi.NodeGetInfoResponse(node_id=self._node_id)

    async def node_stage_volume(self, request: csi.NodeStageVolumeRequest) -> csi.NodeStageVolumeResponse:
        """Bind the volume to the staging path. It must be attached to this node."""
        path = checks.check_path(request.staging_target_path, "staging_target_path")
        access = checks.check_access(request.volume_capability)
        place = Place(volume_id=request.volume_id, path=path, kind="stage", mode=access.mode, flags=access.flags)

        def work(volume: VolumeRecord) -> None:
            if not any(one.node_id == self._node_id for one in volume.publications):
                text = f"volume {volume.id} is not attached to node {self._node_id!r}: attach it first"
                raise refuse("FAILED_PRECONDITION", text)
            self._publisher.stage(volume, place)

        await self._work(request.volume_id, work)
        return csi.NodeStageVolumeResponse()

    async def node_unstage_volume(self, request: csi.NodeUnstageVolumeRequest) -> csi.NodeUnstageVolumeResponse:
        """Take the volume away from the staging path."""
        path = checks.check_path(request.staging_target_path, "staging_target_path")
        await self._work(request.volume_id, lambda volume: self._publisher.unstage(volume, path))
        return csi.NodeUnstageVolumeResponse()

    async def node_publish_volume(self, request: csi.NodePublishVolumeRequest) -> csi.NodePublishVolumeResponse:
        """Bind the volume to the target path, which is made."""
        path = checks.check_path(request.target_path, "target_path")
        staging = checks.check_path(request.staging_target_path, "staging_target_path")
        access = checks.check_access(request.volume_capability)
        flags = (*access.flags, "ro") if request.readonly else access.flags
        place = Place(volume_id=request.volume_id, path=path, kind="publish", mode=access.mode, flags=flags)
        await self._work(request.volume_id, lambda volume: self._publisher.publish(volume, place, staging))
        return csi.NodePublishVolumeResponse()

    async def node_unpublish_volume(self, request: csi.NodeUnpublishVolumeRequest) -> csi.NodeUnpublishVolumeResponse:
        """Take the volume away from the target path, and remove the path."""
        path = checks.check_path(request.target_path, "target_path")
        await self._work(request.volume_id, lambda volume: self._publisher.unpublish(volume, path))
        return csi.NodeUnpublishVolumeResponse()

    async def _work(self, volume_id: str, work: Callable[[VolumeRecord], T]) -> T:
        """Run ``work`` in a worker thread, alone for the volume on this node."""
        checks.require(volume_id, "volume_id")

        def find_and_work() -> T:
            volume = self._storage.find(volume_id)
            if volume is None:
                raise refuse("NOT_FOUND", f"volume {volume_id!r} does not exist")
            return work(volume)

        async with self._locks[volume_id]:
            return await anyio.to_thread.run_sync(partial(find_and_work))


def may_mount() -> bool:
    """Whether this process may mount; blocks."""
    return mounting.can_mount()


def _describe(volume: VolumeRecord) -> csi.Volume:
    return csi.Volume(volume_id=volume.id, capacity_bytes=volume.capacity_bytes, volume_context=volume.parameters)


def _say_attached(volume: VolumeRecord, node_id: str) -> str:
    return f"volume {volume.id} is attached to node {node_id!r}: detach it there first"


def _check_beside(volume: VolumeRecord, held: Publication, wanted: Publication) -> None:
    """Whether ``wanted`` may be added while ``held`` is there."""
    if held.node_id == wanted.node_id:
        text = f"volume {volume.id} is attached to node {held.node_id!r} with another mode or readonly flag"
        raise refuse("ALREADY_EXISTS", text)
    writes_twice = not held.readonly and not wanted.readonly
    has_one_writer = Mode.MULTI_NODE_SINGLE_WRITER in (held.mode, wanted.mode) and writes_twice
    if {held.mode, wanted.mode} & checks.SINGLE_NODE_MODES or has_one_writer:
        raise refuse("FAILED_PRECONDITION", _say_attached(volume, held.node_id))
