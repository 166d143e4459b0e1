"""Operations: run one controller call and wait for its outcome; by way of a record, unless it changes nothing."""

from __future__ import annotations

from typing import cast

from moorage.engine.ports import Chance, Clock, EngineSettings
from moorage.engine.questions import Questions
from moorage.engine.reconciler import Reconciler
from moorage.errors import DeadlineExceeded
from moorage.model.ids import OperationId, PluginId
from moorage.model.operation import Operation
from moorage.model.steps import ControllerStep, Failed, Outcome
from moorage.rules.explanations import check_step, explain
from moorage.rules.operations import find_answer, is_question
from moorage.state import keys
from moorage.state.feed import Change
from moorage.state.repo import Repo, Write


class Operations:
    """Calls that belong to no volume's own state: validation, listings, snapshots."""

    def __init__(
        self, repo: Repo, reconciler: Reconciler, *, clock: Clock, chance: Chance, settings: EngineSettings
    ) -> None:
        self._repo = repo
        self._reconciler = reconciler
        self._clock = clock
        self._chance = chance
        self._settings = settings
        self.questions = Questions(reconciler, clock=clock, chance=chance)

    async def run(self, plugin_id: PluginId, step: ControllerStep, *, serial_key: str = "") -> Outcome:
        """The outcome of the call; Failed for what the driver refused.

        Raises DeadlineExceeded when none came in time (a snapshot that was asked for may still be made),
        StoreUnavailable.
        """
        fault = check_step(step)
        if fault is not None:
            return Failed(fault=fault)
        now_ns = self._clock.now_ns()
        operation = Operation(
            id=OperationId(self._chance.new_id()),
            plugin_id=plugin_id,
            step=step,
            serial_key=serial_key,
            created_at_ns=now_ns,
            expires_at_ns=now_ns + int(self._settings.operation_kept_s * 1e9),
        )
        if is_question(step):
            answer = await self.questions.ask(operation, timeout_s=self._settings.request_s)
            if isinstance(answer, Operation):
                raise self._too_late(answer)
            return answer
        return await self._run_recorded(operation)

    async def _run_recorded(self, operation: Operation) -> Outcome:
        key = keys.operation_key(operation.id)

        def answered(change: Change) -> Outcome | None:
            return find_answer(change.after) if isinstance(change.after, Operation) else None

        with self._repo.feed.signals.listen((key,), answered) as listening:
            await self._repo.commit(Write().put(key, operation, revision=0))
            try:
                outcome = await listening.result(timeout_s=self._settings.request_s)
            finally:
                found = self._repo.view.operations.find(key)
                if found is not None and found.value.state == "done":
                    self._reconciler.forget_operation(key)
        if outcome is None:
            found = self._repo.view.operations.find(key)
            raise self._too_late(found.value if found is not None else operation)
        return cast(Outcome, outcome)

    def _too_late(self, operation: Operation) -> DeadlineExceeded:
        step, fault = operation.step, operation.progress.last_fault
        last = f"; the last try failed: {explain(step, fault)}" if fault else "; no controller of the plugin answered"
        return DeadlineExceeded(
            f"{type(step).__name__} has not ended after {self._settings.request_s:.0f} s{last}; asking again is safe"
        )
