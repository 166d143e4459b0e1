"""Deadlines of many things under one timer: a wheel of ticks. Without things it never turns.

Never: reads a clock.
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heappop, heappush
from math import ceil, floor, inf
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

TICK_S = 0.05


class Wheel(Generic[T]):
    """Things by the tick at which they are due. A tick's place stays until its time comes, whoever leaves it: what a
    wheel holds is bounded by the longest wait."""

    def __init__(self, tick_s: float = TICK_S) -> None:
        self._tick_s = tick_s
        self._places: dict[int, dict[T, None]] = {}
        self._order: list[int] = []

    def enter(self, thing: T, *, least_s: float, most_s: float) -> int:
        """Put a thing to the last tick that is not later than ``most_s``, or to the first after ``least_s`` where there
        is none in between; the tick."""
        tick = max(ceil(least_s / self._tick_s), floor(most_s / self._tick_s))
        place = self._places.get(tick)
        if place is None:
            place = self._places[tick] = {}
            heappush(self._order, tick)
        place[thing] = None
        return tick

    def leave(self, thing: T, tick: int) -> None:
        """Take a thing out; harmless when it is not there."""
        place = self._places.get(tick)
        if place is not None:
            place.pop(thing, None)

    def due_s(self, tick: int) -> float:
        """When a tick is."""
        return tick * self._tick_s

    def find_next_s(self) -> float:
        """When something is due next; infinite when nothing is there."""
        while self._order:
            if self._places[self._order[0]]:
                return self.due_s(self._order[0])
            del self._places[heappop(self._order)]
        return inf

    def pop_due(self, now_s: float) -> list[T]:
        """Take out what is due."""
        found: list[T] = []
        while self._order and self.due_s(self._order[0]) <= now_s:
            found += self._places.pop(heappop(self._order))
        return found

    def __len__(self) -> int:
        """How many places there are."""
        return len(self._places)
