"""What a program that we started prints: read from a pipe of ours, line by line, with a bound.

A pipe of our own, because the event loop's stay open for as long as anything that the program left behind has their
other ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import anyio
import anyio.lowlevel

LINE_BYTES_MAX = 4000


def open_pipe() -> tuple[int, int]:
    """The end to read, which does not block, and the end to write; no other program inherits them."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(ours, False)
    return ours, theirs


async def read_lines(descriptor: int, take: Callable[[str], None]) -> None:
    """Hand over each line that is not empty until the pipe's other end is closed; a line that is too long in parts."""
    kept = b""
    while True:
        try:
            read = os.read(descriptor, LINE_BYTES_MAX)
        except BlockingIOError:
            await anyio.wait_readable(descriptor)
            continue
        *lines, kept = (kept + read).split(b"\n")
        if not read or len(kept) >= LINE_BYTES_MAX:
            lines, kept = [*lines, kept], b""
        for line in filter(None, lines):
            take(line.decode("utf-8", "backslashreplace"))
        if not read:
            return
        await anyio.lowlevel.checkpoint()
