"""The promises of the engine, each a named check on what really happened.

    access_mode           the claims on a disk never exceed its access mode
    attached_modes_agree  all claims of a disk have one access mode and one attachment mode
    publish_has_claim     a path that shows a disk belongs to a claim that is attached or mounted, or to one that was
                          freed on evidence while its node was out of reach
    clean_before_ready    a node that the server takes back shows nothing of claims that are not its own any more
    no_detach_while_held  a controller takes a disk from a node only when nothing of it is left there, or on evidence
    single_writer         never two paths that write to a single-writer disk, unless somebody took it on record
    evidence_true         evidence that claims a fact (reboot, hook, self_fence) was a fact
    no_evidence_no_free   no claim leaves a node on the strength of a timer alone, unless it only reads
    intent_first          a volume is on record, under that very name, before its driver is asked to make it
    one_in_flight         no two calls for one volume at once, unless the first one's caller had given up
    csi_order             calls come in the order of the CSI life cycle (in ``sim_backend``)
    revisions_grow        each commit has the next revision
    allocations_settle    an allocation that ended says how and why
    secrets_hidden        no record but a volume's own and its calls' holds a secret
    no_leak, no_double, settles, no_crash, conflict_never_shown: at the end of a run (``sim_world``)

Never: takes part; reads what the engine believes other than its committed records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from moorage.model import steps
from moorage.model.claim import Allocation, Attached, Claim, ControllerDetached, Mounted, NodeDetached
from moorage.model.ids import ClaimId, NodeId, Revision
from moorage.model.node import Node
from moorage.model.plugin import Plugin
from moorage.model.volume import (
    MULTI_NODE_MULTI_WRITER,
    READER_MODES,
    SINGLE_NODE_MULTI_WRITER,
    SINGLE_NODE_READER,
    SINGLE_NODE_SINGLE_WRITER,
    Volume,
)
from moorage.rules.claims import LEAK
from moorage.rules.mount_records import Disk as DiskName
from moorage.state import codec, keys
from moorage.state.store import Op, Put
from moorage.testing.sim_backend import Disk, origin_of

if TYPE_CHECKING:
    from moorage.testing.sim_hosts import Host
    from moorage.testing.sim_world import World

SECRET = "hunter2"
MANY_WRITERS = frozenset({MULTI_NODE_MULTI_WRITER, SINGLE_NODE_MULTI_WRITER})
CONSENT = frozenset({"operator", "timeout"})


class Freed(msgspec.Struct, frozen=True):
    """The evidence on which a claim was freed."""

    kind: str
    node_id: NodeId
    external_id: str
    at_s: float


class Validators:
    """``records``: what is committed now, by store key. ``freed``: claims that evidence took from their nodes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.records: dict[str, Any] = {}
        self.revision = Revision(0)
        self.freed: dict[ClaimId, Freed] = {}
        self.claims: dict[ClaimId, Claim] = {}
        self.ended: dict[str, Allocation] = {}
        self.names: set[str] = set()
        self._claim_at: dict[tuple[str, str], ClaimId] = {}
        self._taken_back: list[Node] = []
        self._away_s: dict[NodeId, float] = {}

    def violate(self, validator: str, text: str) -> None:
        """A promise is broken."""
        self._world.history.violate(validator, text)

    # -- commits -----------------------------------------------------------------------------------------------------

    def on_commit(self, revision: Revision, ops: Sequence[Op]) -> None:
        """A transaction took effect."""
        if revision != self.revision + 1:
            self.violate("revisions_grow", f"{revision} comes after {self.revision}")
        self.revision = revision
        for op in ops:
            before = self.records.get(op.key)
            after = codec.decode_key(op.key, op.value) if isinstance(op, Put) else None
            if after is None:
                self.records.pop(op.key, None)
            else:
                self.records[op.key] = after
            self._note(revision, op.key, before, after)
        for op in ops:
            self._look_at(op)
        for node in self._taken_back:
            self._check_clean(node)
        self._taken_back.clear()
        self._check_published()

    def _note(self, revision: Revision, key: str, before: Any, after: Any) -> None:
        state = after if after is not None else before
        told = _tell(after) if after is not None else "is gone"
        self._world.history.note("commit", f"r{revision} {key} {told}")
        if isinstance(state, Volume):
            self.names.add(state.name)
        elif isinstance(state, Claim):
            self._note_claim(state, after)
        elif isinstance(after, Allocation) and after.status in ("complete", "failed", "lost"):
            self.ended[after.id] = after
        elif isinstance(state, Allocation) and after is None and state.id not in self.ended:
            self.violate("allocations_settle", f"allocation {state.id} is gone, and was {state.status}")
        elif isinstance(state, Node) and state.status != "ready":
            self._away_s[state.id] = self._world.now_s
        if isinstance(after, Node) and after.status == "ready" and before is not None and before.status != "ready":
            self._taken_back.append(after)

    def _note_claim(self, claim: Claim, after: Claim | None) -> None:
        self.claims[claim.id] = claim
        host = self._world.find_host(claim.node_id)
        self._claim_at[host.name, host.layout.publish(claim.id)] = claim.id
        if claim.target:
            self._claim_at[host.name, claim.target] = claim.id
        if after is not None and isinstance(after.state, NodeDetached) and after.state.evidence and claim.name != LEAK:
            kind = after.state.evidence.partition(":")[0]
            if claim.id not in self.freed:
                self.freed[claim.id] = Freed(kind, claim.node_id, claim.external_id, self._world.now_s)
                self._check_evidence(after, kind, host)

    def _check_evidence(self, claim: Claim, kind: str, host: Host) -> None:
        shown = [p for p in host.mounts.table if self._claim_at.get((host.name, p)) == claim.id]
        if kind == "timeout" or (kind == "grace" and not claim.read_only):
            self.violate("no_evidence_no_free", f"claim {claim.id} writes and was freed by {kind}")
        if kind in ("reboot", "hook", "self_fence") and shown:
            self.violate("evidence_true", f"claim {claim.id} was freed by {kind}, yet {host.name} shows it at {shown}")

    def was_away(self, node_id: NodeId, since_s: float) -> bool:
        """Whether the node was lost at some time since."""
        node = self.records.get(keys.node_key(node_id))
        is_here = isinstance(node, Node) and node.status == "ready"
        return not is_here or self._away_s.get(node_id, -1.0) >= since_s

    def is_well(self, node_id: NodeId) -> bool:
        """Whether the node and its driver are on record as working."""
        node = self.records.get(keys.node_key(node_id))
        plugin = next((r for k, r in self.records.items() if isinstance(r, Plugin)), None)
        instance = plugin.instances.get(node_id) if plugin else None
        return isinstance(node, Node) and node.status == "ready" and instance is not None and instance.healthy

    def _look_at(self, op: Op) -> None:
        record = self.records.get(op.key)
        table = keys.table_of(op.key)
        if isinstance(op, Put) and table not in (keys.VOLUMES, keys.OPERATIONS) and SECRET.encode() in op.value:
            self.violate("secrets_hidden", f"{op.key} holds a secret")
        if isinstance(record, Volume) and record.progress.last_fault and SECRET in record.progress.last_fault.message:
            self.violate("secrets_hidden", f"the fault of {op.key} holds a secret")
        if isinstance(record, Claim):
            self._check_modes(record)
        if isinstance(record, Allocation) and record.status in ("failed", "lost") and not record.description:
            self.violate("allocations_settle", f"allocation {record.id} {record.status} without a text")

    def claims_of(self, external_id: str) -> list[Claim]:
        """The claims on record for a disk."""
        found = [r for k, r in self.records.items() if k.startswith(keys.CLAIMS) and r.external_id == external_id]
        # A claim that only undoes a leaked attachment was never held, and nobody uses it.
        return [c for c in found if not isinstance(c.state, ControllerDetached) and c.name != LEAK]

    def _check_modes(self, claim: Claim) -> None:
        claims = self.claims_of(claim.external_id)
        modes = {(c.access_mode, c.attachment_mode) for c in claims}
        if len(modes) > 1:
            self.violate("attached_modes_agree", f"{claim.external_id} is claimed as {sorted(modes)}")
            return
        mode = claim.access_mode
        nodes = {c.node_id for c in claims}
        writers = [c.id for c in claims if not c.read_only]
        is_over = (
            (mode.startswith("single-node") and len(nodes) > 1)
            or (mode not in MANY_WRITERS and len(writers) > 1)
            or (mode in READER_MODES and bool(writers))
            or (mode in (SINGLE_NODE_SINGLE_WRITER, SINGLE_NODE_READER) and len(claims) > 1)
        )
        if is_over:
            told = ", ".join(f"{c.id} on {c.node_id} {'ro' if c.read_only else 'rw'} {c.wanted}" for c in claims)
            self.violate("access_mode", f"{claim.external_id} as {mode}: {told}")

    # -- what nodes show ---------------------------------------------------------------------------------------------

    def _is_its_own(self, claim_id: ClaimId | None) -> bool:
        claim = self.records.get(keys.claim_key(claim_id)) if claim_id else None
        return isinstance(claim, Claim) and isinstance(claim.state, (Attached, Mounted))

    def _check_published(self) -> None:
        for host in self._world.hosts:
            for path in host.mounts.table:
                claim_id = self._claim_at.get((host.name, path))
                if claim_id is None or self._is_its_own(claim_id) or claim_id in self.freed:
                    continue
                self.violate("publish_has_claim", f"{host.name} shows {self._world.short(path)} of claim {claim_id}")

    def _check_clean(self, node: Node) -> None:
        host = self._world.find_host(node.id)
        for path in host.mounts.table:
            claim_id = self._claim_at.get((host.name, path))
            if claim_id is not None and not self._is_its_own(claim_id):
                text = f"{host.name} is ready and shows {self._world.short(path)} of claim {claim_id}"
                self.violate("clean_before_ready", text)

    def _excuse(self, host: Host, path: str, disk: Disk) -> Freed | None:
        """The evidence on record against a path."""
        claim_id = self._claim_at.get((host.name, path))
        if claim_id is not None:
            return self.freed.get(claim_id)
        found = [f for f in self.freed.values() if (f.node_id, f.external_id) == (host.node_id, disk.external_id)]
        return found[-1] if found else None

    def check_unattached(self, disk: Disk, node: str, what: str) -> None:
        """A node asks for a disk that is not attached to it: it may not have heard yet that it lost the disk."""
        node_id = self._world.find_host_named(node).node_id
        if not any((f.node_id, f.external_id) == (node_id, disk.external_id) for f in self.freed.values()):
            self.violate("csi_order", f"{what} of {disk.external_id} on {node}: not attached")

    def check_detach(self, disk: Disk, node: str) -> None:
        """A controller takes the disk from a node."""
        host = self._world.find_host_named(node)
        for path in host.mounts.find_origin(origin_of(disk.external_id)):
            if self._excuse(host, path, disk) is None:
                text = f"{disk.external_id} is taken from {host.name}, which shows it at {self._world.short(path)}"
                self.violate("no_detach_while_held", text)

    def check_publish(self, disk: Disk, node: str, path: str, *, read_only: bool) -> None:
        """A path on a node begins to show the disk."""
        host = self._world.find_host_named(node)
        claim_id = self._claim_at.get((host.name, path))
        if claim_id is None:
            if path != host.layout.staging(DiskName(self._world.plugin_id, disk.external_id)):
                self.violate("publish_has_claim", f"{host.name} shows {self._world.short(path)}, which nobody knows")
            return
        if not self._is_its_own(claim_id) and claim_id not in self.freed:
            self.violate("publish_has_claim", f"{host.name} begins to show {disk.external_id} for claim {claim_id}")
        mode = self.claims[claim_id].access_mode
        if read_only or mode in MANY_WRITERS:
            return
        for other, other_path in self._world.find_writers(disk.external_id):
            other_id = self._claim_at.get((other.name, other_path))
            if other_id == claim_id:
                continue
            excuses = [self.freed[i].kind for i in (claim_id, other_id) if i in self.freed]
            if not any(kind in CONSENT for kind in excuses):
                text = f"{disk.external_id} as {mode}: {claim_id} on {host.name} beside {other_id} on {other.name}"
                self.violate("single_writer", f"{text}; evidence {excuses or 'none'}")

    def check_write(self, disk: Disk, host: Host, path: str, *, is_attached: bool) -> None:
        """A consumer writes through a path. The write is lost if the disk was taken away under it."""
        if not is_attached and self._excuse(host, path, disk) is None:
            self.violate("no_detach_while_held", f"a write on {host.name} to {disk.external_id} finds no disk")

    # -- calls -------------------------------------------------------------------------------------------------------

    def check_call(self, step: steps.Step) -> None:
        """A driver is called."""
        # A call that was withdrawn meanwhile may still begin, so any record of that name that ever was will do.
        if isinstance(step, steps.CreateVolume) and step.name not in self.names:
            self.violate("intent_first", f"create of {step.name}, which was never on record")


def _tell(record: Any) -> str:
    match record:
        case Claim():
            return f"{record.wanted} {type(record.state).__name__} {_fault(record)}"
        case Volume():
            return f"{record.wanted} {record.state} {record.external_id} {_fault(record)}"
        case Allocation():
            return f"{record.wanted} {record.status} {record.description}"
        case Node():
            kind = f" fenced by {record.fence.kind}" if record.fence else ""
            return f"{record.status} {record.wanted} {record.boot_id}{kind}"
        case Plugin():
            return " ".join(f"{n}:{'well' if i.healthy else 'sick'}" for n, i in sorted(record.instances.items()))
    return type(record).__name__


def _fault(record: Claim | Volume) -> str:
    fault = record.progress.last_fault
    return f"({fault.method} {fault.status}{' final' if fault.final else ''})" if fault else ""
