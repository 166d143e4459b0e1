"""One question to a driver for all who ask the same at the same time.

Whoever asks joins the round that has not begun; rounds of one question come one after the other. So every answer is of
a call that began after it was asked for, and never are more than two calls owed, however many ask.
Only for calls that change nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from moorage.errors import MoorageError
from moorage.waking import Bell

T = TypeVar("T")


class _Round(Generic[T]):
    __slots__ = ("answer", "error", "is_over")

    def __init__(self) -> None:
        self.is_over = False
        self.answer: T | None = None
        self.error: MoorageError | None = None


class _Question(Generic[T]):
    __slots__ = ("asking", "ended", "is_calling", "next_round")

    def __init__(self) -> None:
        self.asking = 0
        self.is_calling = False
        self.ended = Bell()
        self.next_round: _Round[T] = _Round()


class Sharing(Generic[T]):
    """Questions under way."""

    def __init__(self) -> None:
        self._questions: dict[Hashable, _Question[T]] = {}

    def __len__(self) -> int:
        return len(self._questions)

    async def ask(self, question: Hashable, call: Callable[[], Awaitable[T]]) -> T:
        """What ``call`` answers, made by this caller or by another one who asks the same. Raises what it raises.

        One that is cancelled in the middle of its call leaves it to the next of its round.
        """
        found = self._questions.setdefault(question, _Question())
        found.asking += 1
        mine = found.next_round
        try:
            while not mine.is_over:
                if found.is_calling:
                    await found.ended.wait()
                    continue
                found.is_calling = True
                try:
                    # A turn of the loop for those whose requests came with this one's: they join its round.
                    await asyncio.sleep(0)
                    if found.next_round is mine:
                        found.next_round = _Round()
                    try:
                        mine.answer = await call()
                    except MoorageError as error:
                        mine.error = error
                    mine.is_over = True
                finally:
                    found.is_calling = False
                    found.ended.ring()
        finally:
            found.asking -= 1
            if not found.asking:
                del self._questions[question]
        if mine.error is not None:
            raise mine.error
        return mine.answer  # type: ignore[return-value]  # there is one: the round is over and has no error
