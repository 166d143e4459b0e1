"""Loop devices: show a file as a block device. Everything here blocks.

Shapes: a device is known by the file behind it (its filesystem and inode, as the kernel tells them), never by a number
    that was written down: so a device that a killed process left is found again, and none is attached twice.
Raises OSError with the kernel's errno.
Never:  touches a device of another file.
Source: loop(4); <linux/loop.h>: struct loop_info64, struct loop_config; LOOP_CONFIGURE is of kernel 5.8.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

CONTROL = "/dev/loop-control"
SECTOR_BYTES = 512
MAJOR = 7

_SET_FD, _CLEAR_FD, _SET_STATUS, _GET_STATUS = 0x4C00, 0x4C01, 0x4C04, 0x4C05
_SET_CAPACITY, _CONFIGURE, _GET_FREE = 0x4C07, 0x4C0A, 0x4C82
_READ_ONLY, _AUTOCLEAR = 1, 4
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_CONFIG = struct.Struct(f"=2I{_INFO.size}s64s")
_SYSTEM = Path("/sys/block")
TRIES_MAX = 32
# A program that looks at every new device (udev's) may have it open for a moment.
DETACH_WAIT_S = 1.0
_LOOK_S = 0.02


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """An attached loop device. ``is_leaving``: it goes with the last process that has it open."""

    path: str
    is_read_only: bool
    is_leaving: bool

    @property
    def rdev(self) -> int:
        """The device's own number."""
        return os.stat(self.path).st_rdev


class _Info(msgspec.Struct, frozen=True):
    """The part of loop_info64 that is used."""

    device: int
    inode: int
    offset: int
    size_limit: int
    flags: int


def can_attach() -> bool:
    """Whether this process can have loop devices: it is root, and the kernel has them."""
    if os.geteuid() != 0:
        return False
    try:
        os.close(os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def find_devices(file: Path) -> list[Device]:
    """The devices of exactly this file, whoever attached them; those that show only a part of it are not counted."""
    try:
        wanted = os.stat(file)
    except FileNotFoundError:
        return []
    found = []
    for name, backing in _list_attached():
        # The kernel's text may be cut or seen from another root, so that it only spares a look at most devices.
        if os.path.basename(file) not in backing or file.parent.name not in backing:
            continue
        path = f"/dev/{name}"
        with suppress(OSError), _opened(path) as descriptor:
            info = _read_info(descriptor)
            if (info.device, info.inode) == (wanted.st_dev, wanted.st_ino) and not info.offset and not info.size_limit:
                found.append(
                    Device(
                        path=path,
                        is_read_only=bool(info.flags & _READ_ONLY),
                        is_leaving=bool(info.flags & _AUTOCLEAR),
                    )
                )
    return found


def attach(file: Path, *, read_only: bool) -> Device:
    """The device of the file, attached if there is none of the kind yet."""
    for _ in range(TRIES_MAX):
        for device in find_devices(file):
            if device.is_read_only == read_only:
                if device.is_leaving:
                    with suppress(OSError):
                        _keep(device)
                    break  # looked at again: it may have gone before it was told to stay
                return device
        else:
            with suppress(BlockingIOError):
                return _attach_new(file, read_only=read_only)
    raise OSError(errno.EBUSY, "no loop device could be had: others take them all the time", str(file))


def detach(device: Device, file: Path) -> bool:
    """Take the device away from the file; False when a process has it open: it goes then with that process's close."""
    with suppress(OSError), _opened(device.path) as descriptor:
        fcntl.ioctl(descriptor, _CLEAR_FD)
    until = time.monotonic() + DETACH_WAIT_S
    while any(one.path == device.path for one in find_devices(file)):
        if time.monotonic() >= until:
            return False
        time.sleep(_LOOK_S)
    return True


def grow(device: Device) -> int:
    """Let the device have the size that its file has now; its size in bytes."""
    with _opened(device.path) as descriptor:
        fcntl.ioctl(descriptor, _SET_CAPACITY)
        return os.lseek(descriptor, 0, os.SEEK_END)


def flush(device: Device) -> None:
    """Bring what was written to the device into its file, and that to the disk."""
    with _opened(device.path) as descriptor:
        os.fsync(descriptor)


def _list_attached() -> Iterator[tuple[str, str]]:
    """(name of the device, what the kernel calls its file) of every attached device."""
    for name in os.listdir(_SYSTEM):
        if name.startswith("loop"):
            with suppress(OSError):
                backing = (_SYSTEM / name / "loop" / "backing_file").read_bytes()
                yield name, backing.decode(errors="surrogateescape")


@contextmanager
def _opened(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_info(descriptor: int) -> _Info:
    content = fcntl.ioctl(descriptor, _GET_STATUS, bytes(_INFO.size))
    device, inode, _, offset, size_limit, _, _, _, flags, *_ = _INFO.unpack(content)
    return _Info(device, inode, offset, size_limit, flags)


def _pack_info(file: Path, flags: int) -> bytes:
    name = os.fsencode(file)[:63]
    return _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)


def _keep(device: Device) -> None:
    """Let a device stay that was to go with its last user."""
    with _opened(device.path) as descriptor:
        content = bytearray(fcntl.ioctl(descriptor, _GET_STATUS, bytes(_INFO.size)))
        fields = list(_INFO.unpack(content))
        fields[8] &= ~_AUTOCLEAR
        fcntl.ioctl(descriptor, _SET_STATUS, _INFO.pack(*fields))


def _attach_new(file: Path, *, read_only: bool) -> Device:
    """Attach a free device. Raises BlockingIOError when another process was quicker."""
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        number = fcntl.ioctl(control, _GET_FREE)
    finally:
        os.close(control)
    path = f"/dev/loop{number}"
    if not os.path.exists(path):
        # Where /dev is a plain directory (a container), the kernel's new device has no node there.
        os.mknod(path, stat.S_IFBLK | 0o660, os.makedev(MAJOR, number))
    access = os.O_RDONLY if read_only else os.O_RDWR
    flags = _READ_ONLY if read_only else 0
    backing = os.open(file, access | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        device = os.open(path, access | os.O_CLOEXEC)
        try:
            _configure(device, backing, _pack_info(file, flags))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise BlockingIOError(errno.EAGAIN, "the loop device was taken", path) from error
            raise
        finally:
            os.close(device)
    finally:
        os.close(backing)
    return Device(path=path, is_read_only=read_only, is_leaving=False)


def _configure(device: int, backing: int, info: bytes) -> None:
    try:
        fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(backing, 0, info, b""))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL):
            raise
        # A kernel before 5.8: in two steps. A read-only file makes a read-only device by itself.
        fcntl.ioctl(device, _SET_FD, backing)
        fcntl.ioctl(device, _SET_STATUS, info)
