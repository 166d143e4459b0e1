"""Controller steps: carry out what the server hands out, and report.

Steps of one serial key run one at a time and in order; a plugin has a bounded number of calls at a time. The server
hands a step out again until it has the report, so that nothing here needs to be kept on disk.
Never: retries (the server decides when a step is due again); adds a pause between the hand-out and the call.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Mapping
from functools import partial
from typing import Protocol

import structlog
from anyio.abc import TaskGroup

from moorage.agent.budget import Budget
from moorage.agent.calls import call_driver, call_in_turn, take_turn
from moorage.agent.ports import Clock, Driver
from moorage.agent.reporter import Reporter
from moorage.model.assignment import StepAssignment, StepAssignments, StepReport
from moorage.model.ids import PluginId, Revision
from moorage.model.steps import Failed, Outcome, direction_of
from moorage.rules.operations import is_question
from moorage.waking import Bell, now_s

log = structlog.get_logger()

QUEUE_MAX = 10_000
# A page that was made before our report arrived may still list the step; later than this it is meant anew.
ECHO_S = 30.0
# Workers without work that stay for the next.
RESTING_MAX = 16


class Gate(Protocol):
    """Whether a step may begin (``steps.StepGate``)."""

    @property
    def is_open(self) -> bool:
        """Whether one may begin now."""
        ...

    async def wait_open(self) -> None:
        """Until one may begin."""
        ...

    def is_told(self, plugin_id: PluginId) -> bool:
        """Whether the driver is known as well, here and at the server."""
        ...

    def note_end(self, plugin_id: PluginId) -> None:
        """A call of the driver has ended, and the server knows what came of it."""
        ...


class _Rest:
    """A worker that waits for its next serial key."""

    __slots__ = ("_bell", "_serial")

    def __init__(self) -> None:
        self._bell = Bell()
        self._serial: str | None = None

    def begin(self, serial: str) -> None:
        """Wake it."""
        self._serial = serial
        self._bell.ring()

    async def wait(self) -> str:
        """The key that it was woken for."""
        while self._serial is None:
            await self._bell.wait()
        serial, self._serial = self._serial, None
        return serial


class StepWorkers:
    """Runs assignments in ``group``; all state is of this process only."""

    def __init__(
        self,
        group: TaskGroup,
        drivers: Mapping[PluginId, Driver],
        reporter: Reporter,
        *,
        clock: Clock,
        budgets: Mapping[PluginId, Budget],
        gate: Gate,
    ) -> None:
        self._group = group
        self._drivers = drivers
        self._reporter = reporter
        self._clock = clock
        self._budgets = budgets
        self._gate = gate
        self._queues: dict[str, deque[StepAssignment]] = {}
        self._in_hand: dict[str, Revision] = {}
        self._reported: OrderedDict[str, tuple[Revision, float]] = OrderedDict()
        self._listed: dict[str, StepAssignment] = {}
        self._resting: list[_Rest] = []
        # Serial keys with a call that goes on.
        self._calling: set[str] = set()
        # Listed, and there was no room for them yet.
        self._left: OrderedDict[str, None] = OrderedDict()

    def take(self, page: StepAssignments) -> None:
        """Begin what is new in an answer; what is in hand, or was just reported, is left alone."""
        if page.is_delta:
            for key in page.gone:
                self._listed.pop(key, None)
            self._listed.update((a.key, a) for a in page.steps)
        else:
            self._listed = {a.key: a for a in page.steps}
        self._drop_echoes()
        self._left.update(dict.fromkeys(a.key for a in page.steps))
        self._begin_left()
        if self._left:
            log.warning("steps.too_many", listed=len(self._listed), in_hand=len(self._in_hand))

    def drop_listed(self, plugin_ids: Collection[PluginId] | None = None) -> None:
        """Begin nothing of what was listed so far, for these drivers or for all; calls that go on do so."""
        if plugin_ids is None:
            self._listed = {}
            self._left.clear()
            return
        for key in [key for key, assignment in self._listed.items() if assignment.plugin_id in plugin_ids]:
            del self._listed[key]
            self._left.pop(key, None)

    def list_calling(self) -> tuple[str, ...]:
        """The serial keys that have a call now."""
        return tuple(sorted(serial for serial in self._calling if serial))

    async def try_now(self, assignment: StepAssignment) -> StepReport | None:
        """The outcome of a step that is on no list, made at once in the caller's task; None, and nothing is called,
        where it would have to wait: for a call of its serial key, for a slot, for the lease or the driver's health."""
        plugin_id, step, serial = assignment.plugin_id, assignment.step, assignment.serial_key
        driver, budget = self._drivers.get(plugin_id), self._budgets.get(plugin_id)
        if driver is None or budget is None or not serial or serial in self._queues:
            return None
        if not (self._gate.is_open and self._gate.is_told(plugin_id) and budget.is_free(serial)):
            return None
        # Who comes with this key meanwhile waits, as behind a worker.
        self._queues[serial] = deque()
        self._calling.add(serial)
        began_s = now_s()
        try:
            # The slot that is free is taken before anybody else has a turn.
            timeout_s, clock = assignment.timeout_s, self._clock
            outcome = await call_in_turn(budget, driver, step, subject=serial, timeout_s=timeout_s, clock=clock)
        finally:
            self._calling.discard(serial)
            if queue := self._queues.pop(serial):
                self._put_to_work(serial, queue)
            self._gate.note_end(plugin_id)
        _log_outcome(assignment, outcome)
        return StepReport(key=assignment.key, revision=assignment.revision, outcome=outcome, took_s=now_s() - began_s)

    def _begin_left(self) -> None:
        while self._left and len(self._in_hand) < QUEUE_MAX:
            key, _ = self._left.popitem(last=False)
            assignment = self._listed.get(key)
            if assignment is not None and self._is_new(assignment):
                self._begin(assignment)

    def _is_new(self, assignment: StepAssignment) -> bool:
        if self._in_hand.get(assignment.key, Revision(-1)) >= assignment.revision:
            return False
        reported, _ = self._reported.get(assignment.key, (Revision(-1), 0.0))
        return assignment.revision > reported

    def _drop_echoes(self) -> None:
        oldest_s = now_s() - ECHO_S
        while self._reported:
            key = next(iter(self._reported))
            if self._reported[key][1] > oldest_s:
                break
            del self._reported[key]

    def _begin(self, assignment: StepAssignment) -> None:
        self._in_hand[assignment.key] = assignment.revision
        # A record's own steps never overlap, whatever the serial key: a newer revision waits for the older call.
        serial = assignment.serial_key or f"\0{assignment.key}"
        queue = self._queues.get(serial)
        if queue is not None:
            queue.append(assignment)
            return
        self._put_to_work(serial, deque((assignment,)))

    def _put_to_work(self, serial: str, queue: deque[StepAssignment]) -> None:
        self._queues[serial] = queue
        if self._resting:
            self._resting.pop().begin(serial)
        else:
            self._group.start_soon(self._work, serial, name="steps")

    async def _work(self, serial: str) -> None:
        """One serial key's steps, and then another's: a task for each would cost more than what it does."""
        rest = _Rest()
        while True:
            queue = self._queues[serial]
            while queue:
                await self._carry_out(queue.popleft())
            del self._queues[serial]
            if len(self._resting) >= RESTING_MAX:
                return
            self._resting.append(rest)
            serial = await rest.wait()

    def _is_listed(self, assignment: StepAssignment) -> bool:
        listed = self._listed.get(assignment.key)
        return listed is not None and listed.revision == assignment.revision

    async def _call(self, assignment: StepAssignment) -> Outcome | None:
        """The outcome; None where the step was withdrawn while it waited for its turn or for the lease, or where its
        driver is sick: once the server knows it as well, all steps are listed again."""
        plugin_id, step, serial = assignment.plugin_id, assignment.step, assignment.serial_key
        driver = self._drivers.get(plugin_id)
        budget = self._budgets.get(plugin_id) if driver is not None else None

        def is_told() -> bool:
            # Where there is no driver nothing is called, and the server learns why at once.
            return driver is None or self._gate.is_told(plugin_id)

        def may_begin() -> bool:
            if not self._gate.is_open or not is_told() or not self._is_listed(assignment):
                return False
            self._calling.add(serial)
            return True

        call = partial(call_driver, driver, step, timeout_s=assignment.timeout_s, clock=self._clock)
        while self._is_listed(assignment) and is_told():
            if not self._gate.is_open:
                await self._gate.wait_open()
            try:
                outcome = await take_turn(
                    budget, call, direction=direction_of(step), subject=serial, may_begin=may_begin
                )
            finally:
                self._calling.discard(serial)
            if outcome is not None:
                return outcome
        return None

    async def _carry_out(self, assignment: StepAssignment) -> None:
        began_s = now_s()
        outcome = await self._call(assignment)
        if outcome is None:
            if self._in_hand.get(assignment.key) == assignment.revision:
                del self._in_hand[assignment.key]
                self._begin_left()
            return
        took_s = now_s() - began_s
        report = StepReport(key=assignment.key, revision=assignment.revision, outcome=outcome, took_s=took_s)
        await self._reporter.send(report, lambda is_taken: self._done(assignment, is_taken=is_taken))
        _log_outcome(assignment, outcome)

    def _done(self, assignment: StepAssignment, *, is_taken: bool) -> None:
        if self._in_hand.get(assignment.key) == assignment.revision:
            del self._in_hand[assignment.key]
        self._reported.pop(assignment.key, None)
        self._gate.note_end(assignment.plugin_id)
        if is_taken:
            self._reported[assignment.key] = (assignment.revision, now_s())
            # The server does not tell us what we have told it.
            listed = self._listed.get(assignment.key)
            if listed is not None and listed.revision == assignment.revision:
                del self._listed[assignment.key]
        self._begin_left()


def _log_outcome(assignment: StepAssignment, outcome: Outcome) -> None:
    fault = outcome.fault if isinstance(outcome, Failed) else None
    # Questions come as often as anybody asks, and change nothing: a failed one is worth a line, another is not.
    if fault is None and is_question(assignment.step):
        return
    log.info(
        "step.done" if fault is None else "step.failed",
        key=assignment.key,
        plugin=assignment.plugin_id,
        step=type(assignment.step).__name__,
        status=fault.status if fault else "OK",
    )
