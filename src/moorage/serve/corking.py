"""One write for a small answer: its head waits for the first bytes of its body.

uvicorn writes an answer's head by itself, and uvloop passes each write to the kernel at once: two system calls, and a
client that wakes up twice. Here the head is held until the body's first bytes come, which for nearly every answer is at
once; else it goes in the loop's next turn. What comes after passes through.
"""

from __future__ import annotations

import asyncio

# What may come before a head, and is to be seen at once.
_INTERIM = b"HTTP/1.1 100 "


class CorkedTransport:
    """The transport of one answer. Whoever else writes to the connection calls ``flush`` first."""

    __slots__ = ("_held", "_is_head_out", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self._is_head_out = False

    def write(self, data: bytes) -> None:
        """Write, or hold what is a head."""
        if self._is_head_out:
            self._transport.write(data)
        elif self._held:
            self._is_head_out = True
            self._transport.write(self._held + data)
            self._held = b""
        elif data.startswith(_INTERIM):
            self._transport.write(data)
        else:
            self._held = data
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is held."""
        if self._held:
            self._is_head_out = True
            self._transport.write(self._held)
            self._held = b""

    def is_closing(self) -> bool:
        """Whether the connection is being closed."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close, once everything is written."""
        self.flush()
        self._transport.close()
