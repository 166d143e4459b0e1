"""Counting what happens: plain numbers where it happens, read when somebody asks for the metrics.

A part of the program keeps integers and histograms of its own and offers a *source*: a function that tells them as
samples. What each metric is called, and what it means, is in ``api.metric_catalog``.
Never: clock, I/O.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

import msgspec

# Seconds: from a look into memory to a driver that takes minutes.
SECONDS_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)


class Histogram:
    """How often a value was at most each of ``bounds``, or above the last; and what all of them add up to."""

    __slots__ = ("bounds", "counts", "max", "min", "squares", "total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS_BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.squares = 0.0
        self.min = float("inf")
        self.max = 0.0

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    @property
    def deviation(self) -> float:
        """The standard deviation of the values."""
        count = self.count
        if count < 2:
            return 0.0
        return float(max(0.0, (self.squares - self.total * self.total / count) / (count - 1)) ** 0.5)

    def note(self, value: float) -> None:
        """Count a value that is not negative."""
        if value > self.max:
            self.max = value
        if value < self.min:
            self.min = value
        self.total += value
        self.squares += value * value
        self.counts[bisect_left(self.bounds, value)] += 1


class Sample(msgspec.Struct, frozen=True):
    """One value of a metric; ``labels`` in the order in which the catalogue has their names."""

    name: str
    value: float | Histogram
    labels: tuple[str, ...] = ()


Source = Callable[[], Iterable[Sample]]


class Meters:
    """All sources of a program."""

    def __init__(self) -> None:
        self._sources: list[Source] = []

    def add(self, source: Source) -> None:
        """Ask this source too."""
        self._sources.append(source)

    def read(self) -> Iterator[Sample]:
        """The samples of all sources, as they are now."""
        for source in self._sources:
            yield from source()
