"""Decide the next node action for one disk on one node: the agent's table. Pure.

    goal      the claim is                                     so its use
    mount     held and attached or mounted                     is staged, published, bound, reported
    unmount   released and attached or mounted                 is unbound, unpublished, unstaged if last, reported
    none      taken, detached, or unknown to the server        goes the same way, and nobody is told

    publish   unbegun  no journal entry         bind   unneeded  the claim names no target
              open     to be published (again)         open      to be bound (again)
              ready    published and seen              ready     the target shows the volume
              foul     to be undone first              stale     ours, yet it shows something else
              gone     unpublished                     blocked   not ours, or it would hide data

Shapes: every claim of the disk on this node, the journal's entries, what a look at their paths showed.
Returns one action; after it the caller looks again and asks again. Doing any action twice is harmless.
Never:  reads the disk, the clock, or memory of earlier calls. Nothing found on disk is used unless the journal (or the
        server's record of this very claim as mounted) says that we made it. A staging is not undone while the journal
        has a living use of it or a claim on its way to one. A claim that is only taken does not keep a staging: its
        release would detach the disk without asking the agent.
Source: models §9; CSI spec "Volume Lifecycle"; contract csi-engine §I rules 8 to 10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import msgspec

from moorage.errors import BadRequest
from moorage.model.assignment import ClaimAssignment, MountedReport, MountFailedReport, UnmountedReport
from moorage.model.claim import Attached, Claim, Mounted
from moorage.model.ids import ClaimId
from moorage.model.steps import ExpandNodeVolume, PublishVolume, StageVolume, UnpublishVolume, UnstageVolume
from moorage.model.volume import BLOCK_DEVICE, Capability, Fault, MountOptions
from moorage.rules.mount_actions import (
    NOBODY,
    REST,
    Action,
    Begin,
    Bind,
    Forget,
    Grow,
    Item,
    Publish,
    Refuse,
    ReportMounted,
    ReportUnmounted,
    Rest,
    Stage,
    Unbind,
    Unpublish,
    Unstage,
    View,
)
from moorage.rules.mount_records import Staging, Use, why_target_unusable

Goal = Literal["mount", "unmount", "none"]
PublishFact = Literal["unbegun", "open", "ready", "foul", "gone"]
BindFact = Literal["unneeded", "open", "ready", "stale", "blocked"]
StageFact = Literal["unneeded", "open", "ready", "foul"]
BINDS: tuple[BindFact, ...] = get_args(BindFact)


def next_action(view: View, held_back: frozenset[ClaimId] = frozenset()) -> Action:
    """The next action for a disk; claims in ``held_back`` wait for their next try. Undoing comes before doing."""
    known = {a.claim.id: a for a in view.assignments}
    begun = {u.claim_id: u for u in view.uses}
    items = [Item(view=view, claim_id=i, assignment=known.get(i), use=begun.get(i)) for i in sorted({**known, **begun})]
    for wanted in ("none", "unmount", "mount") if view.may_mount else ("none", "unmount"):
        for item in items:
            if item.claim_id in held_back or goal_of(item.assignment) != wanted:
                continue
            action = NEXT[wanted, publish_fact(item)][BINDS.index(bind_fact(item))](item)
            if not isinstance(action, Rest):
                return action
    is_orphaned = not view.uses and all(goal_of(a) == "none" for a in view.assignments)
    if view.staging is not None and is_orphaned and NOBODY not in held_back:
        return _unstage(view, view.staging.staging_path, NOBODY)
    return REST


# -- facts -----------------------------------------------------------------------------------------------------------


def goal_of(assignment: ClaimAssignment | None) -> Goal:
    """Where a claim's use is to go."""
    if assignment is None or not isinstance(assignment.claim.state, (Attached, Mounted)):
        return "none"
    return "mount" if assignment.claim.wanted == "held" else "unmount"


def publish_fact(item: Item) -> PublishFact:
    """How far the publication is."""
    use = item.use
    if use is None:
        return "unbegun"
    seen = item.view.seen.published.get(item.claim_id, "absent")
    if use.phase == "gone":
        return "gone" if seen in ("absent", "plain") else "foul"
    if use.phase == "foul" or seen == "broken":
        return "foul"
    is_ready = use.phase == "done" and use.boot_id == item.view.boot_id and seen == use.seen_as
    return "ready" if is_ready else "open"


