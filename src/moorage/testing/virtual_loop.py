"""An event loop whose time is only a number: it stands still while anything is ready, and then jumps to the next timer.

One seed is one order of events. Tasks that are ready at the same moment run in an order drawn from the seed, so that
many seeds explore many interleavings; everything else keeps asyncio's order. Blocking functions that are sent to a
worker thread run right here, after a pause drawn from the seed, so that no thread takes part.
Never: real time, real I/O, threads.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel

# The only way to run a whole anyio program without threads is a backend of one's own; anyio has no public name for it.
from anyio._backends._asyncio import AsyncIOBackend
from anyio._core._eventloop import loaded_backends

from moorage.agent.lane import Job

Result = TypeVar("Result")

START_S = 1000.0
# So many rounds of the loop without any progress of time: something spins.
ROUNDS_MAX = 100_000
BLOCKING_MAX_S = 0.02


class NothingLeft(RuntimeError):
    """Every task waits for something that no task and no timer will ever do."""


class Spinning(RuntimeError):
    """Tasks keep each other busy while time stands still."""


class _Clockwork(selectors.SelectSelector):
    """Waits for nothing: where a real selector would sleep, the loop's time moves on."""

    def __init__(self) -> None:
        super().__init__()
        self.wait: Callable[[float | None], None] = lambda timeout: None

    def select(self, timeout: float | None = None) -> list[Any]:
        self.wait(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """``random`` decides the order of ready tasks and the pauses of blocking work. ``rounds`` counts turns."""

    def __init__(self, seed: int | str) -> None:
        self._now_s = START_S
        clockwork = _Clockwork()
        super().__init__(clockwork)
        clockwork.wait = self._wait
        self.random = random.Random(f"loop/{seed}")
        self.rounds = 0
        self._rounds_still = 0
        self._task_count = 0
        self._numbers: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()

    def time(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def create_task(
        self,
        coro: Generator[Any, None, Result] | Coroutine[Any, Any, Result],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> asyncio.Task[Result]:
        """A task with a number, by which an order is told apart from the accidents of memory addresses."""
        task = super().create_task(coro, name=cast(Any, name), context=context)
        self._task_count += 1
        self._numbers[task] = self._task_count
        return task

    def _wait(self, timeout: float | None) -> None:
        self.rounds += 1
        self._rounds_still += 1
        if timeout is None:
            raise NothingLeft("all tasks wait, and nothing is scheduled")
        if timeout > 0:
            self._now_s += timeout
            self._rounds_still = 0
        elif self._rounds_still > ROUNDS_MAX:
            raise Spinning(f"{ROUNDS_MAX} rounds at the same time {self._now_s}")
        self._mix()

    def _mix(self) -> None:
        """Put the steps of tasks that are ready into a seeded order; other callbacks keep their places."""
        ready: Any = self._ready  # type: ignore[attr-defined]
        if len(ready) < 2:
            return
        places: list[int] = []
        handles: list[tuple[int, Any]] = []
        for place, handle in enumerate(ready):
            task = getattr(handle._callback, "__self__", None)
            if isinstance(task, asyncio.Task):
                places.append(place)
                handles.append((self._numbers.get(task, 0), handle))
        if len(places) < 2:
            return
        # The order in which they became ready may depend on a set of objects: sort first.
        handles.sort(key=lambda pair: pair[0])
        self.random.shuffle(handles)
        for place, (_, handle) in zip(places, handles, strict=True):
            ready[place] = handle


class VirtualBackend(AsyncIOBackend):
    """anyio on asyncio, with blocking work done in the loop."""

    @classmethod
    async def run_sync_in_worker_thread(
        cls,
        func: Callable[..., Result],
        args: tuple[Any, ...],
        abandon_on_cancel: bool = False,
        limiter: Any = None,
    ) -> Result:
        """Run a blocking function here. A cancelled caller may have left it undone, or done without having heard."""
        loop = cast(VirtualLoop, asyncio.get_running_loop())
        results: list[Result] = []
        async with limiter or anyio.CapacityLimiter(1):
            with anyio.CancelScope(shield=not abandon_on_cancel):
                pause_s = loop.random.random()
                await anyio.sleep(pause_s * BLOCKING_MAX_S if pause_s < 0.3 else 0)
                results.append(func(*args))
                await anyio.lowlevel.checkpoint()
        return results[0]


class VirtualHops:
    """An agent's blocking work, done in the loop, with pauses between its steps; so a kill may come between any two."""

    async def run(self, job: Job[Any], *, timeout_s: float, patience_s: float) -> Any:
        """See ``agent.lane.Hops``. Nothing here hangs."""
        loop = cast(VirtualLoop, asyncio.get_running_loop())
        job.now_s = loop.time
        try:
            while True:
                pause_s = loop.random.random()
                await anyio.sleep(pause_s * BLOCKING_MAX_S if pause_s < 0.3 else 0)
                try:
                    next(job.work)
                except StopIteration as e:
                    await anyio.lowlevel.checkpoint()
                    return e.value
        finally:
            job.drop()

    def close(self) -> None:
        """Nothing to close."""


@contextmanager
def _virtual_backend() -> Iterator[None]:
    before = loaded_backends.get("asyncio")
    loaded_backends["asyncio"] = VirtualBackend
    try:
        yield
    finally:
        if before is None:
            del loaded_backends["asyncio"]
        else:
            loaded_backends["asyncio"] = before


def run(main: Callable[[], Awaitable[Result]], *, seed: int | str) -> Result:
    """Run a program from its first to its last await in virtual time. Raises NothingLeft, Spinning, what it raises."""
    with _virtual_backend():
        return anyio.run(main, backend="asyncio", backend_options={"loop_factory": lambda: VirtualLoop(seed)})
