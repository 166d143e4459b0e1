"""Questions: calls that change nothing (validation, listings, capacity), asked of a driver without a record.

A question goes the way of every controller call, as an assignment to the node that has the controller, tried again
after a pause, moved to another controller when one fails; but it is kept in memory only. When the server dies, so does
the request that waits for the answer, and a report on a question that nobody knows says nothing.
Why this is allowed: ``docs/decisions/0006``. Never: for a call that may change anything at the driver.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

import msgspec

from moorage.engine.outcomes import log_failure, stamp_fault
from moorage.engine.ports import Chance, Clock
from moorage.engine.reconciler import Reconciler
from moorage.model.assignment import StepAssignment, StepReport
from moorage.model.ids import NodeId, Revision
from moorage.model.operation import Operation
from moorage.model.steps import Outcome
from moorage.rules.operations import find_answer, fold_outcome
from moorage.state.feed import Change
from moorage.state.view import Record

QUESTIONS = "questions/"

AskNear = Callable[[StepAssignment], Awaitable[StepReport | None]]
"""Makes a call in the caller's task; None where it would have to wait for something."""


class Questions:
    """Questions that somebody waits for; as many as requests have in hand."""

    def __init__(self, reconciler: Reconciler, *, clock: Clock, chance: Chance) -> None:
        self._reconciler = reconciler
        self._clock = clock
        self._chance = chance
        self._near: tuple[NodeId, AskNear] | None = None

    def offer(self, node_id: NodeId, ask: AskNear) -> None:
        """Questions that are this node's to ask are first tried by ``ask``: its agent is in this process."""
        self._near = node_id, ask

    def __len__(self) -> int:
        return len(self._reconciler.planner.questions)

    def find(self, key: str) -> Operation | None:
        """The question as it stands."""
        found = self._reconciler.planner.questions.get(key)
        return found.value if found is not None else None

    async def ask(self, operation: Operation, *, timeout_s: float) -> Outcome | Operation:
        """The driver's answer, Failed for what it refused or keeps failing at; at the timeout the question itself,
        which tells what its last try said. Units: seconds."""
        key = f"{QUESTIONS}{operation.id}"
        record, took_s = await self._ask_near(key, Record(operation, Revision(1), Revision(1)), timeout_s)
        answer = find_answer(record.value)
        if answer is not None:
            return answer

        def answered(change: Change) -> Outcome | None:
            assert isinstance(change.after, Operation)
            return find_answer(change.after)

        try:
            with self._reconciler.signals.listen((key,), answered) as listening:
                self._reconciler.set_question(key, record)
                found = cast(Outcome | None, await listening.result(timeout_s=max(0.0, timeout_s - took_s)))
            return found or self._reconciler.planner.questions[key].value
        finally:
            self._reconciler.drop_question(key)

    def fold(self, report: StepReport) -> None:
        """Take the outcome of a try; one of an earlier try, or for a question that is gone, is dropped."""
        key = report.key
        found = self._reconciler.planner.questions.get(key)
        if found is None or found.modified != report.revision:
            return
        after = self._fold_into(key, found, report.outcome)
        self._reconciler.set_question(key, after)
        self._reconciler.signals.notify(key, Change(key, after.modified, found.value, after.value))

    def _fold_into(self, key: str, found: Record[Operation], outcome: Outcome) -> Record[Operation]:
        now_ns = self._clock.now_ns()
        outcome = stamp_fault(outcome, now_ns)
        log_failure(key, outcome)
        after = fold_outcome(found.value, outcome, now_ns=now_ns, jitter=self._chance.jitter())
        return Record(after, found.created, Revision(found.modified + 1))

    async def _ask_near(self, key: str, record: Record[Operation], timeout_s: float) -> tuple[Record[Operation], float]:
        """The question after its first try, if that could be made at once in this process, or as it was; and how long
        the try took, in seconds."""
        # One about no volume is not tried here: should its call hang, another controller is to have it.
        if self._near is None or not record.value.serial_key:
            return record, 0.0
        planned = self._reconciler.planner.assign_question(key, record, now_ns=self._clock.now_ns())
        node_id, ask = self._near
        if planned is None or planned.node_id != node_id:
            return record, 0.0
        assignment = planned.assignment
        if assignment.timeout_s > timeout_s:
            # The caller waits for the call itself.
            assignment = msgspec.structs.replace(assignment, timeout_s=timeout_s)
        told = await ask(assignment)
        if told is None:
            return record, 0.0
        return self._fold_into(key, record, told.outcome), told.took_s
