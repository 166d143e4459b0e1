"""Random IDs, drawn for many at a time: each call into the kernel gives the interpreter to another thread."""

from __future__ import annotations

import os

# As many as one page of the kernel's randomness has.
_IDS_DRAWN = 256
# Of a UUID's 32 digits, the two that say that it is of version 4 and of the usual kind: RFC 9562 §5.4.
_KIND_DIGITS = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


class RandomIds:
    """The host's randomness as UUIDs. Of one thread, and of one process."""

    def __init__(self) -> None:
        self._drawn: list[str] = []

    def new_id(self) -> str:
        """A random UUID."""
        if not self._drawn:
            digits = os.urandom(16 * _IDS_DRAWN).hex()
            self._drawn = [digits[at : at + 32] for at in range(0, len(digits), 32)]
        text = self._drawn.pop()
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{_KIND_DIGITS[text[16]]}{text[17:20]}-{text[20:]}"
