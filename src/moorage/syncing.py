"""Files and directories that reach the disk."""

from __future__ import annotations

import os


def sync_path(path: str | os.PathLike[str], flags: int = 0) -> None:
    """What is at a path stays so after a power cut. ``flags``: more to open it with. Blocks. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """What was made, renamed or removed in a directory stays so after a power cut. Blocks. Raises OSError."""
    sync_path(path, os.O_DIRECTORY)
