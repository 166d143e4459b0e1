"""The store suite on every embedded store, and what only these promise."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import apsw
import pytest

from moorage.errors import Compacted, StoreUnavailable
from moorage.model.ids import Revision
from moorage.state.memory import MemoryStore
from moorage.state.sqlite import SqliteStore
from moorage.state.sqlite_files import Limits
from moorage.state.store import Compare, Delete, Put, Store
from moorage.testing.store_suite import StoreSuite
from moorage.testing.store_use import OpenStore, check_order, delete, find, put, take

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def memory_store() -> AsyncIterator[Store]:
    store = MemoryStore()
    yield store
    await store.close()


@asynccontextmanager
async def sqlite_store(path: Path, limits: Limits | None = None) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path, limits=limits or Limits())
    try:
        yield store
    finally:
        await store.close()


class TestMemory(StoreSuite):
    @pytest.fixture
    def open_store(self) -> OpenStore:
        return memory_store


class TestSqlite(StoreSuite):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        def factory() -> AbstractAsyncContextManager[Store]:
            return sqlite_store(tmp_path / "state.db")

        return factory


class TestSqliteWithSmallLimits(StoreSuite):
    """Groups of three and history freed all the time; the suite's history still fits."""

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        def factory() -> AbstractAsyncContextManager[Store]:
            return sqlite_store(tmp_path / "state.db", Limits(group_max=3, history_revisions=750))

        return factory


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_slow_reader_loses_its_place(kind: str, tmp_path: Path) -> None:
    limits = Limits(watch_events_max=4)
    store: Store = (
        MemoryStore(watch_events_max=4)
        if kind == "memory"
        else await SqliteStore.open(tmp_path / "state.db", limits=limits)
    )
    async with store.watch("", Revision(0)) as slow, store.watch("other/", Revision(0)) as other:
        await store.transact((), [Put(f"t/{number}", b"") for number in range(9)])
        # One batch that is above the bound is kept whole.
        assert [len(batch.events) for batch in await take(slow, 1)] == [9]
        for _ in range(5):
            await put(store, "t/a")
        for _ in range(2):
            with pytest.raises(Compacted):
                await anext(slow)
        # A watch of other keys has missed nothing.
        await put(store, "other/a")
        assert [batch.revision for batch in await take(other, 1)] == [7]
    async with store.watch("", Revision(1)) as again:
        assert len(await take(again, 6)) == 6
    await store.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_slow_reader_is_bounded_in_bytes(kind: str, tmp_path: Path) -> None:
    limits = Limits(watch_bytes_max=10_000)
    store: Store = (
        MemoryStore(watch_bytes_max=10_000)
        if kind == "memory"
        else await SqliteStore.open(tmp_path / "state.db", limits=limits)
    )
    async with store.watch("", Revision(0)) as slow:
        for number in range(4):
            await put(store, f"t/{number}", b"x" * 4000)
        with pytest.raises(Compacted):
            await anext(slow)
    await store.close()


async def test_group_commit_counts(tmp_path: Path) -> None:
    async with sqlite_store(tmp_path / "state.db") as store:
        async with anyio.create_task_group() as tasks:
            for number in range(64):
                tasks.start_soon(put, store, f"t/{number}")
        assert store.transactions == 64
        assert store.commits <= 8
        assert await store.revision() == 64
        commits = store.commits
        # What changes nothing needs no commit.
        await store.transact([Compare("t/1", Revision(999))], [Put("t/1", b"")])
        await delete(store, "t/absent")
        assert (store.commits, store.transactions) == (commits, 66)


async def test_failed_compare_in_a_group_fails_alone(tmp_path: Path) -> None:
    async with sqlite_store(tmp_path / "state.db") as store:
        results: dict[int, bool] = {}

        async def create(number: int) -> None:
            # Pairs compete for a key, within one group.
            key = f"t/{number // 2}"
            results[number] = (await store.transact([Compare(key, Revision(0))], [Put(key, b"%d" % number)])).succeeded

        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(create, number)
        assert sum(results.values()) == 20
        assert await store.revision() == 20
        for entry in (await store.list("t/")).entries:
            assert results[int(entry.value)]


