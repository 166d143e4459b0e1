"""Copy a directory tree, sharing extents where the filesystem can.

Shapes: the source may be written to meanwhile (what vanishes is left out); the target does not exist, its parent does.
Returns what was copied. Raises OSError: ENOSPC, EDQUOT, EIO …; ECANCELED when ``should_stop`` said so. The caller
    removes what was copied until then.
Never:  follows a symlink of the source, also not one that replaces a directory in the middle of the copy: every step
    goes through the descriptor of its directory.
Source: ioctl_ficlone(2), copy_file_range(2), lseek(2) SEEK_DATA.

Kept: data with its holes, modes, owners (when root), times, extended attributes the kernel lets us set, symlinks, hard
links within the tree, FIFOs, devices (when root). Left out: sockets, which mean nothing without their process, and the
extended attributes of symlinks. Files are not frozen: a copy of a tree in use has each file as it was when it was read.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

FICLONE = 0x40049409
CHUNK_BYTES = 32 * 1024 * 1024
PIECE_BYTES = 1024 * 1024
SYNCED_SINGLY_MAX = 256

_NO_CLONE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
_NO_RANGE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EBADF, errno.ETXTBSY}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


class Copied(msgspec.Struct, frozen=True, kw_only=True):
    """What a copy did. ``shared_files`` are those whose extents are shared with the source."""

    files: int
    shared_files: int
    links: int
    skipped: int


def copy_tree(source: Path, target: Path, *, should_stop: Callable[[], bool] = lambda: False) -> Copied:
    """Copy the directory ``source`` to the new directory ``target``; on return everything is on the disk."""
    os.mkdir(target, 0o700)
    with ExitStack() as stack:
        source_fd = os.open(source, _DIRECTORY)
        stack.callback(os.close, source_fd)
        target_fd = os.open(target, _DIRECTORY)
        stack.callback(os.close, target_fd)
        copy = _Copy(target_fd, should_stop)
        copy.run(source_fd)
        copy.sync()
    return Copied(files=copy.files, shared_files=copy.shared, links=copy.links, skipped=copy.skipped)


def copy_image(source: Path, target: Path, size: int, *, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Copy the file ``source`` to the new file ``target``, which gets ``size`` bytes; on return it is on the disk."""
    with ExitStack() as stack:
        source_fd = os.open(source, _READ)
        stack.callback(os.close, source_fd)
        target_fd = os.open(target, _CREATE, 0o600)
        stack.callback(os.close, target_fd)
        _Copy(target_fd, should_stop).copy_content(source_fd, target_fd)
        os.ftruncate(target_fd, size)
        os.fsync(target_fd)


class _Directory(msgspec.Struct, kw_only=True):
    """One directory on the way down: what is left to copy in it."""

    source: int
    target: int
    path: str
    names: list[str]


