"""Why an allocation is not ready: how each of its mounts fares. Pure."""

from __future__ import annotations

import msgspec

from moorage.model.claim import Allocation
from moorage.model.node import Node
from moorage.rules.why import (
    NOTHING,
    READY,
    Explanation,
    Findings,
    command,
    cut,
    cut_commands,
    name_node,
    since,
)
from moorage.rules.why_claims import ClaimCase, Story, make_holder, tell
from moorage.rules.why_volumes import find_worst


class AllocationCase(msgspec.Struct, frozen=True, kw_only=True):
    """An allocation with its node and its claims that still exist."""

    allocation: Allocation
    node: Node | None = None
    claims: tuple[ClaimCase, ...] = ()


def explain_allocation(case: AllocationCase, *, now_ns: int) -> Explanation:
    """Why the allocation is in the state it is in."""
    allocation = case.allocation
    stories = [tell(c, now_ns=now_ns) for c in case.claims]
    worst = find_worst(stories)
    if allocation.status in ("complete", "failed", "lost"):
        return _explain_end(case, stories, worst)
    if worst is not None:
        return _explain_under_way(case, stories, worst)
    if allocation.wanted == "run" and case.claims and allocation.status == "running":
        return _explain_running(case)
    return _explain_between(case)


def _make(
    case: AllocationCase, state: str, summary: str, found: Findings, *, worst: Story | None = None
) -> Explanation:
    allocation = case.allocation
    name = f' ("{allocation.name}")' if allocation.name else ""
    began = worst.since_ns if worst else allocation.modified_at_ns
    return Explanation(
        kind="allocation",
        id=allocation.id,
        namespace=allocation.namespace,
        state=state,
        summary=f"allocation {allocation.id}{name} {summary}",
        since_ns=began or allocation.created_at_ns,
        holders=tuple(make_holder(c) for c in case.claims),
        last_call=worst.last_call if worst else None,
        next_try_ns=found.next_try_ns,
        queue=worst.queue if worst else None,
        blocks=cut(found.blocks),
        commands=cut_commands(found.commands),
    )


def _gather(case: AllocationCase, stories: list[Story]) -> Findings:
    """The blocks of all mounts, each with its volume's name; the worst first."""
    found = NOTHING
    for claim_case, story in zip(case.claims, stories, strict=True):
        if story.is_settled:
            continue
        volume = f'volume "{claim_case.claim.volume_id}" {story.doing}'
        own = story.findings
        found = found + msgspec.structs.replace(own, blocks=tuple(f"{volume}: {text}" for text in own.blocks))
    return found


def _explain_under_way(case: AllocationCase, stories: list[Story], worst: Story) -> Explanation:
    claim_case = case.claims[stories.index(worst)]
    text = f'waits for volume "{claim_case.claim.volume_id}", which {worst.doing}: {worst.findings.blocks[0]}'
    show = command("shows the use with what happened to it", "alloc", "status", case.allocation.id)
    return _make(case, worst.state, text, _gather(case, stories) + Findings(commands=(show,)), worst=worst)


def _explain_end(case: AllocationCase, stories: list[Story], worst: Story | None) -> Explanation:
    allocation = case.allocation
    said = f": {allocation.description}" if allocation.description else ""
    verb = {"complete": "has ended", "failed": "has failed", "lost": "was lost with its node"}[allocation.status]
    blocks = [f"it {verb}{since(allocation.finished_at_ns)}{said}"]
    if worst is None:
        blocks.append("all its volumes are released" if not case.claims else "its volumes are about to be released")
    show = command("shows what happened to it", "alloc", "status", allocation.id)
    found = Findings(blocks=tuple(blocks)) + _gather(case, stories) + Findings(commands=(show,))
    made = _make(case, allocation.status, f"{verb}{said}", found, worst=worst)
    return msgspec.structs.replace(made, since_ns=allocation.finished_at_ns or made.since_ns)


def _explain_running(case: AllocationCase) -> Explanation:
    where = name_node(case.node, case.allocation.node_id)
    found = NOTHING
    if case.node is not None and case.node.wanted == "draining":
        end = command("ends the drain", "node", "drain", "-disable", case.node.id)
        text = f"node {where} is draining: this use will be released in its turn"
        found = Findings(blocks=(text,), commands=(end,))
    made = _make(case, READY, f"is ready: all its volumes are mounted on node {where}", found)
    return msgspec.structs.replace(made, since_ns=case.allocation.started_at_ns or made.since_ns)


def _explain_between(case: AllocationCase) -> Explanation:
    """The record has not yet followed its claims."""
    allocation = case.allocation
    end = command("ends this use", "umount", allocation.id)
    if allocation.wanted == "run" and not case.claims:
        text = "its claims are gone: its volume was deregistered by force, or they are not on record yet"
        return _make(case, "waiting", f"has no claims: {text}", Findings(blocks=(text,), commands=(end,)))
    doing = "is being started" if allocation.wanted == "run" else "is being released"
    state = "mounting" if allocation.wanted == "run" else "releasing"
    text = "its claims have moved on: the record follows next"
    return _make(case, state, f"{doing}: {text}", Findings(blocks=(text,), commands=(end,)))
