"""Read the mount table, bind and unmount directories.

Shapes: the table is ``/proc/self/mountinfo`` of the calling process's mount namespace; paths are absolute.
Raises OSError with the kernel's errno; ValueError for an unknown mount flag.
Every function blocks: call it in a worker thread.
Never:  follows a symlink in the last component of a path that is unmounted; decides about volumes.
Source: proc_pid_mountinfo(5), openat2(2), open_tree(2), mount_setattr(2), move_mount(2), mount(2), umount2(2).

A bind mount is made detached, gets its flags, and is then moved into place, so that a read-only mount is never seen
writable, also after a kill between two steps. Kernels before 5.12 get it by mount(2) and a remount.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterable
from functools import reduce
from pathlib import Path

import msgspec

TABLE_PATH = Path("/proc/self/mountinfo")

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_AT_SYMLINK_NOFOLLOW = 0x100
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_MS_REMOUNT, _MS_BIND, _MS_REC = 32, 4096, 16384
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_CAP_SYS_ADMIN = 21
_ATTR_ATIME = 0x70

# word → (MOUNT_ATTR bits that are set, bits that are cleared)
_WORDS: dict[str, tuple[int, int]] = {
    "ro": (0x1, 0),
    "rw": (0, 0x1),
    "nosuid": (0x2, 0),
    "suid": (0, 0x2),
    "nodev": (0x4, 0),
    "dev": (0, 0x4),
    "noexec": (0x8, 0),
    "exec": (0, 0x8),
    "relatime": (0, _ATTR_ATIME),
    "noatime": (0x10, _ATTR_ATIME),
    "strictatime": (0x20, _ATTR_ATIME),
    "nodiratime": (0x80, 0),
    "diratime": (0, 0x80),
    "nosymfollow": (0x200000, 0),
    "symfollow": (0, 0x200000),
    "defaults": (0, 0),
}
# MOUNT_ATTR bit → the bit of the older mount(2)
_OLD_BITS = {0x1: 1, 0x2: 2, 0x4: 4, 0x8: 8, 0x10: 1024, 0x20: 1 << 24, 0x80: 2048, 0x200000: 256}

KNOWN_FLAGS = frozenset(_WORDS)
"""The mount flags that a bind mount can carry."""


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the mount table. ``root`` is the path inside the filesystem that is seen at ``target``."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    target: str
    options: tuple[str, ...]
    fs_type: str
    source: str

    @property
    def is_read_only(self) -> bool:
        """Whether writes through this mount are refused."""
        return "ro" in self.options


class _Attributes(ctypes.Structure):
    """struct mount_attr of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _How(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_OPENAT2 = ctypes.c_long(437)
_RESOLVE_NO_XDEV = 1
_NO_CROSSING = _How(flags=os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, resolve=_RESOLVE_NO_XDEV)
_NO_CROSSING_SIZE = ctypes.c_size_t(ctypes.sizeof(_How))
# To close what was opened as a path alone never blocks: it is done without letting other threads in.
_close = ctypes.PyDLL(None).close

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)

_OCTAL = re.compile(r"\\([0-7]{3})")


def parse_mounts(text: str) -> tuple[Mount, ...]:
    """The mounts in the text of a mountinfo file, in its order. A line that is cut short is left out."""
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        head, tail = before.split(" "), after.split(" ")
        if not separator or len(head) < 6 or len(tail) < 2:
            continue
        mounts.append(
            Mount(
                mount_id=int(head[0]),
                parent_id=int(head[1]),
                device=head[2],
                root=_unescape(head[3]),
                target=_unescape(head[4]),
                options=tuple(head[5].split(",")),
                fs_type=_unescape(tail[0]),
                source=_unescape(tail[1]),
            )
        )
    return tuple(mounts)


def read_mounts() -> tuple[Mount, ...]:
    """The mount table of this process, in one read."""
    return parse_mounts(TABLE_PATH.read_bytes().decode(errors="surrogateescape"))


