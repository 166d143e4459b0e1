"""Show block volumes at paths of this node: a loop device of the volume's image, and binds of its node.

Shapes: a stage attaches the device and puts nothing into the staging directory; a publish binds the device's node onto
    a file that is made for it. A read-only publication has a read-only device of its own, because a read-only mount of
    a node does not keep anybody from writing to the device. What is attached is asked from the kernel each time, so
    that a restart of the driver changes nothing.
Raises Rejected with the gRPC status as its code; OSError from the kernel. Everything here blocks.
Never:  detaches a device whose node is bound somewhere; touches a device of a file that is not a volume's image.
Source: CSI spec 1.12, NodeStageVolume and NodePublishVolume on block access.

A device is UNAVAILABLE while processes have it open: that ends without any change by the caller.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import structlog

from moorage.csi import mounting
from moorage.csi.local import checks, loop
from moorage.csi.local.checks import Access, refuse
from moorage.csi.local.loop import Device
from moorage.csi.local.places import (
    Place,
    Places,
    check_staging,
    refuse_busy,
    refuse_foreign,
    refuse_unstaged,
    unmount,
)
from moorage.csi.local.records import VolumeRecord
from moorage.csi.local.storage import Storage
from moorage.csi.proto import csi_pb2 as csi
from moorage.errors import Rejected

log = structlog.get_logger("moorage.csi.local")

STACKED_MAX = 16
UNSUPPORTED = "block volumes are not supported by the local driver here: they take root and loop devices"


class Devices:
    """Makes and removes what consumers on this node see of block volumes."""

    def __init__(self, storage: Storage, *, is_supported: bool) -> None:
        self.is_supported = is_supported
        self._storage = storage
        self._places = Places(storage.node)

    def check_supported(self, accesses: Iterable[tuple[str, Access]]) -> None:
        """Refuse block access where there are no devices; each access comes with the name of its field."""
        for field, access in accesses:
            if access.is_block and not self.is_supported:
                raise refuse("INVALID_ARGUMENT", f"{field}: {UNSUPPORTED}")

    def read_access(self, capability: csi.VolumeCapability, volume: VolumeRecord | None) -> Access:
        """What a capability asks for, which this driver can give and which suits the volume, if there is one."""
        access = checks.check_access(capability)
        self.check_supported([("volume_capability", access)])
        if volume is not None:
            checks.check_kind(access, is_block=volume.is_block)
        return access

    def stage(self, volume: VolumeRecord, place: Place) -> None:
        """Attach the device; the staging path, which exists, stays empty."""
        check_staging(place.path)
        if self._is_staged(volume, place.path):
            self._places.check_repeated(place, mounted_read_only=False)
        # Kept first: a device is never without its place, by which a restart knows that it is wanted.
        self._places.keep(place)
        loop.attach(self._image(volume), read_only=False)

    def unstage(self, volume: VolumeRecord, path: str) -> None:
        """Take the devices away."""
        bound = self._find_bound(volume)
        if bound:
            raise refuse("FAILED_PRECONDITION", f"volume {volume.id} is published at {bound[0]}: unpublish it first")
        kept = self._places.of_volume(volume.id)
        if not any(one.kind == "stage" and at != mounting.resolve(path) for at, one in kept.items()):
            self._detach(volume, path)
        self._places.forget(path)

    def publish(self, volume: VolumeRecord, place: Place, staging: str) -> None:
        """Bind the device's node to the target path, which is made as a file."""
        if mounting.is_mount_point(place.path):
            if not self._shows(volume, place.path):
                raise refuse_foreign(place.path)
            self._places.check_repeated(place, mounted_read_only=None)
            return
        if not self._is_staged(volume, staging):
            raise refuse_unstaged(staging)
        self._places.check_second(place, self._find_bound(volume))
        self._places.keep(place)
        device = loop.attach(self._image(volume), read_only=place.is_read_only)
        _make_target(place.path)
        mounting.bind(device.path, place.path)

    def unpublish(self, volume: VolumeRecord, path: str) -> None:
        """Take the device's node away from the target path, and remove the path."""
        for _ in range(STACKED_MAX):
            if not mounting.is_mount_point(path):
                break
            if not self._shows(volume, path):
                raise refuse_foreign(path)
            unmount(path)
        else:
            raise refuse("FAILED_PRECONDITION", f"more than {STACKED_MAX} mounts are stacked at {path}")
        _remove_target(path)
        self._places.forget(path)
        # A read-only device was for read-only publications alone.
        mounts = mounting.read_mounts()
        for device in self._list(volume):
            if device.is_read_only and not mounting.mounts_of(mounts, device.path):
                loop.detach(device, self._image(volume))

    def check_shown(self, volume: VolumeRecord, path: str) -> None:
        """Raise NOT_FOUND unless the volume is staged or published at ``path``."""
        if not os.path.isabs(path) or not (self._is_staged(volume, path) or self._shows(volume, path)):
            raise refuse("NOT_FOUND", f"volume {volume.id} is not staged or published at {path}")

    def grow(self, volume: VolumeRecord) -> None:
        """Let the attached devices have the size of the image, also while they are in use."""
        for device in self._list(volume):
            loop.grow(device)

    def flush(self, volume: VolumeRecord) -> None:
        """Bring what consumers wrote so far into the image, for a copy of it."""
        for device in self._list(volume):
            if not device.is_read_only:
                loop.flush(device)

    def release(self, volume: VolumeRecord) -> None:
        """Before the image goes: take away what a killed process left; refuse while it is published."""
        bound = self._find_bound(volume)
        if bound:
            raise refuse("FAILED_PRECONDITION", f"volume {volume.id} is mounted at {bound[0]}: unmount it first")
        self._detach(volume, f"the device of volume {volume.id}")

    def clean(self, volumes: Iterable[VolumeRecord]) -> None:
        """After a start: forget places that show nothing, as after a reboot; take away devices that nobody wants."""
        for volume in volumes:
            if not volume.is_block:
                continue
            for path, place in self._places.of_volume(volume.id).items():
                is_shown = self._is_staged(volume, path) if place.kind == "stage" else self._shows(volume, path)
                if not is_shown:
                    self._places.forget(path)
            if not self._places.of_volume(volume.id) and not self._find_bound(volume):
                with suppress(Rejected):
                    self._detach(volume, volume.id)

    def _image(self, volume: VolumeRecord) -> Path:
        return self._storage.data_path(volume)

    def _list(self, volume: VolumeRecord) -> list[Device]:
        return loop.find_devices(self._image(volume))

    def _is_staged(self, volume: VolumeRecord, path: str) -> bool:
        kept = self._places.find(path)
        is_kept = kept is not None and kept.volume_id == volume.id and kept.kind == "stage"
        return is_kept and any(not device.is_read_only for device in self._list(volume))

    def _shows(self, volume: VolumeRecord, path: str) -> bool:
        """Whether a device of the volume is at the path."""
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return stat.S_ISBLK(found.st_mode) and found.st_rdev in {device.rdev for device in self._list(volume)}

    def _find_bound(self, volume: VolumeRecord) -> list[str]:
        """Every path to which a device of the volume is bound."""
        mounts = mounting.read_mounts()
        devices = self._list(volume)
        return sorted({one.target for device in devices for one in mounting.mounts_of(mounts, device.path)})

    def _detach(self, volume: VolumeRecord, what: str) -> None:
        for device in self._list(volume):
            if not loop.detach(device, self._image(volume)):
                log.warning("a device goes with its last user", volume=volume.id, device=device.path)
                raise refuse_busy(what)


def _make_target(path: str) -> None:
    """Make the target file; one that is there must be empty, or the device would hide what it holds."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size:
            text = f"target_path {path} is not an empty file, as a block device takes it: remove it first"
            raise refuse("FAILED_PRECONDITION", text) from None
    except (FileNotFoundError, NotADirectoryError):
        raise refuse("FAILED_PRECONDITION", f"the parent directory of target_path {path} does not exist") from None


def _remove_target(path: str) -> None:
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(found.st_mode) or found.st_size:
        raise refuse("FAILED_PRECONDITION", f"target_path {path} holds something that this driver did not put there")
    os.unlink(path)
