"""Claims: admission, and the tables NEXT and FOLD of the claim machine. Pure.

    wanted    state                NEXT
    held      taken                attach, or move on where the driver does not attach
    held      attached             the agent mounts
    held      mounted              rest; the agent sees that it stays so
    held      node_detached        cannot be: a released claim is never held again
    held      controller_detached  cannot be
    released  taken                detach: an attach may have begun
    released  attached             the agent unmounts: a mount may have begun
    released  mounted              the agent unmounts
    released  node_detached        detach, unless another claim still uses the volume on that node
    released  controller_detached  remove

Undo follows what may have begun, not what is known to have worked.
Source: models §9; contract volumes-api §4.4, csi-engine §I; CSI spec "AccessMode".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from moorage.errors import BadRequest, Conflict
from moorage.model.claim import (
    Attached,
    Claim,
    ClaimState,
    ControllerDetached,
    Mounted,
    NodeDetached,
    Taken,
    VolumeRequest,
)
from moorage.model.ids import AllocationId, ClaimId, NodeId
from moorage.model.steps import Attached as AttachDone
from moorage.model.steps import AttachVolume, DetachVolume, Done, Failed, Outcome
from moorage.model.times import format_time
from moorage.model.volume import (
    ACCESS_MODES,
    ATTACHMENT_MODES,
    BLOCK_DEVICE,
    MULTI_NODE_SINGLE_WRITER,
    READER_MODES,
    SINGLE_NODE_MULTI_WRITER,
    SINGLE_NODE_SINGLE_WRITER,
    SINGLE_NODE_WRITER,
    Capability,
    Progress,
    Secrets,
    Volume,
)
from moorage.rules.backoff import after_fault, take_for_refusal
from moorage.rules.volumes import REMOVE, REST, Remove, Rest

replace = msgspec.structs.replace


# -- admission -------------------------------------------------------------------------------------------------------


def complete_request(request: VolumeRequest, volume: Volume) -> VolumeRequest:
    """Fill in modes that the request leaves open, from the volume's mode in use or its capabilities, and check it.

    Raises BadRequest (naming the member and what is allowed).
    Source: contract volumes-api §4.4 "Claim request rules".
    """
    access = request.access_mode or _default_access(request, volume)
    attachment = request.attachment_mode or volume.attachment_mode or _default_attachment(access, volume)
    where = f'volume "{volume.id}"'
    if access not in ACCESS_MODES:
        raise BadRequest(f"{where}: unknown AccessMode {access!r}; one of {', '.join(ACCESS_MODES)}")
    if attachment not in ATTACHMENT_MODES:
        raise BadRequest(f"{where}: unknown AttachmentMode {attachment!r}; one of {', '.join(ATTACHMENT_MODES)}")
    if access in READER_MODES and not request.read_only:
        raise BadRequest(f"{where}: AccessMode {access} requires ReadOnly: true")
    if attachment == BLOCK_DEVICE and request.mount_options is not None and _has_options(request):
        raise BadRequest(f"{where}: MountOptions have no meaning for AttachmentMode {BLOCK_DEVICE}")
    asked = Capability(access_mode=access, attachment_mode=attachment)
    if volume.capabilities and asked not in volume.capabilities:
        known = ", ".join(f"{c.access_mode} with {c.attachment_mode}" for c in volume.capabilities)
        raise BadRequest(f"{where}: {access} with {attachment} is not among its capabilities: {known}")
    return replace(request, access_mode=access, attachment_mode=attachment)


def _has_options(request: VolumeRequest) -> bool:
    options = request.mount_options
    return options is not None and bool(options.fs_type or options.mount_flags)


def _default_access(request: VolumeRequest, volume: Volume) -> str:
    if volume.access_mode:
        return volume.access_mode
    for capability in volume.capabilities or ():
        if request.read_only or capability.access_mode not in READER_MODES:
            return capability.access_mode
    return SINGLE_NODE_WRITER


def _default_attachment(access: str, volume: Volume) -> str:
    for capability in volume.capabilities or ():
        if capability.access_mode == access:
            return capability.attachment_mode
    return ATTACHMENT_MODES[0]


def admit_claim(claim: Claim, volume: Volume, holders: Iterable[Claim]) -> None:
    """Decide whether a claim may be taken beside those that hold the disk now.

    Shapes: ``holders`` are the claims on every record of this disk, released ones included until they are gone.
    Raises Conflict naming volume, holder, node and since when.
    Source: contract volumes-api §4.4; csi-engine F17 (the node of single-node modes is checked here).
    """
    others = [c for c in holders if c.id != claim.id]
    mode = others[0].access_mode if others else ""
    if others and others[0].attachment_mode != claim.attachment_mode:
        raise _conflict("cannot change attachment mode of claimed volume", volume, others)
    if others and mode != claim.access_mode:
        raise _conflict(f"volume max claims reached: it is in use as {mode}", volume, others)
    blocking = _blocking(claim, others)
    if blocking:
        raise _conflict("volume max claims reached", volume, blocking)


def check_room(claim: Claim, on_node: Iterable[Claim], max_volumes: int) -> bool:
    """Refuse one disk more than the driver takes on a node; a disk that is held there already has its place.

    ``on_node``: all claims there. Returns whether the claim takes a new place. Raises Conflict.
    Source: CSI spec NodeGetInfo "max_volumes_per_node"; contract csi-engine §B.9, without its holes.
    """
    held = {c.external_id for c in on_node if c.plugin_id == claim.plugin_id and c.node_id == claim.node_id}
    if claim.external_id in held:
        return False
    if len(held) < max_volumes:
        return True
    text = (
        f'volume "{claim.volume_id}" has no room on node {claim.node_id}: {len(held)} volumes of plugin '
        f'"{claim.plugin_id}" are in use there, and its driver takes {max_volumes}; release one, or name another node'
    )
    raise Conflict(text, code="node_full", volume=claim.volume_id, node=claim.node_id)


# The name of a claim that was never held (``make_leak``).
LEAK = "leaked attachment"


def make_leak(
    volume: Volume, node_id: NodeId, holders: Sequence[Claim], *, claim_id: ClaimId, external_node_id: str, now_ns: int
) -> Claim:
    """A claim for an attachment that no claim is responsible for any more: it is to be detached, and nothing else.

    It has the mode in which the disk is held elsewhere (``holders``), so that it stands in nobody's way elsewhere.
    """
    plain = Capability(access_mode=SINGLE_NODE_WRITER, attachment_mode="file-system")
    like = holders[0] if holders else (volume.capabilities or (plain,))[0]
    return Claim(
        id=claim_id,
        allocation_id=AllocationId(claim_id),
        name=LEAK,
        namespace=volume.namespace,
        volume_id=volume.id,
        plugin_id=volume.plugin_id,
        external_id=volume.external_id,
        node_id=node_id,
        external_node_id=external_node_id,
        read_only=True,
        access_mode=like.access_mode,
        attachment_mode=like.attachment_mode,
        wanted="released",
        state=NodeDetached(evidence="operator: a detach of what no claim is on record for"),
        created_at_ns=now_ns,
    )


def _blocking(claim: Claim, others: list[Claim]) -> list[Claim]:
    """The holders that leave no room for the claim; all have its access mode."""
    writers = [c for c in others if not c.read_only]
    elsewhere = [c for c in others if c.node_id != claim.node_id]
    mode = claim.access_mode
    if mode == MULTI_NODE_SINGLE_WRITER:
        return [] if claim.read_only else writers
    if mode == SINGLE_NODE_WRITER:
        return elsewhere or (others if claim.read_only else writers)
    if mode == SINGLE_NODE_SINGLE_WRITER:
        return others
    if mode == SINGLE_NODE_MULTI_WRITER:
        return elsewhere
    if mode in READER_MODES:
        return others if mode.startswith("single-node") else []
    return []


def _conflict(why: str, volume: Volume, holders: list[Claim]) -> Conflict:
    holder = holders[0]
    more = f" and {len(holders) - 1} more" if len(holders) > 1 else ""
    released = ", which is being released" if holder.wanted == "released" else ""
    text = (
        f'{why}: volume "{volume.id}" is held by allocation {holder.allocation_id} on node {holder.node_id} '
        f"since {format_time(holder.created_at_ns)}{released}{more}"
        f"; `moorage why {volume.id}` tells more"
    )
    return Conflict(
        text,
        code="volume_claimed",
        volume=volume.id,
        allocation=holder.allocation_id,
        node=holder.node_id,
        since_ns=str(holder.created_at_ns),
    )


# -- NEXT ------------------------------------------------------------------------------------------------------------


class NodeWork(msgspec.Struct, frozen=True):
    """The agent of the claim's node has something to do; its own table says what."""


