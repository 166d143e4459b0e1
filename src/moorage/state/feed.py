"""Watch fan-out: keeps the View at the store's newest revision and wakes whoever waits for a key or a table.

``wait`` is the one primitive under blocking queries, handlers that wait for a result, and agents' standing queries.
A waiter's test runs in the same loop turn as the change it looks at, so a record that comes and goes is not missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from heapq import heappop, heappush
from operator import attrgetter
from typing import Any, Generic, TypeVar

import anyio
import msgspec
import structlog
from anyio.abc import TaskStatus

from moorage.errors import Compacted
from moorage.model.ids import Revision
from moorage.state import keys
from moorage.state.codec import Records
from moorage.state.store import Event, EventBatch, Op, Put, Store
from moorage.state.view import Record, View
from moorage.waking import Bell

log = structlog.get_logger()
T = TypeVar("T")


class Change(msgspec.Struct, frozen=True):
    """One record changed: before and after, None where it did not or does not exist.

    ``created``: the revision of the record's creation, also when it is gone; 0 where nobody asks for it.
    """

    key: str
    revision: Revision
    before: object | None
    after: object | None
    created: Revision = Revision(0)


Listener = Callable[[Change], None]
# Called with a revision once the view is there; ``is_load``: by loading everything, not by following each change.
EndListener = Callable[[Revision, bool], None]


class _Waiter(Generic[T]):
    __slots__ = ("bell", "result", "test")

    def __init__(self, test: Callable[[Change], T | None]) -> None:
        self.test = test
        self.bell = Bell()
        self.result: T | None = None


class Listening(Generic[T]):
    """An open ear, as long as its block runs: ``result`` waits for what the test makes of a change."""

    __slots__ = ("_names", "_signals", "_waiter")

    def __init__(self, signals: Signals, names: tuple[str, ...], test: Callable[[Change], T | None]) -> None:
        self._signals = signals
        self._names = names
        self._waiter: _Waiter[T] = _Waiter(test)

    def __enter__(self) -> Listening[T]:
        self._signals.enter(self._names, self._waiter)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._signals.leave(self._names, self._waiter)

    async def result(self, *, timeout_s: float) -> T | None:
        """The test's first answer, or None at the timeout (seconds)."""
        waiter = self._waiter
        if waiter.result is None:
            await waiter.bell.wait(timeout_s)
        return waiter.result


