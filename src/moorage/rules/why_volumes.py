"""Why a volume is not ready: its own step, its claims, its plugin. Pure.

wanted   state    the word
present  absent   creating
absent   absent   undoing: a create that was given up or refused
absent   ready    deleting
present  ready    that of the claim in most need (lost, waiting, releasing, detaching, attaching, mounting,
                  expanding), else expanding, unhealthy, held, ready
"""

from __future__ import annotations

import msgspec

from moorage.model.plugin import Plugin
from moorage.model.volume import Fault, Volume
from moorage.rules.plugins import measure_health
from moorage.rules.volumes import is_expanding
from moorage.rules.why import (
    NOTHING,
    READY,
    Command,
    ControllerCase,
    Explanation,
    Findings,
    Holder,
    Queue,
    command,
    cut,
    cut_commands,
    describe_fault,
    find_controller_blocks,
    find_plugin_blocks,
    make_last_call,
    name_holders,
    since,
)
from moorage.rules.why_claims import ClaimCase, Story, make_holder, tell

URGENCY = ("lost", "waiting", "releasing", "detaching", "attaching", "mounting", "expanding")


class VolumeCase(msgspec.Struct, frozen=True, kw_only=True):
    """A volume with its surroundings. ``claims``: those on every record of its disk. ``others``: those records.
    ``silent``, ``busy``: as in ControllerCase."""

    volume: Volume
    plugin: Plugin | None = None
    claims: tuple[ClaimCase, ...] = ()
    queue: Queue | None = None
    silent: tuple[str, ...] = ()
    busy: str = ""
    others: tuple[str, ...] = ()


def explain_volume(case: VolumeCase, *, now_ns: int) -> Explanation:
    """Why the volume is in the state it is in."""
    is_there = case.volume.wanted == "present" and case.volume.state == "ready"
    return _explain_ready(case, now_ns) if is_there else _explain_own_step(case, now_ns)


def find_worst(stories: list[Story]) -> Story | None:
    """The claim in most need; None when all are mounted."""
    waiting = [s for s in stories if not s.is_settled]
    return min(waiting, key=lambda s: URGENCY.index(s.state), default=None)


# -- the volume's own step -------------------------------------------------------------------------------------------


def _explain_own_step(case: VolumeCase, now_ns: int) -> Explanation:
    """Creating, undoing, deleting."""
    volume = case.volume
    fault = volume.progress.last_fault
    delete = ("volume", "delete", volume.id, *_namespace(volume))
    if volume.wanted == "present":
        state, doing = "creating", f'is being created at the driver of plugin "{volume.plugin_id}"'
        helps = (command("gives the create up, and deletes what the driver may have made", *delete),)
    elif volume.state == "ready":
        state, doing = "deleting", f'is being deleted at the driver of plugin "{volume.plugin_id}"'
        helps = (command("waits for the deletion, and says how it ends; may be repeated", *delete),)
    elif fault is not None and fault.final:
        text = "nothing is left at the driver: the record goes next"
        found = Findings(blocks=(_say(volume, fault), text))
        return _finish(case, "undoing", "was refused by its driver and is being forgotten", found, now_ns=now_ns)
    else:
        state, doing = "undoing", "was given up while it was created: what the driver may have made is being deleted"
        helps = (command("waits for it, and says how it ends; may be repeated", *delete),)
    found = _find_own_blocks(case, now_ns=now_ns) + Findings(commands=helps)
    return _finish(case, state, doing, found, now_ns=now_ns)


def _say(volume: Volume, fault: Fault) -> str:
    return describe_fault(fault, volume.progress.attempts, (volume.secrets, volume.delete_secrets))


def _namespace(volume: Volume) -> tuple[str, ...]:
    return () if volume.namespace == "default" else ("-namespace", volume.namespace)


def _find_own_blocks(case: VolumeCase, *, now_ns: int) -> Findings:
    volume = case.volume
    return find_controller_blocks(
        ControllerCase(
            plugin_id=volume.plugin_id,
            plugin=case.plugin,
            progress=volume.progress,
            queue=case.queue,
            silent=case.silent,
            busy=case.busy,
            secrets=(volume.secrets, volume.delete_secrets),
        ),
        now_ns=now_ns,
    )


def _finish(case: VolumeCase, state: str, doing: str, found: Findings, *, now_ns: int) -> Explanation:
    """The explanation of a state that the volume's own record makes."""
    volume = case.volume
    began = volume.progress.since_ns or (volume.created_at_ns if state == "creating" else volume.modified_at_ns)
    first = f": {found.blocks[0]}" if found.blocks else ""
    return Explanation(
        kind="volume",
        id=volume.id,
        namespace=volume.namespace,
        state=state,
        summary=f'volume "{volume.id}" {doing}{since(began)}{first}',
        since_ns=began or volume.created_at_ns,
        holders=_make_holders(case),
        last_call=make_last_call(volume.progress, (volume.secrets, volume.delete_secrets)),
        next_try_ns=found.next_try_ns,
        queue=case.queue,
        blocks=cut(found.blocks),
        commands=cut_commands(found.commands),
    )


