"""The embedded store: SQLite, one writer thread, commits in groups.

Transactions wait in a bounded queue; the thread takes what is there, commits it as one (``state.sqlite_group``), and
hands results and watch batches to the event loop with one call a group. Batches are published before the first result
of their group is set; what a reader of a watch may rely on is in ``state.watching``.
While the event loop is saturated the thread needs the interpreter's switch interval to be well below the length of a
loop turn (0.1 ms measured well, the default 5 ms starved it for seconds): the program sets it, not this module.
Reads and replays go through a second connection in worker threads, one at a time.

After StoreUnavailable from ``transact`` nothing half done is on the disk; whether the transaction was written is, as
after a cancellation, for the caller to read. Later transactions work again as soon as the disk does.
apsw's exceptions end here. Never: decisions about volumes, clock.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import apsw

from moorage.errors import StoreUnavailable
from moorage.model.ids import Revision
from moorage.state import sqlite_reads
from moorage.state.sqlite_files import DEFAULT_LIMITS, Files, Limits, open_files
from moorage.state.sqlite_format import (
    DISK_ERRORS,
    read_meta_number,
    unavailable,
)
from moorage.state.sqlite_group import GroupResult, Txn
from moorage.state.store import Compare, Entry, Listing, Op, Results, Simple, TxnResult
from moorage.state.transactions import check_limit, check_transaction
from moorage.state.watching import Replayed, Watch, WatchHub

T = TypeVar("T")
_Done = asyncio.Future[TxnResult | StoreUnavailable]


class _Write:
    """A transaction on its way to the thread."""

    __slots__ = ("done", "size", "txn")

    def __init__(self, txn: Txn, size: int, done: _Done) -> None:
        self.txn = txn
        self.size = size
        self.done = done


class _Task:
    """Something else for the thread to do with the group, on its way there."""

    __slots__ = ("done", "run")

    def __init__(self, run: Callable[[], None], done: asyncio.Future[StoreUnavailable | None]) -> None:
        self.run = run
        self.done = done


_Jobs = list[_Write | _Task]
_Handed = list[_Write] | list[_Task]


class SqliteStore:
    """A ``Store`` in one SQLite file. Made by ``open``, used on the event loop that opened it.

    ``transactions`` counts those that a commit has settled, ``commits`` the SQLite commits that changed records.
    """

    def __init__(self, path: Path, files: Files, limits: Limits) -> None:
        self.path = path
        self.transactions = 0
        self._files = files
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Handed | None] = queue.SimpleQueue()
        # Of this turn of the loop: the thread is woken once for all of them, when the turn needs the interpreter least.
        self._coming: list[_Write] = []
        self._queued = 0
        self._queued_bytes = 0
        self._is_closed = False
        self._drained = anyio.Event()
        self._closed = anyio.Event()
        self._reads = anyio.CapacityLimiter(1)
        self._hub = WatchHub(
            self._replay,
            revision=files.group.revision,
            events_max=limits.watch_events_max,
            bytes_max=limits.watch_bytes_max,
        )
        # A daemon, so that a program that forgets to close still ends; the disk is whole at every instant.
        threading.Thread(target=self._run, name="moorage-store", daemon=True).start()

    @classmethod
    async def open(cls, path: Path, *, limits: Limits = DEFAULT_LIMITS) -> SqliteStore:
        """Open the store at ``path``, or make it; the lock file is beside it.

        Raises StoreUnavailable: in use (names the pid), written by a newer version, not a store, or a broken disk.
        """
        return cls(path, await anyio.to_thread.run_sync(open_files, path, limits), limits)

    @property
    def commits(self) -> int:
        """SQLite commits that changed records since the store was opened."""
        return self._files.group.commits

    @property
    def queued(self) -> int:
        """Transactions that wait for the disk."""
        return self._queued

    @property
    def newest(self) -> Revision:
        """The newest revision that a commit has made durable."""
        return self._files.group.revision

    async def get(self, key: str) -> Entry | None:
        """See ``Store.get``."""
        return await self._read(lambda db: sqlite_reads.read_entry(db, key))

    async def list(self, prefix: str, *, after_key: str = "", limit: int = 0) -> Listing:
        """See ``Store.list``."""
        check_limit(limit)
        return await self._read(lambda db: sqlite_reads.read_listing(db, prefix, after_key=after_key, limit=limit))

    async def transact(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        """See ``Store.transact``. Raises StoreUnavailable also when too much is waiting already."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        outcome = await self._begin(compares, then, otherwise)
        if isinstance(outcome, StoreUnavailable):
            raise StoreUnavailable(outcome.message, path=str(self.path)) from outcome
        return outcome

    async def transact_each(self, transactions: Sequence[Simple]) -> Results:
        """See ``Store.transact_each``."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        begun: list[_Done | StoreUnavailable] = []
        for compares, then in transactions:
            try:
                begun.append(self._begin(compares, then))
            except StoreUnavailable as error:
                begun.append(error)
        return [one if isinstance(one, StoreUnavailable) else await one for one in begun]

    def watch(self, prefix: str, after: Revision) -> Watch:
        """See ``Store.watch``; what a reader may rely on is in ``state.watching``."""
        return self._hub.watch(prefix, after)

    async def revision(self) -> Revision:
        """See ``Store.revision``."""
        return await self._read(sqlite_reads.read_revision)

    async def compact(self, revision: Revision) -> None:
        """See ``Store.compact``. The room is freed little by little afterwards."""
        await self._run_task(lambda: self._files.group.compact(revision))

    async def is_clean(self) -> bool:
        """See ``Store.is_clean``."""
        return not await self._read(lambda db: read_meta_number(db, "unclean"))

    async def mark_unclean(self) -> None:
        """See ``Store.mark_unclean``."""
        await self._run_task(self._files.group.mark_unclean)

    async def scrub(self) -> None:
        """See ``Store.scrub``. It takes as long as copying the file; no read runs meanwhile."""
        async with self._reads:
            await self._run_task(self._files.group.scrub)

    async def close(self) -> None:
        """See ``Store.close``. Cancelling does not shorten it: it takes as long as the disk needs for the queue."""
        with anyio.CancelScope(shield=True):
            if self._is_closed:
                await self._closed.wait()
                return
            self._is_closed = True
            self._hand_over()
            self._queue.put(None)
            await self._drained.wait()
            self._hub.close()
            try:
                # The limiter waits for a read that is under way.
                await anyio.to_thread.run_sync(self._files.close, limiter=self._reads)
            except DISK_ERRORS as error:
                raise unavailable(error, self.path) from error
            finally:
                self._closed.set()

    async def _run_task(self, run: Callable[[], None]) -> None:
        await anyio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        task = _Task(run, self._loop.create_future())
        self._hand_over()
        self._queue.put([task])
        outcome = await task.done
        if outcome is not None:
            raise StoreUnavailable(outcome.message, path=str(self.path)) from outcome

    # -- on the loop -------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreUnavailable(f"store {self.path} is closed", path=str(self.path))

    def _begin(self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()) -> _Done:
        size = check_transaction(compares, then, otherwise)
        self._check_open()
        limits = self._limits
        if self._queued >= limits.queue_max or (self._queued and self._queued_bytes + size > limits.queue_bytes_max):
            raise StoreUnavailable(f"store {self.path}: {self._queued} writes wait for the disk: try again later")
        write = _Write(Txn(tuple(compares), tuple(then), tuple(otherwise)), size, self._loop.create_future())
        self._queued += 1
        self._queued_bytes += size
        self._coming.append(write)
        if len(self._coming) == 1:
            self._loop.call_soon(self._hand_over)
        return write.done

    def _hand_over(self) -> None:
        if self._coming:
            coming, self._coming = self._coming, []
            self._queue.put(coming)

    async def _read(self, function: Callable[[apsw.Connection], T]) -> T:
        self._check_open()

        def read() -> T:
            # The store may have been closed while this waited for its turn.
            self._check_open()
            return function(self._files.reader)

        try:
            return await anyio.to_thread.run_sync(read, limiter=self._reads)
        except DISK_ERRORS as error:
            raise unavailable(error, self.path) from error

    async def _replay(self, prefix: str, after: Revision) -> Replayed:
        return await self._read(lambda db: sqlite_reads.read_history(db, prefix, after))

    def _deliver(self, writes: Sequence[_Write], outcome: GroupResult | StoreUnavailable | AssertionError) -> None:
        self._queued -= len(writes)
        self._queued_bytes -= sum(write.size for write in writes)
        if isinstance(outcome, GroupResult):
            self.transactions += len(writes)
            self._hub.publish(outcome.batches)
            for write, result in zip(writes, outcome.results, strict=True):
                _settle(write.done, result)
            return
        for write in writes:
            _settle(write.done, outcome)

    # -- in the writer thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for jobs in self._take_jobs():
                for kind, some in groupby(jobs, key=type):
                    if kind is _Write:
                        self._commit([job for job in some if isinstance(job, _Write)])
                    else:
                        for job in some:
                            if isinstance(job, _Task):
                                self._do(job)
            self._loop.call_soon_threadsafe(self._drained.set)
        except RuntimeError:
            # The loop has ended without a close: nobody is left to tell. Anything else is a fault of ours.
            if not self._loop.is_closed():
                raise

    def _take_jobs(self) -> Iterator[_Jobs]:
        jobs: _Jobs = []
        group_max = self._limits.group_max
        while True:
            try:
                # With history to free and nothing to do, free some; otherwise sleep until there is something to do.
                handed = self._queue.get(block=not jobs and not self._files.group.has_backlog)
            except queue.Empty:
                if not jobs:
                    self._purge()
                    continue
                yield jobs
                jobs = []
                continue
            jobs.extend(handed or ())
            while len(jobs) >= group_max:
                yield jobs[:group_max]
                jobs = jobs[group_max:]
            if handed is None:
                yield jobs
                return

    def _commit(self, writes: Sequence[_Write]) -> None:
        outcome: GroupResult | StoreUnavailable | AssertionError
        try:
            outcome = self._files.group.run([write.txn for write in writes])
        except DISK_ERRORS as error:
            outcome = self._explain(error)
        except Exception as error:  # noqa: BLE001 (callers must hear of a fault of ours, or they wait for ever)
            outcome = AssertionError(f"the store's writer failed: {error!r}")
            outcome.__cause__ = error
        self._loop.call_soon_threadsafe(self._deliver, writes, outcome)

    def _do(self, task: _Task) -> None:
        outcome: StoreUnavailable | None = None
        try:
            task.run()
        except DISK_ERRORS as error:
            outcome = self._explain(error)
        self._loop.call_soon_threadsafe(_settle, task.done, outcome)

    def _purge(self) -> None:
        try:
            self._files.group.purge()
        except DISK_ERRORS:
            # The next write tells; until then there is no hurry.
            self._files.group.put_off_backlog()

    def _explain(self, error: BaseException) -> StoreUnavailable:
        outcome = unavailable(error, self.path)
        outcome.__cause__ = error
        return outcome


def _settle(done: asyncio.Future[T], outcome: T | AssertionError) -> None:
    # The caller may have been cancelled and gone.
    if done.done():
        return
    if isinstance(outcome, AssertionError):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
