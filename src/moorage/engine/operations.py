"""Operations: run one controller call by way of a record, and wait for its outcome."""

from __future__ import annotations

from typing import cast

from moorage.engine.ports import Chance, Clock, EngineSettings
from moorage.engine.reconciler import Reconciler
from moorage.errors import DeadlineExceeded
from moorage.model.ids import OperationId, PluginId
from moorage.model.operation import Operation
from moorage.model.steps import (
    ControllerStep,
    Failed,
    GetCapacity,
    ListSnapshots,
    ListVolumes,
    Outcome,
    ValidateVolume,
)
from moorage.rules.backoff import find_lasting
from moorage.rules.explanations import check_step, explain
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
        key = keys.operation_key(operation.id)

        def answered(change: Change) -> Outcome | None:
            if not isinstance(change.after, Operation):
                return None
            if change.after.outcome is not None:
                return change.after.outcome
            lasting = find_lasting(change.after.progress)
            return Failed(fault=lasting) if lasting is not None else None

        with self._repo.feed.signals.listen((key,), answered) as listening:
            await self._repo.commit(Write().put(key, operation, revision=0))
            try:
                outcome = await listening.result(timeout_s=self._settings.request_s)
            finally:
                found = self._repo.view.operations.find(key)
                if found is not None and (found.value.state == "done" or _is_read_only(step)):
                    self._reconciler.forget_operation(key)
        if outcome is None:
            raise self._too_late(key, step)
        return cast(Outcome, outcome)

    def _too_late(self, key: str, step: ControllerStep) -> DeadlineExceeded:
        found = self._repo.view.operations.find(key)
        fault = found.value.progress.last_fault if found is not None else None
        last = f"; the last try failed: {explain(step, fault)}" if fault else "; no controller of the plugin answered"
        return DeadlineExceeded(
            f"{type(step).__name__} has not ended after {self._settings.request_s:.0f} s{last}; asking again is safe"
        )


def _is_read_only(step: ControllerStep) -> bool:
    """Whether a call that nobody waits for any more may be dropped: it would change nothing."""
    return isinstance(step, (ListVolumes, ListSnapshots, GetCapacity, ValidateVolume))
