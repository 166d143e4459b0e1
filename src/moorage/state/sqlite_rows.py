"""Rows of the SQLite store read and written many at a time.

A step of an SQLite statement gives up the interpreter's lock, and while the event loop is busy it may be milliseconds
until the thread has it back. So a change is written as rows of the log alone, up to 64 of them in one statement (few
texts, which stay prepared); what they make of ``current`` and of the newest revision in ``meta`` is done inside it, by
triggers of this connection, which no file has. And recent entries are kept here, so that writing them again reads
nothing.
For the writer thread. Never: the event loop, transactions, clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain

import apsw

from moorage.state.sqlite_format import LOG_STRIDE
from moorage.state.store import Entry, Event

# What a kept entry weighs beside its value.
_ENTRY_BYTES = 400
# Longer statements would not stay in the connection's cache.
ROWS_MAX = 64
_APPLY = f"""
CREATE TEMP TRIGGER log_sets AFTER INSERT ON main.log WHEN new.value IS NOT NULL BEGIN
  INSERT INTO current VALUES (new.k, new.value, new.create_revision, new.id / {LOG_STRIDE}, new.version)
    ON CONFLICT (k) DO UPDATE SET value = excluded.value, create_revision = excluded.create_revision,
      modify_revision = excluded.modify_revision, version = excluded.version;
END;
CREATE TEMP TRIGGER log_removes AFTER INSERT ON main.log WHEN new.value IS NULL BEGIN
  DELETE FROM current WHERE k = new.k;
END;
CREATE TEMP TRIGGER log_advances AFTER INSERT ON main.log BEGIN
  UPDATE meta SET value = new.id / {LOG_STRIDE} WHERE name = 'revision';
END;
"""

Value = str | bytes | int | None
Row = tuple[Value, ...]


class Rows:
    """The tables ``current`` and ``log`` behind a memory of recent entries."""

    def __init__(self, connection: apsw.Connection, *, recent_bytes: int) -> None:
        self._db = connection
        connection.execute(_APPLY)
        # An OrderedDict, because it is taken from at the front: a dict walks over all that were taken before.
        self._recent: OrderedDict[str, Entry] = OrderedDict()
        self._recent_bytes = 0
        self._recent_bytes_max = recent_bytes

    def read(self, keys: Iterable[str]) -> dict[str, Entry | None]:
        """The current entry of each key, or None."""
        entries: dict[str, Entry | None] = {key: self._recent.get(key) for key in keys}
        unknown = [key for key, entry in entries.items() if entry is None]
        for sql, row in _make_selects(unknown):
            for k, value, created, modified, version in self._db.execute(sql, row):
                entries[k] = Entry(k, value, created, modified, version)
        return entries

    def write(self, events: Iterable[Event]) -> None:
        """Log changes, and set or remove their keys. Up to ROWS_MAX of them are one statement."""
        rows = _log_rows(events)
        for start in range(0, len(rows), ROWS_MAX):
            part = rows[start : start + ROWS_MAX]
            self._db.execute(_log_sql(len(part)), tuple(chain.from_iterable(part)))

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


def _make_selects(keys: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    # Filled up to a power of two with a key that is in already.
    for start in range(0, len(keys), ROWS_MAX):
        part = keys[start : start + ROWS_MAX]
        count = 1 << (len(part) - 1).bit_length()
        yield _select_sql(count), [*part, *[part[0]] * (count - len(part))]


@lru_cache
def _select_sql(count: int) -> str:
    return f"SELECT k, value, create_revision, modify_revision, version FROM current WHERE k IN ({_marks(count)})"


@lru_cache
def _log_sql(count: int) -> str:
    return f"INSERT INTO log VALUES {','.join([f'({_marks(9)})'] * count)}"


def _marks(count: int) -> str:
    return ",".join("?" * count)


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
