"""The Node service: checks of its requests, and its answers. The mounts are made in ``publishing``.

Raises Rejected with the gRPC status as its code; OSError from the kernel.
Source: CSI spec 1.12, "Node Service RPC".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from moorage.csi.local import checks
from moorage.csi.local.checks import refuse
from moorage.csi.local.devices import Devices
from moorage.csi.local.identity import TOPOLOGY_KEY
from moorage.csi.local.keeper import Keeper
from moorage.csi.local.places import Place
from moorage.csi.local.publishing import Publisher
from moorage.csi.local.records import VolumeRecord
from moorage.csi.local.usage import measure_image, measure_usage
from moorage.csi.proto import csi_pb2 as csi

T = TypeVar("T")

THREADS_MAX = 32

_Rpc = csi.NodeServiceCapability.RPC
_ABILITIES = (_Rpc.STAGE_UNSTAGE_VOLUME, _Rpc.GET_VOLUME_STATS, _Rpc.EXPAND_VOLUME, _Rpc.SINGLE_NODE_MULTI_WRITER)


class Node:
    """Answers the node calls."""

    def __init__(self, keeper: Keeper, publisher: Publisher, devices: Devices, *, node_id: str) -> None:
        self._keeper = keeper
        self._publisher = publisher
        self._devices = devices
        self._node_id = node_id
        self._threads = anyio.CapacityLimiter(THREADS_MAX)

    async def node_get_capabilities(self, _: csi.NodeGetCapabilitiesRequest) -> csi.NodeGetCapabilitiesResponse:
        """What this node can do."""
        capability = csi.NodeServiceCapability
        return csi.NodeGetCapabilitiesResponse(
            capabilities=[capability(rpc=_Rpc(type=ability)) for ability in _ABILITIES]
        )

    async def node_get_info(self, _: csi.NodeGetInfoRequest) -> csi.NodeGetInfoResponse:
        """The node's id, and its topology: itself."""
        topology = csi.Topology(segments={TOPOLOGY_KEY: self._node_id})
        return csi.NodeGetInfoResponse(node_id=self._node_id, accessible_topology=topology)

    async def node_stage_volume(self, request: csi.NodeStageVolumeRequest) -> csi.NodeStageVolumeResponse:
        """Show the volume at the staging path."""
        volume_id = checks.require(request.volume_id, "volume_id")
        path = checks.check_path(request.staging_target_path, "staging_target_path")
        if not request.HasField("volume_capability"):
            raise refuse("INVALID_ARGUMENT", "volume_capability is required")
        access = self._devices.read_access(request.volume_capability, self._keeper.volumes.find(volume_id))
        place = Place(
            volume_id=volume_id,
            path=path,
            kind="stage",
            mode=access.mode,
            flags=access.flags,
            is_block=access.is_block,
        )
        await self._hand_out(volume_id, lambda volume: self._shower(volume).stage(volume, place))
        return csi.NodeStageVolumeResponse()

    async def node_unstage_volume(self, request: csi.NodeUnstageVolumeRequest) -> csi.NodeUnstageVolumeResponse:
        """Take the volume away from the staging path."""
        volume_id = checks.require(request.volume_id, "volume_id")
        path = checks.check_path(request.staging_target_path, "staging_target_path")
        await self._work(volume_id, lambda volume: self._shower(volume).unstage(volume, path))
        return csi.NodeUnstageVolumeResponse()

    async def node_publish_volume(self, request: csi.NodePublishVolumeRequest) -> csi.NodePublishVolumeResponse:
        """Show the volume at the target path, which is made."""
        volume_id = checks.require(request.volume_id, "volume_id")
        path = checks.check_path(request.target_path, "target_path")
        if not request.HasField("volume_capability"):
            raise refuse("INVALID_ARGUMENT", "volume_capability is required")
        access = self._devices.read_access(request.volume_capability, self._keeper.volumes.find(volume_id))
        if not request.staging_target_path:
            raise refuse("FAILED_PRECONDITION", "staging_target_path is required: stage the volume first")
        staging = checks.check_path(request.staging_target_path, "staging_target_path")
        if staging == path:
            raise refuse("INVALID_ARGUMENT", "target_path must differ from staging_target_path")
        place = Place(
            volume_id=volume_id,
            path=path,
            kind="publish",
            mode=access.mode,
            flags=(*access.flags, "ro") if request.readonly else access.flags,
            is_block=access.is_block,
        )
        await self._hand_out(volume_id, lambda volume: self._shower(volume).publish(volume, place, staging))
        return csi.NodePublishVolumeResponse()

    async def node_unpublish_volume(self, request: csi.NodeUnpublishVolumeRequest) -> csi.NodeUnpublishVolumeResponse:
        """Take the volume away from the target path, and remove the path."""
        volume_id = checks.require(request.volume_id, "volume_id")
        path = checks.check_path(request.target_path, "target_path")
        await self._work(volume_id, lambda volume: self._shower(volume).unpublish(volume, path))
        return csi.NodeUnpublishVolumeResponse()

    async def node_get_volume_stats(self, request: csi.NodeGetVolumeStatsRequest) -> csi.NodeGetVolumeStatsResponse:
        """What the volume uses of its recorded size, and its inodes; see ``usage`` for what is counted."""
        volume_id = checks.require(request.volume_id, "volume_id")
        path = checks.require(request.volume_path, "volume_path")
        volume = self._get(volume_id)

        def work() -> csi.NodeGetVolumeStatsResponse:
            self._shower(volume).check_shown(volume, path)
            data = self._keeper.storage.data_path(volume)
            if volume.is_block:
                return csi.NodeGetVolumeStatsResponse(usage=[_describe_image(data, volume.capacity_bytes)])
            usage = measure_usage(data, capacity_bytes=volume.capacity_bytes)
            row = csi.VolumeUsage
            return csi.NodeGetVolumeStatsResponse(
                usage=[
                    row(
                        unit=row.BYTES,
                        total=usage.total_bytes,
                        used=usage.used_bytes,
                        available=usage.available_bytes,
                    ),
                    row(
                        unit=row.INODES,
                        total=usage.total_inodes,
                        used=usage.used_inodes,
                        available=usage.available_inodes,
                    ),
                ]
            )

        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)

    async def node_expand_volume(self, request: csi.NodeExpandVolumeRequest) -> csi.NodeExpandVolumeResponse:
        """Check that the controller has recorded the size; a device in use grows, a directory has nothing to."""
        volume_id = checks.require(request.volume_id, "volume_id")
        path = checks.require(request.volume_path, "volume_path")
        wanted = checks.check_range(request)
        if request.HasField("volume_capability"):
            self._devices.read_access(request.volume_capability, self._keeper.volumes.find(volume_id))
        volume = self._get(volume_id)
        await anyio.to_thread.run_sync(self._shower(volume).check_shown, volume, path, limiter=self._threads)
        if not wanted.holds(volume.capacity_bytes):
            text = f"volume {volume_id} has {volume.capacity_bytes} bytes, outside capacity_range: expand it first"
            raise refuse("OUT_OF_RANGE", f"{text} by ControllerExpandVolume")
        if volume.is_block:
            await self._work(volume_id, self._devices.grow)
        return csi.NodeExpandVolumeResponse(capacity_bytes=volume.capacity_bytes)

    def _shower(self, volume: VolumeRecord) -> Publisher | Devices:
        return self._devices if volume.is_block else self._publisher

    async def _work(self, volume_id: str, work: Callable[[VolumeRecord], T]) -> T:
        """Run ``work`` in a worker thread, alone for the volume; its key is the one of the controller's calls."""

        async def operation() -> T:
            volume = self._get(volume_id)
            return await anyio.to_thread.run_sync(work, volume, limiter=self._threads)

        return await self._keeper.run(f"volume:{volume_id}", operation)

    async def _hand_out(self, volume_id: str, work: Callable[[VolumeRecord], T]) -> T:
        """As ``_work``, which is going to show the volume: from now on it may hold data."""

        async def operation() -> T:
            volume = await self._keeper.hand_out(self._get(volume_id))
            return await anyio.to_thread.run_sync(work, volume, limiter=self._threads)

        return await self._keeper.run(f"volume:{volume_id}", operation)

    def _get(self, volume_id: str) -> VolumeRecord:
        volume = self._keeper.volumes.find(volume_id)
        if volume is None:
            raise refuse("NOT_FOUND", f"volume {volume_id!r} does not exist")
        return volume


def _describe_image(data: Path, capacity_bytes: int) -> csi.VolumeUsage:
    usage = measure_image(data, capacity_bytes=capacity_bytes)
    return csi.VolumeUsage(
        unit=csi.VolumeUsage.BYTES,
        total=usage.total_bytes,
        used=usage.used_bytes,
        available=usage.available_bytes,
    )
