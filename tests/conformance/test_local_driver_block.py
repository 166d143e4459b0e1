"""The embedded driver over a real socket: block volumes on loop devices, and their refusal elsewhere."""
# ruff: noqa: ASYNC220, ASYNC240 - a test looks at the disk itself; nothing else runs meanwhile

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest
from local_node_kit import Mode

from moorage.csi import calls, mounting
from moorage.csi.local import loop
from moorage.csi.local.server import serve
from moorage.csi.proto import csi_pb2 as csi
from moorage.errors import DriverFault
from moorage.rpc import Channel, Request, Response, Rpc, call, unix_channel

pytestmark = [pytest.mark.anyio, pytest.mark.root]

MIB = 1024 * 1024
BLOCK = csi.VolumeCapability(block=csi.VolumeCapability.BlockVolume(), access_mode=Mode(mode=Mode.SINGLE_NODE_WRITER))
SHARED = csi.VolumeCapability(
    block=csi.VolumeCapability.BlockVolume(), access_mode=Mode(mode=Mode.SINGLE_NODE_MULTI_WRITER)
)
MOUNT = csi.VolumeCapability(mount=csi.VolumeCapability.MountVolume(), access_mode=Mode(mode=Mode.SINGLE_NODE_WRITER))


class BlockClient:
    """A client of one driver, and the paths of one volume."""

    def __init__(self, channel: Channel, place: Path) -> None:
        self.channel = channel
        self.place = place
        self.staging, self.target = place / "staging", place / "target"
        self.staging.mkdir(exist_ok=True)

    async def __call__(self, rpc: Rpc[Request, Response], request: Request) -> Response:
        return await call(self.channel, rpc, request, timeout_s=20)

    async def refused(self, rpc: Rpc[Request, Response], request: Request, status: str, text: str) -> None:
        with pytest.raises(DriverFault) as caught:
            await self(rpc, request)
        assert (caught.value.status, text in caught.value.message) == (status, True), caught.value

    def create_request(
        self, name: str = "one", size: int = 4 * MIB, *, volume: str = "", snapshot: str = ""
    ) -> csi.CreateVolumeRequest:
        request = csi.CreateVolumeRequest(name=name, volume_capabilities=[BLOCK])
        if size:
            request.capacity_range.required_bytes = size
        if volume:
            request.volume_content_source.volume.volume_id = volume
        if snapshot:
            request.volume_content_source.snapshot.snapshot_id = snapshot
        return request

    async def create(self, name: str = "one", size: int = 4 * MIB, *, volume: str = "", snapshot: str = "") -> str:
        request = self.create_request(name, size, volume=volume, snapshot=snapshot)
        return (await self(calls.CREATE_VOLUME, request)).volume.volume_id

    async def stage(self, volume_id: str, capability: csi.VolumeCapability = BLOCK) -> None:
        request = csi.NodeStageVolumeRequest(
            volume_id=volume_id, staging_target_path=str(self.staging), volume_capability=capability
        )
        await self(calls.NODE_STAGE_VOLUME, request)

    def publish_request(
        self, volume_id: str, target: Path, *, readonly: bool, capability: csi.VolumeCapability = BLOCK
    ) -> csi.NodePublishVolumeRequest:
        return csi.NodePublishVolumeRequest(
            volume_id=volume_id,
            staging_target_path=str(self.staging),
            target_path=str(target),
            volume_capability=capability,
            readonly=readonly,
        )

    async def publish(self, volume_id: str, target: Path | None = None, *, readonly: bool = False) -> None:
        request = self.publish_request(volume_id, target or self.target, readonly=readonly)
        await self(calls.NODE_PUBLISH_VOLUME, request)

    async def unpublish(self, volume_id: str, target: Path | None = None) -> None:
        request = csi.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=str(target or self.target))
        await self(calls.NODE_UNPUBLISH_VOLUME, request)

    def unstage_request(self, volume_id: str) -> csi.NodeUnstageVolumeRequest:
        return csi.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=str(self.staging))

    async def unstage(self, volume_id: str) -> None:
        await self(calls.NODE_UNSTAGE_VOLUME, self.unstage_request(volume_id))

    async def up(self, volume_id: str) -> Path:
        await self.stage(volume_id)
        await self.publish(volume_id)
        return self.target

    async def down(self, volume_id: str) -> None:
        await self.unpublish(volume_id)
        await self.unstage(volume_id)

    async def delete(self, volume_id: str) -> None:
        await self(calls.DELETE_VOLUME, csi.DeleteVolumeRequest(volume_id=volume_id))

    def image(self, volume_id: str) -> Path:
        return self.place / "data" / "volumes" / volume_id / "data"