async def test_everything_survives_a_reopen(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with sqlite_store(path) as store:
        await put(store, "t/a", b"1")
        await put(store, "t/a", b"2")
        await put(store, "t/b")
        await delete(store, "t/b")
        await store.compact(Revision(1))
        before = await store.list("")
        async with store.watch("", Revision(1)) as batches:
            history = await take(batches, 3)
    assert list_modes(tmp_path) == {"state.db": 0o600, "state.db.lock": 0o600}
    async with sqlite_store(path) as store:
        assert await store.list("") == before
        # The newest key is gone, the revision is not.
        assert await store.revision() == 4
        async with store.watch("", Revision(1)) as batches:
            assert await take(batches, 3) == history
        async with store.watch("", Revision(0)) as batches:
            with pytest.raises(Compacted):
                await anext(batches)
        assert await put(store, "t/c") == 5


async def test_history_is_bounded_by_revisions(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with sqlite_store(path, Limits(history_revisions=100)) as store:
        for number in range(0, 600, 4):
            await put(store, f"t/{number % 8}")
            async with anyio.create_task_group() as tasks:
                for key in ("t/x", "t/y", "t/z"):
                    tasks.start_soon(put, store, key)
        assert await store.revision() == 600
        async with store.watch("", Revision(500)) as batches:
            seen = await take(batches, 100)
            check_order(seen)
            assert seen[0].revision == 501
        # A sixteenth more is kept for a while.
        async with store.watch("", Revision(493)) as batches:
            with pytest.raises(Compacted):
                await anext(batches)
    database = apsw.Connection(str(path))
    assert 100 <= database.execute("SELECT count(*) FROM log").get <= 106
    database.close()


async def test_history_is_bounded_by_bytes(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    limits = Limits(history_bytes=1_000_000)
    async with sqlite_store(path, limits) as store:
        for _ in range(20):
            await put(store, "t/a", b"x" * 100_000)
    # After a reopen the bytes are known again: each change holds the value before and the one after.
    async with sqlite_store(path, limits) as store:
        await put(store, "t/a", b"x" * 100_000)
        async with store.watch("", Revision(16)) as batches:
            assert len(await take(batches, 5)) == 5
        async with store.watch("", Revision(15)) as batches:
            with pytest.raises(Compacted):
                await anext(batches)


async def test_history_of_thousands_of_revisions(tmp_path: Path) -> None:
    async with sqlite_store(tmp_path / "state.db") as store:
        for _ in range(5):
            async with anyio.create_task_group() as tasks:
                for number in range(500):
                    tasks.start_soon(put, store, f"t/{number}")
        await put(store, "rare/a")
        async with store.watch("", Revision(0)) as batches:
            assert [batch.revision for batch in await take(batches, 2501)] == list(range(1, 2502))
        # Pieces without anything under the prefix are stepped over.
        async with store.watch("rare/", Revision(0)) as batches:
            assert [batch.revision for batch in await take(batches, 1)] == [2501]


async def test_compacted_history_frees_its_room(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with sqlite_store(path) as store:
        for number in range(40):
            await store.transact((), [Put(f"t/{key}", b"%d" % number) for key in range(100)])
        await store.compact(Revision(39))
        rows = 4000
        with anyio.fail_after(20):
            while rows > 100:
                rows = await count_log_rows(path)
    assert rows == 100


async def count_log_rows(path: Path) -> int:
    def count() -> int:
        database = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            return int(database.execute("SELECT count(*) FROM log").get)
        finally:
            database.close()

    return await anyio.to_thread.run_sync(count)


async def test_full_queue_refuses(tmp_path: Path) -> None:
    async with sqlite_store(tmp_path / "state.db", Limits(queue_max=10)) as store:
        refusals: list[StoreUnavailable] = []

        async def write(number: int) -> None:
            try:
                await put(store, f"t/{number}")
            except StoreUnavailable as error:
                refusals.append(error)

        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(write, number)
        assert len(refusals) == 20
        assert "try again" in refusals[0].message
        await put(store, "t/later")
        assert len((await store.list("t/")).entries) == 11


async def test_full_queue_refuses_by_bytes(tmp_path: Path) -> None:
    async with sqlite_store(tmp_path / "state.db", Limits(queue_bytes_max=1000)) as store:
        # One that is above the bound by itself still finds an empty queue.
        await put(store, "t/big", b"x" * 5000)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put, store, "t/a", b"x" * 900)
            await anyio.lowlevel.checkpoint()
            with pytest.raises(StoreUnavailable):
                await put(store, "t/b", b"x" * 900)


async def test_second_server_is_refused_by_pid(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with sqlite_store(path) as store:
        with pytest.raises(StoreUnavailable, match=f"process {os.getpid()} "):
            await SqliteStore.open(path)
        script = (
            "import sys, anyio, pathlib\n"
            "from moorage.state.sqlite import SqliteStore\n"
            "anyio.run(SqliteStore.open, pathlib.Path(sys.argv[1]))\n"
        )
        child = await anyio.run_process([sys.executable, "-c", script, str(path)], check=False)
        assert child.returncode != 0
        assert f"in use by process {os.getpid()} ".encode() in child.stderr
        await put(store, "t/a")
    # The lock ends with the close.
    async with sqlite_store(path) as store:
        assert await store.revision() == 1


async def test_files_are_private(tmp_path: Path) -> None:
    async with sqlite_store(tmp_path / "state.db") as store:
        await put(store, "t/a")
        names = ("state.db", "state.db-shm", "state.db-wal", "state.db.lock")
        assert list_modes(tmp_path) == dict.fromkeys(names, 0o600)


def list_modes(directory: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}


async def test_not_a_store(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("this is no database, and long enough to be told from one" * 20)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE people (name TEXT)")
    database.close()
    for path in (text, other):
        before = path.read_bytes()
        with pytest.raises(StoreUnavailable, match="not a moorage store"):
            await SqliteStore.open(path)
        assert path.read_bytes() == before
    with pytest.raises(StoreUnavailable, match="directory"):
        await SqliteStore.open(tmp_path / "absent" / "state.db")
    (tmp_path / "dir.db").mkdir()
    with pytest.raises(StoreUnavailable, match=r"dir\.db"):
        await SqliteStore.open(tmp_path / "dir.db")


async def test_forgotten_close_does_not_hang(tmp_path: Path) -> None:
    script = (
        "import sys, anyio, pathlib\n"
        "from moorage.state.sqlite import SqliteStore\n"
        "from moorage.state.store import Put\n"
        "async def main():\n"
        "    store = await SqliteStore.open(pathlib.Path(sys.argv[1]))\n"
        "    await store.transact((), [Put('t/a', b'kept')])\n"
        "anyio.run(main)\n"
    )
    path = tmp_path / "state.db"
    await anyio.to_thread.run_sync(
        lambda: subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=30)
    )
    async with sqlite_store(path) as store:
        assert (await find(store, "t/a")).value == b"kept"


async def test_close_twice_at_once(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "state.db")
    await store.transact((), [Put("t/a", b""), Delete("t/b")])
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(store.close)
        tasks.start_soon(expect_closed, store)


async def expect_closed(store: Store) -> None:
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.list("")


async def test_fault_of_ours_is_told_and_passes(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with sqlite_store(path) as store:
        await put(store, "t/a")
        meddle(path, "ALTER TABLE log RENAME TO hidden")
        # Not StoreUnavailable: nobody can put this right by waiting or making room.
        with pytest.raises(AssertionError, match="no such table"):
            await put(store, "t/b")
        meddle(path, "ALTER TABLE hidden RENAME TO log")
        assert await put(store, "t/c") == 2
        assert [entry.key for entry in (await store.list("t/")).entries] == ["t/a", "t/c"]


def meddle(path: Path, sql: str) -> None:
    database = apsw.Connection(str(path))
    database.execute(sql)
    database.close()
