"""Sealing anew: it ends, beside other writers and after being broken off anywhere, and nothing of the old is left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from moorage.errors import Rejected, StoreUnavailable
from moorage.model.ids import NamespaceName, PluginId, Revision, VolumeId
from moorage.model.volume import Secrets, Volume
from moorage.state.codec import Records, find_seal_key
from moorage.state.keyring import SealKey, join_keys, make_key
from moorage.state.memory import MemoryStore
from moorage.state.resealing import Resealing, list_hiding
from moorage.state.sealing import Sealer
from moorage.state.sqlite import SqliteStore
from moorage.state.store import Compare, Delete, Put, Store
from moorage.testing.key_sources import FixedKeys

pytestmark = pytest.mark.anyio
ONE = make_key(b"1" * 32)
COUNT = 70


def make_records(keys: FixedKeys) -> Records:
    return Records(Sealer(keys.load(), keys.describe()))


def make_volume(number: int, word: str = "first") -> tuple[str, Volume]:
    volume_id = VolumeId(f"v{number:03}")
    secrets = Secrets({"p": f"hush-{word}-{number}"})
    volume = Volume(id=volume_id, namespace=NamespaceName("default"), plugin_id=PluginId("p"), secrets=secrets)
    return f"volumes/default/{volume_id}", volume


async def fill(store: Store, records: Records, *, is_plain: bool = False) -> None:
    writer = Records() if is_plain else records
    for number in range(COUNT):
        key, volume = make_volume(number)
        await store.transact([Compare(key, Revision(0))], [Put(key, writer.encode(key, volume))])


async def check_sealed(store: Store, records: Records, key: SealKey, word: str = "first") -> None:
    entries = [entry async for entry in list_hiding(store)]
    assert [find_seal_key(entry.value) for entry in entries] == [key.id] * COUNT
    for number, entry in enumerate(entries):
        record = records.decode(entry.key, entry.value)
        assert isinstance(record, Volume)
        assert record.secrets.values["p"] in (f"hush-{word}-{number}", f"hush-first-{number}")


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.005)


async def test_rotation_seals_all_anew_and_says_what_may_go() -> None:
    store, keys = MemoryStore(), FixedKeys(ONE)
    records = make_records(keys)
    await fill(store, records)
    resealing = Resealing(store, records, keys, pause_s=0)
    async with anyio.create_task_group() as group:
        await group.start(resealing.run)
        await until(lambda: resealing.progress.phase == "done")
        assert "no other key" in resealing.progress.text
        started = await resealing.rotate()
        assert (started.phase, started.old_keys) == ("sealing", (ONE.id,))
        assert "keep every key" in started.text
        with pytest.raises(Rejected, match="not finished"):
            await resealing.rotate()
        await until(lambda: resealing.progress.phase == "done")
        told = resealing.progress
        assert (told.done, told.total) == (COUNT, COUNT)
        assert told.active_key == keys.keys[0].id != ONE.id
        assert f"the old key {ONE.id} may go: forget {ONE.id}" in told.text
        group.cancel_scope.cancel()
    await check_sealed(store, records, keys.keys[0])
    # The old key is not needed any more.
    await check_sealed(store, make_records(FixedKeys(keys.keys[0])), keys.keys[0])


async def test_rotation_beside_writers_loses_no_write(tmp_path: Path) -> None:
    store, keys = await SqliteStore.open(tmp_path / "state.db"), FixedKeys(ONE)
    records = make_records(keys)
    await fill(store, records)
    resealing = Resealing(store, records, keys, pause_s=0)
    is_over = anyio.Event()

    written = 0

    async def write() -> None:
        nonlocal written
        while not is_over.is_set():
            key, volume = make_volume(written % COUNT, "second")
            entry = await store.get(key)
            assert entry is not None
            put = Put(key, records.encode(key, volume))
            if (await store.transact([Compare(key, entry.modify_revision)], [put])).succeeded:
                written += 1

    async with anyio.create_task_group() as group:
        await group.start(resealing.run)
        await until(lambda: resealing.progress.phase == "done")
        group.start_soon(write)
        rotations = 0
        # Until every volume has been written beside a rotation, however slow the writer is.
        while rotations < 3 or written <= COUNT:
            await resealing.rotate()
            await until(lambda: resealing.progress.phase == "done")
            rotations += 1
        is_over.set()
        await anyio.sleep(0.05)
        group.cancel_scope.cancel()
    await check_sealed(store, make_records(FixedKeys(keys.keys[0])), keys.keys[0], "second")
    await store.close()


class Broken(Exception):
    """The process ends here."""


class Breaking:
    """A store that ends the process at its n-th call, before or after it took effect."""

    def __init__(self, store: Store, calls: int, *, is_after: bool) -> None:
        self._store = store
        self._left = calls
        self._is_after = is_after

    def __getattr__(self, name: str) -> Any:
        inner: Callable[..., Awaitable[Any]] = getattr(self._store, name)

        async def call(*args: Any, **words: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._is_after:
                raise Broken
            result = await inner(*args, **words)
            if self._left == 0:
                raise Broken
            return result

        return call


@pytest.mark.parametrize("is_after", [False, True])
async def test_broken_off_anywhere_it_is_finished_by_the_next_start(tmp_path: Path, is_after: bool) -> None:
    for calls in range(1, 60):
        path = tmp_path / f"{calls}.db"
        store, keys = await SqliteStore.open(path), FixedKeys(ONE)
        await fill(store, make_records(keys), is_plain=calls % 2 == 0)
        if calls % 2 == 0:
            await store.mark_unclean()
        else:
            keys.renew()
        records = make_records(keys)
        breaking: Any = Breaking(store, calls, is_after=is_after)
        is_whole = False
        try:
            await seal(breaking, records, keys)
            is_whole = True
        except* Broken:
            pass
        await store.close()
        again = await SqliteStore.open(path)
        await seal(again, make_records(keys), keys)
        await check_sealed(again, make_records(FixedKeys(keys.keys[0])), keys.keys[0])
        assert await again.is_clean()
        await again.close()
        assert b"hush-" not in read_all(tmp_path, f"{calls}.db*")
        if is_whole:
            return
    raise AssertionError("more calls than expected")


async def seal(store: Store, records: Records, keys: FixedKeys) -> None:
    resealing = Resealing(store, records, keys, pause_s=0)
    async with anyio.create_task_group() as group:
        await group.start(resealing.run)
        await until(lambda: resealing.progress.phase == "done")
        group.cancel_scope.cancel()


class Full(MemoryStore):
    """A store whose disk is full until room is made."""

    is_full = True

    async def transact(self, compares: Any, then: Any, otherwise: Any = ()) -> Any:
        if self.is_full and then:
            raise StoreUnavailable("the disk is full")
        return await super().transact(compares, then, otherwise)


async def test_what_holds_it_up_is_told_and_tried_again() -> None:
    store, keys = Full(), FixedKeys(ONE)
    store.is_full = False
    records = make_records(keys)
    await fill(store, records, is_plain=True)
    store.is_full = True
    resealing = Resealing(store, records, keys, pause_s=0, retry_s=0.01)
    async with anyio.create_task_group() as group:
        await group.start(resealing.run)
        await until(lambda: resealing.progress.last_error == "the disk is full")
        store.is_full = False
        await until(lambda: resealing.progress.phase == "done")
        assert resealing.progress.last_error == ""
        group.cancel_scope.cancel()
    await check_sealed(store, records, ONE)


async def test_history_of_what_was_deleted_goes_with_the_old_key(tmp_path: Path) -> None:
    store, keys = await SqliteStore.open(tmp_path / "state.db"), FixedKeys(ONE)
    records = make_records(keys)
    key, volume = make_volume(1)
    await store.transact((), [Put(key, records.encode(key, volume))])
    await store.transact((), [Delete(key)])
    assert ONE.id.encode() in read_all(tmp_path)
    resealing = Resealing(store, records, keys, pause_s=0)
    async with anyio.create_task_group() as group:
        await group.start(resealing.run)
        await until(lambda: resealing.progress.phase == "done")
        await resealing.rotate()
        await until(lambda: resealing.progress.phase == "done")
        group.cancel_scope.cancel()
    assert ONE.id.encode() not in read_all(tmp_path)
    await store.close()


def read_all(directory: Path, pattern: str = "*") -> bytes:
    return b"".join(path.read_bytes() for path in directory.glob(pattern))


def test_keys_of_a_ring_come_once() -> None:
    assert [k.id for k in join_keys((ONE,), (ONE,)).keys] == [ONE.id]
