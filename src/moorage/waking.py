"""One wait for one thing, with a time limit: a future and a timer, no task, no scope, no event.

Waits are made for every request, several each; a cancel scope and an event cost ten times as much as the wait.
Cancellation passes through, as by any await.
"""

from __future__ import annotations

import asyncio
from math import inf

import anyio.lowlevel


def now_s() -> float:
    """The loop's clock, in seconds."""
    return asyncio.get_running_loop().time()


class Bell:
    """Wakes whoever waits for it now. Rung while nobody waits it does nothing: look at the state before waiting."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[bool]] = []

    def ring(self) -> None:
        """Wake them all."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(True)

    async def wait(self, timeout_s: float = inf) -> bool:
        """Return True once it rings, False when so many seconds are over."""
        if timeout_s <= 0:
            await anyio.lowlevel.checkpoint()
            return False
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(future)
        if timeout_s == inf:
            try:
                return await future
            finally:
                self._leave(future)
        timer = loop.call_later(timeout_s, _expire, future)
        try:
            return await future
        finally:
            timer.cancel()
            self._leave(future)

    def _leave(self, future: asyncio.Future[bool]) -> None:
        # One that was woken is in no list any more; few wait for one bell.
        if self._waiting and future in self._waiting:
            self._waiting.remove(future)


def _expire(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(False)
