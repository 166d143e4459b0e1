"""What the SQLite store reads: entries, listings and pieces of history, each from one snapshot of the database.

Every function is called in a worker thread with a connection that no other thread uses meanwhile.
Never: writes, the event loop, clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import apsw

from moorage.errors import Compacted
from moorage.model.ids import Revision
from moorage.state.sqlite_format import LOG_STRIDE, read_counters
from moorage.state.store import Entry, Event, EventBatch, Listing
from moorage.state.transactions import prefix_end
from moorage.state.watching import Replayed, count_bytes

REPLAY_REVISIONS = 1_000
REPLAY_BYTES = 8 << 20

_ENTRY = "k, value, create_revision, modify_revision, version"


def read_entry(connection: apsw.Connection, key: str) -> Entry | None:
    """The key's entry, or None."""
    row = connection.execute(f"SELECT {_ENTRY} FROM current WHERE k = ?", (key,)).fetchone()
    return Entry(*row) if row is not None else None


def read_listing(connection: apsw.Connection, prefix: str, *, after_key: str, limit: int) -> Listing:
    """Entries under a prefix, above ``after_key``; ``limit`` 0: all."""
    where, values = _key_range(prefix)
    sql = f"SELECT {_ENTRY} FROM current WHERE {where} AND k > ? ORDER BY k LIMIT ?"
    with _snapshot(connection):
        revision = Revision(read_counters(connection).revision)
        rows = connection.execute(sql, (*values, after_key, limit or -1))
        entries = tuple(Entry(*row) for row in rows)
    return Listing(entries, revision)


def read_revision(connection: apsw.Connection) -> Revision:
    """The newest revision."""
    return Revision(read_counters(connection).revision)


def read_history(connection: apsw.Connection, prefix: str, after: Revision) -> Replayed:
    """Some or all of the batches above ``after``, none split. Raises Compacted when the next one is not kept."""
    where, values = _key_range(prefix)
    sql = f"SELECT * FROM log WHERE id >= ? AND id < ? AND {where} ORDER BY id"
    with _snapshot(connection):
        counters = read_counters(connection)
        if after < counters.compacted:
            raise Compacted(f"revision {after} is older than {counters.compacted}, the oldest one kept: list again")
        position = min(after + REPLAY_REVISIONS, max(after, counters.revision))
        span = ((after + 1) * LOG_STRIDE, (position + 1) * LOG_STRIDE)
        batches: list[EventBatch] = []
        size = 0
        for batch in _batches(connection.execute(sql, span + values)):
            batches.append(batch)
            size += count_bytes(batch)
            if size >= REPLAY_BYTES:
                position = batch.revision
                break
    return Replayed(tuple(batches), Revision(position))


@contextmanager
def _snapshot(connection: apsw.Connection) -> Iterator[None]:
    # A read that breaks off midway resets its statement when the cursor goes; the transaction must end all the same.
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _key_range(prefix: str) -> tuple[str, tuple[str, ...]]:
    end = prefix_end(prefix)
    return ("k >= ?", (prefix,)) if end is None else ("k >= ? AND k < ?", (prefix, end))


def _batches(rows: Iterator[tuple[Any, ...]]) -> Iterator[EventBatch]:
    for revision, group in groupby(rows, key=lambda row: int(row[0]) // LOG_STRIDE):
        yield EventBatch(Revision(revision), tuple(_event(Revision(revision), row) for row in group))


def _event(revision: Revision, row: tuple[Any, ...]) -> Event:
    _, key, value, created, version, old_value, old_created, old_modified, old_version = row
    return Event(
        key,
        revision,
        None if value is None else Entry(key, value, created, revision, version),
        None if old_value is None else Entry(key, old_value, old_created, old_modified, old_version),
    )
