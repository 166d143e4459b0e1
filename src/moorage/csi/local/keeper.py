"""Operations on volumes: one at a time per key, carried to the end, made durable in groups.

Shapes: ``Keeper.run`` carries an operation in the driver's own task group, so that a client that goes away does not
    leave it half done; ``Keeper.change`` is for one that is a decision and one change, and takes no task of its own.
    Changes that arrive together are one write by one worker thread.
Units:  waits in seconds.
Raises Rejected ABORTED when an operation for the same key goes on for longer than PENDING_WAIT_S.
Never:  runs more than COPIES_MAX copies or carries more than OPERATIONS_MAX operations at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from moorage.csi.local.checks import refuse
from moorage.csi.local.committing import Committer, Pending
from moorage.csi.local.copying import copy_image, copy_tree
from moorage.csi.local.layout import Record
from moorage.csi.local.records import Index, SnapshotRecord, VolumeRecord
from moorage.csi.local.storage import Change, Storage
from moorage.errors import Rejected
from moorage.waking import Bell

T = TypeVar("T")

PENDING_WAIT_S = 1.0
COPIES_MAX = 2
OPERATIONS_MAX = 4096


class Keeper:
    """The volumes and snapshots of one driver process."""

    def __init__(self, storage: Storage, *, now_ns: Callable[[], int], new_id: Callable[[], str]) -> None:
        self.storage = storage
        self.now_ns = now_ns
        self.new_id = new_id
        self.volumes: Index[VolumeRecord] = Index()
        self.snapshots: Index[SnapshotRecord] = Index()
        self._serial = 0
        self._held: dict[str, Bell] = {}
        self._copied_from: Counter[str] = Counter()
        self._commits = Committer(storage.commit, self._end)
        self._wake_sweep = anyio.Event()
        self._stopping = threading.Event()
        # Limiters of their own: calls that hang on a sick mount must not take the threads of the rest.
        self._copies = anyio.CapacityLimiter(COPIES_MAX)
        self._sweeps = anyio.CapacityLimiter(1)
        self._group: anyio.abc.TaskGroup | None = None

    async def run_until_cancelled(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Open the directory and carry operations until cancelled."""
        self.volumes, self.snapshots = await anyio.to_thread.run_sync(self.storage.open)
        self._serial = max(self.volumes.newest_serial(), self.snapshots.newest_serial())
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                group.start_soon(self._commits.run_until_cancelled)
                group.start_soon(self._sweep)
                self._wake_sweep.set()
                task_status.started()
        finally:
            self._stopping.set()
            self.storage.close()

    def stop_copies(self) -> None:
        """Let the copies in progress end with an error soon."""
        self._stopping.set()

    def next_serial(self) -> int:
        """A number above all serials given so far."""
        self._serial += 1
        return self._serial

    async def run(self, key: str, operation: Callable[[], Awaitable[T]]) -> T:
        """Carry ``operation`` to its end, alone among the operations of ``key``; its answer or its error."""
        assert self._group is not None
        await self._hold(key)
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._group.start_soon(self._carry, key, operation, outcome)
        return await outcome

    async def change(self, key: str, decide: Callable[[], tuple[T, Change | None]]) -> T:
        """Make the change that ``decide`` says, if any, alone among the operations of ``key``; its answer.

        Raises what ``decide`` does; OSError when the change was not made.
        """
        await self._hold(key)
        try:
            answer, change = decide()
        except BaseException:
            self._let_go(key)
            raise
        if change is None:
            self._let_go(key)
        else:
            await self._submit(change, key)
        return answer

    async def commit(self, change: Change) -> None:
        """Make the change durable, then known. Raises OSError when it was not made."""
        await self._submit(change)

    async def hand_out(self, volume: VolumeRecord) -> VolumeRecord:
        """The record after the volume's data is on the disk and known to be no longer empty for sure."""
        if volume.is_handed_out:
            return volume
        record = msgspec.structs.replace(volume, is_handed_out=True)
        await self.commit(Change(action="hand_out", record=record))
        return record

    async def copy(self, source: Path, record: Record, *, image_bytes: int = 0) -> None:
        """Copy ``source`` into temp as the data of ``record``, to be committed with ``place``.

        A block volume's image gets ``image_bytes``.
        """

        def work() -> None:
            target, should_stop = self.storage.temp_data_path(record), self._stopping.is_set
            try:
                if record.is_block:
                    copy_image(source, target, image_bytes, should_stop=should_stop)
                else:
                    copy_tree(source, target, should_stop=should_stop)
            except OSError:
                self.storage.discard_temp(record)
                raise

        await anyio.to_thread.run_sync(work, limiter=self._copies)

    @asynccontextmanager
    async def copying_from(self, record_id: str) -> AsyncIterator[None]:
        """Keep the volume or snapshot from being deleted meanwhile."""
        for key in (f"volume:{record_id}", f"snapshot:{record_id}"):
            if key in self._held:
                await self._wait_for(key)
        self._copied_from[record_id] += 1
        try:
            yield
        finally:
            self._copied_from[record_id] -= 1
            if not self._copied_from[record_id]:
                del self._copied_from[record_id]

    def check_not_copied(self, record_id: str) -> None:
        """Raise ABORTED while a copy of the volume or snapshot is being made."""
        if self._copied_from[record_id]:
            raise refuse("ABORTED", f"{record_id} is being copied: try again")

    def _know(self, index: Index[T], record: T, action: str) -> None:  # type: ignore[type-var]
        if action == "remove":
            index.drop(record)
            self._wake_sweep.set()
        else:
            index.put(record)

    async def _hold(self, key: str) -> None:
        if key in self._held:
            await self._wait_for(key)
        if len(self._held) >= OPERATIONS_MAX:
            raise refuse("UNAVAILABLE", f"{OPERATIONS_MAX} operations are pending: try again")
        self._held[key] = Bell()

    def _let_go(self, key: str) -> None:
        self._held.pop(key).ring()

    async def _wait_for(self, key: str) -> None:
        with anyio.move_on_after(PENDING_WAIT_S):
            while key in self._held:
                await self._held[key].wait()
        if key in self._held:
            raise refuse("ABORTED", f"an operation for {key.partition(':')[2]} is pending: try again")

    async def _carry(self, key: str, operation: Callable[[], Awaitable[T]], outcome: asyncio.Future[T]) -> None:
        error: Rejected | OSError = refuse("UNAVAILABLE", "the driver is stopping")
        try:
            value = await operation()
        except (Rejected, OSError) as found:
            error = found
        else:
            if not outcome.done():
                outcome.set_result(value)
        finally:
            self._let_go(key)
            if not outcome.done():
                outcome.set_exception(error)

    async def _submit(self, change: Change, key: str = "") -> None:
        """Wait until the change is on the disk and known. It is made, and ``key`` let go, whether one waits or not."""
        error = await self._commits.submit(change, key)
        if error is not None:
            raise error

    def _end(self, pending: Pending, error: OSError | None) -> None:
        """Make a change known that is on the disk, or its failure."""
        if error is None:
            record = pending.change.record
            if isinstance(record, VolumeRecord):
                self._know(self.volumes, record, pending.change.action)
            else:
                self._know(self.snapshots, record, pending.change.action)
        if pending.key:
            self._let_go(pending.key)
        if not pending.done.done():
            pending.done.set_result(error)

    async def _sweep(self) -> None:
        """Remove the trash whenever there is some. A kill or a stop in the middle is made good at the next start."""
        while True:
            await self._wake_sweep.wait()
            self._wake_sweep = anyio.Event()
            await anyio.to_thread.run_sync(self.storage.sweep, abandon_on_cancel=True, limiter=self._sweeps)
