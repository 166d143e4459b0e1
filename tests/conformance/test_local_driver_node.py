"""The embedded driver over a real socket: the node's calls, with bind mounts as root and with symlinks."""
# ruff: noqa: ASYNC220, ASYNC240 - a test looks at the disk itself; nothing else runs meanwhile

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from local_node_kit import GIB, SHARED, STRICT, Client, Mode, driver

from moorage.csi import calls, mounting
from moorage.csi.local.identity import TOPOLOGY_KEY
from moorage.csi.local.publishing import Publisher
from moorage.csi.local.records import VolumeRecord
from moorage.csi.local.storage import Storage
from moorage.csi.local.usage import measure_usage
from moorage.csi.proto import csi_pb2 as csi

pytestmark = pytest.mark.anyio


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory under which every mount is gone after the test."""
    yield tmp_path
    for mount in reversed(mounting.read_mounts()):
        if mount.target.startswith(f"{tmp_path}/"):
            mounting.unmount(mount.target, lazy=True)


@pytest.fixture
async def client(place: Path) -> AsyncIterator[Client]:
    async with driver(place) as found:
        await found.create()
        yield found


@pytest.fixture
async def linking(place: Path) -> AsyncIterator[Client]:
    """A driver that may not mount."""
    async with driver(place, may_mount=False) as found:
        await found.create()
        yield found


async def test_info_and_capabilities(client: Client) -> None:
    info = await client(calls.NODE_GET_INFO, csi.NodeGetInfoRequest())
    assert (info.node_id, info.max_volumes_per_node) == ("node-1", 0)
    assert dict(info.accessible_topology.segments) == {TOPOLOGY_KEY: "node-1"}
    answer = await client(calls.NODE_GET_CAPABILITIES, csi.NodeGetCapabilitiesRequest())
    names = {csi.NodeServiceCapability.RPC.Type.Name(one.rpc.type) for one in answer.capabilities}
    assert names == {"STAGE_UNSTAGE_VOLUME", "GET_VOLUME_STATS", "EXPAND_VOLUME", "SINGLE_NODE_MULTI_WRITER"}


@pytest.mark.root
async def test_a_volume_is_staged_published_and_taken_away(client: Client) -> None:
    for _ in range(2):
        await client.stage()
    for _ in range(2):
        await client.publish()
    Path(client.target, "file").write_text("text")
    assert (client.data / "file").read_text() == "text"
    assert len(mounting.mounts_of(mounting.read_mounts(), client.data)) == 2
    for _ in range(2):
        await client.unpublish()
    assert not os.path.lexists(client.target)
    for _ in range(2):
        await client.unstage()
    assert mounting.mounts_of(mounting.read_mounts(), client.data) == ()
    assert Path(client.staging).is_dir()
    assert os.listdir(client.place / "data" / "node") == []


@pytest.mark.root
@pytest.mark.parametrize(("flags", "readonly"), [((), True), (("ro",), False), (("rw", "noatime,noexec"), True)])
async def test_read_only_is_enforced(client: Client, flags: tuple[str, ...], readonly: bool) -> None:
    await client.stage()
    await client.publish(Mode.SINGLE_NODE_WRITER, *flags, readonly=readonly)
    with pytest.raises(OSError) as caught:
        Path(client.target, "file").write_text("no")
    assert caught.value.errno == errno.EROFS
    found = mounting.find_mount(client.target)
    assert found is not None
    assert ("noexec" in found.options) == ("noatime,noexec" in flags)
    Path(client.staging, "file").write_text("yes")


@pytest.mark.root
@pytest.mark.parametrize("mode", STRICT)
async def test_a_second_target_is_refused_in_strict_modes(client: Client, mode: Mode.Mode) -> None:
    second = str(client.place / "second")
    await client.stage(mode)
    await client.publish(mode)
    publish = calls.NODE_PUBLISH_VOLUME
    for request in (
        client.publish_request(mode, target=second),
        client.publish_request(mode, target=second, readonly=True),
        client.publish_request(Mode.MULTI_NODE_MULTI_WRITER, target=second),
    ):
        await client.refused(publish, request, "FAILED_PRECONDITION", client.target)
    assert not os.path.lexists(second)
    await client.publish(mode)
    await client.refused(publish, client.publish_request(mode, readonly=True), "ALREADY_EXISTS", client.target)
    await client.unpublish()
    await client(publish, client.publish_request(mode, target=second))


@pytest.mark.root
@pytest.mark.parametrize("mode", SHARED)
async def test_a_second_target_is_accepted_in_shared_modes(client: Client, mode: Mode.Mode) -> None:
    second = str(client.place / "second")
    await client.stage(mode)
    await client.publish(mode)
    publish = calls.NODE_PUBLISH_VOLUME
    await client(publish, client.publish_request(mode, target=second, readonly=True))
    for request in (
        client.publish_request(mode, target=second),
        client.publish_request(Mode.MULTI_NODE_SINGLE_WRITER, target=second, readonly=True),
        client.publish_request(mode, "noexec", target=second, readonly=True),
    ):
        await client.refused(publish, request, "ALREADY_EXISTS", second)
    await client.unpublish()
    assert mounting.is_mount_point(second)
    await client.unpublish(second)


@pytest.mark.root
async def test_a_restart_changes_nothing(place: Path) -> None:
    async with driver(place) as client:
        volume_id = await client.create()
        await client.stage()
        await client.publish(readonly=True)
    async with driver(place) as client:
        client.volume_id = volume_id
        await client.stage()
        await client.publish(readonly=True)
        publish = calls.NODE_PUBLISH_VOLUME
        await client.refused(publish, client.publish_request(), "ALREADY_EXISTS")
        await client.refused(publish, client.publish_request(target=f"{client.target}2"), "FAILED_PRECONDITION")
        delete = csi.DeleteVolumeRequest(volume_id=volume_id)
        await client.refused(calls.DELETE_VOLUME, delete, "FAILED_PRECONDITION", "mounted at")
        mounting.unmount(client.target)  # as a reboot does
        mounting.unmount(client.staging)
    async with driver(place) as client:
        client.volume_id = volume_id
        assert os.listdir(place / "data" / "node") == []
        await client.stage(Mode.MULTI_NODE_MULTI_WRITER)
        await client.publish(Mode.MULTI_NODE_MULTI_WRITER)
        await client.unpublish()
        await client.unstage()
        await client(calls.DELETE_VOLUME, delete)


@pytest.mark.root
async def test_a_mount_without_its_note_is_judged_by_the_table(client: Client) -> None:
    await client.stage()
    await client.publish(readonly=True)
    for name in os.listdir(client.place / "data" / "node"):
        os.unlink(client.place / "data" / "node" / name)
    await client.stage()
    await client.publish(readonly=True)
    await client.refused(calls.NODE_PUBLISH_VOLUME, client.publish_request(), "ALREADY_EXISTS")


@pytest.mark.root
async def test_stage_rules(client: Client) -> None:
    stage = calls.NODE_STAGE_VOLUME
    await client.refused(stage, client.stage_request(), "FAILED_PRECONDITION", client.staging)
    await client.stage()
    await client.refused(stage, client.stage_request(Mode.MULTI_NODE_MULTI_WRITER), "ALREADY_EXISTS")
    await client.create("two")
    await client.refused(stage, client.stage_request(), "FAILED_PRECONDITION", "another filesystem")
    unstage = csi.NodeUnstageVolumeRequest(volume_id=client.volume_id, staging_target_path=client.staging)
    await client.refused(calls.NODE_UNSTAGE_VOLUME, unstage, "FAILED_PRECONDITION")
    assert mounting.is_mount_point(client.staging)


@pytest.mark.root
async def test_publish_rules(client: Client) -> None:
    publish = calls.NODE_PUBLISH_VOLUME
    await client.refused(publish, client.publish_request(), "FAILED_PRECONDITION", "stage it first")
    await client.stage()
    deep = client.publish_request(target=f"{client.place}/missing/target")
    await client.refused(publish, deep, "FAILED_PRECONDITION", "parent directory")
    full = client.place / "full"
    (full / "precious").mkdir(parents=True)
    await client.refused(publish, client.publish_request(target=str(full)), "FAILED_PRECONDITION", "not empty")
    unpublish = csi.NodeUnpublishVolumeRequest(volume_id=client.volume_id, target_path=str(full))
    await client.refused(calls.NODE_UNPUBLISH_VOLUME, unpublish, "FAILED_PRECONDITION", "did not put there")
    assert (full / "precious").is_dir()
    (client.place / "file").write_text("file")
    onto = client.publish_request(target=f"{client.place}/file")
    await client.refused(publish, onto, "FAILED_PRECONDITION", "not a directory")
    mounted = client.place / "mounted"
    mounted.mkdir()
    mounting.bind("/proc", mounted)
    await client.refused(publish, client.publish_request(target=str(mounted)), "FAILED_PRECONDITION", "another")
    Path(client.target).mkdir()  # some orchestrators make it
    await client.publish()


@pytest.mark.root
async def test_a_mount_in_use_is_told_as_unavailable(client: Client) -> None:
    await client.stage()
    await client.publish()
    holder = subprocess.Popen(["sleep", "60"], cwd=client.target)
    try:
        request = csi.NodeUnpublishVolumeRequest(volume_id=client.volume_id, target_path=client.target)
        await client.refused(calls.NODE_UNPUBLISH_VOLUME, request, "UNAVAILABLE", "in use")
        assert mounting.is_mount_point(client.target)
    finally:
        holder.kill()
        holder.wait()
    await client.unpublish()


@pytest.mark.parametrize("missing", ["volume_id", "target_path", "staging_target_path", "volume_capability"])
async def test_missing_fields_are_named(client: Client, missing: str) -> None:
    request = client.publish_request()
    request.ClearField(missing)
    status = "FAILED_PRECONDITION" if missing == "staging_target_path" else "INVALID_ARGUMENT"
    await client.refused(calls.NODE_PUBLISH_VOLUME, request, status, missing)
    if missing == "target_path":
        return
    stage = client.stage_request()
    stage.ClearField(missing)
    await client.refused(calls.NODE_STAGE_VOLUME, stage, "INVALID_ARGUMENT", missing)


async def test_bad_arguments_are_refused(client: Client) -> None:
    publish = calls.NODE_PUBLISH_VOLUME
    relative = client.publish_request(target="relative/path")
    await client.refused(publish, relative, "INVALID_ARGUMENT", "target_path")
    flagged = client.publish_request(Mode.SINGLE_NODE_WRITER, "data=journal")
    await client.refused(publish, flagged, "INVALID_ARGUMENT", "'data=journal'")
    same = client.publish_request(target=client.staging)
    await client.refused(publish, same, "INVALID_ARGUMENT", "must differ")
    block = client.publish_request()
    block.volume_capability.block.SetInParent()
    await client.refused(publish, block, "INVALID_ARGUMENT", "block volumes are not supported by the local driver")
    client.volume_id = "unknown"
    await client.refused(publish, client.publish_request(), "NOT_FOUND", "unknown")
    await client.refused(calls.NODE_STAGE_VOLUME, client.stage_request(), "NOT_FOUND", "unknown")
    for rpc, request in (
        (calls.NODE_UNPUBLISH_VOLUME, csi.NodeUnpublishVolumeRequest(volume_id="unknown", target_path="/x/y")),
        (calls.NODE_UNSTAGE_VOLUME, csi.NodeUnstageVolumeRequest(volume_id="unknown", staging_target_path="/x/y")),
        (calls.NODE_GET_VOLUME_STATS, csi.NodeGetVolumeStatsRequest(volume_id="unknown", volume_path="/x/y")),
        (calls.NODE_EXPAND_VOLUME, csi.NodeExpandVolumeRequest(volume_id="unknown", volume_path="/x/y")),
    ):
        await client.refused(rpc, request, "NOT_FOUND", "unknown")  # type: ignore[misc]
        await client.refused(rpc, type(request)(), "INVALID_ARGUMENT", "volume_id")  # type: ignore[misc]


@pytest.mark.root
async def test_stats_and_expansion(client: Client) -> None:
    await client.stage()
    await client.publish()
    Path(client.target, "file").write_bytes(b"x" * 1_000_000)
    os.link(Path(client.target, "file"), Path(client.target, "again"))
    for path in (client.target, client.staging):
        request = csi.NodeGetVolumeStatsRequest(volume_id=client.volume_id, volume_path=path)
        answer = await client(calls.NODE_GET_VOLUME_STATS, request)
        rows = {row.unit: row for row in answer.usage}
        size, inodes = rows[csi.VolumeUsage.BYTES], rows[csi.VolumeUsage.INODES]
        assert size.total == GIB
        assert 1_000_000 <= size.used <= 1_100_000
        assert size.available <= GIB - size.used
        assert inodes.used == 2
        assert inodes.total == inodes.used + inodes.available
    elsewhere = csi.NodeGetVolumeStatsRequest(volume_id=client.volume_id, volume_path=str(client.place))
    await client.refused(calls.NODE_GET_VOLUME_STATS, elsewhere, "NOT_FOUND", "not staged or published")
    bounds = csi.CapacityRange(required_bytes=2 * GIB)
    grow = csi.NodeExpandVolumeRequest(volume_id=client.volume_id, volume_path=client.target, capacity_range=bounds)
    await client.refused(calls.NODE_EXPAND_VOLUME, grow, "OUT_OF_RANGE", "ControllerExpandVolume")
    await client(
        calls.CONTROLLER_EXPAND_VOLUME,
        csi.ControllerExpandVolumeRequest(volume_id=client.volume_id, capacity_range=bounds),
    )
    assert (await client(calls.NODE_EXPAND_VOLUME, grow)).capacity_bytes == 2 * GIB


def test_usage_of_a_volume_without_a_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    usage = measure_usage(tmp_path, capacity_bytes=0)
    assert 100_000 <= usage.used_bytes <= 200_000
    assert usage.available_bytes > 0
    assert usage.total_bytes == usage.used_bytes + usage.available_bytes


def test_usage_of_a_large_volume_is_that_of_the_filesystem(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}").touch()
    assert measure_usage(tmp_path, capacity_bytes=1000, entries_max=11).total_bytes == 1000
    assert measure_usage(tmp_path, capacity_bytes=1000, entries_max=10).total_bytes > 1000


async def test_without_mounts_volumes_are_published_by_symlink(linking: Client) -> None:
    client = linking
    for _ in range(2):
        await client.stage()
        await client.publish()
    assert os.readlink(client.target) == str(client.data)
    Path(client.target, "file").write_text("text")
    assert (client.data / "file").read_text() == "text"
    assert not mounting.is_mount_point(client.target)
    publish = calls.NODE_PUBLISH_VOLUME
    await client.refused(publish, client.publish_request(readonly=True), "ALREADY_EXISTS")
    second = client.publish_request(target=f"{client.target}2")
    await client.refused(publish, second, "FAILED_PRECONDITION", client.target)
    for path in (client.target, client.staging):
        request = csi.NodeGetVolumeStatsRequest(volume_id=client.volume_id, volume_path=path)
        assert len((await client(calls.NODE_GET_VOLUME_STATS, request)).usage) == 2
    for _ in range(2):
        await client.unpublish()
        await client.unstage()
    assert not os.path.lexists(client.target)
    assert (client.data / "file").read_text() == "text"


async def test_a_foreign_symlink_is_left_alone(linking: Client) -> None:
    client = linking
    await client.stage()
    os.symlink("/etc", client.target)
    await client.refused(calls.NODE_PUBLISH_VOLUME, client.publish_request(), "FAILED_PRECONDITION", "symlink")
    request = csi.NodeUnpublishVolumeRequest(volume_id=client.volume_id, target_path=client.target)
    await client.refused(calls.NODE_UNPUBLISH_VOLUME, request, "FAILED_PRECONDITION", "symlink")
    assert os.readlink(client.target) == "/etc"


@pytest.mark.root
async def test_a_symlink_of_an_unprivileged_driver_is_taken_over(place: Path) -> None:
    async with driver(place, may_mount=False) as client:
        volume_id = await client.create()
        await client.stage()
        await client.publish()
    async with driver(place, may_mount=True) as client:
        client.volume_id = volume_id
        await client.publish()
        assert os.path.islink(client.target)
        await client.unpublish()
        await client.stage()
        await client.publish()
        assert mounting.is_mount_point(client.target)


async def test_a_volume_is_on_record_as_handed_out_before_it_is_shown(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []
    for name in ("stage", "publish"):
        real = getattr(Publisher, name)

        def show(self: Publisher, volume: VolumeRecord, *rest: object, real=real, name=name) -> None:  # type: ignore[no-untyped-def]
            seen.append((name, volume.is_handed_out))
            real(self, volume, *rest)

        monkeypatch.setattr(Publisher, name, show)
    async with driver(place, may_mount=False) as client:
        for name in ("staged", "published", "neither"):
            await client.create(name)
            if name == "staged":
                await client.stage()
            if name == "published":
                await client.publish()
    assert seen == [("stage", True), ("publish", True)]
    storage = Storage(place / "data")
    volumes, _ = storage.open()
    storage.close()
    on_record = {one.name: one.is_handed_out for one in volumes.ordered()}
    assert on_record == {"staged": True, "published": True, "neither": False}
