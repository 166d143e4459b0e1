"""The host's own mounts as the agent's ``Mounter``, by way of ``csi.mounting``.

Every method blocks: call it in a worker thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from moorage.csi import mounting


class HostMounter:
    """Reads the mount table of this process and changes it."""

    def find_mounted(self, paths: Iterable[str]) -> frozenset[str]:
        """Those of ``paths`` at which something is mounted now."""
        mounts = mounting.read_mounts()
        taken = {mount.target for mount in mounts}
        return frozenset(path for path in paths if mounting.resolve(path) in taken)

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