class Signals:
    """Waiters by topic; a topic is a record's key, a table's prefix, or any text that two sides agree on."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[_Waiter[Any]]] = {}

    def notify(self, topic: str, change: Change) -> None:
        """Show a change to the waiters of a topic; those whose test answers are woken."""
        for waiter in self._waiters.get(topic, ()):
            if waiter.result is None:
                waiter.result = waiter.test(change)
                if waiter.result is not None:
                    waiter.bell.ring()

    def listen(self, topics: Iterable[str], test: Callable[[Change], T | None]) -> Listening[T]:
        """Listen to the topics while a block runs: whatever happens inside it is not missed."""
        return Listening(self, tuple(topics), test)

    async def wait(self, topics: Iterable[str], test: Callable[[Change], T | None], *, timeout_s: float) -> T | None:
        """The first thing other than None that ``test`` makes of a change on one of the topics; None at the timeout.

        Units: ``timeout_s`` in seconds. The caller looks at the present state first, without an await in between.
        """
        with self.listen(topics, test) as listening:
            return await listening.result(timeout_s=timeout_s)

    def enter(self, names: Iterable[str], waiter: _Waiter[Any]) -> None:
        """Let a waiter hear of the topics; only ``Listening`` calls this."""
        for name in names:
            self._waiters.setdefault(name, set()).add(waiter)

    def leave(self, names: Iterable[str], waiter: _Waiter[Any]) -> None:
        """It hears no more."""
        for name in names:
            found = self._waiters[name]
            found.discard(waiter)
            if not found:
                del self._waiters[name]

    def count(self) -> int:
        """How many waiters there are (one that waits on two topics counts twice)."""
        return sum(len(w) for w in self._waiters.values())


def share_parts(old: object, new: object) -> None:
    """Put the old record's parts into a new one that was just decoded, wherever they are equal.

    The event ring keeps records as they were, and most of a record never changes: this halves what it holds. Only for
    a record that nobody has seen yet.
    """
    assert isinstance(new, msgspec.Struct)
    assert type(old) is type(new)
    names = new.__struct_fields__
    read = _readers.get(type(new))
    if read is None:
        # Two names at least, or it would read a value alone.
        read = _readers[type(new)] = attrgetter(*names, names[0])
    for name, before, after in zip(names, read(old), read(new), strict=False):
        if before is not after and before == after:
            msgspec.structs.force_setattr(new, name, before)


# For each class, what reads all its fields at once.
_readers: dict[type, Callable[[object], tuple[Any, ...]]] = {}


class Feed:
    """Follows a store into a View. ``records`` makes values of records and back; without it they are not sealed."""

    def __init__(self, store: Store, records: Records | None = None) -> None:
        self._store = store
        self.records = records or Records()
        self.view = View()
        self.signals = Signals()
        self._listeners: list[Listener] = []
        self._end_listeners: list[EndListener] = []
        # Who waits for a revision, and those revisions, the lowest first: many writers may wait at once, and each
        # commit must not look at all of them.
        self._reached: dict[Revision, list[anyio.Event]] = {}
        self._awaited: list[Revision] = []
        # What is being written, by key: the value, and the record that it was made of.
        self._written: dict[str, tuple[bytes, object]] = {}

    def subscribe(self, listener: Listener) -> None:
        """Call ``listener`` on every change, in order, in the loop turn that applies it. It must not block."""
        self._listeners.append(listener)

    def subscribe_ends(self, listener: EndListener) -> None:
        """Call ``listener`` in the same turn after all changes of a revision, and after every load. Must not block."""
        self._end_listeners.append(listener)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Load, then follow until cancelled; ``started`` once everything is loaded."""
        is_started = False
        while True:
            before = await self._store.revision()
            async with self._store.watch("", before) as batches:
                await self._load()
                if not is_started:
                    task_status.started()
                    is_started = True
                try:
                    await batches.follow(self._apply)
                except Compacted:
                    log.warning("feed.reload", reason="fell behind the store's history", revision=self.view.revision)

    async def _load(self) -> None:
        """Subscribe first, list second: what overlaps is dropped by its revision."""
        seen: set[str] = set()
        newest = self.view.revision
        for prefix, table in self.view.tables_by_prefix.items():
            listing = await self._store.list(prefix)
            newest = max(newest, listing.revision)
            for entry in listing.entries:
                seen.add(entry.key)
                known = table.find(entry.key)
                if known is not None and known.modified >= entry.modify_revision:
                    continue
                value = self.records.decode(entry.key, entry.value)
                self._set(entry.key, Record(value, entry.create_revision, entry.modify_revision))
            for key in [k for k in table.keys() if k not in seen]:  # noqa: SIM118 - a Table is not a mapping
                self._drop(key, listing.revision)
            table.index = max(table.index, listing.revision)
        self._advance(newest, is_load=True)

    def _apply(self, batch: EventBatch) -> None:
        for event in batch.events:
            self._apply_event(event)
        self._advance(batch.revision)

    def _apply_event(self, event: Event) -> None:
        table = self.view.tables_by_prefix.get(keys.table_of(event.key))
        if table is None:
            return
        known = table.find(event.key)
        if known is not None and known.modified >= event.revision:
            return
        table.index = max(table.index, event.revision)
        if event.entry is None:
            self._drop(event.key, event.revision)
        else:
            entry = event.entry
            written = self._written.get(event.key)
            if written is not None and written[0] is entry.value:
                value = written[1]
            else:
                value = self.records.decode(event.key, entry.value)
            self._set(event.key, Record(value, entry.create_revision, entry.modify_revision))

    def begin_writing(self, ops: Iterable[Op], records: Mapping[str, object]) -> None:
        """Until ``end_writing``, who sees one of these values has its record already: it need not be read out of it.

        ``records`` are those of the values, by key. Nobody changes them any more.
        """
        for op in ops:
            if type(op) is Put:
                self._written[op.key] = (op.value, records[op.key])

    def end_writing(self, ops: Iterable[Op]) -> None:
        """The operations of a ``begin_writing`` are in the view, or will not be."""
        written = self._written
        for op in ops:
            if type(op) is Put:
                found = written.get(op.key)
                # Another writer of the same key may have come since.
                if found is not None and found[0] is op.value:
                    del written[op.key]

    def _set(self, key: str, record: Record[object]) -> None:
        table = self.view.tables_by_prefix[keys.table_of(key)]
        old = table.find(key)
        if old is not None:
            share_parts(old.value, record.value)
        table.put(key, record)
        self._tell(Change(key, record.modified, old.value if old else None, record.value, record.created))

    def _drop(self, key: str, revision: Revision) -> None:
        table = self.view.tables_by_prefix[keys.table_of(key)]
        old = table.find(key)
        if old is not None:
            table.drop(key)
            self._tell(Change(key, revision, old.value, None, old.created))

    def _tell(self, change: Change) -> None:
        for listener in self._listeners:
            listener(change)
        self.signals.notify(change.key, change)
        self.signals.notify(keys.table_of(change.key), change)

    def _advance(self, revision: Revision, *, is_load: bool = False) -> None:
        self.view.revision = max(self.view.revision, revision)
        for listener in self._end_listeners:
            listener(self.view.revision, is_load)
        while self._awaited and self._awaited[0] <= self.view.revision:
            for event in self._reached.pop(heappop(self._awaited)):
                event.set()

    async def reach(self, revision: Revision) -> None:
        """Return when the View is at ``revision`` or newer."""
        if self.view.revision >= revision:
            return
        event = anyio.Event()
        if revision not in self._reached:
            self._reached[revision] = []
            heappush(self._awaited, revision)
        self._reached[revision].append(event)
        await event.wait()
