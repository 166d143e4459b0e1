"""The SQLite store's file: its lock, its tables, its format version and the way from one version to the next.

Layout of version 2: ``current`` holds each key's entry; ``log`` holds each change with the entry before it, under
``revision * LOG_STRIDE + position``, for watches from the past; ``meta`` holds ``format``, ``written_by``,
``revision`` (the newest), ``compacted`` (changes up to it are forgotten) and ``unclean`` (1: the files may hold bytes
of values that must go, until the next scrub). Version 1 had no ``unclean``, and secrets in its values.
Ordinary rowid tables: without a rowid, values of a kilobyte are several times slower to write.
apsw's exceptions become StoreUnavailable through ``unavailable``. Never: the event loop, threads, clock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import apsw
import msgspec

import moorage
from moorage.errors import StoreUnavailable

FORMAT = 2
LOG_STRIDE = 1024
BUSY_TIMEOUT_MS = 10_000

# Disk and file trouble. The other exceptions of apsw say that our SQL or our use of a connection is wrong.
DISK_ERRORS = (
    apsw.AuthError,
    apsw.BusyError,
    apsw.CantOpenError,
    apsw.CorruptError,
    apsw.FullError,
    apsw.IOError,
    apsw.LockedError,
    apsw.NoLFSError,
    apsw.NoMemError,
    apsw.NotADBError,
    apsw.PermissionsError,
    apsw.ProtocolError,
    apsw.ReadOnlyError,
)


def _add_unclean(connection: apsw.Connection) -> None:
    connection.execute("INSERT INTO meta VALUES ('unclean', 1)")


Upgrades = Mapping[int, Callable[[apsw.Connection], None]]
# Version → the step that turns a file of that version into one of the next; inside one transaction.
UPGRADES: Upgrades = {1: _add_unclean}

_TABLES = """
CREATE TABLE current (
  k TEXT PRIMARY KEY NOT NULL,
  value BLOB NOT NULL,
  create_revision INTEGER NOT NULL,
  modify_revision INTEGER NOT NULL,
  version INTEGER NOT NULL
);
CREATE TABLE log (
  id INTEGER PRIMARY KEY,
  k TEXT NOT NULL,
  value BLOB,
  create_revision INTEGER,
  version INTEGER,
  previous_value BLOB,
  previous_create_revision INTEGER,
  previous_modify_revision INTEGER,
  previous_version INTEGER
);
CREATE TABLE meta (name TEXT PRIMARY KEY NOT NULL, value NOT NULL);
"""


class Counters(msgspec.Struct, frozen=True):
    """``revision``: the newest; ``compacted``: history up to it is forgotten."""

    revision: int
    compacted: int


def unavailable(error: BaseException, path: Path) -> StoreUnavailable:
    """What a disk or file error means to a caller. The text says what to do; apsw's error is to be the cause."""
    if isinstance(error, apsw.FullError):
        text = "the disk is full: make room and try again"
    elif isinstance(error, apsw.NotADBError):
        text = "the file is not a moorage store: move it away or name another path"
    elif isinstance(error, apsw.CorruptError):
        text = "the file is damaged: stop the server and restore a backup"
    elif isinstance(error, apsw.ReadOnlyError | apsw.PermissionsError | apsw.CantOpenError):
        text = f"the file cannot be opened for writing ({error}): check that its directory exists and its permissions"
    else:
        text = f"the disk does not work ({error}): look at the kernel's log"
    return StoreUnavailable(f"store {path}: {text}", path=str(path))


class FileLock:
    """Keeps a second server away from a store, until ``release`` or the end of the process.

    An exclusive flock on a file beside the database, which holds the pid of the holder and stays when it is released.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailable(
                f"store: cannot open lock file {path} ({error.strerror}): "
                "check that its directory exists and its permissions",
                path=str(path),
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise StoreUnavailable(
                f"the store is in use by process {holder} (lock file {path}): stop that process first",
                path=str(path),
                pid=holder,
            ) from error
        except OSError as error:
            os.close(self._fd)
            raise StoreUnavailable(
                f"store: cannot lock {path} ({error.strerror}): use a local filesystem", path=str(path)
            ) from error
        # A full disk may refuse the pid; the lock holds without it, and a server must be able to start then.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have the store. Once only."""
        os.close(self._fd)


def open_database(path: Path, *, format_known: int = FORMAT, upgrades: Upgrades = UPGRADES) -> apsw.Connection:
    """Open or make the database for writing, and bring it to the newest format.

    ``format_known`` and ``upgrades`` are the newest format and the steps to it. Call it with the lock held.
    Raises StoreUnavailable: written by a newer version (the text names it and what to do), not a store, broken disk.
    """
    _make_private(path)
    connection: apsw.Connection | None = None
    try:
        connection = apsw.Connection(str(path))
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        # Looked at before anything is written: a file that is not ours stays as it is.
        _check_tables(connection)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA journal_size_limit=67108864")
        with connection:
            _settle_format(connection, path, format_known=format_known, upgrades=upgrades)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, DISK_ERRORS):
            raise unavailable(error, path) from error
        raise
    return connection


def _make_private(path: Path) -> None:
    # Records hold secrets. SQLite gives its other files the mode of this one.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreUnavailable(
            f"store {path}: the file cannot be opened for writing ({error.strerror}): "
            "check that its directory exists and its permissions",
            path=str(path),
        ) from error


def open_reader(path: Path) -> apsw.Connection:
    """A second connection, for reading only. Raises StoreUnavailable."""
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    except DISK_ERRORS as error:
        raise unavailable(error, path) from error
    return connection


def read_counters(connection: apsw.Connection) -> Counters:
    """The newest and the compacted revision."""
    return Counters(read_meta_number(connection, "revision"), read_meta_number(connection, "compacted"))


def read_meta_number(connection: apsw.Connection, name: str) -> int:
    """A number from ``meta``."""
    value = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).get
    if not isinstance(value, int):
        raise apsw.CorruptError(f"meta holds no number {name}")
    return value


def _check_tables(connection: apsw.Connection) -> bool:
    # Whether there are tables yet; those of somebody else are an error.
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if tables and not tables >= {"current", "log", "meta"}:
        raise apsw.NotADBError("other tables")
    return bool(tables)


def _settle_format(connection: apsw.Connection, path: Path, *, format_known: int, upgrades: Upgrades) -> None:
    if not _check_tables(connection):
        _create(connection)
        return
    found = read_meta_number(connection, "format")
    if found > format_known:
        writer = connection.execute("SELECT value FROM meta WHERE name = 'written_by'").get
        raise StoreUnavailable(
            f"store {path}: its format {found} was written by moorage {writer}; this is moorage {moorage.__version__}, "
            f"which knows formats up to {format_known}: start moorage {writer} or newer, or restore a backup "
            "that this version made",
            path=str(path),
        )
    if found == format_known:
        return
    for version in range(found, format_known):
        step = upgrades.get(version)
        if step is None:
            raise AssertionError(f"no step from store format {version} to {version + 1}")
        step(connection)
    names = [(format_known, "format"), (moorage.__version__, "written_by")]
    connection.executemany("UPDATE meta SET value = ? WHERE name = ?", names)


def _create(connection: apsw.Connection) -> None:
    connection.execute(_TABLES)
    rows = [("format", FORMAT), ("written_by", moorage.__version__), ("revision", 0), ("compacted", 0)]
    rows += [("unclean", 0)]
    connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
