"""Files that are written into anew and put in another's place, so that no write makes a file and none deletes one.

A filesystem looks for room among what was deleted a moment ago, the longer the more that was; and to write over what
has room on disk already takes no change of the filesystem's own records. What a write or a removal put out of its place
is a spare, and is written to only after the directory that it was in has reached the disk: until then a power cut would
bring it back under its old name.
Shapes: contents end in spaces, where the file was longer; as JSON that is the same.
Every function blocks; used by many threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import threading
from pathlib import Path

from moorage.syncing import sync_directory

SPARES_MAX = 1024
_BLOCK_BYTES = 1024
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)
_MISSING = (errno.ENOSYS, errno.EINVAL, errno.EPERM)

Spare = tuple[str, int]
"""Its path, and how long it is."""


class Spares:
    """The spares of one directory's files, in a directory of their own on the same filesystem. ``made``: so many files
    had to be made."""

    def __init__(self, home: str) -> None:
        self.made = 0
        self._home = home
        self._numbers = itertools.count()
        self._guard = threading.Lock()
        self._clean: list[Spare] = []
        self._dirty: list[Spare] = []
        # How long the files are that were written here and are in their places.
        self._sizes: dict[str, int] = {}

    def clear(self) -> None:
        """Begin without any; those of an earlier process may have been written to."""
        Path(self._home).mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in Path(self._home).iterdir():
            path.unlink()

    def put(self, path: str, content: bytes) -> None:
        """Write a file so that a crash of the host leaves the old content or the new one, also after this has returned;
        readable by its owner only."""
        spare, size = self._take()
        size = max(size, -(-len(content) // _BLOCK_BYTES) * _BLOCK_BYTES)
        # A write that returns when the content is on disk is one call; each call may have to wait for the interpreter.
        descriptor = os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_DSYNC | os.O_CLOEXEC, 0o600)
        try:
            if os.write(descriptor, content.ljust(size)) != size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        finally:
            os.close(descriptor)
        old_size = self._sizes.get(path)
        # What an earlier process wrote is replaced, and its file deleted.
        if old_size is not None and _exchange(spare, path):
            self._note((spare, old_size))
        else:
            os.replace(spare, path)
        self._sizes[path] = size

    def remove(self, path: str) -> None:
        """Take a file away; one that is not there is fine."""
        spare, size = self._new_path(), self._sizes.pop(path, None)
        with contextlib.suppress(FileNotFoundError):
            size = os.stat(path).st_size if size is None else size
            os.replace(path, spare)
            self._note((spare, size))

    def sync(self, directory: str) -> None:
        """What was done in the directory stays so after a power cut; spares of before may be written to."""
        with self._guard:
            dirty, self._dirty = self._dirty, []
        sync_directory(directory)
        with self._guard:
            self._clean += dirty

    def _take(self) -> Spare:
        with self._guard:
            if self._clean:
                return self._clean.pop()
            self.made += 1
        return self._new_path(), 0

    def _new_path(self) -> str:
        return f"{self._home}/{next(self._numbers)}.tmp"

    def _note(self, spare: Spare) -> None:
        with self._guard:
            if len(self._clean) + len(self._dirty) < SPARES_MAX:
                self._dirty.append(spare)
                return
        os.unlink(spare[0])


def _exchange(one: str, other: str) -> bool:
    """Let two files change places; False where the other is not there, or the filesystem cannot."""
    rename = getattr(_libc, "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error == errno.ENOENT or error in _MISSING:
        return False
    raise OSError(error, os.strerror(error), other)
