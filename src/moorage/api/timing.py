"""How long a request took and how much of it was waiting for a change: the ``Server-Timing`` header."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Timing:
    """One request's times, in seconds of the monotonic clock: that of the block's, which may have begun and waited
    before."""

    __slots__ = ("_token", "began_s", "waited_s")

    def __init__(self, began_s: float | None = None, waited_s: float | None = None) -> None:
        self.began_s = time.perf_counter() if began_s is None else began_s
        self.waited_s = waited_s

    def __enter__(self) -> Timing:
        self._token = _current.set(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _current.reset(self._token)

    def header(self) -> str:
        """The header's value, in milliseconds as the header has them; ``wait`` only where the request waited."""
        total = f"total;dur={(time.perf_counter() - self.began_s) * 1e3:.2f}"
        return total if self.waited_s is None else f"wait;dur={self.waited_s * 1e3:.2f}, {total}"


_current: ContextVar[Timing | None] = ContextVar("moorage_timing", default=None)


@contextmanager
def waiting() -> Iterator[None]:
    """Count the block as waiting, if a request is being timed."""
    timing = _current.get()
    began_s = time.perf_counter()
    try:
        yield
    finally:
        if timing is not None:
            timing.waited_s = (timing.waited_s or 0.0) + time.perf_counter() - began_s
