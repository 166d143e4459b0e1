"""What was asked for at each path of this node: DIR/node, one small file a path.

Shapes: what is shown where is read from the mount table each time; here is only what that cannot say: the access mode
    and the flags as asked, and which volume a device is staged for.
Raises Rejected with the gRPC status as its code; OSError from the disk. Everything here blocks.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from moorage.csi import mounting
from moorage.csi.local.checks import STRICT_MODES, refuse
from moorage.errors import Rejected


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as it was asked to be shown at a path."""

    volume_id: str
    path: str
    kind: Literal["stage", "publish"]
    mode: int
    flags: tuple[str, ...]
    is_block: bool = False

    @property
    def is_read_only(self) -> bool:
        """Whether the last of the flags on writing says ro."""
        return [flag for flag in ("rw", *self.flags) if flag in ("ro", "rw")][-1] == "ro"

    def is_same_as(self, other: Place) -> bool:
        """Whether both ask for the same thing; the order and number of equal flags do not matter."""
        mine, others = set(self.flags) - {"rw", "defaults"}, set(other.flags) - {"rw", "defaults"}
        alike = (self.kind, self.mode, self.is_read_only) == (other.kind, other.mode, other.is_read_only)
        return alike and mine == others


_decode_place = msgspec.json.Decoder(Place).decode


class Places:
    """The places kept in one directory."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def keep(self, place: Place) -> None:
        """Remember how the path was asked for. Not synced: it means nothing without the mount, which a crash takes."""
        file = self._file(place.path)
        Path(f"{file}.new").write_bytes(msgspec.json.encode(place))
        os.rename(f"{file}.new", file)

    def find(self, path: str) -> Place | None:
        """What was asked for at the path."""
        try:
            return _decode_place(Path(self._file(path)).read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def forget(self, path: str) -> None:
        """Nothing is to be there any more."""
        with suppress(FileNotFoundError):
            os.unlink(self._file(path))

    def __iter__(self) -> Iterator[Place]:
        for name in os.listdir(self._directory):
            if name.endswith(".new"):
                continue
            try:
                yield _decode_place(Path(self._directory, name).read_bytes())
            except (FileNotFoundError, msgspec.DecodeError):
                continue

    def of_volume(self, volume_id: str) -> dict[str, Place]:
        """The volume's places, each by its path as the mount table spells it."""
        return {mounting.resolve(one.path): one for one in self if one.volume_id == volume_id}

    def check_repeated(self, place: Place, *, mounted_read_only: bool | None) -> None:
        """Raise ALREADY_EXISTS unless what is shown at the path was asked for in the same way."""
        kept = self.find(place.path)
        same = place.is_same_as(kept) if kept is not None else mounted_read_only in (None, place.is_read_only)
        if not same:
            text = f"the volume is at {place.path} with another access mode, readonly flag or mount flags"
            raise refuse("ALREADY_EXISTS", text)

    def check_second(self, place: Place, shown: Iterable[str]) -> None:
        """Refuse a target beside those at the paths ``shown``, in the modes that allow one."""
        kept = self.of_volume(place.volume_id)
        for path in sorted(shown):
            if place.mode in STRICT_MODES or (path in kept and kept[path].mode in STRICT_MODES):
                text = f"volume {place.volume_id} is published at {path} and its access mode allows one target path"
                raise refuse("FAILED_PRECONDITION", f"{text}: unpublish it there first")

    def _file(self, path: str) -> str:
        digest = hashlib.sha256(mounting.resolve(path).encode(errors="surrogateescape")).hexdigest()[:40]
        return os.path.join(self._directory, f"{digest}.json")


def check_staging(path: str) -> None:
    """The staging path is a directory; whoever asks makes it."""
    if not os.path.isdir(path) or os.path.islink(path):
        raise refuse("FAILED_PRECONDITION", f"staging_target_path {path} is not a directory: make it first")


def refuse_unstaged(staging: str) -> Rejected:
    """The refusal of a publish without its stage."""
    return refuse("FAILED_PRECONDITION", f"the volume is not staged at {staging}: stage it first")


def refuse_foreign(path: str) -> Rejected:
    """The refusal of a path that shows something else."""
    return refuse("FAILED_PRECONDITION", f"another filesystem is mounted at {path}: unmount it first")


def refuse_busy(path: str) -> Rejected:
    """The refusal of what processes keep from being taken away: it ends without any change by the caller."""
    return refuse("UNAVAILABLE", f"{path} is in use by a process: stop it; this is tried again")


def unmount(path: str) -> None:
    """Take the uppermost mount away, or say that it is in use."""
    try:
        mounting.unmount(path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise refuse_busy(path) from error
