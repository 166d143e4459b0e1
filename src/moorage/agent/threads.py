"""The threads in which an agent's blocking work is done.

A few threads do it all, because many that fight for the interpreter are slower than few. They become more only when
work has to wait: by one where that takes long, to some; for each that is slow another; and twice as many where all are
slow, because then the disk is, or they hang. Threads that were added leave again when there is nothing to do.
Units: seconds of the loop's clock. All but ``_serve`` and ``_park`` runs in the loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moorage.agent.lane import Job

USUAL = 2
# Threads that are not slow, where work waits; those that do not hang, where all are slow.
BUSY_MAX = 4
SLOW_MAX = 32
THREADS_MAX = 4096
# How often those that wait are looked at; how long one may wait; from when on a work is slow, and from when it hangs.
LOOK_S = 0.05
WAIT_S = 0.1
SLOW_S = 0.25
HANGS_S = 0.5
LEAVE_S = 2.0


class ThreadHops:
    """Threads of one loop. ``hops``: works begun so far; ``threads``: how many there are."""

    def __init__(self, *, usual: int = USUAL, threads_max: int = THREADS_MAX) -> None:
        self.hops = self.threads = 0
        self._usual = usual
        self._threads_max = threads_max
        self._calls: deque[_Call] = deque()
        # Those that wait for a work, each at a lock of its own: a queue would wake them all, one after the other, for
        # each work. The last that came is woken first, so that one that was added has nothing to do.
        self._parked: list[threading.Lock] = []
        self._guard = threading.Lock()
        self._idle = 0
        self._is_closed = False
        self._running: dict[_Call, None] = {}
        self._watch: asyncio.TimerHandle | None = None

    async def run(self, job: Job[Any], *, timeout_s: float, patience_s: float) -> Any:
        """See ``agent.lane.Hops``."""
        loop = asyncio.get_running_loop()
        call = _Call(job, loop, timeout_s, patience_s)
        self.hops += 1
        self._calls.append(call)
        self._wake()
        self._grow(call.begun_s)
        if self._watch is None:
            self._watch = loop.call_later(LOOK_S, self._look, loop)
        try:
            return await call.future
        finally:
            call.end()

    def close(self) -> None:
        """Threads that have nothing to do leave; one that hangs leaves when it comes back."""
        self._usual, self._is_closed = 0, True
        while self._wake():
            pass
        if self._watch is not None:
            self._watch.cancel()

    # -- how many threads --------------------------------------------------------------------------------------------

    def _grow(self, now_s: float, *, is_late: bool = False) -> None:
        """More threads, if there have to be. ``is_late``: the first has waited for long."""
        waiting = len(self._calls) - self._idle
        if waiting <= 0:
            return
        ages_s = [now_s - call.started_s for call in list(self._running)]
        slow, hung = sum(a >= SLOW_S for a in ages_s), sum(a >= HANGS_S for a in ages_s)
        lively = self.threads - slow
        if lively <= 0:
            more = max(self._usual, min(self.threads, SLOW_MAX - (self.threads - hung)))
        else:
            more = max(self._usual - lively, 1 if is_late and lively < BUSY_MAX else 0)
        for _ in range(min(more, waiting)):
            self._spawn()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watch = None
        if self._calls:
            now_s = loop.time()
            self._grow(now_s, is_late=now_s - self._calls[0].begun_s >= WAIT_S)
            self._watch = loop.call_later(LOOK_S, self._look, loop)

    def _spawn(self) -> None:
        if self.threads < self._threads_max:
            with self._guard:
                self.threads += 1
            threading.Thread(target=self._serve, name="moorage hop", daemon=True).start()

    def _wake(self) -> bool:
        """Wake one that waits; False where none does."""
        try:
            self._parked.pop().release()
        except IndexError:
            return False
        return True

    # -- in a thread -------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        lock = threading.Lock()
        lock.acquire()
        while True:
            call = self._next()
            if call is not None:
                call.started_s = call.job.now_s()
                self._running[call] = None
                call.do()
                del self._running[call]
            elif not self._park(lock):
                return

    def _park(self, lock: threading.Lock) -> bool:
        """Wait until there may be a work. False where this thread is to leave; it is not counted then."""
        with self._guard:
            is_extra = self._idle >= self._usual
            self._idle += 1
        self._parked.append(lock)
        # Whoever brings a work appends it first and then looks here; so one of both sees the other.
        is_woken = not (self._calls or self._is_closed) and lock.acquire(timeout=LEAVE_S if is_extra else -1)
        if not is_woken and not self._unpark(lock):
            lock.acquire()  # somebody has just taken this thread's lock, and releases it
        with self._guard:
            self._idle -= 1
            if not self._calls and (self._is_closed or (is_extra and not is_woken and self._idle >= self._usual)):
                self.threads -= 1
                return False
        return True

    def _unpark(self, lock: threading.Lock) -> bool:
        try:
            self._parked.remove(lock)
        except ValueError:
            return False
        return True

    def _next(self) -> _Call | None:
        try:
            return self._calls.popleft()
        except IndexError:
            return None


class _Call:
    """A job, and who waits for it."""

    def __init__(self, job: Job[Any], loop: asyncio.AbstractEventLoop, timeout_s: float, patience_s: float) -> None:
        self.future: asyncio.Future[Any] = loop.create_future()
        self.begun_s = self.started_s = loop.time()
        self.job = job
        self._loop = loop
        self._ends_s = self.begun_s + timeout_s
        self._patience_s = patience_s
        job.now_s = loop.time
        self._timer = loop.call_later(min(timeout_s, patience_s), self._look)

    def do(self) -> None:
        """In a thread: do the work, and tell."""
        result, error = None, None
        try:
            result = self.job.do()
        except BaseException as e:  # noqa: BLE001 - it is raised where the work is waited for
            error = e
        try:
            self._loop.call_soon_threadsafe(self._tell, result, error)
        except RuntimeError:
            return  # the loop is closed: nobody is left to be told

    def end(self) -> None:
        """Nobody waits any more; a work that has not ended is dropped."""
        self._timer.cancel()
        if not self.job.is_over:
            self.job.drop()

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
        now_s, asks_s = self._loop.time(), self.job.asks_since_s + self._patience_s
        if now_s >= self._ends_s:
            self.future.set_exception(TimeoutError())
            return
        if now_s >= asks_s:
            self.job.drop()
            if self.job.asks_since_s < inf:
                # It still asks, and stops before it does anything else. Otherwise it is told when it has stopped.
                self.future.set_result(None)
                return
            asks_s = inf
        next_s = self._patience_s if asks_s == inf else asks_s - now_s
        self._timer = self._loop.call_later(max(0.001, min(next_s, self._ends_s - now_s)), self._look)
