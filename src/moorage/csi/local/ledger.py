"""The driver's records, in one SQLite file. Everything here blocks; one thread at a time.

Shapes: a key is ``volumes/ID`` or ``snapshots/ID``; its value is the record as JSON. ``removed`` has the keys that were
    taken out and whose data may be in its place again after a power cut: until ``forget_removed``.
Raises OSError (ENOSPC, EBUSY, EIO); Unavailable when the file cannot be opened, is damaged or is of a later format.
    After EIO it is unknown what is on the disk.
A ``write`` is one transaction and one sync: all of it is on the disk when it returns, or nothing of it ever is.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain

import apsw

from moorage.errors import Unavailable
from moorage.syncing import sync_directory, sync_path

FORMAT = 1
APPLICATION_ID = 0x6D6F6C64
BUSY_TIMEOUT_MS = 10_000
# As long as the log gets before SQLite begins it anew: 1,000 pages and what its last transaction may have above that.
LOG_PAGES = 1024
_PAGE_BYTES = 4096
# It is given its length where so much is free: it must not be what fills the disk.
ROOM_BYTES = 64 * 1024 * 1024

_TABLES = """
CREATE TABLE records (k TEXT PRIMARY KEY NOT NULL, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE removed (k TEXT PRIMARY KEY NOT NULL) WITHOUT ROWID;
"""
# Rows that one statement puts: for each statement the thread gives the interpreter away and waits for it again.
_ROWS_MAX = 32
_PUTS = tuple(
    f"INSERT INTO records VALUES {', '.join(['(?, ?)'] * rows)} ON CONFLICT (k) DO UPDATE SET record = excluded.record"
    for rows in range(_ROWS_MAX + 1)
)
_PUT = _PUTS[1]
_TAKE = "DELETE FROM records WHERE k = ?"
_NOTE = "INSERT OR IGNORE INTO removed VALUES (?)"


class Ledger:
    """The open file. ``removed`` counts the keys that are noted as removed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.removed = 0
        try:
            self._open()
        except apsw.NotADBError as error:
            raise Unavailable(f"{path} is not the file of a driver's records: move it away") from error
        except apsw.CorruptError as error:
            raise Unavailable(f"{path} is damaged: restore a copy of it, or what `sqlite3 .recover` gives") from error
        except apsw.Error as error:
            raise Unavailable(f"cannot open {path}: {error}") from error

    def _open(self) -> None:
        self._db = apsw.Connection(self._path)
        self._db.set_busy_timeout(BUSY_TIMEOUT_MS)
        # The directory has one driver process at a time; so SQLite needs no shared memory and no lock for each write.
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        found = self._db.pragma("user_version")
        if found and (found != FORMAT or self._db.pragma("application_id") != APPLICATION_ID):
            raise Unavailable(f"{self._path} is of format {found}, which a later version wrote: start that version")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        if not found:
            with self._db:
                self._db.execute(f"{_TABLES} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}")
            sync_directory(os.path.dirname(self._path))
        self._lengthen_log()

    def _lengthen_log(self) -> None:
        """Give the log its full length now: a sync that also brings a new length to the disk takes half as long again.

        A transaction that is too large for the cache goes to the log, and none of it counts when it is rolled back.
        """
        with suppress(apsw.Error, OSError):  # it gets as long as it has to with the writes
            system = os.statvfs(os.path.dirname(self._path))
            if system.f_bavail * system.f_frsize < ROOM_BYTES:
                return
            before = self._db.pragma("cache_size")
            try:
                self._db.pragma("cache_size", 16)
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute(_PUT, ("", apsw.zeroblob(LOG_PAGES * _PAGE_BYTES)))
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                self._db.pragma("cache_size", before)
            sync_path(f"{self._path}-wal")

    def read(self) -> dict[str, bytes]:
        """All records by key."""
        return dict(self._db.execute("SELECT k, record FROM records"))

    def read_removed(self) -> list[str]:
        """The keys that are noted as removed."""
        found = [key for (key,) in self._db.execute("SELECT k FROM removed")]
        self.removed = len(found)
        return found

    def write(self, puts: Iterable[tuple[str, bytes]], takes: Iterable[str] = ()) -> None:
        """Put records, take others out and note those as removed."""
        rows, taken = list(puts), [(key,) for key in takes]
        try:
            if 0 < len(rows) <= _ROWS_MAX and not taken:
                # One statement is a transaction by itself.
                self._db.execute(_PUTS[len(rows)], tuple(chain.from_iterable(rows)))
            else:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany(_PUT, rows)
                if taken:
                    self._db.executemany(_TAKE, taken)
                    self._db.executemany(_NOTE, taken)
                self._db.execute("COMMIT")
        except apsw.Error as error:
            self._take_back(error)
        self.removed += len(taken)

    def forget_removed(self) -> None:
        """Note nothing as removed any more."""
        try:
            self._db.execute("DELETE FROM removed")
        except apsw.Error as error:
            self._take_back(error)
        self.removed = 0

    def close(self) -> None:
        """Give the file back. What is written is in it whether this is called or not."""
        self._db.close()

    def _take_back(self, error: apsw.Error) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except apsw.Error:
            raise OSError(errno.EIO, f"SQLite: {error}", self._path) from error
        if isinstance(error, apsw.FullError):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path) from error
        if isinstance(error, apsw.BusyError | apsw.LockedError):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), self._path) from error
        raise OSError(errno.EIO, f"SQLite: {error}", self._path) from error
