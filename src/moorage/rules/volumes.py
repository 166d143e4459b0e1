"""Volumes: the next step for a volume's record, and what an outcome makes of it. Pure.

    wanted   state    NEXT
    present  absent   create
    present  ready    expand, if an expansion is on record; else rest
    absent   absent   create again to learn what may exist, then delete it; remove, once that is known to be nothing,
                      or the driver has answered LEARN_MAX times in a row that it cannot say
    absent   ready    delete

``wanted`` is written by the service; ``state`` only by FOLD. A create that was refused turns ``wanted`` to absent and
keeps the fault, so that whoever waits sees it before the record goes. A delete that was refused turns it back.
Answers that leave open what was done (INTERNAL, UNKNOWN) are repeated, and after some in a row taken for a refusal; a
create that ends so is undone, since it may have made something (docs/decisions/0004).
Source: models §9; contract csi-engine §I.1, §I.11, §I.12, §I.16.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from moorage.model.steps import (
    ControllerStep,
    Created,
    CreateVolume,
    DeleteVolume,
    Done,
    Expanded,
    ExpandVolume,
    Failed,
    Outcome,
)
from moorage.model.volume import Capability, Fault, Progress, Volume
from moorage.rules.backoff import UNCLEAR, after_fault, take_for_refusal
from moorage.rules.explanations import check_created

replace = msgspec.structs.replace


class Rest(msgspec.Struct, frozen=True):
    """Nothing to do until the record changes."""


class Remove(msgspec.Struct, frozen=True):
    """Delete the record: nothing is left at the driver."""


LEARN_MAX = 8
Decision = ControllerStep | Rest | Remove
REST = Rest()
REMOVE = Remove()


def next_step(volume: Volume) -> Decision:
    """What to do next for this volume; the time of the next try is the caller's business."""
    return NEXT[volume.wanted, volume.state](volume)


def _create(volume: Volume) -> CreateVolume:
    return CreateVolume(
        name=volume.name,
        capabilities=volume.capabilities or (),
        mount_options=volume.mount_options,
        parameters=volume.parameters,
        secrets=volume.secrets,
        required_bytes=volume.requested_min_bytes,
        limit_bytes=volume.requested_max_bytes,
        clone_id=volume.clone_id,
        snapshot_id=volume.snapshot_id,
        topologies=volume.requested_topologies,
    )


def _expand_or_rest(volume: Volume) -> Decision:
    if not is_expanding(volume):
        return REST
    in_use = Capability(access_mode=volume.access_mode, attachment_mode=volume.attachment_mode)
    return ExpandVolume(
        external_id=volume.external_id,
        required_bytes=volume.expand_min_bytes,
        limit_bytes=volume.expand_max_bytes,
        capability=in_use if volume.access_mode else None,
        mount_options=volume.mount_options,
        secrets=volume.secrets,
    )


def _learn_or_remove(volume: Volume) -> Decision:
    fault = volume.progress.last_fault
    return REMOVE if fault is not None and fault.final else _create(volume)


def _delete(volume: Volume) -> Decision:
    return DeleteVolume(external_id=volume.external_id, secrets=volume.secrets.overlaid(volume.delete_secrets))


NEXT: dict[tuple[str, str], Callable[[Volume], Decision]] = {
    ("present", "absent"): _create,
    ("present", "ready"): _expand_or_rest,
    ("absent", "absent"): _learn_or_remove,
    ("absent", "ready"): _delete,
}


def is_expanding(volume: Volume) -> bool:
    """Whether an expansion is on record and not yet answered."""
    return bool(volume.expand_min_bytes or volume.expand_max_bytes)


def is_shown(volume: Volume | None) -> bool:
    """Whether reads show the volume: not before the driver has it; a create that fails must never have been seen."""
    return volume is not None and volume.state == "ready"


class Folding(msgspec.Struct, frozen=True, kw_only=True):
    """What FOLD needs beside the record: the moment (ns), a jitter in [0, 1), and whether the external ID that a
    create answered is registered already (then the record of that disk is somebody else's), and as which volume of the
    same namespace (empty: of another)."""

    now_ns: int
    jitter: float
    is_external_id_taken: bool = False
    taken_by: str = ""


def fold_outcome(volume: Volume, outcome: Outcome, folding: Folding) -> Volume | None:
    """The record after a step's outcome; None: the record goes."""
    if isinstance(outcome, Failed):
        return FOLD_FAILED[volume.wanted, volume.state](volume, outcome.fault, folding)
    fold = FOLD.get((volume.wanted, volume.state, type(outcome)))
    # An outcome of another step than the one in hand: the record has moved on; it stays as it is.
    return fold(volume, outcome, folding) if fold else volume


