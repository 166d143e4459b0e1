"""Time and chance under a test's control."""

from __future__ import annotations

import random
import uuid


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return self._now_ns

    def monotonic_ns(self) -> int:
        """The same, as a clock that nobody sets."""
        return self._now_ns

    def advance(self, seconds: float) -> None:
        """Move on."""
        self._now_ns += int(seconds * 1e9)


class SeededChance:
    """Ids and jitter from a seed: the same seed, the same run."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def new_id(self) -> str:
        """A UUID."""
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def jitter(self) -> float:
        """A number in [0, 1)."""
        return self._random.random()
