"""An answer's body on its way out: in one write where it is short, in pieces where its reader may be slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

# A long body is sent in such pieces, so that a slow reader keeps little in the server's buffers.
PIECE_BYTES = 256 << 10
# How much of one body may be written in a turn of the loop: half a millisecond of the kernel's copying.
TURN_BYTES = 512 << 10
SMALL_BYTES = 16 << 10


class Whole(Protocol):
    """A server's short way for a body that is there, and an answer that is one write."""

    def take(self, size_max: int) -> bytes | None:
        """The body; None: read it as it comes."""
        ...

    def give(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Answer; False: nothing has happened, and it is to be sent as messages."""
        ...


def gather(pieces: Sequence[bytes]) -> list[bytes]:
    """The pieces with small neighbours joined: each takes a turn of the loop, and copying a few kilobytes less than
    that. Long ones stay as they are."""
    found: list[bytes] = []
    small: list[bytes] = []
    size = 0
    for piece in pieces:
        is_small = len(piece) <= SMALL_BYTES
        if small and (not is_small or size + len(piece) > PIECE_BYTES):
            found.append(b"".join(small))
            small, size = [], 0
        if is_small:
            small.append(piece)
            size += len(piece)
        else:
            found.append(piece)
    return [*found, b"".join(small)] if small else found


def cut(piece: bytes) -> list[bytes]:
    """A piece in pieces that a slow reader may keep in the server's buffers."""
    if len(piece) <= PIECE_BYTES:
        return [piece]
    return [piece[at : at + PIECE_BYTES] for at in range(0, len(piece), PIECE_BYTES)]