def _created(volume: Volume, outcome: Outcome, folding: Folding) -> Volume:
    assert isinstance(outcome, Created)
    if folding.is_external_id_taken:
        which = f' "{outcome.external_id}"' if folding.taken_by else ""
        text = (
            f"the driver answered with an external ID{which} which is registered already"
            f'{_as_whom(folding)}: another volume has the name "{volume.name}"'
        )
        return _give_up(volume, text, folding)
    ready = replace(
        volume,
        state="ready",
        external_id=outcome.external_id,
        capacity_bytes=outcome.capacity_bytes,
        context=outcome.context or volume.context,
        topologies=outcome.topologies,
        modified_at_ns=folding.now_ns,
        progress=Progress(),
    )
    # A promise that the answer breaks: what was made is deleted, and the caller is told.
    broken = check_created(_create(volume), outcome) if volume.wanted == "present" else None
    return _give_up(ready, broken.message, folding) if broken is not None else ready


def _as_whom(folding: Folding) -> str:
    return f' as volume "{folding.taken_by}"' if folding.taken_by else " in another namespace"


def _give_up(volume: Volume, text: str, folding: Folding) -> Volume:
    """Turn to absent with a final fault: what was made (state ready) is deleted, what was not ours is left."""
    fault = Fault(method="CreateVolume", status="", message=text, final=True, at_ns=folding.now_ns)
    return replace(volume, wanted="absent", progress=Progress(last_fault=fault, attempts=1))


def _expanded(volume: Volume, outcome: Outcome, folding: Folding) -> Volume:
    assert isinstance(outcome, Expanded)
    capacity = outcome.capacity_bytes or max(volume.capacity_bytes, volume.expand_min_bytes)
    return replace(
        volume,
        capacity_bytes=capacity,
        requested_min_bytes=volume.expand_min_bytes,
        requested_max_bytes=volume.expand_max_bytes,
        expand_min_bytes=0,
        expand_max_bytes=0,
        node_expansion_bytes=capacity if outcome.is_node_expansion_required else volume.node_expansion_bytes,
        modified_at_ns=folding.now_ns,
        progress=Progress(),
    )


def _deleted(volume: Volume, outcome: Outcome, folding: Folding) -> None:
    return None


FOLD: dict[tuple[str, str, type], Callable[[Volume, Outcome, Folding], Volume | None]] = {
    ("present", "absent", Created): _created,
    ("absent", "absent", Created): _created,
    ("present", "ready", Expanded): _expanded,
    ("absent", "ready", Done): _deleted,
}


def _create_failed(volume: Volume, fault: Fault, folding: Folding) -> Volume:
    if volume.wanted == "absent" and fault.status == "RESOURCE_EXHAUSTED":
        # Asked again only to learn what is there: a driver that had it would name it, not look for room.
        fault = replace(fault, final=True)
    if volume.wanted == "absent":
        fault = take_for_refusal(volume.progress, fault, unclear_max=LEARN_MAX)
    elif take_for_refusal(volume.progress, fault).final and not fault.final:
        # The caller is told, and what the driver may have made is looked for from the beginning.
        progress = after_fault(Progress(), fault, now_ns=folding.now_ns, jitter=folding.jitter)
        return replace(volume, wanted="absent", progress=progress)
    progress = after_fault(volume.progress, fault, now_ns=folding.now_ns, jitter=folding.jitter)
    return replace(volume, wanted="absent" if fault.final else volume.wanted, progress=progress)


def is_given_up(volume: Volume) -> bool:
    """A create that was refused for good: nothing is at the driver, and the record goes next."""
    fault = volume.progress.last_fault
    return volume.state == "absent" and volume.wanted == "absent" and fault is not None and fault.final


def is_told_failed(volume: Volume) -> bool:
    """Whether the create was told to have failed, and what it may have left is still looked for: a new create under the
    same name takes its place, and with it the duty."""
    fault = volume.progress.last_fault
    return (volume.wanted, volume.state) == ("absent", "absent") and fault is not None and fault.status in UNCLEAR


def _expand_failed(volume: Volume, fault: Fault, folding: Folding) -> Volume:
    fault = take_for_refusal(volume.progress, fault)
    progress = after_fault(volume.progress, fault, now_ns=folding.now_ns, jitter=folding.jitter)
    if not fault.final:
        return replace(volume, progress=progress)
    return replace(volume, expand_min_bytes=0, expand_max_bytes=0, progress=progress)


def _delete_failed(volume: Volume, fault: Fault, folding: Folding) -> Volume:
    fault = take_for_refusal(volume.progress, fault)
    progress = after_fault(volume.progress, fault, now_ns=folding.now_ns, jitter=folding.jitter)
    if not fault.final:
        return replace(volume, progress=progress)
    return replace(volume, wanted="present", delete_secrets=type(volume.delete_secrets)(), progress=progress)


FOLD_FAILED: dict[tuple[str, str], Callable[[Volume, Fault, Folding], Volume]] = {
    ("present", "absent"): _create_failed,
    ("absent", "absent"): _create_failed,
    ("present", "ready"): _expand_failed,
    ("absent", "ready"): _delete_failed,
}
