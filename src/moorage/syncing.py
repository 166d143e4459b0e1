"""Directories that reach the disk."""

from __future__ import annotations

import os


def sync_directory(path: str | os.PathLike[str]) -> None:
    """What was made, renamed or removed in a directory stays so after a power cut. Blocks. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