def _make_holders(case: VolumeCase) -> tuple[Holder, ...]:
    return tuple(make_holder(c) for c in case.claims)


# -- volumes that the driver has -------------------------------------------------------------------------------------


def _explain_ready(case: VolumeCase, now_ns: int) -> Explanation:
    volume = case.volume
    stories = [tell(c, now_ns=now_ns) for c in case.claims]
    worst = find_worst(stories)
    if worst is not None and worst.state != "expanding":
        return _explain_by_claims(case, stories, worst)
    if is_expanding(volume):
        found = _find_own_blocks(case, now_ns=now_ns) + _advise_status(volume)
        return _finish(case, "expanding", "is being made bigger at the driver", found, now_ns=now_ns)
    if worst is not None:
        return _explain_by_claims(case, stories, worst)
    health = measure_health(case.plugin)
    if not health.is_schedulable:
        found = NOTHING if health.nodes_healthy else _find_side_blocks(case, "node")
        if health.is_controller_required and not health.controllers_healthy:
            found = found + _find_side_blocks(case, "controller")
        doing = f'cannot be claimed: plugin "{volume.plugin_id}" is not healthy'
        return _finish(case, "unhealthy", doing, found, now_ns=now_ns)
    return _explain_held(case) if case.claims else _explain_free(case)


def _find_side_blocks(case: VolumeCase, needs: str) -> Findings:
    return find_plugin_blocks(case.volume.plugin_id, case.plugin, needs=needs)


def _advise_status(volume: Volume) -> Findings:
    show = command("shows the volume's size and what was asked for", "volume", "status", volume.id, *_namespace(volume))
    return Findings(commands=(show,))


def _explain_by_claims(case: VolumeCase, stories: list[Story], worst: Story) -> Explanation:
    """The claim in most need says what the volume is at; the others' blocks follow."""
    volume = case.volume
    ordered = [worst, *(s for s in stories if s is not worst and not s.is_settled)]
    found = NOTHING
    for story in ordered:
        found = found + story.findings
    first = found.blocks[0]
    return Explanation(
        kind="volume",
        id=volume.id,
        namespace=volume.namespace,
        state=worst.state,
        summary=f'volume "{volume.id}" {worst.doing}: {first}',
        since_ns=worst.since_ns,
        holders=_make_holders(case),
        last_call=worst.last_call or make_last_call(volume.progress, (volume.secrets, volume.delete_secrets)),
        next_try_ns=found.next_try_ns,
        queue=worst.queue or case.queue,
        blocks=cut(found.blocks),
        commands=cut_commands(found.commands),
    )


def _explain_held(case: VolumeCase) -> Explanation:
    volume, holders = case.volume, _make_holders(case)
    mode = case.claims[0].claim.access_mode
    blocks = [f"it is in use as {mode}: claims that this mode leaves no room for are refused"]
    if case.others:
        blocks.append(f"the same disk is registered as {', '.join(case.others)}: claims on all are admitted together")
    blocks += _find_old_fault(volume)
    return Explanation(
        kind="volume",
        id=volume.id,
        namespace=volume.namespace,
        state="held",
        summary=f'volume "{volume.id}" is mounted and in use: by {name_holders(holders)}',
        since_ns=min(h.since_ns for h in holders),
        holders=holders,
        last_call=make_last_call(volume.progress, (volume.secrets, volume.delete_secrets)),
        blocks=cut(blocks),
        commands=cut_commands(_umount(h) for h in holders),
    )


def _umount(holder: Holder) -> Command:
    where = holder.node_name or holder.node_id
    return command(f"ends the use on node {where} and releases the volume", "umount", holder.allocation_id)


def _find_old_fault(volume: Volume) -> list[str]:
    fault = volume.progress.last_fault
    return [_say(volume, fault)] if fault is not None else []


def _explain_free(case: VolumeCase) -> Explanation:
    volume = case.volume
    return Explanation(
        kind="volume",
        id=volume.id,
        namespace=volume.namespace,
        state=READY,
        summary=f'volume "{volume.id}" is ready, and nobody uses it',
        since_ns=volume.modified_at_ns or volume.created_at_ns,
        last_call=make_last_call(volume.progress, (volume.secrets, volume.delete_secrets)),
        blocks=cut(_find_old_fault(volume)),
    )
