"""What happened in a simulated run, and what should not have."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable

import msgspec

KEPT = 4000
VIOLATIONS_MAX = 5


class Event(msgspec.Struct, frozen=True):
    """Something at a virtual time (seconds since the start of the run)."""

    at_s: float
    who: str
    what: str

    def __str__(self) -> str:
        return f"{self.at_s:9.3f}  {self.who:<10} {self.what}"


class Violation(msgspec.Struct, frozen=True):
    """A promise that was broken: the validator's name, when, and how."""

    validator: str
    at_s: float
    text: str

    def __str__(self) -> str:
        return f"{self.validator} at {self.at_s:.3f}: {self.text}"


class History:
    """The newest events of a run, and a digest of all, by which two runs are known to be the same."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self.events: deque[Event] = deque(maxlen=KEPT)
        self.violations: list[Violation] = []
        self.count = 0
        self._digest = hashlib.blake2b(digest_size=8)

    def note(self, who: str, what: str) -> None:
        """Keep an event."""
        event = Event(self._now_s(), who, what)
        self.events.append(event)
        self.count += 1
        self._digest.update(f"{event.at_s!r}{who}{what}".encode())

    def violate(self, validator: str, text: str) -> None:
        """A promise is broken. The first says most; the same one again says nothing."""
        self.note("VIOLATION", f"{validator}: {text}")
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation(validator, self._now_s(), text))

    @property
    def digest(self) -> str:
        """A digest of every event so far."""
        return self._digest.hexdigest()
