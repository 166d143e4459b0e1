"""Rows of the SQLite store read and written many at a time.

A step of an SQLite statement gives up the interpreter's lock, and while the event loop is busy it may be milliseconds
until the thread has it back. So a statement carries as many rows as a power of two allows (few texts, which stay
prepared), and recent entries are kept here, so that writing them again reads nothing.
For the writer thread. Never: the event loop, transactions, clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import apsw

from moorage.state.sqlite_format import LOG_STRIDE
from moorage.state.store import Entry, Event

# What a kept entry weighs beside its value.
_ENTRY_BYTES = 400
# Longer statements would not stay in the connection's cache.
_ROWS_MAX = 64

Value = str | bytes | int | None
Row = tuple[Value, ...]
_MakeSql = Callable[[int], str]


class Rows:
    """The tables ``current`` and ``log`` behind a memory of recent entries."""

    def __init__(self, connection: apsw.Connection, *, recent_bytes: int) -> None:
        self._db = connection
        # An OrderedDict, because it is taken from at the front: a dict walks over all that were taken before.
        self._recent: OrderedDict[str, Entry] = OrderedDict()
        self._recent_bytes = 0
        self._recent_bytes_max = recent_bytes

    def read(self, keys: Iterable[str]) -> dict[str, Entry | None]:
        """The current entry of each key, or None."""
        entries: dict[str, Entry | None] = {key: self._recent.get(key) for key in keys}
        unknown = [key for key, entry in entries.items() if entry is None]
        for sql, row in _filled(_select_sql, unknown):
            for k, value, created, modified, version in self._db.execute(sql, row):
                entries[k] = Entry(k, value, created, modified, version)
        return entries

    def write(self, entries: Iterable[tuple[str, Entry | None]], events: Iterable[Event]) -> None:
        """Set or remove keys, and log the changes."""
        pairs = list(entries)
        for sql, row in _filled(_delete_sql, [key for key, entry in pairs if entry is None]):
            self._db.execute(sql, row)
        self._insert(_upsert_sql, [_entry_row(entry) for _, entry in pairs if entry is not None])
        self._insert(_log_sql, _log_rows(events))

    def keep(self, entries: Iterable[tuple[str, Entry | None]]) -> None:
        """Remember entries that have been committed, the newest in place of the oldest."""
        for key, entry in entries:
            old = self._recent.pop(key, None)
            if old is not None:
                self._recent_bytes -= len(old.value) + _ENTRY_BYTES
            if entry is not None:
                self._recent[key] = entry
                self._recent_bytes += len(entry.value) + _ENTRY_BYTES
        while self._recent_bytes > self._recent_bytes_max:
            _, oldest = self._recent.popitem(last=False)
            self._recent_bytes -= len(oldest.value) + _ENTRY_BYTES

    def forget(self) -> None:
        """Remember nothing: the disk has failed, and only what it says counts."""
        self._recent.clear()
        self._recent_bytes = 0

    def _insert(self, make_sql: _MakeSql, rows: Sequence[Row]) -> None:
        start = 0
        while start < len(rows):
            count = min(_ROWS_MAX, 1 << ((len(rows) - start).bit_length() - 1))
            self._db.execute(make_sql(count), [value for row in rows[start : start + count] for value in row])
            start += count


def _filled(make_sql: _MakeSql, keys: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    # Statements over sets of keys: filled up to a power of two with a key that is in already.
    for start in range(0, len(keys), _ROWS_MAX):
        part = keys[start : start + _ROWS_MAX]
        count = 1 << (len(part) - 1).bit_length()
        yield make_sql(count), [*part, *[part[0]] * (count - len(part))]


@lru_cache
def _select_sql(count: int) -> str:
    return f"SELECT k, value, create_revision, modify_revision, version FROM current WHERE k IN ({_marks(count)})"


@lru_cache
def _delete_sql(count: int) -> str:
    return f"DELETE FROM current WHERE k IN ({_marks(count)})"


@lru_cache
def _upsert_sql(count: int) -> str:
    return (
        f"INSERT INTO current VALUES {_tuples(count, 5)} ON CONFLICT (k) DO UPDATE SET value = excluded.value, "
        "create_revision = excluded.create_revision, modify_revision = excluded.modify_revision, "
        "version = excluded.version"
    )


@lru_cache
def _log_sql(count: int) -> str:
    return f"INSERT INTO log VALUES {_tuples(count, 9)}"


def _marks(count: int) -> str:
    return ",".join("?" * count)


def _tuples(count: int, width: int) -> str:
    return ",".join([f"({_marks(width)})"] * count)


def _entry_row(entry: Entry) -> Row:
    return (entry.key, entry.value, entry.create_revision, entry.modify_revision, entry.version)


def _log_rows(events: Iterable[Event]) -> list[Row]:
    rows: list[Row] = []
    revision = position = 0
    for event in events:
        position = position + 1 if event.revision == revision else 0
        revision = event.revision
        entry, previous = event.entry, event.previous
        now = (entry.value, entry.create_revision, entry.version) if entry else (None, None, None)
        before = (
            (previous.value, previous.create_revision, previous.modify_revision, previous.version)
            if previous
            else (None, None, None, None)
        )
        rows.append((revision * LOG_STRIDE + position, event.key, *now, *before))
    return rows