def resolve(path: str | Path) -> str:
    """``path`` as the mount table spells it: symlinks resolved in all components but the last."""
    text = os.path.abspath(path)
    parent, name = os.path.split(text)
    return os.path.join(os.path.realpath(parent), name) if name else "/"


def find_in(mounts: Iterable[Mount], path: str | Path) -> Mount | None:
    """The uppermost mount exactly at ``path``, or None."""
    target = resolve(path)
    found = [mount for mount in mounts if mount.target == target]
    covered = {mount.parent_id for mount in found}
    uncovered = [mount for mount in found if mount.mount_id not in covered]
    return uncovered[-1] if uncovered else None


def find_mount(path: str | Path) -> Mount | None:
    """The uppermost mount exactly at ``path`` right now, or None."""
    return find_in(read_mounts(), path)


def is_mount_point(path: str | Path) -> bool:
    """Whether something is mounted exactly at ``path``; also right for a bind mount within one filesystem."""
    return find_mount(path) is not None


def origin_of(mounts: Iterable[Mount], path: str | Path) -> tuple[str, str]:
    """What a bind mount of ``path`` would show in the table: (device, root).

    Raises FileNotFoundError when no mount of the table holds the path.
    """
    text = os.path.realpath(path)
    best: Mount | None = None
    for mount in mounts:
        inside = mount.target == "/" or text == mount.target or text.startswith(mount.target + "/")
        if inside and (best is None or len(mount.target) >= len(best.target)):
            best = mount
    if best is None:
        raise FileNotFoundError(errno.ENOENT, "no mount holds this path", text)
    rest = os.path.relpath(text, best.target)
    return best.device, best.root if rest == "." else os.path.join(best.root, rest)


def mounts_of(mounts: tuple[Mount, ...], path: str | Path) -> tuple[Mount, ...]:
    """Every bind mount of exactly the directory ``path``."""
    device, root = origin_of(mounts, path)
    text = os.path.realpath(path)
    return tuple(m for m in mounts if m.device == device and m.root == root and m.target != text)


def is_mounted_at(path: str) -> bool | None:
    """Whether something is mounted exactly at ``path``; None where only the mount table can tell.

    What is mounted is not touched: the walk to the last component is refused at the mount. The table is as long as
    there are mounts, and this takes the same time however many there are.
    """
    parent, name = os.path.split(os.path.abspath(path))
    if not name:
        return True
    try:
        directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    try:
        how = (ctypes.byref(_NO_CROSSING), _NO_CROSSING_SIZE)
        descriptor = _libc.syscall(_OPENAT2, ctypes.c_int(directory), os.fsencode(name), *how)
        error = ctypes.get_errno()
    finally:
        _close(directory)
    if descriptor >= 0:
        _close(descriptor)
        return False
    if error == errno.ENOENT:
        return False
    return True if error == errno.EXDEV else None


def unknown_flags(flags: Iterable[str]) -> tuple[str, ...]:
    """Those of ``flags`` that a bind mount cannot carry, in their order."""
    return tuple(flag for flag in flags if flag not in _WORDS)


def bind(source: str | Path, target: str | Path, *, flags: Iterable[str] = (), recursive: bool = False) -> None:
    """Show ``source`` at the existing path ``target`` with ``flags``; other flags are those of the source's mount.

    A later flag wins over an earlier one that contradicts it. An unknown flag raises ValueError, nothing being done.
    """
    wanted = _attributes(flags)
    try:
        _bind_detached(os.fspath(source), os.fspath(target), wanted, recursive=recursive)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        _bind_by_mount(os.fspath(source), os.fspath(target), wanted, recursive=recursive)


def remount(target: str | Path, *, flags: Iterable[str]) -> None:
    """Change the flags of the mount at ``target``; flags that are not named stay."""
    wanted = _attributes(flags)
    try:
        _set_attributes(_AT_FDCWD, os.fspath(target), _AT_SYMLINK_NOFOLLOW, wanted)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        _remount_by_mount(os.fspath(target), wanted)