def bind_fact(item: Item) -> BindFact:
    """How far the target is."""
    use, seen = item.use, item.target
    target = use.target if use else item.claim.target
    if not target:
        return "unneeded"
    if _why_blocked(item):
        return "blocked"
    if use is None or use.bind == "none" or seen.kind not in ("mount", "link"):
        return "open"
    # A bind that was begun may lack its second half (read-only), so it is made anew.
    return "ready" if use.bind == "done" and seen.is_same else "stale"


def _why_blocked(item: Item) -> str:
    use, kind = item.use, item.target.kind
    target = use.target if use else item.claim.target
    mode = use.attachment_mode if use else item.claim.attachment_mode
    # Without a journal entry it may still be ours: then the entry was lost.
    is_ours = use.bind != "none" if use else item.target.is_same
    if kind in ("mount", "link") and is_ours:
        kind = "absent"
    return why_target_unusable(target, kind, layout=item.view.layout, is_block=mode == BLOCK_DEVICE)


def stage_fact(view: View, use: Use) -> StageFact:
    """How far the staging is that a use needs."""
    staging, seen = view.staging, view.seen.staging
    if not use.staging_path:
        return "unneeded"
    if seen == "broken" or (staging is not None and staging.phase == "foul"):
        return "foul"
    if staging is None:
        return "open"
    is_ready = staging.phase == "done" and staging.boot_id == view.boot_id and seen == staging.seen_as
    return "ready" if is_ready else "open"


def _is_staging_used(view: View, besides: ClaimId) -> bool:
    """Whether something other than this claim lives on the staging or is on its way to it."""
    is_living = any(u.claim_id != besides and publish_fact(_item_of(view, u)) != "gone" for u in view.uses)
    return is_living or any(goal_of(a) == "mount" and a.claim.id != besides for a in view.assignments)


# -- cells -----------------------------------------------------------------------------------------------------------


def _rest(item: Item) -> Action:
    return REST


def _begin(item: Item) -> Action:
    view, claim = item.view, item.claim
    if view.node is None:
        return REST
    # What we find is ours if the server knows this claim as mounted: then the journal was lost. Otherwise it is not.
    is_known = isinstance(claim.state, Mounted)
    is_there = view.seen.published.get(item.claim_id, "absent") in ("mount", "link", "broken")
    staging_path = view.layout.staging(view.disk) if view.node.requires_stage else ""
    use = _new_use(item, staging_path=view.staging.staging_path if staging_path and view.staging else staging_path)
    use = msgspec.structs.replace(use, phase="foul" if is_there and not is_known else "begun")
    is_staged = view.seen.staging in ("mount", "broken")
    staging = _new_staging(view, use, is_foul=is_staged and not is_known and not view.uses)
    return Begin(claim_id=item.claim_id, use=use, staging=staging)


def _begin_undo(item: Item) -> Action:
    """Released, and the journal knows nothing: nothing was begun, unless the record or the disk says otherwise."""
    view, state = item.view, item.claim.state
    is_there = view.seen.published.get(item.claim_id, "absent") != "absent"
    if not isinstance(state, Mounted) and not is_there:
        return _finish(item)
    if isinstance(state, Mounted):
        staging_path = state.staging_path
    else:
        staging_path = view.layout.staging(view.disk) if view.seen.staging in ("mount", "broken") else ""
    use = _new_use(item, staging_path=staging_path)
    staging = _new_staging(view, use, is_foul=False)
    return Begin(claim_id=item.claim_id, use=msgspec.structs.replace(use, phase="foul"), staging=staging)


def _new_use(item: Item, *, staging_path: str) -> Use:
    claim, state = item.claim, item.claim.state
    path = state.publish_path if isinstance(state, Mounted) else ""
    is_bound = item.target.kind in ("mount", "link") and item.target.is_same
    return Use(
        claim_id=claim.id,
        plugin_id=item.view.disk.plugin_id,
        external_id=item.view.disk.external_id,
        publish_path=path or item.view.layout.publish(claim.id),
        staging_path=staging_path,
        target="" if _why_blocked(item) else claim.target,
        attachment_mode=claim.attachment_mode,
        read_only=claim.read_only,
        boot_id=item.view.boot_id,
        bind="done" if is_bound else "none",
        grown_bytes=state.grown_bytes if isinstance(state, Mounted) else 0,
    )


