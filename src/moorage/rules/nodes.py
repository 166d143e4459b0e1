"""Nodes: what a registration makes of a node's record, when a silent one is lost, and what frees its claims. Pure.

    status        event                              becomes
    initializing  registered                         ready
    ready         silent beyond its lease            down, lost now, no evidence
    down          registered, clean by the newest    ready; its agent reports what is left of released claims
                  list of claims
    down          registered so, booted anew and     ready; its released claims are freed first (reboot), or all
                  nothing mounted since              of them by the setting
    down          evidence (FenceKind)               down, fenced: its claims are freed

A lost node may still be writing. So a claim that writes is freed only on evidence; one that only reads, after the
grace. Nothing else frees a claim: promise 1. Source: DESIGN "Fencing"; contract csi-engine §D, §I.5, §I.6.
"""

from __future__ import annotations

import msgspec

from moorage.errors import Conflict
from moorage.model.claim import Allocation, Attached, Claim, Mounted, NodeDetached, Taken, TaskEvent
from moorage.model.node import Fence, Node, NodeWanted
from moorage.model.volume import Progress
from moorage.rules.allocations import add_event, is_terminal

replace = msgspec.structs.replace


class FencingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. lease_s: how long a node may be silent; grace_s: how long after that until readers are freed, and until
    a self-fencing agent has kept its promise. is_takeover_timed: free writers after the grace without evidence.
    hook_retry_first_s, hook_retry_cap_s: the pause after the first failed run of the fence hook, and the longest.
    hook_runs_max: runs of the hook at a time, for different nodes.
    is_freeing_on_reboot: a lost node that comes back from a reboot loses all its claims; else it mounts again what is
    still held."""

    lease_s: float = 10.0
    grace_s: float = 30.0
    is_takeover_timed: bool = False
    hook_retry_first_s: float = 5.0
    hook_retry_cap_s: float = 300.0
    hook_runs_max: int = 4
    is_freeing_on_reboot: bool = False


def fold_registration(known: Node | None, sent: Node, *, now_ns: int) -> Node:
    """The record of a node that has just registered; equal to ``known`` when nothing is new."""
    ready = replace(
        sent,
        status="ready",
        wanted=known.wanted if known else "active",
        drain_began_at_ns=known.drain_began_at_ns if known else 0,
        drain_ended_at_ns=known.drain_ended_at_ns if known else 0,
        lost_at_ns=0,
        fence=None,
        created_at_ns=known.created_at_ns if known else now_ns,
        status_updated_at_ns=known.status_updated_at_ns if known else now_ns,
    )
    return ready if ready == known else replace(ready, status_updated_at_ns=now_ns)


def check_taken_back(known: Node, revision: int, clean_by: int) -> None:
    """Whether a lost node may come back: clean by a list of claims that was read with this very record.

    Raises Conflict: the agent unmounts first what was taken from it, by the newest list.
    """
    if known.status != "down" or clean_by == revision:
        return
    text = f'node "{known.id}" was lost: unmount what is not its own by the newest list of claims, then register clean'
    raise Conflict(text, code="node_lost", node=known.id)


def find_reboot(known: Node, sent: Node, *, is_empty: bool, now_ns: int) -> Fence | None:
    """The evidence that a lost node brings itself, if it does: it has booted since, and holds nothing.

    Another boot ID alone is none: an agent of the new boot may have mounted a claim again.
    """
    if known.status != "down" or known.fence is not None or not is_empty or sent.boot_id == known.boot_id:
        return None
    return Fence(kind="reboot", reason=f"the node booted anew ({sent.boot_id}) and holds nothing", at_ns=now_ns)


def set_wanted(node: Node, wanted: NodeWanted, *, now_ns: int) -> Node:
    """The record of a node that an operator opens, closes or drains; a drain that is in hand goes on as it began."""
    if wanted == "draining" and node.wanted != "draining":
        return replace(node, wanted=wanted, drain_began_at_ns=now_ns, drain_ended_at_ns=0)
    if node.wanted == "draining" and wanted != "draining":
        return replace(node, wanted=wanted, drain_ended_at_ns=now_ns)
    return replace(node, wanted=wanted)


def lose(node: Node, *, now_ns: int) -> Node:
    """The record of a node whose lease has run out."""
    return replace(node, status="down", lost_at_ns=now_ns, fence=None, status_updated_at_ns=now_ns)


def find_evidence(node: Node, settings: FencingSettings, *, lost_s: float, now_ns: int) -> Fence | None:
    """The evidence that time alone brings for a lost node, or None.

    Units: ``lost_s``: for how many seconds it has been lost by a clock that nobody sets.
    """
    if node.status != "down" or node.fence is not None:
        return node.fence
    if lost_s < settings.grace_s:
        return None
    if node.is_self_fencing:
        return Fence(kind="self_fence", reason="the agent stops its writers before the grace ends", at_ns=now_ns)
    if settings.is_takeover_timed:
        return Fence(kind="timeout", reason='takeover = "timeout"', at_ns=now_ns)
    return None


def check_fence(node: Node, *, is_forced: bool, reason: str) -> None:
    """Whether an operator may say that the node holds nothing. Raises Conflict for one that is alive."""
    if not reason.strip():
        raise Conflict("a reason is needed: it is kept with the record", code="reason_missing", node=node.id)
    if node.status == "ready" and not is_forced:
        raise Conflict(
            f'node "{node.id}" is alive: drain it instead, or force it if its storage is really cut off',
            code="node_alive",
            node=node.id,
        )


def free_claim(claim: Claim, fence: Fence) -> Claim | None:
    """The claim after its node was shown to hold nothing; None when that changes nothing for it.

    What was only taken may have been attached, so the controller detaches it like the others.
    """
    if not isinstance(claim.state, (Taken, Attached, Mounted)):
        return None
    evidence = f"{fence.kind}: {fence.reason}" if fence.reason else fence.kind
    return replace(claim, wanted="released", state=NodeDetached(evidence=evidence), progress=Progress())


def check_holds_nothing(node: Node) -> None:
    """Whether a node is known to have nothing mounted of a volume of which no claim is on record there: it is ready,
    because an agent registers only when it is clean, or it is fenced. Raises Conflict with what to do."""
    if node.status == "ready" or (node.status == "down" and node.fence is not None):
        return
    raise Conflict(
        f'node "{node.id}" is {node.status}: it may still have the volume mounted; bring it back, or, when it is '
        f"really off, say so with `moorage node fence {node.id} --reason …`",
        code="node_lost",
        node=node.id,
    )


def needs_evidence(claim: Claim) -> bool:
    """Whether a claim on a lost node waits for evidence: it writes, and may still be mounted."""
    return not claim.read_only and isinstance(claim.state, (Taken, Attached, Mounted))


def is_freed_by(claim: Claim, node: Node, settings: FencingSettings, *, lost_s: float, now_ns: int) -> Fence | None:
    """What frees this claim on a lost node now, or None: it waits for evidence."""
    if node.status != "down":
        return None
    if node.fence is not None:
        return node.fence
    if claim.read_only and lost_s >= settings.grace_s:
        return Fence(kind="grace", reason="a reader on a lost node", at_ns=now_ns)
    return None


def lose_allocation(allocation: Allocation, fence: Fence, *, now_ns: int) -> Allocation:
    """The allocation whose claims were taken away with its node."""
    if is_terminal(allocation):
        return allocation
    text = f"node lost ({fence.kind}): {fence.reason}" if fence.reason else f"node lost ({fence.kind})"
    lost = replace(allocation, wanted="stop", status="lost", description=text, paths={}, finished_at_ns=now_ns)
    return add_event(lost, TaskEvent(type="Killed", at_ns=now_ns, message=text))
