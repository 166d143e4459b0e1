"""The driver's directory: layout, loading, and changes in groups. Everything here blocks.

Shapes: DIR/volumes/<id>/ and DIR/snapshots/<id>/ hold ``meta.json`` and ``data`` (a directory,
    or a block volume's image); DIR/temp what is being made;
    DIR/trash what is being removed; DIR/node what was published here (see ``node``); DIR/lock keeps others out.
Raises OSError as the kernel said; Unavailable when another process has the directory.

A kill at any instant leaves each volume whole or absent: it is made in temp, synced, renamed into place, and its
new parent synced before the change counts as done; removal is a rename to trash. A group of changes shares the syncs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import structlog

from moorage.csi.local.records import FORMAT, Index, SnapshotRecord, VolumeRecord
from moorage.errors import Unavailable
from moorage.syncing import sync_directory

Record = VolumeRecord | SnapshotRecord

LOCK_WAIT_S = 5.0
DATA_MODE = 0o755
IMAGE_MODE = 0o600

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_encode = msgspec.json.Encoder().encode
_decode_volume = msgspec.json.Decoder(VolumeRecord).decode
_decode_snapshot = msgspec.json.Decoder(SnapshotRecord).decode

log = structlog.get_logger("moorage.csi.local")


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change: ``create`` makes an empty volume, ``place`` takes data that lies in temp, ``rewrite``, ``remove``.

    ``size_bytes`` is that of a new image.
    """

    action: Literal["create", "place", "rewrite", "remove"]
    record: Record
    mode: int = DATA_MODE
    uid: int = -1
    gid: int = -1
    size_bytes: int = 0


