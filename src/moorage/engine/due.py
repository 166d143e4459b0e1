"""Keys that are to be looked at again at a time: one entry a key, the earliest first."""

from __future__ import annotations

import heapq


class DueKeys:
    """A set of keys with times (ns). Setting a key again moves it; stale heap entries are skipped when popped."""

    def __init__(self) -> None:
        self._times: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    def set(self, key: str, at_ns: int) -> None:
        """Look at ``key`` at ``at_ns``; an earlier wish for the same key is replaced."""
        if self._times.get(key) != at_ns:
            self._times[key] = at_ns
            heapq.heappush(self._heap, (at_ns, key))

    def drop(self, key: str) -> None:
        """Forget the key."""
        self._times.pop(key, None)

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
        return found

    def __len__(self) -> int:
        return len(self._times)
