"""Reads that wait without a task of their own: found when what they wait for changes, or when their time is up.

A change looks only at those that wait for its key or its table. They are answered by one task, some in a turn of the
loop, so that thousands hold up nobody; and what is answered in one turn sees the same records. Those of a turn are
handed over together: each step for all of them and then the next one takes a fifth less than all steps for each. What
nobody waits for, such as to forget them, comes after the last one has its answer.
Never: knows what is read; answers before all changes of a revision are there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import inf
from typing import Literal, Protocol

import anyio
import anyio.lowlevel

from moorage.engine.wheel import Wheel
from moorage.state import keys
from moorage.state.feed import Change

# How many are answered in one turn of the loop: two or three milliseconds at the most. The first turn after a change is
# short, and each one after it twice as long: the write that made the change is answered in between, and the first
# readers have their answers while those of the others are made.
TURN_MIN = 8
TURN_MAX = 128
# How many answers may be finished together: a millisecond or two.
FINISHED_MAX = 1024

Why = Literal["changed", "late", "stopping"]


class Waiter:
    """One that waits. ``why``: why it is to be answered; None while it waits."""

    __slots__ = ("above", "tick", "topics", "why")

    above: int
    tick: int
    topics: tuple[str, ...] | None
    why: Why | None


class Answering(Protocol):
    """Who answers. Nothing here may raise, or wait."""

    def answer(self, waiters: list[Waiter]) -> None:
        """Answer those whose time has come; they are called only once."""
        ...

    def finish(self) -> None:
        """Do what is left to do after the answers since the last time."""
        ...


class Waiters:
    """All of them. ``run`` must be running: without it nobody may enter.

    ``turns``: of answering; ``looked``: how many a change has looked at.
    """

    def __init__(self) -> None:
        self.is_running = False
        self.turns = 0
        self.looked = 0
        self._count = 0
        self._by_topic: dict[str, dict[Waiter, None]] = {}
        self._wheel: Wheel[Waiter] = Wheel()
        self._called: deque[Waiter] = deque()
        # Those that are answered, and still entered.
        self._answered: list[Waiter] = []
        self._turn_size = TURN_MIN
        # Until when the task sleeps; before all times while it is awake, so that nobody wakes it.
        self._next_s = -inf
        self._news: anyio.Event | None = None

    def __len__(self) -> int:
        """How many are entered; those among them that are answered are so until they are finished."""
        return self._count

    @property
    def called(self) -> int:
        """How many are to be answered in the next turns."""
        return len(self._called)

    @property
    def ticks(self) -> int:
        """How many times of day somebody waits for, or did."""
        return len(self._wheel)

    def enter(self, waiter: Waiter, topics: Iterable[str], *, above: int, least_s: float, most_s: float) -> None:
        """Answer a waiter once something on the topics has changed above a revision, or at a time between two of the
        loop's clock. The caller has looked at the present state in the same turn."""
        waiter.above, waiter.why = above, None
        waiter.topics = tuple(topics)
        for topic in waiter.topics:
            found = self._by_topic.get(topic)
            if found is None:
                found = self._by_topic[topic] = {}
            found[waiter] = None
        waiter.tick = self._wheel.enter(waiter, least_s=least_s, most_s=most_s)
        self._count += 1
        if self._wheel.due_s(waiter.tick) < self._next_s:
            self._tell()

    def leave(self, waiter: Waiter) -> None:
        """Forget a waiter; harmless when it is forgotten."""
        if waiter.topics is None:
            return
        for topic in waiter.topics:
            found = self._by_topic[topic]
            found.pop(waiter, None)
            if not found:
                del self._by_topic[topic]
        waiter.topics = None
        self._wheel.leave(waiter, waiter.tick)
        self._count -= 1

    def find_left_s(self, waiter: Waiter, now_s: float) -> float:
        """How long a waiter that was not answered would still have waited."""
        return max(0.0, self._wheel.due_s(waiter.tick) - now_s)

    def note(self, change: Change) -> None:
        """Something has changed: those that wait for it are answered in the next turns."""
        if not self._by_topic:
            return
        for topic in (change.key, keys.table_of(change.key)):
            found = self._by_topic.get(topic)
            if found:
                self.looked += len(found)
                self._call([w for w in found if w.why is None and w.above < change.revision], "changed")

    def stop(self) -> None:
        """The server stops: answer all."""
        self._call([w for w in self._wheel.pop_due(inf) if w.why is None], "stopping")

    def _call(self, waiters: list[Waiter], why: Why) -> None:
        for waiter in waiters:
            waiter.why = why
        self._called.extend(waiters)
        if self._called:
            self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()

    def turn(self, now_s: float, answering: Answering) -> None:
        """Answer some of those whose time has come."""
        self.turns += 1
        self._call([w for w in self._wheel.pop_due(now_s) if w.why is None], "late")
        called = self._called
        first = [called.popleft() for _ in range(min(len(called), self._turn_size))]
        # Who has left by itself meanwhile is on no topic.
        found = [waiter for waiter in first if waiter.topics is not None]
        if found:
            answering.answer(found)
            self._answered += found
        self._turn_size = min(2 * self._turn_size, TURN_MAX) if called else TURN_MIN
        if not called or len(self._answered) >= FINISHED_MAX:
            self._finish(answering)

    def _finish(self, answering: Answering) -> None:
        for waiter in self._answered:
            self.leave(waiter)
        self._answered.clear()
        answering.finish()

    async def run(self, answering: Answering) -> None:
        """Have those answered whose time comes, until cancelled."""
        self.is_running = True
        try:
            while True:
                if not self._called:
                    await self._sleep()
                self.turn(anyio.current_time(), answering)
                # Everybody else has a turn.
                await anyio.lowlevel.checkpoint()
        finally:
            self.is_running = False
            self._finish(answering)

    async def _sleep(self) -> None:
        """Return when somebody is to be answered. One timer, and none while nobody waits."""
        self._next_s = self._wheel.find_next_s()
        self._news = anyio.Event()
        with anyio.move_on_after(self._next_s - anyio.current_time()):
            await self._news.wait()
        self._news, self._next_s = None, -inf
