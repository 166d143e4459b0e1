"""Questions: calls that change nothing (validation, listings, capacity), asked of a driver without a record.

A question goes the way of every controller call, as an assignment to the node that has the controller, tried again
after a pause, moved to another controller when one fails; but it is kept in memory only. When the server dies, so does
the request that waits for the answer, and a report on a question that nobody knows says nothing.
Why this is allowed: ``docs/decisions/0006``. Never: for a call that may change anything at the driver.
"""

from __future__ import annotations

from typing import cast

from moorage.engine.outcomes import log_failure, stamp_fault
from moorage.engine.ports import Chance, Clock
from moorage.engine.reconciler import Reconciler
from moorage.model.assignment import StepReport
from moorage.model.ids import Revision
from moorage.model.operation import Operation
from moorage.model.steps import Outcome
from moorage.rules.operations import find_answer, fold_outcome
from moorage.state.feed import Change
from moorage.state.view import Record

QUESTIONS = "questions/"


class Questions:
    """Questions that somebody waits for; as many as requests have in hand."""

    def __init__(self, reconciler: Reconciler, *, clock: Clock, chance: Chance) -> None:
        self._reconciler = reconciler
        self._clock = clock
        self._chance = chance

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

        def answered(change: Change) -> Outcome | None:
            assert isinstance(change.after, Operation)
            return find_answer(change.after)

        try:
            with self._reconciler.signals.listen((key,), answered) as listening:
                self._reconciler.set_question(key, Record(operation, Revision(1), Revision(1)))
                found = cast(Outcome | None, await listening.result(timeout_s=timeout_s))
            return found or self._reconciler.planner.questions[key].value
        finally:
            self._reconciler.drop_question(key)

    def fold(self, report: StepReport) -> None:
        """Take the outcome of a try; one of an earlier try, or for a question that is gone, is dropped."""
        key = report.key
        found = self._reconciler.planner.questions.get(key)
        if found is None or found.modified != report.revision:
            return
        now_ns = self._clock.now_ns()
        outcome = stamp_fault(report.outcome, now_ns)
        log_failure(key, outcome)
        after = fold_outcome(found.value, outcome, now_ns=now_ns, jitter=self._chance.jitter())
        revision = Revision(found.modified + 1)
        self._reconciler.set_question(key, Record(after, found.created, revision))
        self._reconciler.signals.notify(key, Change(key, revision, found.value, after))
