"""The store contract: keys and bytes with etcd's meaning. Implementations: ``memory``, ``sqlite`` (later ``etcd``).

Revisions count transactions: a transaction that changes at least one key gets the next revision, and all its changes
carry it. One transaction is one revision is one ``X-Nomad-Index``. Compare-and-set on a key's modify revision is the
only lock. This room takes no decision about volumes.
Source: etcd v3 data model (revisions per transaction, txn, watch from a revision, compaction).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from moorage.errors import StoreUnavailable
from moorage.model.ids import Revision

TXN_OPS_MAX = 128
VALUE_BYTES_MAX = 1_500_000


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A key's current value. ``version`` counts writes since creation, from 1."""

    key: str
    value: bytes
    create_revision: Revision
    modify_revision: Revision
    version: int


class Event(msgspec.Struct, frozen=True):
    """One key changed. ``entry`` is None for a deletion; ``previous`` is None for a creation."""

    key: str
    revision: Revision
    entry: Entry | None
    previous: Entry | None


class EventBatch(msgspec.Struct, frozen=True):
    """All changes of one transaction, in the order of its operations; a batch is never split.

    An empty batch is a bookmark: nothing under the prefix changed up to ``revision``.
    """

    revision: Revision
    events: tuple[Event, ...]


class Compare(msgspec.Struct, frozen=True):
    """The key's modify revision must equal ``revision``; 0 means that the key must not exist."""

    key: str
    revision: Revision


class Put(msgspec.Struct, frozen=True):
    """Set the key."""

    key: str
    value: bytes


class Delete(msgspec.Struct, frozen=True):
    """Remove the key; no change when it does not exist."""

    key: str


Op = Put | Delete


class TxnResult(msgspec.Struct, frozen=True):
    """``succeeded``: all compares held and the operations are durable. ``revision``: the store's after the transaction.

    A transaction whose operations change nothing (only deletes of absent keys) succeeds without a new revision.
    """

    succeeded: bool
    revision: Revision


# A transaction that does nothing where a compare fails; and what each of several came to.
Simple = tuple[Sequence[Compare], Sequence[Op]]
Results = list[TxnResult | StoreUnavailable]


class Listing(msgspec.Struct, frozen=True):
    """Entries under a prefix in byte order of their keys, and the store's revision at that moment."""

    entries: tuple[Entry, ...]
    revision: Revision


class Watching(Protocol):
    """A watch that is open: batches, one by one."""

    def __aiter__(self) -> AsyncIterator[EventBatch]:
        """The batches."""
        ...

    async def __anext__(self) -> EventBatch:
        """The next batch."""
        ...

    async def follow(self, take: Callable[[EventBatch], None]) -> None:
        """Call ``take`` with every batch, in order, for ever; one that is published while this waits, at once.

        ``take`` must not wait. Raises what iterating raises at the end of the watch, and what ``take`` raises.
        """
        ...


class Store(Protocol):
    """Where records live.

    Every method may raise StoreUnavailable. Cancelling a ``transact`` does not tell whether it was written: the
    caller reads again. All methods are called on the event loop.
    """

    async def get(self, key: str) -> Entry | None:
        """The key's current entry, or None."""
        ...

    async def list(self, prefix: str, *, after_key: str = "", limit: int = 0) -> Listing:
        """Entries whose key starts with ``prefix`` and sorts after ``after_key``; ``limit`` 0: all."""
        ...

    async def transact(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        """Run ``then`` if every compare holds, else ``otherwise``; atomic and durable when it returns.

        At most TXN_OPS_MAX operations, each key at most once, values up to VALUE_BYTES_MAX: else ValueError.
        """
        ...

    async def transact_each(self, transactions: Sequence[Simple]) -> Results:
        """As so many ``transact`` in this order, each atomic by itself, without a task for each; what each came to.

        Another's transaction may come between two of them.
        """
        ...

    def watch(self, prefix: str, after: Revision) -> AbstractAsyncContextManager[Watching]:
        """Batches under ``prefix`` with revisions above ``after``, in order, none missing, none twice, none split.

        Raises Compacted from the iterator when ``after`` is older than what is kept, or when the reader was so slow
        that the store dropped its place: the reader lists again. The reader never slows a writer.
        """
        ...

    async def revision(self) -> Revision:
        """The newest revision; 0 for an empty store."""
        ...

    async def compact(self, revision: Revision) -> None:
        """Forget history up to and including ``revision``; current values stay. Never goes beyond the newest."""
        ...

    async def is_clean(self) -> bool:
        """Whether nothing was marked unclean since the last ``scrub``."""
        ...

    async def mark_unclean(self) -> None:
        """Keep in mind, durably, that values are about to be replaced which must not stay on the disk."""
        ...

    async def scrub(self) -> None:
        """Forget all history, and leave no byte of any former value in the store's files; it is clean then.

        Writes wait meanwhile. Broken off, it is done again: the store stays unclean. Readers from the past get
        Compacted.
        """
        ...

    async def close(self) -> None:
        """Finish what is queued, then stop; later calls raise StoreUnavailable."""
        ...
