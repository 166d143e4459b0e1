"""Watches of the stores that live in this process: replay from the past, then live, without gap or repetition.

A watch starts behind or in step. Behind, it asks its store for chunks of history; once its position has reached the
newest batch handed to ``WatchHub.publish`` it is in step, and further batches go straight into its buffer. There is no
await between that check and the switch, so nothing is missed; a batch at or below the position is left out, so nothing
comes twice. A buffer is bounded: a watch whose buffer is full is dropped and its reader gets Compacted.

What a reader may rely on: when ``transact`` returns, its batch is in the buffer of every watch that is in step; and a
reader that was waiting for a batch runs before the caller of ``transact`` does, and has seen all of the group if it
handles batches without awaiting anything else. A reader that was busy sees the batch on its next turn: to be sure,
wait until the view has reached ``TxnResult.revision``. One that follows has taken each batch before its ``transact``
goes on, without a turn of the loop in between.

Everything here runs on the event loop. Never: disk, threads, clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol

import anyio
import anyio.lowlevel
import msgspec

from moorage.errors import Compacted, StoreUnavailable
from moorage.model.ids import Revision
from moorage.state.store import Entry, EventBatch

BUFFER_EVENTS_MAX = 8192
BUFFER_BYTES_MAX = 64 << 20


class Replayed(msgspec.Struct, frozen=True):
    """A chunk of history: whole batches in order, and the revision up to which it tells everything."""

    batches: tuple[EventBatch, ...]
    position: Revision


class History(Protocol):
    """Where a watch that is behind reads."""

    async def __call__(self, prefix: str, after: Revision, /) -> Replayed:
        """The next chunk above ``after``: some or all of what is there. Raises Compacted or StoreUnavailable."""
        ...


def select_events(batch: EventBatch, prefix: str) -> EventBatch | None:
    """The batch with only the events under the prefix; None when there are none."""
    if not prefix:
        return batch if batch.events else None
    events = tuple(event for event in batch.events if event.key.startswith(prefix))
    if not events:
        return None
    return batch if len(events) == len(batch.events) else EventBatch(batch.revision, events)


def count_bytes(batch: EventBatch) -> int:
    """The bytes of the values that a batch keeps alive."""
    return sum(_value_bytes(event.entry) + _value_bytes(event.previous) for event in batch.events)


def _value_bytes(entry: Entry | None) -> int:
    return len(entry.value) if entry is not None else 0


class Watch:
    """One reader's place in the stream: an async context manager that is its own iterator. For one task at a time."""

    def __init__(self, hub: WatchHub, prefix: str, after: Revision) -> None:
        self.prefix = prefix
        self._hub = hub
        self._position = after
        self._buffer: deque[tuple[EventBatch, int]] = deque()
        self._events = 0
        self._bytes = 0
        self._end: type[Compacted | StoreUnavailable] | None = None
        self._in_step = False
        self._wake: anyio.Event | None = None
        # While the reader follows and nothing is kept for it: who takes a batch when it is published.
        self._take: Callable[[EventBatch], None] | None = None
        self._fault: Exception | None = None

    async def __aenter__(self) -> Watch:
        await anyio.lowlevel.checkpoint_if_cancelled()
        self._join_if_reached()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hub.leave(self)
        self._finish(StoreUnavailable)

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> EventBatch:
        await anyio.lowlevel.checkpoint_if_cancelled()
        while not self._buffer:
            if self._end is Compacted:
                raise Compacted("the watch was too slow or its start is no longer kept: list again")
            if self._end is not None or self._hub.is_closed:
                raise StoreUnavailable("the store is closed")
            if self._in_step:
                await self._wait()
            else:
                await self._replay()
        batch, size = self._buffer.popleft()
        self._events -= len(batch.events)
        self._bytes -= size
        return batch

    async def follow(self, take: Callable[[EventBatch], None]) -> None:
        """See ``Watching.follow``."""
        while True:
            # What is kept, or is to be replayed, first; an end is told as it is to any reader.
            while self._buffer or not self._in_step or self._end is not None or self._hub.is_closed:
                take(await self.__anext__())
            self._take = take
            try:
                await self._wait()
            finally:
                self._take = None
            if self._fault is not None:
                fault, self._fault = self._fault, None
                raise fault

    def offer(self, batch: EventBatch, size: int) -> None:
        """Take a batch that was just written. ``size``: its bytes. Drops this watch when its buffer is full."""
        if batch.revision <= self._position or self._end is not None:
            return
        if self._take is not None:
            self._position = batch.revision
            try:
                self._take(batch)
            except Exception as error:  # noqa: BLE001 - it is its reader's, not the writer's
                self._take, self._fault = None, error
                self.wake()
            return
        events = self._events + len(batch.events)
        if self._buffer and (events > self._hub.events_max or self._bytes + size > self._hub.bytes_max):
            self._hub.leave(self)
            self._finish(Compacted)
            return
        self._push(batch, size)
        self.wake()

    def wake(self) -> None:
        """Let a waiting reader look again."""
        if self._wake is not None:
            self._wake.set()
            self._wake = None

    def _push(self, batch: EventBatch, size: int) -> None:
        self._position = batch.revision
        self._buffer.append((batch, size))
        self._events += len(batch.events)
        self._bytes += size

    async def _wait(self) -> None:
        self._wake = wake = anyio.Event()
        await wake.wait()

    async def _replay(self) -> None:
        try:
            chunk = await self._hub.history(self.prefix, self._position)
        except Compacted:
            self._finish(Compacted)
            return
        for batch in chunk.batches:
            self._push(batch, count_bytes(batch))
        self._position = max(self._position, chunk.position)
        self._join_if_reached()

    def _join_if_reached(self) -> None:
        if self._position >= self._hub.revision:
            self._in_step = True
            self._hub.join(self)

    def _finish(self, end: type[Compacted | StoreUnavailable]) -> None:
        # The first end stays: a reader that was dropped must not take the close of its own watch for the store's.
        self._end = self._end or end
        self._buffer.clear()
        self._events = self._bytes = 0
        self.wake()


