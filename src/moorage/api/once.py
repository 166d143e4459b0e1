"""Something that happens once: to wait for, or to be called at without a task that waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio


class Once:
    """An event with callbacks. A callback must not raise and not wait. There is one for each connection: what nobody
    asks for is not made."""

    __slots__ = ("_calls", "_event", "_is_set", "_number")

    def __init__(self) -> None:
        self._event: anyio.Event | None = None
        self._calls: dict[int, Callable[[], object]] | None = None
        self._number = 0
        self._is_set = False

    def __len__(self) -> int:
        """How many are to be called."""
        return len(self._calls) if self._calls else 0

    def set(self) -> None:
        """It happens: wake who waits, call who is to be called."""
        self._is_set = True
        if self._event is not None:
            self._event.set()
        calls, self._calls = self._calls, None
        for call in calls.values() if calls else ():
            call()

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._is_set

    async def wait(self) -> None:
        """Return once it has happened."""
        if not self._is_set:
            self._event = self._event or anyio.Event()
            await self._event.wait()

    @contextmanager
    def calling(self, call: Callable[[], object]) -> Iterator[None]:
        """Call this when it happens while the block runs, or now if it has happened."""
        if self._is_set:
            call()
            yield
            return
        self._number += 1
        number = self._number
        if self._calls is None:
            self._calls = {}
        self._calls[number] = call
        try:
            yield
        finally:
            if self._calls is not None:
                self._calls.pop(number, None)
                if not self._calls:
                    self._calls = None