class _Copy:
    """One copy in progress."""

    def __init__(self, root: int, should_stop: Callable[[], bool]) -> None:
        self._root = root
        self._should_stop = should_stop
        self._first_paths: dict[tuple[int, int], str] = {}
        self._try_clone = True
        self._try_range = True
        self._is_root = os.geteuid() == 0
        self.files = self.shared = self.links = self.skipped = 0

    def run(self, source: int) -> None:
        """Copy what is in the directory ``source``, then its own attributes; depth first."""
        with ExitStack() as stack:
            top = _Directory(source=os.dup(source), target=os.dup(self._root), path="", names=os.listdir(source))
            walk = [top]
            stack.callback(_close_all, walk)
            while walk:
                here = walk[-1]
                if here.names:
                    below = self._copy_entry(here, here.names.pop())
                    if below is not None:
                        walk.append(below)
                    continue
                self._copy_attributes(here.source, here.target, os.fstat(here.source))
                if self.files <= SYNCED_SINGLY_MAX:
                    os.fsync(here.target)
                _close(walk.pop())

    def sync(self) -> None:
        """Bring to the disk what was not synced one by one."""
        if self.files > SYNCED_SINGLY_MAX and _libc.syncfs(ctypes.c_int(self._root)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def _copy_entry(self, here: _Directory, name: str) -> _Directory | None:
        if self._should_stop():
            raise OSError(errno.ECANCELED, "the copy was stopped")
        try:
            status = os.stat(name, dir_fd=here.source, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                return self._enter(here, name)
            if status.st_nlink > 1 and self._link(here, name, status):
                return None
            if stat.S_ISREG(status.st_mode):
                self._copy_file(here, name)
            else:
                self._copy_special(here, name, status)
        except OSError as error:
            # ENOENT: gone since it was listed; ELOOP, ENOTDIR: replaced by something else since then.
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise
            self.skipped += 1
        return None

    def _enter(self, here: _Directory, name: str) -> _Directory:
        source = os.open(name, _DIRECTORY, dir_fd=here.source)
        try:
            names = os.listdir(source)
            os.mkdir(name, 0o700, dir_fd=here.target)
            target = os.open(name, _DIRECTORY, dir_fd=here.target)
        except OSError:
            os.close(source)
            raise
        return _Directory(source=source, target=target, path=os.path.join(here.path, name), names=names)

    def _link(self, here: _Directory, name: str, status: os.stat_result) -> bool:
        """Whether ``name`` is another name of something copied already, and was linked to it."""
        key = (status.st_dev, status.st_ino)
        first = self._first_paths.setdefault(key, os.path.join(here.path, name))
        if first == os.path.join(here.path, name):
            return False
        try:
            os.link(first, name, src_dir_fd=self._root, dst_dir_fd=here.target, follow_symlinks=False)
        except OSError as error:
            # The first one vanished, has too many names or too long a path: this one becomes a file of its own.
            if error.errno not in (errno.ENOENT, errno.EMLINK, errno.ENAMETOOLONG):
                raise
            return False
        self.links += 1
        return True

    def _copy_file(self, here: _Directory, name: str) -> None:
        with ExitStack() as stack:
            source = os.open(name, _READ, dir_fd=here.source)
            stack.callback(os.close, source)
            status = os.fstat(source)
            if not stat.S_ISREG(status.st_mode):
                self.skipped += 1
                return
            target = os.open(name, _CREATE, 0o600, dir_fd=here.target)
            stack.callback(os.close, target)
            self.copy_content(source, target)
            self._copy_attributes(source, target, status)
            self.files += 1
            if self.files <= SYNCED_SINGLY_MAX:
                os.fsync(target)

    def copy_content(self, source: int, target: int) -> None:
        """Let the new file ``target`` hold what the file ``source`` does."""
        size = os.fstat(source).st_size
        if size and not self._clone(source, target):
            self._copy_data(source, target, size)

    def _copy_special(self, here: _Directory, name: str, status: os.stat_result) -> None:
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=here.source), name, dir_fd=here.target)
        elif stat.S_ISFIFO(status.st_mode):
            os.mkfifo(name, 0o600, dir_fd=here.target)
        elif self._is_root and (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=here.target)
        else:
            self.skipped += 1
            return
        if self._is_root:
            os.chown(name, status.st_uid, status.st_gid, dir_fd=here.target, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=here.target)
        os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=here.target, follow_symlinks=False)

    def _clone(self, source: int, target: int) -> bool:
        """Whether the two files now share their extents."""
        if not self._try_clone:
            return False
        try:
            fcntl.ioctl(target, FICLONE, source)
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise
            self._try_clone = error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.ENOSYS)
            return False
        self.shared += 1
        return True

    def _copy_data(self, source: int, target: int, size: int) -> None:
        """Copy the ranges that hold data; what is between them stays a hole."""
        os.ftruncate(target, size)
        offset = 0
        while offset < size:
            try:
                start = os.lseek(source, offset, os.SEEK_DATA)
                end = min(os.lseek(source, start, os.SEEK_HOLE), size)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                if error.errno != errno.EINVAL:
                    raise
                start, end = offset, size
            self._copy_range(source, target, start, end)
            offset = end

    def _copy_range(self, source: int, target: int, start: int, end: int) -> None:
        while start < end:
            if self._should_stop():
                raise OSError(errno.ECANCELED, "the copy was stopped")
            copied = self._copy_piece(source, target, start, end)
            if copied == 0:
                return
            start += copied

    def _copy_piece(self, source: int, target: int, start: int, end: int) -> int:
        """Copy some bytes at ``start`` and say how many; 0 when the source became shorter."""
        if self._try_range:
            try:
                return os.copy_file_range(source, target, min(CHUNK_BYTES, end - start), start, start)
            except OSError as error:
                if error.errno not in _NO_RANGE:
                    raise
                self._try_range = False
        piece = os.pread(source, min(PIECE_BYTES, end - start), start)
        written = 0
        while written < len(piece):
            written += os.pwrite(target, piece[written:], start + written)
        return written

    def _copy_attributes(self, source: int, target: int, status: os.stat_result) -> None:
        """Owner first (it clears set-id bits), then extended attributes, mode, and times last."""
        if self._is_root:
            os.chown(target, status.st_uid, status.st_gid)
        with suppress(OSError):  # a filesystem without extended attributes
            for attribute in os.listxattr(source):
                with suppress(OSError):  # gone since, or a class (trusted, security) that is not ours to set
                    os.setxattr(target, attribute, os.getxattr(source, attribute))
        os.chmod(target, stat.S_IMODE(status.st_mode))
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _close_all(walk: list[_Directory]) -> None:
    for directory in walk:
        _close(directory)


def _close(directory: _Directory) -> None:
    os.close(directory.source)
    os.close(directory.target)
