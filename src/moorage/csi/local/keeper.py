"""Operations on volumes: one at a time per key, carried to the end, made durable in groups.

Shapes: ``Keeper.run`` carries an operation in the driver's own task group, so that a client that goes away does not
    leave it half done. ``commit`` collects changes that arrive together into one write by one worker thread.
Units:  waits in seconds.
Raises Rejected ABORTED when an operation for the same key goes on for longer than PENDING_WAIT_S.
Never:  runs more than COPIES_MAX copies or carries more than OPERATIONS_MAX operations at once.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Generic, TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from moorage.csi.local.checks import refuse
from moorage.csi.local.copying import copy_image, copy_tree
from moorage.csi.local.layout import Record
from moorage.csi.local.records import Index, SnapshotRecord, VolumeRecord
from moorage.csi.local.storage import Change, Storage
from moorage.errors import Rejected

T = TypeVar("T")

PENDING_WAIT_S = 1.0
GROUP_MAX = 256
COPIES_MAX = 2
OPERATIONS_MAX = 4096


class _Outcome(Generic[T]):
    """What became of an operation or a change, once ``done`` is set."""

    __slots__ = ("done", "error", "value")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.value: T | None = None
        self.error: Rejected | OSError | None = None

    async def wait(self) -> T:
        await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


class Keeper:
    """The volumes and snapshots of one driver process."""

    def __init__(self, storage: Storage, *, now_ns: Callable[[], int], new_id: Callable[[], str]) -> None:
        self.storage = storage
        self.now_ns = now_ns
        self.new_id = new_id
        self.volumes: Index[VolumeRecord] = Index()
        self.snapshots: Index[SnapshotRecord] = Index()
        self._serial = 0
        self._held: dict[str, anyio.Event] = {}
        self._copied_from: Counter[str] = Counter()
        self._waiting: list[tuple[Change, _Outcome[None]]] = []
        self._wake_commit = anyio.Event()
        self._wake_sweep = anyio.Event()
        self._stopping = threading.Event()
        # Limiters of their own: calls that hang on a sick mount must not take the threads of the rest.
        self._copies = anyio.CapacityLimiter(COPIES_MAX)
        self._commits = anyio.CapacityLimiter(1)
        self._sweeps = anyio.CapacityLimiter(1)
        self._group: anyio.abc.TaskGroup | None = None

    async def run_until_cancelled(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Open the directory and carry operations until cancelled."""
        self.volumes, self.snapshots = await anyio.to_thread.run_sync(self.storage.open)
        self._serial = max(self.volumes.newest_serial(), self.snapshots.newest_serial())
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                group.start_soon(self._commit_groups)
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
        if key in self._held:
            await self._wait_for(key)
        if len(self._held) >= OPERATIONS_MAX:
            raise refuse("UNAVAILABLE", f"{OPERATIONS_MAX} operations are pending: try again")
        self._held[key] = anyio.Event()
        outcome: _Outcome[T] = _Outcome()
        self._group.start_soon(self._carry, key, operation, outcome)
        return await outcome.wait()

    async def commit(self, change: Change) -> None:
        """Make the change durable, then known. Raises OSError when it was not made."""
        outcome: _Outcome[None] = _Outcome()
        self._waiting.append((change, outcome))
        self._wake_commit.set()
        await outcome.wait()
        record = change.record
        if isinstance(record, VolumeRecord):
            self._know(self.volumes, record, change.action)
        else:
            self._know(self.snapshots, record, change.action)

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

    async def _wait_for(self, key: str) -> None:
        with anyio.move_on_after(PENDING_WAIT_S):
            while key in self._held:
                await self._held[key].wait()
        if key in self._held:
            raise refuse("ABORTED", f"an operation for {key.partition(':')[2]} is pending: try again")

    async def _carry(self, key: str, operation: Callable[[], Awaitable[T]], outcome: _Outcome[T]) -> None:
        outcome.error = refuse("UNAVAILABLE", "the driver is stopping")
        try:
            outcome.value = await operation()
            outcome.error = None
        except (Rejected, OSError) as error:
            outcome.error = error
        finally:
            self._held.pop(key).set()
            outcome.done.set()

    async def _commit_groups(self) -> None:
        while True:
            await self._wake_commit.wait()
            self._wake_commit = anyio.Event()
            while self._waiting:
                group, self._waiting = self._waiting[:GROUP_MAX], self._waiting[GROUP_MAX:]
                changes = [change for change, _ in group]
                errors = await anyio.to_thread.run_sync(self.storage.commit, changes, limiter=self._commits)
                for (_, outcome), error in zip(group, errors, strict=True):
                    outcome.error = error
                    outcome.done.set()

    async def _sweep(self) -> None:
        """Remove the trash whenever there is some. A kill or a stop in the middle is made good at the next start."""
        while True:
            await self._wake_sweep.wait()
            self._wake_sweep = anyio.Event()
            await anyio.to_thread.run_sync(self.storage.sweep, abandon_on_cancel=True, limiter=self._sweeps)
