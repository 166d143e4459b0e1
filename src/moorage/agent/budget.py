"""How many calls a plugin's driver has at a time, and whose turn it is.

When all slots are taken, calls wait in a queue of each direction (taking volumes, giving them back, asking); a slot
that gets free goes to the directions in turn, and within one to who has waited longest. As a volume has one call at a
time, that is also the order of volumes. So a crowd of attachments never keeps the detachments waiting, nor the other
way round.

Calls that hang must not eat the budget. One that has gone on for ``slow_after_s`` gives its slot back and counts among
the slow ones, of which there is a number of their own. A volume whose last call got no answer at all starts its next
one as a slow one. So the driver has at most ``calls_max`` + ``slow_max`` calls, and volumes that hang again and again
share the slow slots among themselves.
Never: ends a call (its deadline does).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from math import inf

from moorage.model.steps import Direction
from moorage.waking import Bell, now_s

# Volumes remembered for a call without an answer, the newest last.
HANGING_MAX = 10_000


class Ticket:
    """A call with its slot, or waiting for one. ``no_answer``: set it when the call has ended without an answer."""

    __slots__ = ("changed", "direction", "no_answer", "shelf", "since_s", "subject")

    def __init__(self, direction: Direction, subject: str) -> None:
        self.direction = direction
        self.subject = subject
        self.no_answer = False
        self.since_s = 0.0
        self.shelf: _Shelf | None = None
        self.changed = Bell()


class Slot:
    """A slot for the block's one call."""

    __slots__ = ("_budget", "_ticket")

    def __init__(self, budget: Budget, ticket: Ticket) -> None:
        self._budget = budget
        self._ticket = ticket

    async def __aenter__(self) -> Ticket:
        if not self._budget.take_free(self._ticket):
            await self._budget.wait(self._ticket)
        return self._ticket

    async def __aexit__(self, *exc_info: object) -> None:
        self._budget.give_back(self._ticket)


class _Shelf:
    """Free slots and who waits for them."""

    def __init__(self, slots: int) -> None:
        self.free = slots
        self._queues: dict[Direction, deque[Ticket]] = {}

    def wait(self, ticket: Ticket) -> None:
        """Put it at the end of its direction's queue."""
        self._queues.setdefault(ticket.direction, deque()).append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """It waits no more."""
        queue = self._queues.get(ticket.direction)
        if queue is not None and ticket in queue:
            queue.remove(ticket)
            if not queue:
                del self._queues[ticket.direction]

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits."""
        return bool(self._queues)

    def pop(self) -> Ticket | None:
        """Whose turn it is; its direction has its next turn after the others."""
        direction = next(iter(self._queues), None)
        if direction is None:
            return None
        queue = self._queues.pop(direction)
        ticket = queue.popleft()
        if queue:
            self._queues[direction] = queue
        return ticket


class Budget:
    """The slots of one driver's service. Units: seconds."""

    def __init__(self, calls_max: int, *, slow_max: int, slow_after_s: float) -> None:
        self._slow_after_s = slow_after_s
        self._usual = _Shelf(calls_max)
        self._slow = _Shelf(slow_max)
        self._has_slow = slow_max > 0
        # In the order of their start.
        self._running: dict[Ticket, None] = {}
        # In the order of their coming; the first of them watches for calls that become slow. A dict that loses its
        # first again and again would walk over all that were lost to find the next.
        self._waiting: OrderedDict[Ticket, None] = OrderedDict()
        self._hanging: dict[str, None] = {}

    def slot(self, direction: Direction, subject: str) -> Slot:
        """A slot for the block's one call; ``subject`` names the volume."""
        return Slot(self, Ticket(direction, subject))

    def is_free(self, subject: str) -> bool:
        """Whether a call for this volume, begun now, would have a slot at once: one is free and nobody waits."""
        return not self._waiting and self._choose(subject).free > 0

    def _choose(self, subject: str) -> _Shelf:
        return self._slow if self._has_slow and subject in self._hanging else self._usual

    def take_free(self, ticket: Ticket) -> bool:
        """Give the ticket a slot if one is free and nobody waits."""
        if not self.is_free(ticket.subject):
            return False
        self._begin(ticket, self._choose(ticket.subject))
        return True

    async def wait(self, ticket: Ticket) -> None:
        """Return once it is the ticket's turn."""
        shelf = self._choose(ticket.subject)
        shelf.wait(ticket)
        self._waiting[ticket] = None
        try:
            self._hand_out()
            self._wake_watcher()
            while ticket.shelf is None:
                is_watching = next(iter(self._waiting)) is ticket
                await ticket.changed.wait(self._until_slow_s() if is_watching else inf)
                if ticket.shelf is None:
                    self._hand_out()
        except BaseException:
            shelf.leave(ticket)
            self._stop_waiting(ticket)
            if ticket.shelf is not None:
                self.give_back(ticket)
            raise

    def give_back(self, ticket: Ticket) -> None:
        """The call has ended."""
        del self._running[ticket]
        assert ticket.shelf is not None
        ticket.shelf.free += 1
        self._hanging.pop(ticket.subject, None)
        if ticket.no_answer and ticket.subject:
            self._hanging[ticket.subject] = None
            if len(self._hanging) > HANGING_MAX:
                del self._hanging[next(iter(self._hanging))]
        if self._waiting:
            self._hand_out()
            self._wake_watcher()

    def _hand_out(self) -> None:
        """Give what is free to whose turn it is; what became slow gives its usual slot back first, if anybody waits."""
        self._give(self._usual)
        if self._usual.is_wanted:
            self._shelve_slow()
            self._give(self._usual)
        self._give(self._slow)

    def _give(self, shelf: _Shelf) -> None:
        while shelf.free > 0 and (ticket := shelf.pop()) is not None:
            self._begin(ticket, shelf)
            self._stop_waiting(ticket)
            ticket.changed.ring()

    def _begin(self, ticket: Ticket, shelf: _Shelf) -> None:
        shelf.free -= 1
        ticket.shelf = shelf
        ticket.since_s = now_s()
        self._running[ticket] = None

    def _shelve_slow(self) -> None:
        at_s = now_s()
        for ticket in self._running:
            if self._slow.free <= 0 or ticket.since_s + self._slow_after_s > at_s:
                return
            if ticket.shelf is self._usual:
                ticket.shelf = self._slow
                self._slow.free -= 1
                self._usual.free += 1

    def _until_slow_s(self) -> float:
        """How long until the next call becomes slow and could be shelved."""
        if self._slow.free <= 0 or not self._usual.is_wanted:
            return inf
        due = (t.since_s for t in self._running if t.shelf is self._usual)
        return max(0.0, next(due, inf) + self._slow_after_s - now_s())

    def _stop_waiting(self, ticket: Ticket) -> None:
        was_watching = next(iter(self._waiting), None) is ticket
        self._waiting.pop(ticket, None)
        if was_watching:
            self._wake_watcher()

    def _wake_watcher(self) -> None:
        """Something has changed that may bring forward, or put off, the moment that the first waiter watches for."""
        if self._waiting:
            next(iter(self._waiting)).changed.ring()
