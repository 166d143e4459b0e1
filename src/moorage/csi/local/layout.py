"""Where what belongs to a record lies in the driver's directory. Everything here blocks. Raises OSError.

Shapes: see ``storage``. What is copied lies in temp under the record's ID; what is taken away, under ``ID.leaving``. An
    empty volume is made in its place.
"""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress

from moorage.csi.local.checks import check_ownership
from moorage.csi.local.records import SnapshotRecord, VolumeRecord
from moorage.syncing import sync_directory, sync_path

Record = VolumeRecord | SnapshotRecord

IMAGE_MODE = 0o600
_FIRST_MODE = 0o700
LEAVING = ".leaving"
KINDS = ("volumes", "snapshots")

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def key_of(record: Record) -> str:
    """The record's key in the ledger, which is also its place in the directory."""
    return f"{'volumes' if isinstance(record, VolumeRecord) else 'snapshots'}/{record.id}"


class Layout:
    """The paths of one directory, and what is done with them."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.temp = os.path.join(directory, "temp")
        self.trash = os.path.join(directory, "trash")
        self.kinds = tuple(os.path.join(directory, kind) for kind in KINDS)

    def make(self) -> None:
        """Make the directories."""
        for place in (self.directory, self.temp, self.trash, *self.kinds):
            os.makedirs(place, 0o700, exist_ok=True)

    def place_of(self, record: Record) -> str:
        """The directory of a record's data."""
        return os.path.join(self.directory, key_of(record))

    def temp_of(self, record: Record) -> str:
        """Where a record's data is made."""
        return os.path.join(self.temp, record.id)

    def leaving_of(self, record: Record) -> str:
        """Where a record's data waits until the record is gone."""
        return os.path.join(self.temp, record.id + LEAVING)

    def make_empty(self, volume: VolumeRecord) -> None:
        """Make the data of an empty volume in its place; nothing of it is left when it raises."""
        place = self.place_of(volume)
        os.mkdir(place, _FIRST_MODE)
        try:
            self._make_data(volume)
        except OSError:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def _is_made(self, volume: VolumeRecord) -> bool:
        """Whether a volume that nobody has ever had is in its place, and ``make_empty`` came to its end there."""
        mode, uid, gid = check_ownership(volume.parameters.items())
        try:
            found = os.stat(f"{self.place_of(volume)}/data", follow_symlinks=False)
        except FileNotFoundError:
            return False
        if volume.is_block:
            return found.st_size >= volume.capacity_bytes
        # The mode is set last. One that is as it was at first says nothing.
        is_owned = uid in (-1, found.st_uid) and gid in (-1, found.st_gid)
        return stat.S_IMODE(found.st_mode) != _FIRST_MODE or (mode == _FIRST_MODE and is_owned)

    def make_whole(self, volume: VolumeRecord) -> None:
        """Make what is missing, if anything, of a volume that nobody has ever had. What is there stays."""
        if self._is_made(volume):
            return
        with suppress(FileExistsError):
            os.mkdir(self.place_of(volume), _FIRST_MODE)
        self._make_data(volume)

    def _make_data(self, volume: VolumeRecord) -> None:
        mode, uid, gid = check_ownership(volume.parameters.items())
        data = f"{self.place_of(volume)}/data"
        with suppress(FileExistsError):
            if volume.is_block:
                os.close(os.open(data, _CREATE, IMAGE_MODE))
            else:
                os.mkdir(data, _FIRST_MODE)
        if uid >= 0 or gid >= 0:
            os.chown(data, uid, gid)
        # Not by the call that makes it, which heeds the process's mask. What _is_made looks at is done last.
        os.chmod(data, IMAGE_MODE if volume.is_block else mode)
        if volume.is_block:
            os.truncate(data, volume.capacity_bytes)

    def put_in_place(self, record: Record) -> None:
        """Take a record's data out of temp into its place."""
        os.rename(self.temp_of(record), self.place_of(record))

    def take_leave(self, record: Record) -> None:
        """Take a record's data out of its place; it can be put back."""
        with suppress(FileNotFoundError):  # somebody removed it by hand
            os.rename(self.place_of(record), self.leaving_of(record))

    def put_back(self, record: Record) -> None:
        """Put data back whose record stays."""
        with suppress(FileNotFoundError):
            os.rename(self.leaving_of(record), self.place_of(record))

    def throw_away(self, path: str) -> None:
        """Put something into the trash."""
        target = os.path.join(self.trash, os.path.basename(path))
        while os.path.lexists(target):
            target += "_"
        with suppress(FileNotFoundError):
            os.rename(path, target)

    def sync_data(self, record: Record) -> None:
        """Bring a record's data, as an entry, to the disk; the directory that its place is in is left to the caller."""
        place = self.place_of(record)
        # A directory whose mode keeps this process out got it before its entry in the place was made.
        with suppress(PermissionError):
            sync_path(os.path.join(place, "data"))
        sync_directory(place)
