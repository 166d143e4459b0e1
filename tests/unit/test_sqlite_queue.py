"""How transactions come to the SQLite store's thread: those of one turn of the loop together, and no more than may."""

from __future__ import annotations

import queue
from pathlib import Path

import anyio
import pytest

from moorage.errors import StoreUnavailable
from moorage.state import sqlite as sqlite_module
from moorage.state.sqlite import SqliteStore
from moorage.state.sqlite_files import Limits
from moorage.state.store import Put
from moorage.testing.store_use import put

pytestmark = pytest.mark.anyio


class CountedQueue(queue.SimpleQueue[object]):
    """A queue that counts how often its reader is woken."""

    puts = 0

    def put(self, item: object, *args: object) -> None:  # type: ignore[override]
        CountedQueue.puts += 1
        super().put(item)


async def test_the_writer_is_woken_once_for_a_turn_of_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module.queue, "SimpleQueue", CountedQueue)
    store = await SqliteStore.open(tmp_path / "state.db")
    try:
        CountedQueue.puts = 0
        async with anyio.create_task_group() as tasks:
            for number in range(64):
                tasks.start_soon(put, store, f"t/{number}")
        await store.transact_each([((), [Put(f"u/{number}", b"")]) for number in range(64)])
        assert CountedQueue.puts == 2
        assert (store.commits, await store.revision()) == (2, 128)
    finally:
        await store.close()


async def test_a_full_queue_refuses_those_of_several_that_it_cannot_take(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "state.db", limits=Limits(queue_max=3))
    try:
        results = await store.transact_each([((), [Put(f"t/{number}", b"")]) for number in range(5)])
        assert [isinstance(one, StoreUnavailable) for one in results] == [False] * 3 + [True] * 2
        assert [entry.key for entry in (await store.list("")).entries] == ["t/0", "t/1", "t/2"]
    finally:
        await store.close()
