"""The host's own mounts as the agent's ``Mounter``, by way of ``csi.mounting``.

Every method blocks: call it in a worker thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable

from moorage.csi import mounting


class _Look:
    """One reading of the mount table, for all who asked before it began. ``taken``: where something is mounted."""

    __slots__ = ("taken",)

    def __init__(self) -> None:
        self.taken: frozenset[str] | None = None


class MountTable:
    """Where something is mounted. The table is as long as there are mounts, and is looked at for each of them: read for
    each asker, many at a time would cost the square of that. Whoever asks joins the reading that has not begun; so
    nobody gets one from before the question. ``asked``, ``reads``: how often. Used by many threads."""

    def __init__(self, read: Callable[[], Iterable[mounting.Mount]] = mounting.read_mounts) -> None:
        self.asked = self.reads = 0
        self._read = read
        self._guard = threading.Lock()
        self._reading = threading.Lock()
        self._next = _Look()

    def find_taken(self) -> frozenset[str]:
        """Where something is mounted now. Blocks. Raises OSError."""
        with self._guard:
            self.asked += 1
            mine = self._next
        with self._reading:
            if mine.taken is None:
                with self._guard:
                    self._next = _Look()
                self.reads += 1
                mine.taken = frozenset(mount.target for mount in self._read())
            return mine.taken


class HostMounter:
    """Reads the mount table of this process and changes it."""

    def __init__(self) -> None:
        self._table = MountTable()

    def find_mounted(self, paths: Iterable[str]) -> frozenset[str]:
        """Those of ``paths`` at which something is mounted now."""
        found = {path: mounting.is_mounted_at(path) for path in paths}
        unclear = [path for path, is_mounted in found.items() if is_mounted is None]
        if unclear:
            # An old kernel, a filter of system calls, a directory that may not be entered.
            taken = self._table.find_taken()
            found |= {path: mounting.resolve(path) in taken for path in unclear}
        return frozenset(path for path, is_mounted in found.items() if is_mounted)

    def is_same(self, one: str, other: str) -> bool:
        """Whether both paths show the same file or directory."""
        try:
            return os.path.samestat(os.stat(one), os.stat(other))
        except OSError:
            return False

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """Bind-mount ``source`` onto ``target``."""
        mounting.bind(source, target, flags=("ro",) if read_only else ())

    def unmount(self, path: str) -> None:
        """Take away the uppermost mount at ``path``; EBUSY while it is in use."""
        mounting.unmount(path)
