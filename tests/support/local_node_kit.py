"""A client of the embedded driver over a real socket, for its node's tests: one volume and its paths."""
# ruff: noqa: ASYNC240 - a test looks at the disk itself; nothing else runs meanwhile

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
STRICT = (Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_READER_ONLY, Mode.SINGLE_NODE_SINGLE_WRITER)
SHARED = (Mode.SINGLE_NODE_MULTI_WRITER, Mode.MULTI_NODE_READER_ONLY, Mode.MULTI_NODE_MULTI_WRITER)


def capability(mode: Mode.Mode, *flags: str) -> csi.VolumeCapability:
    mount = csi.VolumeCapability.MountVolume(mount_flags=flags)
    return csi.VolumeCapability(mount=mount, access_mode=Mode(mode=mode))


class Client:
    """One volume of a driver, and its paths."""

    def __init__(self, channel: Channel, place: Path) -> None:
        self.channel = channel
        self.place = place
        self.staging = str(place / "staging")
        self.target = str(place / "target")
        self.volume_id = ""

    async def __call__(self, rpc: Rpc[Request, Response], request: Request) -> Response:
        return await call(self.channel, rpc, request, timeout_s=20)

    async def refused(self, rpc: Rpc[Request, Response], request: Request, status: str, text: str = "") -> None:
        with pytest.raises(DriverFault) as caught:
            await self(rpc, request)
        assert caught.value.status == status, caught.value
        assert text in caught.value.message

    async def create(self, name: str = "one") -> str:
        request = csi.CreateVolumeRequest(
            name=name,
            volume_capabilities=[capability(Mode.SINGLE_NODE_WRITER)],
            capacity_range=csi.CapacityRange(required_bytes=GIB),
        )
        self.volume_id = (await self(calls.CREATE_VOLUME, request)).volume.volume_id
        return self.volume_id

    @property
    def data(self) -> Path:
        return self.place / "data" / "volumes" / self.volume_id / "data"

    def stage_request(self, mode: Mode.Mode = Mode.SINGLE_NODE_WRITER, *flags: str) -> csi.NodeStageVolumeRequest:
        return csi.NodeStageVolumeRequest(
            volume_id=self.volume_id, staging_target_path=self.staging, volume_capability=capability(mode, *flags)
        )

    def publish_request(
        self,
        mode: Mode.Mode = Mode.SINGLE_NODE_WRITER,
        *flags: str,
        target: str = "",
        readonly: bool = False,
    ) -> csi.NodePublishVolumeRequest:
        return csi.NodePublishVolumeRequest(
            volume_id=self.volume_id,
            staging_target_path=self.staging,
            target_path=target or self.target,
            volume_capability=capability(mode, *flags),
            readonly=readonly,
        )

    async def stage(self, mode: Mode.Mode = Mode.SINGLE_NODE_WRITER) -> None:
        Path(self.staging).mkdir(exist_ok=True)
        await self(calls.NODE_STAGE_VOLUME, self.stage_request(mode))

    async def unstage(self) -> None:
        request = csi.NodeUnstageVolumeRequest(volume_id=self.volume_id, staging_target_path=self.staging)
        await self(calls.NODE_UNSTAGE_VOLUME, request)

    async def publish(self, mode: Mode.Mode = Mode.SINGLE_NODE_WRITER, *flags: str, readonly: bool = False) -> None:
        await self(calls.NODE_PUBLISH_VOLUME, self.publish_request(mode, *flags, readonly=readonly))

    async def unpublish(self, target: str = "") -> None:
        request = csi.NodeUnpublishVolumeRequest(volume_id=self.volume_id, target_path=target or self.target)
        await self(calls.NODE_UNPUBLISH_VOLUME, request)


@asynccontextmanager
async def driver(place: Path, *, may_mount: bool | None = None) -> AsyncIterator[Client]:
    """A driver on ``place``, ended at the end."""
    socket = place / "csi.sock"
    async with anyio.create_task_group() as group:
        start = partial(serve, endpoint=f"unix://{socket}", data_dir=place / "data", node_id="node-1", may_attach=False)
        await group.start(partial(start, may_mount=may_mount))
        channel = unix_channel(str(socket))
        yield Client(channel, place)
        await channel.close()
        group.cancel_scope.cancel()