def list_loops(place: Path) -> list[str]:
    """Attached devices of files below the place."""
    found = Path("/sys/block").glob("loop*/loop/backing_file")
    return sorted(file.parts[3] for file in found if str(place) in file.read_text())


def read_device(path: Path, count: int, offset: int = 0) -> bytes:
    with path.open("rb", buffering=0) as device:
        device.seek(offset)
        return device.read(count)


def write_device(path: Path, content: bytes, offset: int = 0) -> None:
    with path.open("r+b", buffering=0) as device:
        device.seek(offset)
        device.write(content)
        os.fsync(device.fileno())


def size_of(path: Path) -> int:
    with path.open("rb", buffering=0) as device:
        return device.seek(0, os.SEEK_END)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory of which no mount and no device is left after the test, whatever it did."""
    if not loop.can_attach():
        pytest.skip("no loop devices here")
    yield tmp_path
    for mount in reversed(mounting.read_mounts()):
        if mount.target.startswith(f"{tmp_path}/"):
            mounting.unmount(mount.target, lazy=True)
    for name in list_loops(tmp_path):
        subprocess.run(["losetup", "-d", f"/dev/{name}"], check=False)


async def running(place: Path, *, may_attach: bool | None = None) -> AsyncIterator[BlockClient]:
    socket = place / "csi.sock"
    async with anyio.create_task_group() as group:
        start = partial(serve, endpoint=f"unix://{socket}", data_dir=place / "data", node_id="node-1")
        await group.start(partial(start, may_attach=may_attach))
        channel = unix_channel(str(socket))
        yield BlockClient(channel, place)
        await channel.close()
        group.cancel_scope.cancel()


@pytest.fixture
async def client(place: Path) -> AsyncIterator[BlockClient]:
    async for one in running(place):
        yield one


async def test_data_is_there_again_and_nothing_is_left(client: BlockClient) -> None:
    volume_id = await client.create()
    assert client.image(volume_id).stat().st_size == 4 * MIB
    for _ in range(2):
        await client.stage(volume_id)
    assert len(list_loops(client.place)) == 1, "a repeated stage attaches no second device"
    assert os.listdir(client.staging) == []
    for _ in range(2):
        await client.publish(volume_id)
    assert stat.S_ISBLK(client.target.stat().st_mode)
    assert size_of(client.target) == 4 * MIB
    write_device(client.target, b"kept", offset=MIB)
    for _ in range(2):
        await client.unpublish(volume_id)
    assert not os.path.lexists(client.target)
    for _ in range(2):
        await client.unstage(volume_id)
    assert list_loops(client.place) == []
    assert os.listdir(client.place / "data" / "node") == []
    await client.up(volume_id)
    assert read_device(client.target, 4, MIB) == b"kept"
    await client.down(volume_id)
    for _ in range(2):
        await client.delete(volume_id)
    assert os.listdir(client.place / "data" / "volumes") == []
    assert list_loops(client.place) == []


async def test_a_device_grows_while_it_is_open(client: BlockClient) -> None:
    volume_id = await client.create()
    await client.up(volume_id)
    with client.target.open("r+b", buffering=0) as device:
        device.write(b"before")
        wanted = csi.CapacityRange(required_bytes=9 * MIB + 1)
        answer = await client(
            calls.CONTROLLER_EXPAND_VOLUME,
            csi.ControllerExpandVolumeRequest(volume_id=volume_id, capacity_range=wanted, volume_capability=BLOCK),
        )
        assert (answer.capacity_bytes, answer.node_expansion_required) == (9 * MIB + 512, True)
        assert device.seek(0, os.SEEK_END) == 4 * MIB
        grown = await client(
            calls.NODE_EXPAND_VOLUME,
            csi.NodeExpandVolumeRequest(
                volume_id=volume_id,
                volume_path=str(client.target),
                staging_target_path=str(client.staging),
                capacity_range=wanted,
                volume_capability=BLOCK,
            ),
        )
        assert grown.capacity_bytes == device.seek(0, os.SEEK_END) == 9 * MIB + 512
        device.seek(8 * MIB)
        device.write(b"after")
    assert read_device(client.target, 6) == b"before"
    await client.down(volume_id)
    await client.up(volume_id)
    assert size_of(client.target) == 9 * MIB + 512
    assert read_device(client.target, 5, 8 * MIB) == b"after"
    await client.down(volume_id)


async def test_read_only_is_enforced_by_a_device_of_its_own(client: BlockClient) -> None:
    volume_id = await client.create()
    await client.stage(volume_id, SHARED)
    other = client.place / "other"
    for target, readonly in ((client.target, False), (other, True)):
        request = client.publish_request(volume_id, target, readonly=readonly, capability=SHARED)
        await client(calls.NODE_PUBLISH_VOLUME, request)
    assert len(list_loops(client.place)) == 2
    write_device(client.target, b"written")
    assert read_device(other, 7) == b"written"
    with pytest.raises(PermissionError):
        write_device(other, b"refused")
    await client.unpublish(volume_id, other)
    assert len(list_loops(client.place)) == 1, "its device went with the read-only publication"
    await client.down(volume_id)
    assert list_loops(client.place) == []


async def test_snapshots_restores_and_clones_hold_what_was_written(client: BlockClient) -> None:
    volume_id = await client.create()
    await client.up(volume_id)
    with client.target.open("r+b", buffering=0) as device:
        # Not synced by the writer: the driver has to bring it into the image before the copy.
        device.seek(MIB)
        device.write(b"first")
        asked = csi.CreateSnapshotRequest(name="snap", source_volume_id=volume_id)
        snapshot = (await client(calls.CREATE_SNAPSHOT, asked)).snapshot
        device.seek(MIB)
        device.write(b"later")
        clone_id = await client.create("clone", 0, volume=volume_id)
    assert snapshot.size_bytes == 4 * MIB
    await client.down(volume_id)
    restored_id = await client.create("restored", 6 * MIB, snapshot=snapshot.snapshot_id)
    for made, content, size in ((restored_id, b"first", 6 * MIB), (clone_id, b"later", 4 * MIB)):
        await client.up(made)
        assert read_device(client.target, 5, MIB) == content
        assert size_of(client.target) == size
        await client.down(made)
    bad = csi.CreateVolumeRequest(name="bad", volume_capabilities=[MOUNT])
    bad.volume_content_source.snapshot.snapshot_id = snapshot.snapshot_id
    await client.refused(calls.CREATE_VOLUME, bad, "INVALID_ARGUMENT", "cannot hold each other's data")


async def test_stats_of_a_device(client: BlockClient) -> None:
    volume_id = await client.create()
    await client.up(volume_id)
    write_device(client.target, b"x" * MIB)
    request = csi.NodeGetVolumeStatsRequest(volume_id=volume_id, volume_path=str(client.target))
    (usage,) = (await client(calls.NODE_GET_VOLUME_STATS, request)).usage
    assert (usage.unit, usage.total) == (csi.VolumeUsage.BYTES, 4 * MIB)
    assert MIB <= usage.used < 4 * MIB
    request.volume_path = str(client.place)
    await client.refused(calls.NODE_GET_VOLUME_STATS, request, "NOT_FOUND", "not staged or published")
    await client.down(volume_id)


async def test_what_is_refused(client: BlockClient) -> None:
    volume_id = await client.create()
    both = csi.CreateVolumeRequest(name="both", volume_capabilities=[BLOCK, MOUNT])
    await client.refused(calls.CREATE_VOLUME, both, "INVALID_ARGUMENT", "not for both")
    other = csi.CreateVolumeRequest(name="one", volume_capabilities=[MOUNT])
    other.capacity_range.required_bytes = 4 * MIB
    await client.refused(calls.CREATE_VOLUME, other, "ALREADY_EXISTS", "access type")
    narrow = client.create_request("narrow", 1000)
    narrow.capacity_range.limit_bytes = 1001
    await client.refused(calls.CREATE_VOLUME, narrow, "OUT_OF_RANGE", "whole sectors")
    publish = client.publish_request(volume_id, client.target, readonly=False)
    await client.refused(calls.NODE_PUBLISH_VOLUME, publish, "FAILED_PRECONDITION", "stage it first")
    wrong = client.publish_request(volume_id, client.target, readonly=False, capability=MOUNT)
    await client.refused(calls.NODE_PUBLISH_VOLUME, wrong, "INVALID_ARGUMENT", "created for block access")
    await client.stage(volume_id)
    client.target.mkdir()
    await client.refused(calls.NODE_PUBLISH_VOLUME, publish, "FAILED_PRECONDITION", "not an empty file")
    client.target.rmdir()
    await client.publish(volume_id)
    second = client.publish_request(volume_id, client.place / "other", readonly=False)
    await client.refused(calls.NODE_PUBLISH_VOLUME, second, "FAILED_PRECONDITION", "one target path")
    unstage = client.unstage_request(volume_id)
    await client.refused(calls.NODE_UNSTAGE_VOLUME, unstage, "FAILED_PRECONDITION", "unpublish it first")
    delete = csi.DeleteVolumeRequest(volume_id=volume_id)
    await client.refused(calls.DELETE_VOLUME, delete, "FAILED_PRECONDITION", "unmount it first")
    await client.down(volume_id)


async def test_a_device_in_use_is_not_taken_away_for_good(client: BlockClient) -> None:
    volume_id = await client.create()
    await client.stage(volume_id)
    (name,) = list_loops(client.place)
    descriptor = os.open(f"/dev/{name}", os.O_RDONLY)
    await client.refused(calls.NODE_UNSTAGE_VOLUME, client.unstage_request(volume_id), "UNAVAILABLE", "in use")
    # Staged again while the kernel waits for the last user: it must not vanish then.
    await client.stage(volume_id)
    os.close(descriptor)
    assert list_loops(client.place) == [name]
    await client.unstage(volume_id)
    assert list_loops(client.place) == []


async def test_a_device_of_a_killed_stage_goes_at_the_next_start_or_is_used_again(place: Path) -> None:
    async for client in running(place):
        wanted, unwanted = await client.create("wanted"), await client.create("unwanted")
        await client.up(wanted)
        # As if the driver had been killed after it attached, and its place was lost.
        loop.attach(client.image(unwanted), read_only=False)
        assert len(list_loops(place)) == 2
    async for client in running(place):
        (name,) = list_loops(place)
        assert loop.find_devices(client.image(wanted))[0].path == f"/dev/{name}"
        await client.up(wanted)
        assert list_loops(place) == [name]
        await client.down(wanted)
        await client.up(unwanted)
        await client.down(unwanted)
        assert list_loops(place) == []


async def test_a_killed_driver_doubles_and_loses_no_device(place: Path) -> None:
    socket, data = place / "csi.sock", place / "data"
    command = [
        sys.executable,
        "-m",
        "moorage",
        "driver",
        "local",
        "--endpoint",
        f"unix://{socket}",
        "--data",
        str(data),
    ]
    volume_id = ""
    for _ in range(4):
        process = subprocess.Popen([*command, "--node-id", "node-1"], stderr=subprocess.PIPE)
        try:
            assert process.stderr is not None
            while b"ready" not in process.stderr.readline():
                assert process.poll() is None
            channel = unix_channel(str(socket))
            client = BlockClient(channel, place)
            if not volume_id:
                volume_id = await client.create()
            await client.up(volume_id)
            write_device(client.target, b"through all kills")
            assert len(list_loops(place)) == 1
            await channel.close()
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stderr.close()
    assert read_device(place / "target", 17) == b"through all kills", "the device outlives its driver"
    async for client in running(place):
        await client.down(volume_id)
        await client.delete(volume_id)
    assert list_loops(place) == []


async def test_without_loop_devices_block_access_is_refused_by_name(place: Path) -> None:
    async for client in running(place, may_attach=False):
        refusal = "block volumes are not supported by the local driver here: they take root and loop devices"
        await client.refused(
            calls.CREATE_VOLUME, client.create_request(), "INVALID_ARGUMENT", f"volume_capabilities[0]: {refusal}"
        )
        asked = csi.GetCapacityRequest(volume_capabilities=[BLOCK])
        assert (await client(calls.GET_CAPACITY, asked)).available_capacity == 0