class WatchHub:
    """Hands out what a store has written to the watches that are in step.

    ``revision`` is the newest revision published, which may be behind what the store has committed.
    """

    def __init__(
        self,
        history: History,
        *,
        revision: Revision,
        events_max: int = BUFFER_EVENTS_MAX,
        bytes_max: int = BUFFER_BYTES_MAX,
    ) -> None:
        self.history = history
        self.revision = revision
        self.events_max = events_max
        self.bytes_max = bytes_max
        self.is_closed = False
        self._by_prefix: dict[str, dict[Watch, None]] = {}

    def watch(self, prefix: str, after: Revision) -> Watch:
        """A watch that is not yet entered."""
        return Watch(self, prefix, after)

    def join(self, watch: Watch) -> None:
        """Send this watch what is published from now on."""
        self._by_prefix.setdefault(watch.prefix, {})[watch] = None

    def leave(self, watch: Watch) -> None:
        """Forget this watch; harmless when it is not known."""
        watches = self._by_prefix.get(watch.prefix)
        if watches is not None:
            watches.pop(watch, None)
            if not watches:
                del self._by_prefix[watch.prefix]

    def publish(self, batches: Iterable[EventBatch]) -> None:
        """Give batches, in order and just committed, to every watch in step, and wake their readers."""
        for batch in batches:
            self.revision = batch.revision
            # The events are picked once a prefix, however many watch it. A dropped watch leaves, hence the copies.
            for prefix, watches in list(self._by_prefix.items()):
                picked = select_events(batch, prefix)
                if picked is None:
                    continue
                size = count_bytes(picked)
                for watch in list(watches):
                    watch.offer(picked, size)

    def close(self) -> None:
        """End every watch: readers still get what is in their buffers, then StoreUnavailable."""
        self.is_closed = True
        for watches in list(self._by_prefix.values()):
            for watch in list(watches):
                watch.wake()
