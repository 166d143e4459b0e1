"""Small bodies of answers, kept while nothing that they show has changed. Bounded in bytes.

Never: knows what a body shows; its owner gives the stamp that differs when it may differ.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import msgspec

BODY_BYTES_MAX = 256 << 10
BYTES_MAX = 8 << 20
# What a key and its entry take beside the body, roughly.
ENTRY_BYTES = 512


class KeptBody(msgspec.Struct, frozen=True, gc=False):
    """A body, and the token of the page after it (empty: there is none)."""

    body: bytes
    next_token: str = ""


class Kept:
    """Bodies by what was asked for. All of them go when the stamp changes, the oldest when there are too many."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self.bytes = 0
        self.hits = 0
        self._bytes_max = bytes_max
        self._stamp: Hashable = None
        self._found: OrderedDict[Hashable, KeptBody] = OrderedDict()

    def find(self, key: Hashable, stamp: Hashable) -> KeptBody | None:
        """What is kept under the key, if it is of this stamp."""
        if stamp != self._stamp:
            return None
        found = self._found.get(key)
        if found is not None:
            self.hits += 1
        return found

    def keep(self, key: Hashable, stamp: Hashable, kept: KeptBody) -> None:
        """Keep a body that was made at this stamp, unless it is large."""
        if stamp != self._stamp:
            self._stamp = stamp
            self._found.clear()
            self.bytes = 0
        if len(kept.body) > BODY_BYTES_MAX or key in self._found:
            return
        self._found[key] = kept
        self.bytes += len(kept.body) + ENTRY_BYTES
        while self.bytes > self._bytes_max:
            self.bytes -= len(self._found.popitem(last=False)[1].body) + ENTRY_BYTES
