"""Operations: what an outcome makes of one, and which calls change nothing. Pure."""

from __future__ import annotations

import msgspec

from moorage.model.operation import Operation
from moorage.model.steps import ControllerStep, Failed, GetCapacity, ListSnapshots, ListVolumes, Outcome, ValidateVolume
from moorage.model.volume import Progress
from moorage.rules.backoff import after_fault, find_lasting, take_for_refusal

replace = msgspec.structs.replace


def make_serial_key(plugin_id: str, external_id: str) -> str:
    """The serial key of all steps about one disk (``StepAssignment.serial_key``)."""
    return f"volume/{plugin_id}/{external_id}"


def is_question(step: ControllerStep) -> bool:
    """Whether the call changes nothing: it may be made any number of times, and dropped when nobody waits for it."""
    return isinstance(step, (ListVolumes, ListSnapshots, GetCapacity, ValidateVolume))


def fold_outcome(operation: Operation, outcome: Outcome, *, now_ns: int, jitter: float) -> Operation:
    """The operation after its call: done, or to be tried again after a pause."""
    if isinstance(outcome, Failed):
        outcome = Failed(fault=take_for_refusal(operation.progress, outcome.fault))
    if isinstance(outcome, Failed) and not outcome.fault.final:
        progress = after_fault(operation.progress, outcome.fault, now_ns=now_ns, jitter=jitter)
        return replace(operation, progress=progress)
    return replace(operation, state="done", outcome=outcome, progress=Progress())


def find_answer(operation: Operation) -> Outcome | None:
    """What the caller is told: the outcome, or the fault of a call that keeps failing; None: it waits on."""
    if operation.outcome is not None:
        return operation.outcome
    lasting = find_lasting(operation.progress)
    return Failed(fault=lasting) if lasting is not None else None
