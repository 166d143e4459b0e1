"""Who uses a path: processes with something open below it, by a look through /proc.

Best effort: a process that ends during the look is not seen, and another user's only by root. Paths are compared as
the kernel spells them, so that a use through another mount of the same directory is not seen.
Every function blocks: call it in a worker thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

USERS_MAX = 8


def find_users(path: str, *, proc: str = "/proc") -> tuple[str, ...]:
    """``pid command path`` of up to ``USERS_MAX`` processes that have something open at or below ``path``."""
    wanted = os.path.realpath(path)
    found: list[str] = []
    for name in os.listdir(proc):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        used = next((u for u in _list_used(f"{proc}/{name}") if u == wanted or u.startswith(f"{wanted}/")), None)
        if used is not None:
            found.append(f"{name} {_read_command(f'{proc}/{name}')} {used}")
        if len(found) == USERS_MAX:
            break
    return tuple(found)


def _list_used(process: str) -> Iterator[str]:
    for name in ("cwd", "root"):
        yield from _read_link(f"{process}/{name}")
    for folder in ("fd", "map_files"):
        try:
            names = os.listdir(f"{process}/{folder}")
        except OSError:
            continue
        for name in names:
            yield from _read_link(f"{process}/{folder}/{name}")


def _read_link(path: str) -> Iterator[str]:
    try:
        yield os.readlink(path).removesuffix(" (deleted)")
    except OSError:
        return


def _read_command(process: str) -> str:
    try:
        with open(f"{process}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"
