"""Keys that are to be looked at again at a time: one entry a key, the earliest first."""

from __future__ import annotations

import heapq

# Entries that may be stale before the heap is made anew.
STALE_MIN = 64


class DueKeys:
    """A set of keys with times (ns). Setting a key again moves it.

    Stale heap entries are skipped when popped. Most keys are dropped long before they are due (a listing's record is
    kept ten minutes for its caller, who reads it at once), so the heap is made anew when most of it is stale: it never
    holds more than twice the keys and ``STALE_MIN``.
    """

    def __init__(self) -> None:
        self._times: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    def set(self, key: str, at_ns: int) -> None:
        """Look at ``key`` at ``at_ns``; an earlier wish for the same key is replaced."""
        if self._times.get(key) != at_ns:
            self._times[key] = at_ns
            heapq.heappush(self._heap, (at_ns, key))
            self._shed()

    def drop(self, key: str) -> None:
        """Forget the key."""
        if self._times.pop(key, None) is not None:
            self._shed()

    def _shed(self) -> None:
        if len(self._heap) > 2 * len(self._times) + STALE_MIN:
            self._heap = [(at, key) for key, at in self._times.items()]
            heapq.heapify(self._heap)

    @property
    def entries(self) -> int:
        """How many entries are held, the stale ones too."""
        return len(self._heap)

    def next_ns(self) -> int | None:
        """When the earliest key is due, or None."""
        while self._heap and self._times.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_ns: int) -> list[str]:
        """Take out the keys that are due at ``now_ns``."""
        found: list[str] = []
        while (at := self.next_ns()) is not None and at <= now_ns:
            key = heapq.heappop(self._heap)[1]
            del self._times[key]
            found.append(key)
        if found:
            self._shed()
        return found

    def __len__(self) -> int:
        return len(self._times)
