"""The driver's directory: layout, and changes in groups. Everything here blocks.

Shapes: DIR/records.db holds every record (``ledger``); DIR/volumes/<id>/ and DIR/snapshots/<id>/ hold ``data`` (a
    directory, or a block volume's image); DIR/temp what is being made or taken away;
    DIR/trash what is being removed; DIR/node what was published here (see ``node``); DIR/lock keeps others out.
Raises OSError as the kernel said; Unavailable when another process has the directory.

A change is made when its record is: data gets ready in temp, one transaction of the ledger follows, data goes into
place or to the trash. A kill or a power cut at any instant leaves what ``opening`` brings in line with the records.
An empty volume is made in its place when its record is on the disk, and brought to the disk itself before it is first
shown to anybody (``hand_out``): only what nobody has ever had may be made anew. A group of changes shares the syncs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from moorage.csi.local.layout import Layout, Record, key_of
from moorage.csi.local.ledger import Ledger
from moorage.csi.local.opening import bring_in_line
from moorage.csi.local.records import Index, SnapshotRecord, VolumeRecord
from moorage.errors import Unavailable
from moorage.syncing import sync_directory

LOCK_WAIT_S = 5.0
REMOVED_MAX = 1024

# What the ledger raises when nothing of a write is on the disk.
_NOTHING_WRITTEN = frozenset({errno.ENOSPC, errno.EBUSY})
_encode = msgspec.json.Encoder().encode

log = structlog.get_logger("moorage.csi.local")


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change: ``create`` makes an empty volume, ``place`` takes data that lies in temp, ``rewrite`` has a record
    replaced, ``hand_out`` too and sees to it that the volume's data is on the disk, ``remove`` removes both."""

    action: Literal["create", "place", "rewrite", "hand_out", "remove"]
    record: Record