def _new_staging(view: View, use: Use, *, is_foul: bool) -> Staging | None:
    if not use.staging_path or view.staging is not None:
        return None
    return Staging(
        plugin_id=use.plugin_id,
        external_id=use.external_id,
        staging_path=use.staging_path,
        boot_id=view.boot_id,
        phase="foul" if is_foul else "begun",
    )


def _advance(item: Item) -> Action:
    """Stage if it takes that, else publish."""
    view, use = item.view, item.begun
    if view.node is None:
        return REST
    fact = stage_fact(view, use)
    if fact == "foul":
        return _clear_staging(item)
    return _stage(item) if fact == "open" else _publish(item)


def _clear_staging(item: Item) -> Action:
    """A staging that must be undone first, as soon as nothing stands on it. Under a publication that works it stays:
    staging again lets the driver repair it, or say why not."""
    view = item.view
    if any(publish_fact(_item_of(view, u)) == "ready" for u in view.uses):
        return _stage(item)
    standing = {i for i, kind in view.seen.published.items() if kind in ("mount", "link", "broken")}
    if item.claim_id in standing:
        return _unpublish(item)
    if standing & {u.claim_id for u in view.uses}:
        return REST
    return _unstage(view, item.begun.staging_path, item.claim_id)


def _item_of(view: View, use: Use) -> Item:
    return Item(view=view, claim_id=use.claim_id, assignment=None, use=use)


def _stage(item: Item) -> Action:
    known = item.known
    step = StageVolume(
        external_id=item.view.disk.external_id,
        staging_path=item.begun.staging_path,
        capability=_capability(known.claim),
        mount_options=_options(known),
        publish_context=_publish_context(known.claim),
        context=known.context,
        secrets=known.secrets,
    )
    return Stage(claim_id=item.claim_id, step=step)


def _publish(item: Item) -> Action:
    known, use = item.known, item.begun
    step = PublishVolume(
        external_id=item.view.disk.external_id,
        target_path=use.publish_path,
        staging_path=use.staging_path,
        capability=_capability(known.claim),
        read_only=known.claim.read_only,
        mount_options=_options(known),
        publish_context=_publish_context(known.claim),
        context=known.context,
        secrets=known.secrets,
    )
    return Publish(claim_id=item.claim_id, step=step)


def _capability(claim: Claim) -> Capability:
    return Capability(access_mode=claim.access_mode, attachment_mode=claim.attachment_mode)


def _options(known: ClaimAssignment) -> MountOptions | None:
    return known.mount_options or known.claim.mount_options


def _publish_context(claim: Claim) -> dict[str, str]:
    return claim.state.publish_context if isinstance(claim.state, (Attached, Mounted)) else {}


def _bind(item: Item) -> Action:
    return Bind(claim_id=item.claim_id)


def _unbind(item: Item) -> Action:
    return Unbind(claim_id=item.claim_id)


def _unpublish(item: Item) -> Action:
    use = item.begun
    step = UnpublishVolume(external_id=use.external_id, target_path=use.publish_path)
    then: Literal["gone", "begun"] = "begun" if goal_of(item.assignment) == "mount" else "gone"
    return Unpublish(claim_id=item.claim_id, step=step, then=then)


def _undo(item: Item) -> Action:
    return _unpublish(item) if item.begun.bind == "none" else _unbind(item)


def _unstage(view: View, path: str, claim_id: ClaimId) -> Action:
    step = UnstageVolume(external_id=view.disk.external_id, staging_path=path)
    return Unstage(claim_id=claim_id, step=step)


def _finish(item: Item) -> Action:
    """Unpublished: undo the staging if this was its last use, then tell."""
    view = item.view
    if view.staging is not None and not _is_staging_used(view, item.claim_id):
        return _unstage(view, view.staging.staging_path, item.claim_id)
    report = UnmountedReport(claim_id=item.claim_id, revision=item.known.revision)
    return _unless_told(item, ReportUnmounted(claim_id=item.claim_id, report=report))