class Advance(msgspec.Struct, frozen=True, kw_only=True):
    """No call is needed: the claim is in this state already."""

    state: ClaimState


NODE_WORK = NodeWork()
Decision = AttachVolume | DetachVolume | Advance | NodeWork | Rest | Remove


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What NEXT needs beside the claim: its volume (None: deregistered by force), whether the driver attaches
    (None: not known, then wait), and the other claims of the same disk on the same node."""

    volume: Volume | None
    is_attaching: bool | None
    siblings: tuple[Claim, ...] = ()


def next_step(claim: Claim, around: Surroundings) -> Decision:
    """What to do next for this claim; the time of the next try is the caller's business."""
    return NEXT[claim.wanted, type(claim.state)](claim, around)


def _attach(claim: Claim, around: Surroundings) -> Decision:
    if around.is_attaching is None or around.volume is None:
        return REST
    if not around.is_attaching:
        return Advance(state=Attached())
    return AttachVolume(
        external_id=claim.external_id,
        external_node_id=claim.external_node_id,
        capability=Capability(access_mode=claim.access_mode, attachment_mode=claim.attachment_mode),
        mount_options=claim.mount_options or around.volume.mount_options,
        # The same for all claims of one volume on one node: they share the access mode, not ReadOnly (F6).
        read_only=claim.access_mode in READER_MODES,
        context=around.volume.context,
        secrets=around.volume.secrets,
    )


