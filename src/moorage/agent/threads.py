"""The threads in which an agent's blocking work is done.

A few threads do it all, because many that fight for the interpreter are slower than few. They become more only when
work has to wait: at once by as many as wait where nothing moves, because then all threads hang; by one at a time where
things move, because then the disk is slow. Threads that were added leave again when there is nothing to do.
Units: seconds of the loop's clock. All but ``_serve`` runs in the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from math import inf
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moorage.agent.lane import Job

USUAL = 2
THREADS_MAX = 4096
# How often those that wait are looked at; how long one may wait where things move; from when on a job hangs.
LOOK_S = 0.05
WAIT_S = 0.1
STUCK_S = 0.25
LEAVE_S = 2.0


class ThreadHops:
    """Threads of one loop. ``hops``: works begun so far; ``threads``: how many there are."""

    def __init__(self, *, usual: int = USUAL, threads_max: int = THREADS_MAX) -> None:
        self.hops = self.threads = 0
        self._usual = usual
        self._threads_max = threads_max
        self._calls: deque[_Call] = deque()
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._guard = threading.Lock()
        self._idle = 0
        self._running: dict[_Call, None] = {}
        self._ended = self._ended_before = 0
        self._watch: asyncio.TimerHandle | None = None

    async def run(self, job: Job[Any], *, timeout_s: float, patience_s: float) -> Any:
        """See ``agent.lane.Hops``."""
        loop = asyncio.get_running_loop()
        call = _Call(job, loop, timeout_s, patience_s)
        self.hops += 1
        self._calls.append(call)
        self._tokens.put(None)
        self._grow(call.begun_s)
        if self._watch is None:
            self._watch = loop.call_later(LOOK_S, self._look, loop)
        try:
            return await call.future
        finally:
            call.end()

    def close(self) -> None:
        """Threads that have nothing to do leave; one that hangs leaves when it comes back."""
        self._usual = 0
        for _ in range(self.threads):
            self._tokens.put(None)
        if self._watch is not None:
            self._watch.cancel()

    # -- how many threads --------------------------------------------------------------------------------------------

    def _grow(self, now_s: float) -> None:
        """A thread more, while there are fewer than usual that do not hang."""
        if self._idle < len(self._calls):
            stuck = 0
            for call in list(self._running):
                if call.begun_s + STUCK_S > now_s:
                    break
                stuck += 1
            if self.threads - stuck < self._usual:
                self._spawn()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watch = None
        if not self._calls:
            return
        waits_s = loop.time() - self._calls[0].begun_s
        is_moving = self._ended != self._ended_before
        if waits_s >= (WAIT_S if is_moving else LOOK_S):
            for _ in range(1 if is_moving else len(self._calls)):
                self._spawn()
        self._ended_before = self._ended
        self._watch = loop.call_later(LOOK_S, self._look, loop)

    def _spawn(self) -> None:
        if self.threads < self._threads_max:
            with self._guard:
                self.threads += 1
            threading.Thread(target=self._serve, name="moorage hop", daemon=True).start()

    # -- in a thread -------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self._guard:
                is_extra = self._idle >= self._usual
                self._idle += 1
            with contextlib.suppress(Empty):
                self._tokens.get(timeout=LEAVE_S if is_extra else None)
            with self._guard:
                self._idle -= 1
            call = self._next()
            if call is not None:
                self._running[call] = None
                call.do()
                del self._running[call]
                self._ended += 1
            elif self._idle >= self._usual:
                with self._guard:
                    self.threads -= 1
                return

    def _next(self) -> _Call | None:
        try:
            return self._calls.popleft()
        except IndexError:
            return None


class _Call:
    """A job, and who waits for it."""

    def __init__(self, job: Job[Any], loop: asyncio.AbstractEventLoop, timeout_s: float, patience_s: float) -> None:
        self.future: asyncio.Future[Any] = loop.create_future()
        self.begun_s = loop.time()
        self._job = job
        self._loop = loop
        self._ends_s = self.begun_s + timeout_s
        self._patience_s = patience_s
        job.now_s = loop.time
        self._timer = loop.call_later(min(timeout_s, patience_s), self._look)

    def do(self) -> None:
        """In a thread: do the work, and tell."""
        result, error = None, None
        try:
            result = self._job.do()
        except BaseException as e:  # noqa: BLE001 - it is raised where the work is waited for
            error = e
        try:
            self._loop.call_soon_threadsafe(self._tell, result, error)
        except RuntimeError:
            return  # the loop is closed: nobody is left to be told

    def end(self) -> None:
        """Nobody waits any more; a work that has not ended is dropped."""
        self._timer.cancel()
        if not self._job.is_over:
            self._job.drop()

    def _tell(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def _look(self) -> None:
        """Whether it asks for too long, or takes too long."""
        if self.future.done():
            return
        now_s, asks_s = self._loop.time(), self._job.asks_since_s + self._patience_s
        if now_s >= self._ends_s:
            self.future.set_exception(TimeoutError())
            return
        if now_s >= asks_s:
            self._job.drop()
            if self._job.asks_since_s < inf:
                # It still asks, and stops before it does anything else. Otherwise it is told when it has stopped.
                self.future.set_result(None)
                return
            asks_s = inf
        next_s = self._patience_s if asks_s == inf else asks_s - now_s
        self._timer = self._loop.call_later(max(0.001, min(next_s, self._ends_s - now_s)), self._look)
