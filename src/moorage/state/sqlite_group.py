"""One group of transactions in SQLite: checked against each other in order, written in a single commit.

A ``GroupCommit`` belongs to the writer thread. It first runs every transaction of the group on an overlay over the
``current`` table, so that a failed compare fails only its own, then writes the overlay and the log, and commits. If
the disk fails, all of the group fails and nothing of it is kept.
Never: the event loop, clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import apsw
import msgspec

from moorage.model.ids import Revision
from moorage.state.sqlite_format import LOG_STRIDE, read_counters
from moorage.state.sqlite_rows import ROWS_MAX, Rows
from moorage.state.store import Compare, Delete, Entry, Event, EventBatch, Op, TxnResult

# Rows of old history that one commit removes at least; it removes twice what it writes when that is more.
PURGE_ROWS_MIN = 256

_META = "UPDATE meta SET value = ? WHERE name = ?"
_PURGE_BOUND = "SELECT id FROM log WHERE id < ? ORDER BY id LIMIT 1 OFFSET ?"
_PURGE = "DELETE FROM log WHERE id < ?"
_LOG_SIZES = (
    "SELECT id / ?1, sum(ifnull(length(value), 0) + ifnull(length(previous_value), 0)) FROM log "
    "WHERE id >= ?2 GROUP BY id / ?1 ORDER BY 1"
)
_LOG_FIRST = "SELECT min(id) FROM log"


class Txn(msgspec.Struct, frozen=True, gc=False):
    """A transaction as it came from a caller, within the limits."""

    compares: tuple[Compare, ...]
    then: tuple[Op, ...]
    otherwise: tuple[Op, ...]


class GroupResult(msgspec.Struct, frozen=True):
    """What came of a committed group: a result for each transaction, in order, and the batches in order."""

    results: tuple[TxnResult, ...]
    batches: tuple[EventBatch, ...]


class GroupCommit:
    """The write side of an open database.

    ``history_revisions`` and ``history_bytes`` bound the log; older changes are forgotten as new ones come, in strides
    of a sixteenth. ``recent_bytes`` bounds the entries that are kept in memory.
    ``commits`` counts the SQLite commits that changed records.
    """

    def __init__(
        self, connection: apsw.Connection, *, history_revisions: int, history_bytes: int, recent_bytes: int
    ) -> None:
        self._db = connection
        self._rows = Rows(connection, recent_bytes=recent_bytes)
        self._history_revisions = history_revisions
        self._history_bytes = history_bytes
        self._history_stride = history_revisions // 16
        self.commits = 0
        self._is_put_off = False
        self._is_stale = False
        self._load()

    @property
    def revision(self) -> Revision:
        """The newest durable revision."""
        return Revision(self._revision)

    @property
    def has_backlog(self) -> bool:
        """Whether forgotten history still takes room, and freeing it is not put off."""
        return self._purged < self._compacted and not self._is_put_off and not self._is_stale

    def put_off_backlog(self) -> None:
        """Leave forgotten history alone until the next commit has worked."""
        self._is_put_off = True

    def run(self, transactions: Sequence[Txn]) -> GroupResult:
        """Check, write and commit a group. Raises apsw errors, after everything has been taken back."""
        batches: list[EventBatch] = []
        results: list[TxnResult] = []
        try:
            self._refresh()
            revision = self._revision
            # Nobody else writes: what is read now is so still when the group is written.
            overlay = self._rows.read({key for transaction in transactions for key in _keys(transaction)})
            for transaction in transactions:
                succeeded = all(_modify_revision(overlay[c.key]) == c.revision for c in transaction.compares)
                ops = transaction.then if succeeded else transaction.otherwise
                events = _apply(ops, overlay, Revision(revision + 1))
                if events:
                    revision += 1
                    batches.append(EventBatch(Revision(revision), events))
                results.append(TxnResult(succeeded, Revision(revision)))
            if batches:
                self._write(batches)
                self._rows.keep({event.key: overlay[event.key] for batch in batches for event in batch.events}.items())
                self.commits += 1
                self._is_put_off = False
        except BaseException:
            self._take_back()
            raise
        return GroupResult(tuple(results), tuple(batches))

    def _write(self, batches: Sequence[EventBatch]) -> None:
        """Bring a group to the disk, and forget old history with it."""
        events = [event for batch in batches for event in batch.events]
        target = self._count(batches)
        if len(events) <= ROWS_MAX and target == self._compacted and self._purged >= target:
            # One statement is a transaction by itself.
            self._rows.write(events)
            return
        self._db.execute("BEGIN IMMEDIATE")
        self._rows.write(events)
        if target > self._compacted:
            self._forget(target)
        if self._purged < self._compacted:
            self._purge(max(PURGE_ROWS_MIN, 2 * len(events)))
        self._db.execute("COMMIT")

    def compact(self, revision: int) -> None:
        """Forget history up to ``revision``, at most the newest; its room is freed little by little."""
        try:
            self._begin()
            target = min(revision, self._revision)
            if target > self._compacted:
                self._forget(target)
                self._purge(PURGE_ROWS_MIN)
            self._db.execute("COMMIT")
        except BaseException:
            self._take_back()
            raise

    def mark_unclean(self) -> None:
        """Keep in mind that the files are to be scrubbed."""
        self._set_unclean(1)

    def scrub(self) -> None:
        """Forget all history and rewrite the files without the bytes of any former value."""
        self.compact(self._revision)
        while self._purged < self._compacted:
            self.purge()
        self._db.execute("VACUUM")
        # The log still has the old pages: it is copied into the file and cut off. Readers are kept away meanwhile.
        busy, _, _ = next(iter(self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")))
        if busy:
            raise apsw.BusyError("somebody reads the database")
        self._set_unclean(0)

    def _set_unclean(self, number: int) -> None:
        try:
            self._begin()
            self._db.execute(_META, (number, "unclean"))
            self._db.execute("COMMIT")
        except BaseException:
            self._take_back()
            raise

    def purge(self) -> None:
        """Free some of the room that forgotten history takes."""
        try:
            self._begin()
            self._purge(PURGE_ROWS_MIN)
            self._db.execute("COMMIT")
        except BaseException:
            self._take_back()
            raise

    def _load(self) -> None:
        counters = read_counters(self._db)
        self._revision = counters.revision
        self._compacted = counters.compacted
        first = self._db.execute(_LOG_FIRST).get
        # Everything below is gone from the log.
        self._purged = self._compacted if first is None else min(self._compacted, first // LOG_STRIDE - 1)
        # Bytes by revision kept, oldest first.
        sizes = self._db.execute(_LOG_SIZES, (LOG_STRIDE, (self._compacted + 1) * LOG_STRIDE))
        self._sizes: deque[tuple[int, int]] = deque((revision, size) for revision, size in sizes)
        self._kept_bytes = sum(size for _, size in self._sizes)

    def _refresh(self) -> None:
        if self._is_stale:
            self._load()
            self._is_stale = False

    def _begin(self) -> None:
        self._refresh()
        self._db.execute("BEGIN IMMEDIATE")

    def _take_back(self) -> None:
        # What is in memory may be ahead of the disk, which may be unreadable now: it is read anew before the next use.
        self._is_stale = True
        self._rows.forget()
        # After some errors SQLite has rolled back by itself.
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _count(self, batches: Sequence[EventBatch]) -> int:
        """Take the batches to the newest revision's account. Returns up to where history is to be forgotten."""
        for batch in batches:
            size = sum(_bytes(event.entry) + _bytes(event.previous) for event in batch.events)
            self._sizes.append((batch.revision, size))
            self._kept_bytes += size
        self._revision = batches[-1].revision
        target = self._compacted
        sizes = self._sizes
        # In strides, so that most commits have nothing to forget.
        if len(sizes) > self._history_revisions + self._history_stride or self._kept_bytes > self._history_bytes:
            while sizes and (len(sizes) > self._history_revisions or self._kept_bytes > self._history_bytes):
                target, size = sizes.popleft()
                self._kept_bytes -= size
        return target

    def _forget(self, target: int) -> None:
        while self._sizes and self._sizes[0][0] <= target:
            self._kept_bytes -= self._sizes.popleft()[1]
        self._compacted = target
        self._db.execute(_META, (target, "compacted"))

    def _purge(self, rows: int) -> None:
        end = (self._compacted + 1) * LOG_STRIDE
        bound = self._db.execute(_PURGE_BOUND, (end, rows)).get
        self._db.execute(_PURGE, (end if bound is None else bound,))
        if bound is None:
            self._purged = self._compacted


def _bytes(entry: Entry | None) -> int:
    return len(entry.value) if entry is not None else 0


def _keys(transaction: Txn) -> Iterator[str]:
    for part in (transaction.compares, transaction.then, transaction.otherwise):
        for one in part:
            yield one.key


def _modify_revision(entry: Entry | None) -> int:
    return entry.modify_revision if entry is not None else 0


def _apply(ops: Sequence[Op], overlay: dict[str, Entry | None], revision: Revision) -> tuple[Event, ...]:
    events: list[Event] = []
    for op in ops:
        previous = overlay[op.key]
        if isinstance(op, Delete):
            if previous is None:
                continue
            entry = None
        elif previous is None:
            entry = Entry(op.key, op.value, revision, revision, 1)
        else:
            entry = Entry(op.key, op.value, previous.create_revision, revision, previous.version + 1)
        overlay[op.key] = entry
        events.append(Event(op.key, revision, entry, previous))
    return tuple(events)