class Storage:
    """The directory of one driver process."""

    def __init__(self, directory: Path, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self.directory = directory
        self.temp = os.path.join(directory, "temp")
        self.trash = os.path.join(directory, "trash")
        self.node = os.path.join(directory, "node")
        self._places = {kind: os.path.join(directory, kind) for kind in ("volumes", "snapshots")}
        self._lock = -1
        self._lock_wait_s = lock_wait_s
        self.broken = ""
        self.size_bytes = 0

    def open(self) -> tuple[Index[VolumeRecord], Index[SnapshotRecord]]:
        """Lock the directory, clear what a killed process left, and read every record."""
        os.makedirs(self.directory, 0o700, exist_ok=True)
        for place in (self.temp, self.trash, self.node, *self._places.values()):
            os.makedirs(place, 0o700, exist_ok=True)
        self._take_lock()
        self.measure()
        for name in os.listdir(self.temp):
            os.rename(os.path.join(self.temp, name), os.path.join(self.trash, name))
        volumes: Index[VolumeRecord] = Index()
        for name in os.listdir(self._places["volumes"]):
            volume = _read(self._places["volumes"], name, _decode_volume)
            if volume is not None:
                volumes.put(volume)
        snapshots: Index[SnapshotRecord] = Index()
        for name in os.listdir(self._places["snapshots"]):
            snapshot = _read(self._places["snapshots"], name, _decode_snapshot)
            if snapshot is not None:
                snapshots.put(snapshot)
        return volumes, snapshots

    def close(self) -> None:
        """Give the lock back."""
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
        return Path(self._place(record), "data")

    def temp_data_path(self, record: Record) -> Path:
        """Where the data of a volume or snapshot is put while it is made; its parent is made too."""
        parent = os.path.join(self.temp, record.id)
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
        shutil.rmtree(os.path.join(self.temp, record.id), ignore_errors=True)

    def sweep(self) -> int:
        """Remove what lies in the trash, and say how many entries went; one that cannot go is logged and left."""
        swept = 0
        for name in os.listdir(self.trash):
            path = os.path.join(self.trash, name)
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

        A failed sync of a directory leaves the outcome unknown: nothing more is written until a restart reads the disk.
        """
        if self.broken:
            return [OSError(errno.EIO, self.broken) for _ in changes]
        errors: list[OSError | None] = [None] * len(changes)
        descriptors: list[list[int]] = []
        for number, change in enumerate(changes):
            opened: list[int] = []
            descriptors.append(opened)
            try:
                self._prepare(change, opened)
            except OSError as error:
                errors[number] = error
        for number, opened in enumerate(descriptors):
            errors[number] = errors[number] or _sync(opened)
        parents: set[str] = set()
        for number, change in enumerate(changes):
            if errors[number] is None:
                try:
                    parents.update(self._place_change(change))
                except OSError as error:
                    errors[number] = error
        for number, change in enumerate(changes):
            if errors[number] is not None and change.action in ("create", "place"):
                self.discard_temp(change.record)
        try:
            for parent in parents:
                sync_directory(parent)
        except OSError as error:
            self.broken = f"cannot sync {error.filename or self.directory}: {error.strerror}; restart the driver"
            log.error("the driver's directory failed", error=self.broken)
            return [OSError(errno.EIO, self.broken) for _ in changes]
        return errors

    def _prepare(self, change: Change, opened: list[int]) -> None:
        """Write what the change needs into temp; the descriptors to sync go to ``opened``."""
        record = change.record
        if change.action == "remove":
            return
        if change.action == "rewrite":
            opened.append(_write(os.path.join(self.temp, f"{record.id}.json"), _encode(record)))
            return
        directory = os.path.join(self.temp, record.id)
        if change.action == "create":
            data = os.path.join(directory, "data")
            os.mkdir(directory, 0o700)
            if record.is_block:
                opened.append(_make_image(data, change.size_bytes))
            else:
                os.mkdir(data, 0o700)
            if change.uid >= 0 or change.gid >= 0:
                os.chown(data, change.uid, change.gid)
            os.chmod(data, IMAGE_MODE if record.is_block else change.mode)
        opened.append(_write(os.path.join(directory, "meta.json"), _encode(record)))
        opened.append(os.open(directory, _DIRECTORY))

    def _place_change(self, change: Change) -> tuple[str, ...]:
        """Rename the change into effect; the directories that must be synced for it."""
        record = change.record
        place = self._place(record)
        parent = os.path.dirname(place)
        if change.action == "remove":
            with suppress(FileNotFoundError):  # somebody removed it by hand
                os.rename(place, os.path.join(self.trash, record.id))
            return (parent, self.trash)
        if change.action == "rewrite":
            os.rename(os.path.join(self.temp, f"{record.id}.json"), os.path.join(place, "meta.json"))
            return (place,)
        os.rename(os.path.join(self.temp, record.id), place)
        return (parent,)

    def _place(self, record: Record) -> str:
        kind = "volumes" if isinstance(record, VolumeRecord) else "snapshots"
        return os.path.join(self._places[kind], record.id)

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


def _write(path: str, content: bytes) -> int:
    """Write a file and start its way to the disk; the descriptor is still to be synced and closed."""
    descriptor = os.open(path, _CREATE, 0o600)
    try:
        os.write(descriptor, content)
        # Starts the write-back of this file now, so that the syncs of a group wait for one commit and not for each.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _make_image(path: str, size: int) -> int:
    """Make a file of holes; the descriptor is still to be synced and closed."""
    descriptor = os.open(path, _CREATE, IMAGE_MODE)
    try:
        os.ftruncate(descriptor, size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sync(descriptors: Sequence[int]) -> OSError | None:
    """Sync and close all; the first error, if any."""
    first: OSError | None = None
    for descriptor in descriptors:
        try:
            if first is None:
                os.fsync(descriptor)
        except OSError as error:
            first = error
        finally:
            os.close(descriptor)
    return first


R = TypeVar("R", VolumeRecord, SnapshotRecord)


def _read(place: str, name: str, decode: Callable[[bytes], R]) -> R | None:
    """The record of one entry; an entry that cannot be read is left alone and logged: its data may be precious."""
    path = os.path.join(place, name, "meta.json")
    try:
        record = decode(Path(path).read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        log.error("left out: the record cannot be read", path=path, error=str(error))
        return None
    if record.id != name or record.format != FORMAT:
        log.error("left out: the record does not fit", path=path, id=record.id, format=record.format)
        return None
    return record
