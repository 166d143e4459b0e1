"""The embedded driver over a real socket: snapshots, restores and clones."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from local_controller_kit import GIB, Client, capability, running_driver

from moorage.csi import calls
from moorage.csi.proto import csi_pb2 as csi

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with running_driver(tmp_path) as found:
        yield found


async def test_snapshots_and_restores(client: Client) -> None:
    volume = await client.create("one", required=GIB)
    data = client.data / "volumes" / volume.volume_id / "data"
    (data / "file").write_text("as it was")
    snapshot = await client.snapshot("s1", volume.volume_id)
    assert (snapshot.size_bytes, snapshot.ready_to_use) == (GIB, True)
    assert snapshot.creation_time.seconds > 1_600_000_000
    (data / "file").write_text("changed")
    assert await client.snapshot("s1", volume.volume_id) == snapshot
    other = await client.create("two")
    clash = csi.CreateSnapshotRequest(name="s1", source_volume_id=other.volume_id)
    await client.refused(calls.CREATE_SNAPSHOT, clash, "ALREADY_EXISTS", "source_volume_id")
    await client(calls.DELETE_VOLUME, csi.DeleteVolumeRequest(volume_id=volume.volume_id))
    restored = await client.create_from("restored", snapshot=snapshot.snapshot_id)
    assert restored.capacity_bytes == GIB
    assert restored.content_source.snapshot.snapshot_id == snapshot.snapshot_id
    assert (client.data / "volumes" / restored.volume_id / "data" / "file").read_text() == "as it was"
    larger = await client.create_from("larger", snapshot=snapshot.snapshot_id, required=2 * GIB)
    assert larger.capacity_bytes == 2 * GIB
    for _ in range(2):
        await client(calls.DELETE_SNAPSHOT, csi.DeleteSnapshotRequest(snapshot_id=snapshot.snapshot_id))
    assert await client.create_from("restored", snapshot=snapshot.snapshot_id) == restored
    assert os.listdir(client.data / "snapshots") == []
    assert os.listdir(client.data / "temp") == []


async def test_clones(client: Client) -> None:
    volume = await client.create("one", required=GIB)
    (client.data / "volumes" / volume.volume_id / "data" / "file").write_text("text")
    clone = await client.create_from("clone", volume=volume.volume_id)
    assert clone.content_source.volume.volume_id == volume.volume_id
    assert (client.data / "volumes" / clone.volume_id / "data" / "file").read_text() == "text"
    for kind in ("volume", "snapshot"):
        request = csi.CreateVolumeRequest(name="none", volume_capabilities=[capability()])
        if kind == "volume":
            request.volume_content_source.volume.volume_id = "unknown"
        else:
            request.volume_content_source.snapshot.snapshot_id = "unknown"
        await client.refused(calls.CREATE_VOLUME, request, "NOT_FOUND", kind)
    request = csi.CreateVolumeRequest(
        name="small", volume_capabilities=[capability()], capacity_range=csi.CapacityRange(required_bytes=GIB - 1)
    )
    request.volume_content_source.volume.volume_id = volume.volume_id
    await client.refused(calls.CREATE_VOLUME, request, "OUT_OF_RANGE", "source")
    request.capacity_range.CopyFrom(csi.CapacityRange(limit_bytes=GIB - 1))
    await client.refused(calls.CREATE_VOLUME, request, "OUT_OF_RANGE", "source")
    request.volume_content_source.volume.volume_id = ""
    await client.refused(calls.CREATE_VOLUME, request, "INVALID_ARGUMENT", "volume_content_source.volume.volume_id")


async def test_snapshot_refusals_and_filters(client: Client) -> None:
    first, second = await client.create("one"), await client.create("two")
    ids = [(await client.snapshot(f"s{n}", (first, second)[n % 2].volume_id)).snapshot_id for n in range(5)]

    async def listed(**fields: object) -> list[str]:
        answer = await client(calls.LIST_SNAPSHOTS, csi.ListSnapshotsRequest(**fields))  # type: ignore[arg-type]
        return [entry.snapshot.snapshot_id for entry in answer.entries]

    assert await listed() == ids
    assert await listed(source_volume_id=first.volume_id) == ids[::2]
    assert await listed(snapshot_id=ids[1]) == ids[1:2]
    assert await listed(snapshot_id=ids[1], source_volume_id=first.volume_id) == []
    assert await listed(snapshot_id="unknown") == []
    assert await listed(source_volume_id="unknown") == []
    page = await client(calls.LIST_SNAPSHOTS, csi.ListSnapshotsRequest(max_entries=2, source_volume_id=first.volume_id))
    assert await listed(starting_token=page.next_token, source_volume_id=first.volume_id) == ids[4:]
    await client.refused(calls.LIST_SNAPSHOTS, csi.ListSnapshotsRequest(starting_token="x"), "ABORTED")
    create, delete = calls.CREATE_SNAPSHOT, calls.DELETE_SNAPSHOT
    await client.refused(create, csi.CreateSnapshotRequest(name="x"), "INVALID_ARGUMENT", "source_volume_id")
    await client.refused(
        create, csi.CreateSnapshotRequest(source_volume_id=first.volume_id), "INVALID_ARGUMENT", "name"
    )
    await client.refused(create, csi.CreateSnapshotRequest(name="x", source_volume_id="unknown"), "NOT_FOUND")
    await client.refused(delete, csi.DeleteSnapshotRequest(), "INVALID_ARGUMENT", "snapshot_id")
    await client(delete, csi.DeleteSnapshotRequest(snapshot_id="unknown"))
