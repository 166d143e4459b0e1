"""Records and an open directory of the embedded driver, for the tests of its storage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec

from moorage.csi.local.keeper import Keeper
from moorage.csi.local.records import Index, Publication, SnapshotRecord, VolumeRecord
from moorage.csi.local.storage import Change, Storage

Records = tuple[Index[VolumeRecord], Index[SnapshotRecord]]
PUBLISHED = (Publication(node_id="node-1", mode=1, readonly=False),)


def volume(number: int, **fields: object) -> VolumeRecord:
    record = VolumeRecord(
        id=f"id-{number}", name=f"n-{number}", serial=number, capacity_bytes=4096, created_at_ns=1, is_handed_out=False
    )
    return msgspec.structs.replace(record, **fields)


def snapshot(number: int) -> SnapshotRecord:
    return SnapshotRecord(
        id=f"id-{number}", name=f"n-{number}", serial=number, source_volume_id="id-1", size_bytes=1, created_at_ns=1
    )


def handed_out(record: VolumeRecord) -> VolumeRecord:
    return msgspec.structs.replace(record, is_handed_out=True)


def fill(data: Path) -> None:
    """As a copy does, or a consumer."""
    data.mkdir(exist_ok=True)
    (data / "kept").write_text("precious")


def commit(storage: Storage, *changes: Change) -> None:
    assert storage.commit(changes) == [None] * len(changes)


def prepare(place: Path) -> Storage:
    """An open directory with two volumes that were handed out and hold something, and one that was not."""
    storage = Storage(place)
    storage.open()
    commit(storage, *(Change(action="create", record=volume(number)) for number in (1, 2, 3)))
    commit(storage, *(Change(action="hand_out", record=handed_out(volume(number))) for number in (1, 2)))
    for number in (1, 2):
        fill(storage.data_path(volume(number)))
    return storage


def ids(records: Records) -> list[object]:
    return [*records[0].ordered(), *records[1].ordered()]


@asynccontextmanager
async def keeper_on(storage: Storage) -> AsyncIterator[Keeper]:
    """A keeper at work."""
    keeper = Keeper(storage, now_ns=lambda: 1, new_id=lambda: "id")
    async with anyio.create_task_group() as group:
        await group.start(keeper.run_until_cancelled)
        yield keeper
        group.cancel_scope.cancel()