def _unless_told(item: Item, action: ReportMounted | ReportUnmounted) -> Action:
    return REST if item.view.reported.get(item.claim_id) == action.report else action


def _settle(item: Item) -> Action:
    """Published and bound: tell if the record says otherwise, then let the filesystem grow."""
    use, known, node = item.begun, item.known, item.view.node
    state = known.claim.state
    told = state if isinstance(state, Mounted) else Mounted(path="")
    report = MountedReport(
        claim_id=item.claim_id,
        revision=known.revision,
        path=use.target or use.publish_path,
        publish_path=use.publish_path,
        staging_path=use.staging_path,
        grown_bytes=max(use.grown_bytes, told.grown_bytes),
    )
    now = (report.path, report.publish_path, report.staging_path, report.grown_bytes)
    is_owed = known.grow_to_bytes > report.grown_bytes
    # A fault on record of a mount that works is over: the server is told, so that it does not show it for ever.
    is_mended = known.claim.progress.last_fault is not None and not is_owed
    if is_mended or now != (told.path, told.publish_path, told.staging_path, told.grown_bytes):
        return _unless_told(item, ReportMounted(claim_id=item.claim_id, report=report))
    if not is_owed or node is None or not node.supports_expand or use.read_only:
        return REST
    step = ExpandNodeVolume(
        external_id=use.external_id,
        volume_path=use.publish_path,
        staging_path=use.staging_path,
        required_bytes=known.grow_to_bytes,
        capability=_capability(known.claim),
        mount_options=_options(known),
        secrets=known.secrets,
    )
    return Grow(claim_id=item.claim_id, step=step)


def _refuse(item: Item) -> Action:
    """The target cannot be used. For a mount that was lost this is not the end: the consumer still holds the claim."""
    is_first = isinstance(item.claim.state, Attached)
    fault = Fault(method="Target", status=BadRequest.code, message=_why_blocked(item), final=is_first)
    report = MountFailedReport(claim_id=item.claim_id, revision=item.known.revision, fault=fault)
    return Refuse(claim_id=item.claim_id, report=report)


def _refuse_open(item: Item) -> Action:
    """Refuse, but first leave a staging that must be undone: the disk's other claims wait for that."""
    is_foul = item.view.node is not None and stage_fact(item.view, item.begun) == "foul"
    action = _clear_staging(item) if is_foul else REST
    return action if isinstance(action, Unpublish) else _refuse(item)


def _forget(item: Item) -> Action:
    return Forget(claim_id=item.claim_id)


# -- NEXT ------------------------------------------------------------------------------------------------------------

Cell = Callable[[Item], Action]
NEXT: dict[tuple[Goal, PublishFact], tuple[Cell, Cell, Cell, Cell, Cell]] = {
    #                      unneeded     open         ready        stale        blocked
    ("mount", "unbegun"): (_begin, _begin, _begin, _begin, _refuse),
    ("mount", "open"): (_advance, _advance, _advance, _advance, _refuse_open),
    ("mount", "ready"): (_settle, _bind, _settle, _unbind, _refuse),
    ("mount", "foul"): (_undo, _undo, _undo, _undo, _undo),
    ("mount", "gone"): (_forget, _forget, _forget, _forget, _forget),
    ("unmount", "unbegun"): (_begin_undo, _begin_undo, _begin_undo, _begin_undo, _begin_undo),
    ("unmount", "open"): (_undo, _undo, _undo, _undo, _undo),
    ("unmount", "ready"): (_undo, _undo, _undo, _undo, _undo),
    ("unmount", "foul"): (_undo, _undo, _undo, _undo, _undo),
    ("unmount", "gone"): (_finish, _finish, _finish, _finish, _finish),
    ("none", "unbegun"): (_rest, _rest, _rest, _rest, _rest),
    ("none", "open"): (_undo, _undo, _undo, _undo, _undo),
    ("none", "ready"): (_undo, _undo, _undo, _undo, _undo),
    ("none", "foul"): (_undo, _undo, _undo, _undo, _undo),
    ("none", "gone"): (_forget, _forget, _forget, _forget, _forget),
}
