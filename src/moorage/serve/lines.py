"""Deadlines without timers: whoever waits the same time stands in one line, and the first in line is due first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Line(Generic[T]):
    """Things that are due ``wait_s`` after they entered. Every operation takes the same time, however long the line."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        # Not a dict: taking from the front of one walks over everything that was taken before.
        self._due_at_s: OrderedDict[T, float] = OrderedDict()

    def enter(self, thing: T, now_s: float) -> None:
        """Stand at the end; a thing that is in line already begins anew."""
        self._due_at_s[thing] = now_s + self.wait_s
        self._due_at_s.move_to_end(thing)

    def leave(self, thing: T) -> None:
        """Go; harmless when it is not in line."""
        self._due_at_s.pop(thing, None)

    def find_first(self) -> tuple[T, float] | None:
        """Who has waited longest, and when it entered; None when nobody is in line."""
        for thing, due_at_s in self._due_at_s.items():
            return thing, due_at_s - self.wait_s
        return None

    def pop_due(self, now_s: float, at_most: int) -> list[T]:
        """Take out those that are due, the first ones."""
        found: list[T] = []
        while self._due_at_s and len(found) < at_most:
            thing, due_at_s = next(iter(self._due_at_s.items()))
            if due_at_s > now_s:
                break
            del self._due_at_s[thing]
            found.append(thing)
        return found

    def __contains__(self, thing: T) -> bool:
        return thing in self._due_at_s

    def __len__(self) -> int:
        return len(self._due_at_s)
