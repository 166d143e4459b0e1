"""What outlives moorage's programs by design, taken away at the end: mounts and loop devices below a place."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path


def find_mounts(below: Path) -> dict[str, str]:
    """Mount points below a directory, each with its mount ID."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount_id, point = line.split()[0], line.split()[4]
        if point.startswith(f"{below}/"):
            found[point] = mount_id
    return found


def take_away(place: Path) -> None:
    """Unmount what is mounted below the place, and detach the loop devices of its files."""
    for point in sorted(find_mounts(place), reverse=True):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if f"{place}/" in file.read_text():
                subprocess.run(["losetup", "-d", f"/dev/{file.parts[3]}"], check=False, capture_output=True)
