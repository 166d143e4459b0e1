"""What is open while a SQLite store is: its lock, its database with the writer's side, its reader. Blocks."""

from __future__ import annotations

import contextlib
from pathlib import Path

import apsw
import msgspec

from moorage.state.sqlite_format import DISK_ERRORS, FileLock, open_database, open_reader, unavailable
from moorage.state.sqlite_group import GroupCommit
from moorage.state.watching import BUFFER_BYTES_MAX, BUFFER_EVENTS_MAX


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much an open store may hold.

    ``queue_max``, ``queue_bytes_max``: transactions that wait for the disk; one more gets StoreUnavailable.
    ``group_max``: transactions in one commit. ``history_revisions``, ``history_bytes``: changes kept for watches from
    the past (a sixteenth more for a while). ``recent_bytes``: entries in memory that spare the writer a read.
    ``watch_events_max``, ``watch_bytes_max``: what a slow reader may leave unread before it loses its place.
    """

    queue_max: int = 10_000
    queue_bytes_max: int = 128 << 20
    group_max: int = 512
    history_revisions: int = 10_000
    history_bytes: int = 256 << 20
    recent_bytes: int = 32 << 20
    watch_events_max: int = BUFFER_EVENTS_MAX
    watch_bytes_max: int = BUFFER_BYTES_MAX


DEFAULT_LIMITS = Limits()


class Files(msgspec.Struct, frozen=True):
    """What is open while a store is."""

    lock: FileLock
    database: apsw.Connection
    reader: apsw.Connection
    group: GroupCommit

    def close(self) -> None:
        """Checkpoint, close and unlock, whatever of it fails. The writer closes last, so that it removes the WAL."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.lock.release)
            stack.callback(self.database.close)
            stack.callback(self.reader.close)


def open_files(path: Path, limits: Limits) -> Files:
    """Open the store at ``path``, or make it. Raises StoreUnavailable."""
    with contextlib.ExitStack() as undo:
        lock = FileLock(path.with_name(path.name + ".lock"))
        undo.callback(lock.release)
        database = open_database(path)
        undo.callback(database.close)
        reader = open_reader(path)
        undo.callback(reader.close)
        try:
            group = GroupCommit(
                database,
                history_revisions=limits.history_revisions,
                history_bytes=limits.history_bytes,
                recent_bytes=limits.recent_bytes,
            )
        except DISK_ERRORS as error:
            raise unavailable(error, path) from error
        undo.pop_all()
        return Files(lock, database, reader, group)
