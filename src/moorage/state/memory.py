"""The store in memory: the twin of the others, for tests and as the oracle they are compared with.

All history is kept until it is compacted. A write takes effect before ``transact`` first awaits, so runs are
deterministic. Shapes: see ``state.store``. Never: disk, threads, clock.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio.lowlevel

from moorage.errors import Compacted, StoreUnavailable
from moorage.model.ids import Revision
from moorage.state.store import (
    Compare,
    Delete,
    Entry,
    Event,
    EventBatch,
    Listing,
    Op,
    Results,
    Simple,
    TxnResult,
)
from moorage.state.transactions import check_limit, check_transaction
from moorage.state.watching import BUFFER_BYTES_MAX, BUFFER_EVENTS_MAX, Replayed, Watch, WatchHub, select_events

_REPLAY_BATCHES = 256


class MemoryStore:
    """A ``Store`` whose records end with the process.

    ``watch_events_max`` and ``watch_bytes_max`` bound the buffer of each watch.
    """

    def __init__(self, *, watch_events_max: int = BUFFER_EVENTS_MAX, watch_bytes_max: int = BUFFER_BYTES_MAX) -> None:
        self._entries: dict[str, Entry] = {}
        self._revision = 0
        self._compacted = 0
        # One batch a revision, from compacted + 1 to the newest.
        self._batches: list[EventBatch] = []
        self._is_closed = False
        self._is_clean = True
        self._hub = WatchHub(self._replay, revision=Revision(0), events_max=watch_events_max, bytes_max=watch_bytes_max)

    async def get(self, key: str) -> Entry | None:
        """See ``Store.get``."""
        await self._enter()
        return self._entries.get(key)

    async def list(self, prefix: str, *, after_key: str = "", limit: int = 0) -> Listing:
        """See ``Store.list``."""
        check_limit(limit)
        await self._enter()
        keys = sorted(key for key in self._entries if key.startswith(prefix) and key > after_key)
        chosen = keys[:limit] if limit else keys
        return Listing(tuple(self._entries[key] for key in chosen), Revision(self._revision))

    async def transact(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        """See ``Store.transact``."""
        check_transaction(compares, then, otherwise)
        await anyio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        succeeded = all(self._modify_revision(compare.key) == compare.revision for compare in compares)
        result = TxnResult(succeeded, self._apply(then if succeeded else otherwise))
        # Readers of watches were woken: they run before the caller does.
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return result

    async def transact_each(self, transactions: Sequence[Simple]) -> Results:
        """See ``Store.transact_each``. By way of ``transact``, so that what is done to that is done to each."""
        if len(transactions) == 1:
            return [await self._try(*transactions[0])]
        results: dict[int, TxnResult | StoreUnavailable] = {}

        async def run(number: int, compares: Sequence[Compare], then: Sequence[Op]) -> None:
            results[number] = await self._try(compares, then)

        async with anyio.create_task_group() as group:
            for number, (compares, then) in enumerate(transactions):
                group.start_soon(run, number, compares, then)
        return [results[number] for number in range(len(transactions))]

    async def _try(self, compares: Sequence[Compare], then: Sequence[Op]) -> TxnResult | StoreUnavailable:
        try:
            return await self.transact(compares, then)
        except StoreUnavailable as error:
            return error

    def watch(self, prefix: str, after: Revision) -> Watch:
        """See ``Store.watch``; what a reader may rely on is in ``state.watching``."""
        return self._hub.watch(prefix, after)

    async def revision(self) -> Revision:
        """See ``Store.revision``."""
        await self._enter()
        return Revision(self._revision)

    async def compact(self, revision: Revision) -> None:
        """See ``Store.compact``."""
        await self._enter()
        target = min(revision, self._revision)
        if target > self._compacted:
            del self._batches[: target - self._compacted]
            self._compacted = target

    async def is_clean(self) -> bool:
        """See ``Store.is_clean``."""
        await self._enter()
        return self._is_clean

    async def mark_unclean(self) -> None:
        """See ``Store.mark_unclean``."""
        await self._enter()
        self._is_clean = False

    async def scrub(self) -> None:
        """See ``Store.scrub``."""
        await self.compact(Revision(self._revision))
        self._is_clean = True

    async def close(self) -> None:
        """See ``Store.close``."""
        self._is_closed = True
        self._hub.close()
        await anyio.lowlevel.checkpoint()

    async def _enter(self) -> None:
        await anyio.lowlevel.checkpoint()
        self._check_open()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreUnavailable("the store is closed")

    def _modify_revision(self, key: str) -> int:
        entry = self._entries.get(key)
        return entry.modify_revision if entry is not None else 0

    def _apply(self, ops: Sequence[Op]) -> Revision:
        revision = Revision(self._revision + 1)
        events: list[Event] = []
        for op in ops:
            previous = self._entries.get(op.key)
            if isinstance(op, Delete):
                if previous is None:
                    continue
                del self._entries[op.key]
                events.append(Event(op.key, revision, None, previous))
                continue
            created, version = (previous.create_revision, previous.version + 1) if previous else (revision, 1)
            entry = Entry(op.key, bytes(op.value), created, revision, version)
            self._entries[op.key] = entry
            events.append(Event(op.key, revision, entry, previous))
        if not events:
            return Revision(self._revision)
        self._revision = revision
        batch = EventBatch(revision, tuple(events))
        self._batches.append(batch)
        self._hub.publish([batch])
        return revision

    async def _replay(self, prefix: str, after: Revision) -> Replayed:
        await anyio.lowlevel.checkpoint()
        self._check_open()
        if after < self._compacted:
            raise Compacted(f"revision {after} is older than {self._compacted}, the oldest one kept: list again")
        start = after - self._compacted
        chunk = self._batches[start : start + _REPLAY_BATCHES]
        picked = (select_events(batch, prefix) for batch in chunk)
        return Replayed(
            tuple(batch for batch in picked if batch is not None),
            chunk[-1].revision if chunk else Revision(max(after, self._revision)),
        )
