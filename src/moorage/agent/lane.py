"""A lane for blocking filesystem work: one volume's calls, one at a time, with a deadline.

A look at a dead network mount can hang for ever. Its thread is then left behind, and nothing more is begun in this
lane until it came back, so that a hung volume costs one thread and delays no other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from moorage.errors import DeadlineExceeded

Result = TypeVar("Result")


class Lane:
    """Runs functions in worker threads."""

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._limiter = anyio.CapacityLimiter(1)
        self._is_free = threading.Event()
        self._is_free.set()

    async def run(self, function: Callable[[], Result], /) -> Result:
        """The function's result. Raises DeadlineExceeded when it, or an earlier one, hangs; else what it raises.

        A cancellation leaves the thread behind in the same way.
        """
        if not self._is_free.is_set():
            raise DeadlineExceeded("an earlier look at this volume's paths still hangs")
        self._is_free.clear()
        is_started = False

        def work() -> Result:
            nonlocal is_started
            is_started = True
            try:
                return function()
            finally:
                self._is_free.set()

        try:
            with anyio.fail_after(self._timeout_s):
                return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
        except TimeoutError:
            raise DeadlineExceeded(f"a look at this volume's paths hangs for {self._timeout_s:g} s now") from None
        finally:
            if not is_started:
                self._is_free.set()
