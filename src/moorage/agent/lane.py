"""A lane for blocking filesystem work: one volume's works, one at a time, with a deadline.

A work is a generator: between two yields it blocks, and at a yield it may be dropped, so that one trip to a thread can
do many steps. What hangs leaves its thread behind, and nothing more is begun in this lane until it came back, so that
a hung volume costs one thread and delays no other. A question that changes nothing, announced by ``ASKS``, is given up
after ``patience_s`` already, and keeps nobody: whoever asked can ask in another way.
Never: goes on with a work beyond its next yield once nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from math import inf
from typing import Any, Generic, Protocol, TypeVar

from moorage.agent.threads import ThreadHops
from moorage.errors import DeadlineExceeded

Result = TypeVar("Result")

STEP = ""
"""Yielded between two steps."""
ASKS = "asks"
"""Yielded before a question, up to the next yield, that may hang and changes nothing."""

Work = Generator[str, None, Result]


class Job(Generic[Result]):
    """A work on its way through a thread. ``now_s``: the caller's clock, for any thread; ``asks_since_s``: when it
    began to ask, or infinite."""

    __slots__ = ("_ticket", "asks_since_s", "is_dropped", "is_over", "now_s", "work")

    def __init__(self, work: Work[Result]) -> None:
        self.work = work
        self.is_dropped = self.is_over = False
        self.asks_since_s = inf
        self.now_s: Callable[[], float] = lambda: 0.0
        # Whoever takes it out has the work: a thread that begins it, or a caller who drops it unbegun.
        self._ticket = [None]

    def do(self) -> Result | None:
        """Do it to its end, or to the next yield after it was dropped. Blocks; raises what it raises."""
        if not self._take():
            return None
        try:
            while not self.is_dropped:
                self.asks_since_s = self.now_s() if next(self.work) else inf
            self.work.close()
            return None
        except StopIteration as e:
            result: Result = e.value
            return result
        finally:
            self.is_over = True

    def drop(self) -> None:
        """Nobody waits for it any more."""
        self.is_dropped = True
        if self._take():
            self.work.close()
            self.is_over = True

    def _take(self) -> bool:
        try:
            self._ticket.pop()
        except IndexError:
            return False
        return True


class Hops(Protocol):
    """Where works are done."""

    async def run(self, job: Job[Any], *, timeout_s: float, patience_s: float) -> Any:
        """The result of the job's work; None where it asks for longer than ``patience_s``. Raises TimeoutError, and
        what the work raises. However it ends early, the job is dropped."""
        ...

    def close(self) -> None:
        """No more works come."""
        ...


class Lane:
    """Runs works in threads of ``hops``; without any, in threads of its own."""

    def __init__(self, *, timeout_s: float, hops: Hops | None = None) -> None:
        self._timeout_s = timeout_s
        self._hops: Hops = hops or ThreadHops()
        self._job: Job[Any] | None = None

    @property
    def is_free(self) -> bool:
        """Whether nothing is under way, or left behind."""
        return self._job is None or self._job.is_over

    async def run(self, function: Callable[[], Result], /) -> Result:
        """The function's result. Raises DeadlineExceeded when it, or an earlier one, hangs; else what it raises.

        A cancellation leaves the thread behind in the same way.
        """
        result = await self.work(_once(function))
        assert result is not None
        return result[0]

    async def work(self, work: Work[Result], *, patience_s: float = inf) -> Result | None:
        """The work's result, or None where it asks for longer than ``patience_s``. Raises as ``run``."""
        if not self.is_free:
            work.close()
            raise DeadlineExceeded("an earlier look at this volume's paths still hangs")
        job = self._job = Job(work)
        try:
            result: Result | None = await self._hops.run(job, timeout_s=self._timeout_s, patience_s=patience_s)
        except TimeoutError:
            raise DeadlineExceeded(f"a look at this volume's paths hangs for {self._timeout_s:g} s now") from None
        if job.is_dropped:
            # Its thread is at a question. When that is answered it stops; so the lane need not wait for it.
            self._job = None
        return result


def _once(function: Callable[[], Result]) -> Work[tuple[Result]]:
    yield STEP
    return (function(),)
