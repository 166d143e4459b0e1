"""A client of the embedded driver over a real socket, for its controller's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest

from moorage.csi import calls
from moorage.csi.local.server import serve
from moorage.csi.proto import csi_pb2 as csi
from moorage.errors import DriverFault
from moorage.rpc import Channel, Request, Response, Rpc, call, unix_channel

Mode = csi.VolumeCapability.AccessMode
GIB = 1024**3


def capability(mode: Mode.Mode = Mode.SINGLE_NODE_WRITER, *flags: str) -> csi.VolumeCapability:
    mount = csi.VolumeCapability.MountVolume(mount_flags=flags)
    return csi.VolumeCapability(mount=mount, access_mode=Mode(mode=mode))


BLOCK = csi.VolumeCapability(block=csi.VolumeCapability.BlockVolume(), access_mode=Mode(mode=Mode.SINGLE_NODE_WRITER))


class Client:
    """Calls of one channel, and what is said about refusals."""

    def __init__(self, channel: Channel, data: Path) -> None:
        self.channel = channel
        self.data = data

    async def __call__(self, rpc: Rpc[Request, Response], request: Request) -> Response:
        return await call(self.channel, rpc, request, timeout_s=20)

    async def refused(self, rpc: Rpc[Request, Response], request: Request, status: str, text: str = "") -> None:
        with pytest.raises(DriverFault) as caught:
            await self(rpc, request)
        assert caught.value.status == status, caught.value
        assert text in caught.value.message

    async def create(self, name: str = "one", required: int = 0, limit: int = 0) -> csi.Volume:
        request = csi.CreateVolumeRequest(name=name, volume_capabilities=[capability()])
        if required or limit:
            request.capacity_range.CopyFrom(csi.CapacityRange(required_bytes=required, limit_bytes=limit))
        return (await self(calls.CREATE_VOLUME, request)).volume

    async def create_from(self, name: str, *, snapshot: str = "", volume: str = "", required: int = 0) -> csi.Volume:
        source = csi.VolumeContentSource()
        if snapshot:
            source.snapshot.snapshot_id = snapshot
        if volume:
            source.volume.volume_id = volume
        request = csi.CreateVolumeRequest(name=name, volume_capabilities=[capability()], volume_content_source=source)
        if required:
            request.capacity_range.required_bytes = required
        return (await self(calls.CREATE_VOLUME, request)).volume

    async def snapshot(self, name: str, volume_id: str) -> csi.Snapshot:
        request = csi.CreateSnapshotRequest(name=name, source_volume_id=volume_id)
        return (await self(calls.CREATE_SNAPSHOT, request)).snapshot

    async def publish(
        self, volume_id: str, mode: Mode.Mode = Mode.SINGLE_NODE_WRITER, *, readonly: bool = False
    ) -> None:
        await self(calls.CONTROLLER_PUBLISH_VOLUME, publish_request(volume_id, mode, readonly=readonly))

    async def listed(self) -> dict[str, list[str]]:
        answer = await self(calls.LIST_VOLUMES, csi.ListVolumesRequest())
        return {entry.volume.volume_id: list(entry.status.published_node_ids) for entry in answer.entries}


def publish_request(
    volume_id: str, mode: Mode.Mode = Mode.SINGLE_NODE_WRITER, *, node_id: str = "node-1", readonly: bool = False
) -> csi.ControllerPublishVolumeRequest:
    return csi.ControllerPublishVolumeRequest(
        volume_id=volume_id, node_id=node_id, volume_capability=capability(mode), readonly=readonly
    )


@asynccontextmanager
async def running_driver(place: Path) -> AsyncIterator[Client]:
    """A driver on ``place`` with a client of it, ended at the end."""
    socket, data = place / "sockets" / "csi.sock", place / "data"
    async with anyio.create_task_group() as group:
        await group.start(
            partial(serve, endpoint=f"unix://{socket}", data_dir=data, node_id="node-1", may_attach=False)
        )
        channel = unix_channel(str(socket))
        yield Client(channel, data)
        await channel.close()
        group.cancel_scope.cancel()