class Storage:
    """The directory of one driver process."""

    def __init__(self, directory: Path, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self.directory = directory
        self.node = os.path.join(directory, "node")
        self._layout = Layout(str(directory))
        self._ledger: Ledger | None = None
        self._lock = -1
        self._lock_wait_s = lock_wait_s
        self.broken = ""
        self.size_bytes = 0

    def open(self) -> tuple[Index[VolumeRecord], Index[SnapshotRecord]]:
        """Lock the directory, clear what a killed process left, and read every record."""
        self._layout.make()
        os.makedirs(self.node, 0o700, exist_ok=True)
        self._take_lock()
        self.measure()
        self._ledger = Ledger(os.path.join(self.directory, "records.db"))
        return bring_in_line(self._layout, self._ledger)

    def close(self) -> None:
        """Close the ledger and give the lock back."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def measure(self) -> int:
        """Look at the directory's filesystem: the free bytes; its size goes to ``size_bytes``."""
        found = os.statvfs(self.directory)
        self.size_bytes = found.f_blocks * found.f_frsize
        return found.f_bavail * found.f_frsize

    def data_path(self, record: Record) -> Path:
        """Where the data of a volume or snapshot lies."""
        return Path(self._layout.place_of(record), "data")

    def temp_data_path(self, record: Record) -> Path:
        """Where the data of a volume or snapshot is put while it is made; its parent is made too."""
        parent = self._layout.temp_of(record)
        os.mkdir(parent, 0o700)
        return Path(parent, "data")

    def grow_image(self, volume: VolumeRecord, size: int) -> None:
        """Let a block volume's image have at least ``size`` bytes, on the disk; what is new reads as zeros."""
        descriptor = os.open(self.data_path(volume), os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def discard_temp(self, record: Record) -> None:
        """Remove what was made of a record that is not to be."""
        shutil.rmtree(self._layout.temp_of(record), ignore_errors=True)

    def sweep(self) -> int:
        """Remove what lies in the trash, and say how many entries went; one that cannot go is logged and left."""
        swept = 0
        trash = self._layout.trash
        for name in os.listdir(trash):
            path = os.path.join(trash, name)
            try:
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
            except (OSError, RecursionError) as error:
                log.warning("cannot remove from the trash; tried again at the next start", path=path, error=str(error))
                continue
            swept += 1
        return swept

    def commit(self, changes: Sequence[Change]) -> list[OSError | None]:
        """Make the changes durable, in their order. The answer has an error for each change that was not made.

        A disk that fails leaves the outcome unknown: nothing more is written until a restart reads the disk.
        """
        if self.broken:
            return [OSError(errno.EIO, self.broken) for _ in changes]
        errors: list[OSError | None] = [None] * len(changes)
        ready: dict[int, Change] = {}
        to_sync: set[str] = set()
        for number, change in enumerate(changes):
            try:
                self._prepare(change, to_sync)
                ready[number] = change
            except OSError as error:
                errors[number] = error
                self._undo(change)
        try:
            for path in to_sync:
                sync_directory(path)
            self._record(ready.values())
        except OSError as error:
            told = error if error.errno in _NOTHING_WRITTEN else self._stop_writing(error)
            for number, change in ready.items():
                errors[number] = told
                self._undo(change)
            return errors
        self._finish(ready, errors)
        return errors

    def _prepare(self, change: Change, to_sync: set[str]) -> None:
        """Get the data ready; directories that several changes may share, and which have to be synced, go to
        ``to_sync``."""
        layout, record = self._layout, change.record
        match change.action:
            case "place":
                sync_directory(layout.temp_of(record))
                to_sync.add(layout.temp)
            case "hand_out":
                assert isinstance(record, VolumeRecord)
                layout.make_whole(record)
                if record.is_block:
                    self.grow_image(record, record.capacity_bytes)
                layout.sync_data(record)
                to_sync.add(os.path.dirname(layout.place_of(record)))
            case "remove":
                layout.take_leave(record)

    def _record(self, changes: Iterable[Change]) -> None:
        """Have the ledger say what is now."""
        assert self._ledger is not None
        puts, takes = [], []
        for change in changes:
            if change.action == "remove":
                takes.append(key_of(change.record))
            else:
                puts.append((key_of(change.record), _encode(change.record)))
        if puts or takes:
            self._ledger.write(puts, takes)

    def _undo(self, change: Change) -> None:
        """Take back what ``_prepare`` did. What is here when it is unknown which records are on the disk suits both."""
        if change.action == "remove":
            try:
                self._layout.put_back(change.record)
            except OSError as error:
                log.error("not in its place; tried again at the next start", id=change.record.id, error=str(error))
        elif change.action == "place" and not self.broken:
            self.discard_temp(change.record)

    def _finish(self, changes: Mapping[int, Change], errors: list[OSError | None]) -> None:
        """Put the data where the records, which are on the disk, say. A record whose data cannot be had goes again."""
        assert self._ledger is not None
        layout = self._layout
        lost: list[str] = []
        for number, change in changes.items():
            record = change.record
            try:
                if change.action == "create":
                    assert isinstance(record, VolumeRecord)
                    layout.make_empty(record)
                elif change.action == "place":
                    layout.put_in_place(record)
                elif change.action == "remove":
                    layout.throw_away(layout.leaving_of(record))
            except OSError as error:
                if change.action == "remove":
                    log.warning("not in the trash; tried again at the next start", id=record.id, error=str(error))
                    continue
                errors[number] = error
                lost.append(key_of(record))
                if change.action == "place":
                    self.discard_temp(record)
        try:
            if lost:
                self._ledger.write((), lost)
            if self._ledger.removed > REMOVED_MAX:
                for place in layout.kinds:
                    sync_directory(place)
                self._ledger.forget_removed()
        except OSError as error:
            self._stop_writing(error)

    def _stop_writing(self, error: OSError) -> OSError:
        self.broken = f"cannot write to {error.filename or self.directory}: {error.strerror}; restart the driver"
        log.error("the driver's directory failed", error=self.broken)
        return OSError(errno.EIO, self.broken)

    def _take_lock(self) -> None:
        """One process per directory. A killed predecessor may need a moment to be gone."""
        self._lock = os.open(os.path.join(self.directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + self._lock_wait_s
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() >= until:
                    self.close()
                    raise Unavailable(
                        f"another process uses {self.directory}: stop it, or give this driver another --data"
                    ) from error
            time.sleep(0.05)