def _detach(claim: Claim, around: Surroundings) -> Decision:
    if around.is_attaching is None:
        return REST
    if not around.is_attaching or any(is_using(s) for s in around.siblings):
        return Advance(state=ControllerDetached())
    return DetachVolume(
        external_id=claim.external_id,
        external_node_id=claim.external_node_id,
        secrets=around.volume.secrets if around.volume else Secrets(),
    )


def is_using(sibling: Claim) -> bool:
    """Whether the attachment is still this claim's too: it will need it, or will detach it itself later."""
    return isinstance(sibling.state, (Taken, Attached, Mounted))


def _node_work(claim: Claim, around: Surroundings) -> Decision:
    return NODE_WORK


def _rest(claim: Claim, around: Surroundings) -> Decision:
    return REST


def _remove(claim: Claim, around: Surroundings) -> Decision:
    return REMOVE


def _impossible(claim: Claim, around: Surroundings) -> Decision:
    raise AssertionError(f"claim {claim.id}: held, yet {type(claim.state).__name__}")


NEXT: dict[tuple[str, type], Callable[[Claim, Surroundings], Decision]] = {
    ("held", Taken): _attach,
    ("held", Attached): _node_work,
    ("held", Mounted): _rest,
    ("held", NodeDetached): _impossible,
    ("held", ControllerDetached): _impossible,
    ("released", Taken): _detach,
    ("released", Attached): _node_work,
    ("released", Mounted): _node_work,
    ("released", NodeDetached): _detach,
    ("released", ControllerDetached): _remove,
}


# -- FOLD ------------------------------------------------------------------------------------------------------------


class MountDone(msgspec.Struct, frozen=True, kw_only=True):
    """The agent says: published."""

    path: str
    publish_path: str
    staging_path: str = ""
    grown_bytes: int = 0


class UnmountDone(msgspec.Struct, frozen=True, kw_only=True):
    """The agent says: nothing of the claim is left on the node."""


Reported = Outcome | MountDone | UnmountDone


def fold_outcome(claim: Claim, outcome: Reported, *, now_ns: int, jitter: float) -> Claim:
    """The claim after an outcome.

    A claim whose attach or first mount was refused for good, or met unclear answers to the end, is released: nothing
    may be left half done. An outcome of a step that the claim has left behind changes nothing.
    """
    if isinstance(outcome, Failed):
        # A mount that was there is repaired for as long as its consumer holds it.
        is_new = claim.wanted == "held" and not isinstance(claim.state, Mounted)
        fault = take_for_refusal(claim.progress, outcome.fault) if is_new else outcome.fault
        progress = after_fault(claim.progress, fault, now_ns=now_ns, jitter=jitter)
        if not fault.final or claim.wanted == "released":
            return replace(claim, progress=_retrying(progress, now_ns))
        return replace(claim, wanted="released", progress=replace(progress, next_try_at_ns=0, attempts=0))
    fold = FOLD.get((type(claim.state), type(outcome)))
    if fold is None:
        return claim
    state = fold(claim, outcome)
    # The fault that made us let go is kept for the allocation to show.
    kept = claim.progress.last_fault if claim.wanted == "released" else None
    return replace(claim, state=state, progress=Progress(last_fault=kept))


def _retrying(progress: Progress, now_ns: int) -> Progress:
    """A release is never given up: a final fault on the way down is tried again after the longest pause."""
    return progress if progress.next_try_at_ns else replace(progress, next_try_at_ns=now_ns + 60_000_000_000)


def _attached(claim: Claim, outcome: Reported) -> ClaimState:
    assert isinstance(outcome, AttachDone)
    return Attached(publish_context=outcome.publish_context)


def _mounted(claim: Claim, outcome: Reported) -> ClaimState:
    assert isinstance(outcome, MountDone)
    assert isinstance(claim.state, (Attached, Mounted))
    return Mounted(
        path=outcome.path,
        publish_path=outcome.publish_path,
        staging_path=outcome.staging_path,
        grown_bytes=outcome.grown_bytes,
        publish_context=claim.state.publish_context,
    )


def _unmounted(claim: Claim, outcome: Reported) -> ClaimState:
    return NodeDetached() if claim.wanted == "released" else claim.state


def _detached(claim: Claim, outcome: Reported) -> ClaimState:
    return ControllerDetached() if claim.wanted == "released" else claim.state


FOLD: dict[tuple[type, type], Callable[[Claim, Reported], ClaimState]] = {
    (Taken, AttachDone): _attached,
    (Attached, MountDone): _mounted,
    (Mounted, MountDone): _mounted,
    (Attached, UnmountDone): _unmounted,
    (Mounted, UnmountDone): _unmounted,
    (Taken, Done): _detached,
    (NodeDetached, Done): _detached,
}