def unmount(target: str | Path, *, lazy: bool = False) -> None:
    """Take away the uppermost mount at ``target``. ``lazy`` detaches it even when in use.

    Raises OSError: EINVAL when nothing is mounted there, EBUSY when it is in use.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    if _libc.umount2(os.fsencode(target), flags) != 0:
        raise _error(target)


def can_mount() -> bool:
    """Whether this process may mount: a private copy of the root mount is made and dropped, which changes nothing."""
    try:
        descriptor = _open_tree("/", recursive=False)
    except OSError as error:
        return error.errno == errno.ENOSYS and _has_mount_capability()
    os.close(descriptor)
    return True


def _has_mount_capability() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _attributes(flags: Iterable[str]) -> tuple[int, int]:
    """The bits that ``flags`` set and clear, the later flag winning."""
    wanted_set = wanted_clear = 0
    for flag in flags:
        if flag not in _WORDS:
            raise ValueError(f"unknown mount flag {flag!r}")
        bits, cleared = _WORDS[flag]
        wanted_set = wanted_set & ~cleared | bits
        wanted_clear = wanted_clear & ~(bits & ~_ATTR_ATIME) | cleared
    return wanted_set, wanted_clear


def _error(path: str | Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), os.fspath(path))


def _open_tree(path: str, *, recursive: bool) -> int:
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    number = ctypes.c_long(_SYS_OPEN_TREE)
    descriptor: int = _libc.syscall(number, ctypes.c_int(_AT_FDCWD), os.fsencode(path), ctypes.c_uint(flags))
    if descriptor < 0:
        raise _error(path)
    return descriptor


def _set_attributes(directory: int, path: str, at_flags: int, wanted: tuple[int, int]) -> None:
    attributes = _Attributes(attr_set=wanted[0], attr_clr=wanted[1])
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    arguments = (ctypes.c_int(directory), os.fsencode(path), ctypes.c_uint(at_flags), ctypes.byref(attributes), size)
    if _libc.syscall(ctypes.c_long(_SYS_MOUNT_SETATTR), *arguments) != 0:
        raise _error(path)


def _bind_detached(source: str, target: str, wanted: tuple[int, int], *, recursive: bool) -> None:
    tree = _open_tree(source, recursive=recursive)
    try:
        if wanted != (0, 0):
            _set_attributes(tree, "", _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0), wanted)
        place = (ctypes.c_int(_AT_FDCWD), os.fsencode(target), ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH))
        if _libc.syscall(ctypes.c_long(_SYS_MOVE_MOUNT), ctypes.c_int(tree), b"", *place) != 0:
            raise _error(target)
    finally:
        os.close(tree)


def _mount(source: str, target: str, flags: int) -> None:
    if _libc.mount(os.fsencode(source), os.fsencode(target), None, flags, None) != 0:
        raise _error(target)


def _bind_by_mount(source: str, target: str, wanted: tuple[int, int], *, recursive: bool) -> None:
    _mount(source, target, _MS_BIND | (_MS_REC if recursive else 0))
    if wanted == (0, 0):
        return
    try:
        _remount_by_mount(target, wanted)
    except OSError:
        unmount(target, lazy=True)
        raise


def _remount_by_mount(target: str, wanted: tuple[int, int]) -> None:
    """A remount by mount(2) replaces all flags, so that those in force now are given again."""
    mount = find_mount(target)
    if mount is None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), target)
    now, _ = _attributes(option for option in mount.options if option in _WORDS)
    bits = now & ~wanted[1] | wanted[0]
    old = reduce(lambda total, bit: total | _OLD_BITS[bit], (bit for bit in _OLD_BITS if bits & bit), 0)
    _mount("none", target, _MS_BIND | _MS_REMOUNT | old)
