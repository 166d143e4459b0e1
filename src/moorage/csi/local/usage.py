"""What a volume uses. Blocks.

Shapes: bytes used are the blocks of the volume's own files, counted in a walk with hard links once; the total is the
    recorded capacity, and what is available is never more than the filesystem has free. A volume without a recorded
    capacity (0) has what the filesystem has free beside its own bytes. A volume with more than ENTRIES_MAX entries is
    not walked to its end: the figures of the whole filesystem are given instead.
Units:  bytes and inodes.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

ENTRIES_MAX = 100_000
_BLOCK = 512


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes and inodes of a volume."""

    total_bytes: int
    used_bytes: int
    available_bytes: int
    total_inodes: int
    used_inodes: int
    available_inodes: int


def measure_usage(data: Path, *, capacity_bytes: int, entries_max: int = ENTRIES_MAX) -> Usage:
    """The usage of the volume whose files are in ``data``."""
    system = os.statvfs(data)
    free_bytes = system.f_bavail * system.f_frsize
    walked = _walk(data, entries_max)
    if walked is None:
        used_bytes = (system.f_blocks - system.f_bfree) * system.f_frsize
        total_bytes, used_inodes = system.f_blocks * system.f_frsize, system.f_files - system.f_ffree
        available_bytes = free_bytes
    else:
        used_bytes, used_inodes = walked
        total_bytes = capacity_bytes or used_bytes + free_bytes
        available_bytes = max(0, min(total_bytes - used_bytes, free_bytes))
    return Usage(
        total_bytes=total_bytes,
        used_bytes=used_bytes,
        available_bytes=available_bytes,
        total_inodes=used_inodes + system.f_favail,
        used_inodes=used_inodes,
        available_inodes=system.f_favail,
    )


def measure_image(image: Path, *, capacity_bytes: int) -> Usage:
    """The usage of a block volume: used is what its image takes on the disk. It has no inodes."""
    system, used_bytes = os.statvfs(image), os.stat(image).st_blocks * _BLOCK
    return Usage(
        total_bytes=capacity_bytes,
        used_bytes=used_bytes,
        available_bytes=max(0, min(capacity_bytes - used_bytes, system.f_bavail * system.f_frsize)),
        total_inodes=0,
        used_inodes=0,
        available_inodes=0,
    )


def _walk(data: Path, entries_max: int) -> tuple[int, int] | None:
    """(bytes, inodes) below ``data``, itself included; None when there are too many entries."""
    used, entries = os.stat(data).st_blocks * _BLOCK, 1
    seen: set[tuple[int, int]] = set()
    for _, directories, files, descriptor in os.fwalk(data, onerror=None, follow_symlinks=False):
        for name in (*directories, *files):
            try:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except OSError:
                continue  # gone since it was listed
            if status.st_nlink > 1 and name not in directories:
                key = (status.st_dev, status.st_ino)
                if key in seen:
                    continue
                seen.add(key)
            used += status.st_blocks * _BLOCK
            entries += 1
            if entries > entries_max:
                return None
    return used, entries
