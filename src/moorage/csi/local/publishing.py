"""Show volumes at paths of this node: bind mounts, or symlinks where the process may not mount.

Shapes: whether something is published is read from the mount table (or the symlink) each time, so that a restart of the
    driver changes nothing. ``places`` keeps what the table cannot show: the access mode and flags as asked.
Raises Rejected with the gRPC status as its code; OSError from the kernel. Everything here blocks.
Never:  unmounts what is not a mount of the volume named; removes a directory that is not empty.
Source: CSI spec 1.12, NodePublishVolume's table on a second publish.

A path is UNAVAILABLE while processes still use the mount there: that ends without any change by the caller.
A symlink cannot be made read-only; this is said once in the log.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import structlog

from moorage.csi import mounting
from moorage.csi.local.checks import refuse
from moorage.csi.local.places import Place, Places, check_staging, refuse_foreign, refuse_unstaged, unmount
from moorage.csi.local.records import VolumeRecord
from moorage.csi.local.storage import Storage

log = structlog.get_logger("moorage.csi.local")

STACKED_MAX = 16


class Publisher:
    """Makes and removes what consumers on this node see."""

    def __init__(self, storage: Storage, *, may_mount: bool) -> None:
        self._storage = storage
        self._places = Places(storage.node)
        self._may_mount = may_mount
        self._said_read_only = False
        if not may_mount:
            self._say_symlinks()

    def stage(self, volume: VolumeRecord, place: Place) -> None:
        """Bind the volume's data to the staging path, which exists."""
        check_staging(place.path)
        shown = self._find_mount(volume, place.path)
        if shown is not None:
            self._places.check_repeated(place, mounted_read_only=False)
        elif self._may_mount:
            self._places.keep(place)
            self._bind(volume, place.path, flags=())

    def unstage(self, volume: VolumeRecord, path: str) -> None:
        """Take every mount of the volume away from the staging path."""
        self._unmount(volume, path)
        self._places.forget(path)

    def publish(self, volume: VolumeRecord, place: Place, staging: str) -> None:
        """Bind the volume's data to the target path, which is made."""
        data = self._storage.data_path(volume)
        if self._is_link(volume, place.path):
            self._places.check_repeated(place, mounted_read_only=None)
            return
        shown = self._find_mount(volume, place.path)
        if shown is not None:
            self._places.check_repeated(place, mounted_read_only=shown.is_read_only)
            return
        staged = self._find_mount(volume, staging)
        if staged is None and self._may_mount:
            raise refuse_unstaged(staging)
        self._check_second(volume, place, staging)
        self._places.keep(place)
        if self._may_mount:
            _make_target(place.path)
            self._bind(volume, place.path, flags=place.flags)
        if not self._may_mount:
            self._link(data, place)

    def unpublish(self, volume: VolumeRecord, path: str) -> None:
        """Take the volume away from the target path and remove the path."""
        if self._is_link(volume, path):
            os.unlink(path)
        else:
            self._unmount(volume, path)
            try:
                os.rmdir(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY):
                    raise
                text = f"target_path {path} holds something that this driver did not put there: {error.strerror}"
                raise refuse("FAILED_PRECONDITION", text) from error
        self._places.forget(path)

    def check_shown(self, volume: VolumeRecord, path: str) -> None:
        """Raise NOT_FOUND unless the volume is staged or published at ``path``."""
        data = self._storage.data_path(volume)
        try:
            is_shown = os.path.isabs(path) and os.path.samestat(os.stat(path), os.stat(data))
        except (FileNotFoundError, NotADirectoryError):
            is_shown = False
        is_staging = not self._may_mount and os.path.isdir(path) and not os.path.islink(path)
        if not is_shown and not is_staging:
            raise refuse("NOT_FOUND", f"volume {volume.id} is not staged or published at {path}")

    def clean(self) -> None:
        """Forget what was kept on paths where nothing is shown any more, as after a reboot."""
        mounts = mounting.read_mounts()
        for place in self._places:
            is_shown = mounting.find_in(mounts, place.path) is not None or os.path.islink(place.path)
            if not is_shown and not place.is_block:
                self._places.forget(place.path)

    def _find_mount(self, volume: VolumeRecord, path: str) -> mounting.Mount | None:
        """The mount of the volume at ``path``; another mount there is refused."""
        mounts = mounting.read_mounts()
        found = mounting.find_in(mounts, path)
        if found is None:
            return None
        if (found.device, found.root) == mounting.origin_of(mounts, self._storage.data_path(volume)):
            return found
        if found.root == "/" and self._places.find(path) is None:
            return None  # the path is a mount point of the caller's own, such as a tmpfs: mount on top of it
        raise refuse_foreign(path)

    def _check_second(self, volume: VolumeRecord, place: Place, staging: str) -> None:
        """Refuse a second target path in the modes that allow one."""
        mounts = mounting.read_mounts()
        paths = {one.target for one in mounting.mounts_of(mounts, self._storage.data_path(volume))}
        kept = self._places.of_volume(volume.id)
        paths |= {path for path, one in kept.items() if os.path.islink(one.path) and self._is_link(volume, one.path)}
        paths -= {mounting.resolve(staging), *(path for path, one in kept.items() if one.kind == "stage")}
        self._places.check_second(place, paths)

    def _bind(self, volume: VolumeRecord, path: str, *, flags: tuple[str, ...]) -> None:
        try:
            mounting.bind(self._storage.data_path(volume), path, flags=flags)
        except PermissionError:
            self._may_mount = False
            self._say_symlinks()

    def _unmount(self, volume: VolumeRecord, path: str) -> None:
        for _ in range(STACKED_MAX):
            if self._find_mount(volume, path) is None:
                return
            unmount(path)
        raise refuse("FAILED_PRECONDITION", f"more than {STACKED_MAX} mounts are stacked at {path}")

    def _link(self, data: Path, place: Place) -> None:
        if place.is_read_only and not self._said_read_only:
            self._said_read_only = True
            log.warning("published by symlink: read-only cannot be enforced", path=place.path)
        with suppress(FileNotFoundError):
            os.rmdir(place.path)
        os.symlink(os.path.abspath(data), place.path)

    def _is_link(self, volume: VolumeRecord, path: str) -> bool:
        """Whether ``path`` is our symlink to the volume; any other symlink is refused."""
        if not os.path.islink(path):
            return False
        if os.readlink(path) == os.path.abspath(self._storage.data_path(volume)):
            return True
        raise refuse("FAILED_PRECONDITION", f"{path} is a symlink to something else: remove it first")

    def _say_symlinks(self) -> None:
        log.warning("this process may not mount: volumes are published by symlink")


def _make_target(path: str) -> None:
    """Make the target directory; one that is there must be empty, or consumers would miss what it holds."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        if not os.path.isdir(path):
            raise refuse("FAILED_PRECONDITION", f"target_path {path} is not a directory: remove it first") from None
        if mounting.is_mount_point(path):
            raise refuse_foreign(path) from None
        if os.listdir(path):
            raise refuse("FAILED_PRECONDITION", f"target_path {path} is not empty: empty it first") from None
    except FileNotFoundError:
        raise refuse("FAILED_PRECONDITION", f"the parent directory of target_path {path} does not exist") from None
