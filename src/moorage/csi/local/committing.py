"""The thread that makes changes durable, and the way to it and back.

Shapes: what a turn of the loop asks for is handed over at its end, all together; what waits when the thread is free is
    one group. The loop is told of a group with one call. The thread is parked at a queue: no executor, no task a group.
Raises Rejected UNAVAILABLE for what waits, or comes, when the driver stops. A fault of ours, in the thread or in
    ``settle``, comes out of ``run_until_cancelled``.
Never:  more than GROUP_MAX changes a group. What waits is bounded by who asks: each change is one of a held key.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence

import anyio
import msgspec

from moorage.csi.local.checks import refuse
from moorage.csi.local.storage import Change
from moorage.errors import Rejected

GROUP_MAX = 256

Outcomes = list[OSError | None]


class Pending(msgspec.Struct, gc=False):
    """A change on its way to the disk. ``key``: what is held until it is there, "" for nothing."""

    change: Change
    done: asyncio.Future[OSError | None]
    key: str = ""


class Committer:
    """Has ``commit`` make changes in a thread; ``settle`` hears in the loop what became of each, in their order."""

    def __init__(
        self, commit: Callable[[Sequence[Change]], Outcomes], settle: Callable[[Pending, OSError | None], None]
    ) -> None:
        self._commit = commit
        self._settle = settle
        self._is_stopping = False
        self._fault: BaseException | None = None
        self._failed = anyio.Event()
        self._ended = anyio.Event()
        # Those that the thread has not answered, oldest first; and of these the changes that this turn asked for.
        self._waiting: deque[Pending] = deque()
        self._coming: list[Change] = []
        self._queue: queue.SimpleQueue[list[Change]] = queue.SimpleQueue()
        self._left: list[Change] = []

    async def run_until_cancelled(self) -> None:
        """Do the work until cancelled. What is begun then is ended; what waits is told that it was not made."""
        # A daemon: the disk is whole at every instant, so a program that fails elsewhere need not wait for it.
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, args=(loop,), name="moorage commit", daemon=True).start()
        try:
            await self._failed.wait()
        finally:
            self._is_stopping = True
            for pending in self._waiting:
                if not pending.done.done():
                    pending.done.set_exception(_refuse_stopping())
            self._queue.put([])
            with anyio.CancelScope(shield=True):
                await self._ended.wait()
        if self._fault is not None:
            raise self._fault

    def submit(self, change: Change, key: str) -> asyncio.Future[OSError | None]:
        """Have the change made; its error, if any, comes when it is settled."""
        if self._is_stopping:
            raise _refuse_stopping()
        loop = asyncio.get_running_loop()
        pending = Pending(change, loop.create_future(), key)
        self._waiting.append(pending)
        self._coming.append(change)
        if len(self._coming) == 1:
            loop.call_soon(self._hand_over)
        return pending.done

    def _hand_over(self) -> None:
        coming, self._coming = self._coming, []
        self._queue.put(coming)

    def _deliver(self, outcomes: Outcomes) -> None:
        if self._is_stopping:
            return
        try:
            for outcome in outcomes:
                self._settle(self._waiting.popleft(), outcome)
        except Exception as error:  # noqa: BLE001 - it is raised where the work is waited for
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._fault = error
        self._failed.set()

    # -- in the thread -----------------------------------------------------------------------------------------------

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            try:
                while group := self._take():
                    loop.call_soon_threadsafe(self._deliver, self._commit(group))
            except Exception as error:  # noqa: BLE001 - it is raised where the work is waited for
                loop.call_soon_threadsafe(self._fail, error)
            loop.call_soon_threadsafe(self._ended.set)
        except RuntimeError:
            # The loop has ended without waiting: nobody is left to be told. Anything else is a fault of ours.
            if not loop.is_closed():
                raise

    def _take(self) -> list[Change]:
        """The next group; an empty one at the stop."""
        taken = self._left or self._queue.get()
        while len(taken) < GROUP_MAX and not self._queue.empty():
            taken = taken + self._queue.get()
        self._left = taken[GROUP_MAX:]
        return [] if self._is_stopping else taken[:GROUP_MAX]


def _refuse_stopping() -> Rejected:
    return refuse("UNAVAILABLE", "the driver is stopping")
