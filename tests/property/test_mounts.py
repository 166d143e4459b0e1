"""Any start converges in a bounded number of actions, also with stops between, and never breaks a promise."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.model.assignment import ClaimAssignment, MountedReport, UnmountedReport
from moorage.model.claim import Attached, Claim, ClaimState, Mounted, NodeDetached, Taken
from moorage.model.ids import AllocationId, ClaimId, NamespaceName, NodeId, PluginId, Revision, VolumeId
from moorage.model.plugin import NodeInfo
from moorage.model.volume import Fault, Progress
from moorage.rules import mount_actions as actions
from moorage.rules.mount_actions import Action, View
from moorage.rules.mount_records import Disk, Layout, PathKind, Seen, Staging, TargetKind, TargetSeen, Use
from moorage.rules.mounts import goal_of, next_action

replace = msgspec.structs.replace
LAYOUT = Layout("/state")
DISK = Disk(PluginId("nas"), "ext")
IDS = (ClaimId("a"), ClaimId("b"), ClaimId("c"))
# Each claim needs at most: clear (2), stage, publish, unbind, bind, grow, reports; three claims share one disk.
ACTIONS_MAX = 60
FAULT = Fault(method="Look", status="ENOTCONN", message="it was broken", final=False)


class Node:
    """A node as a model: paths, a journal, and a server that folds reports as the real one does."""

    def __init__(self, *, stages: bool, boot: str = "boot") -> None:
        self.info = NodeInfo(requires_stage=stages, supports_expand=True)
        self.boot = boot
        self.staging: PathKind = "absent"
        self.published: dict[ClaimId, PathKind] = {}
        self.targets: dict[ClaimId, TargetSeen] = {}
        self.uses: dict[ClaimId, Use] = {}
        self.staged: Staging | None = None
        self.claims: dict[ClaimId, ClaimAssignment] = {}
        self.driver_staged = False
        self.calls: list[str] = []
        self.refused: set[ClaimId] = set()

    def view(self) -> View:
        return View(
            disk=DISK,
            layout=LAYOUT,
            boot_id=self.boot,
            assignments=tuple(self.claims.values()),
            uses=tuple(self.uses.values()),
            staging=self.staged,
            seen=Seen(staging=self.staging, published=dict(self.published), targets=dict(self.targets)),
            node=self.info,
        )

    def alive(self) -> set[ClaimId]:
        return {i for i, k in self.published.items() if k in ("mount", "link", "broken")}

    def apply(self, action: Action, *, is_cut: bool = False) -> None:
        """Carry out an action. ``is_cut``: the process died after the driver's call, before the journal knew."""
        who = action.claim_id
        match action:
            case actions.Begin():
                self.staged = action.staging or self.staged
                self.uses[who] = action.use
            case actions.Stage():
                # Under a publication that works the driver is asked to repair; otherwise what is dead goes first.
                stands = any(u.phase == "done" for u in self.uses.values())
                assert self.staging != "broken" or stands, "staged over something dead"
                begun = Staging(
                    plugin_id=DISK.plugin_id,
                    external_id=DISK.external_id,
                    staging_path=action.step.staging_path,
                    boot_id=self.boot,
                )
                self.staged, self.staging, self.driver_staged = begun, "mount", True
                if not is_cut:
                    self.staged = replace(begun, phase="done", seen_as="mount")
            case actions.Publish():
                assert who in self.uses, "published without a journal entry"
                assert not self.info.requires_stage or self.staging == "mount", "published without staging"
                self.published[who] = "mount"
                self.uses[who] = replace(self.uses[who], phase="begun", boot_id=self.boot)
                if not is_cut:
                    self.uses[who] = replace(self.uses[who], phase="done", seen_as="mount")
            case actions.Unpublish():
                self.published[who] = "absent"
                if not is_cut:
                    self.uses[who] = replace(self.uses[who], phase=action.then, seen_as="absent", boot_id=self.boot)
            case actions.Unstage():
                assert not self.alive() & set(self.uses), "unstaged while published"
                self.staging, self.driver_staged = "absent", False
                if not is_cut:
                    self.staged = None
            case actions.Bind():
                assert self.published[who] in ("mount", "plain"), "bound what is not published"
                self.uses[who] = replace(self.uses[who], bind="begun")
                self.targets[who] = TargetSeen("mount", True)
                if not is_cut:
                    self.uses[who] = replace(self.uses[who], bind="done")
            case actions.Unbind():
                if self.targets.get(who, TargetSeen()).kind in ("mount", "link"):
                    self.targets[who] = TargetSeen("absent")
                if not is_cut:
                    self.uses[who] = replace(self.uses[who], bind="none")
            case actions.Grow():
                if not is_cut:
                    self.uses[who] = replace(self.uses[who], grown_bytes=action.step.required_bytes)
            case actions.ReportMounted():
                self.fold(action.report)
            case actions.ReportUnmounted():
                assert who not in self.alive(), "told as unmounted while published"
                self.fold(action.report)
            case actions.Forget():
                if not is_cut:
                    del self.uses[who]
            case actions.Refuse():
                pass
        self.calls.append(type(action).__name__)

    def fold(self, report: MountedReport | UnmountedReport) -> None:
        """As rules.claims folds a report; an unmounted claim leaves."""
        known = self.claims[report.claim_id]
        if report.revision != known.revision:
            return
        state: ClaimState = NodeDetached()
        if isinstance(report, MountedReport):
            state = Mounted(
                path=report.path,
                publish_path=report.publish_path,
                staging_path=report.staging_path,
                grown_bytes=report.grown_bytes,
            )
        moved = replace(known.claim, state=state, progress=Progress())
        self.claims[report.claim_id] = replace(known, claim=moved, revision=Revision(known.revision + 1))

    def settle(self, draw_cut: Any = lambda: False) -> int:
        """Act until there is nothing to do; claims whose target is refused are held back, as an agent does."""
        refused = self.refused = set()
        for count in range(ACTIONS_MAX * 2):
            action = next_action(self.view(), frozenset(refused))
            if isinstance(action, actions.Rest):
                return count
            if isinstance(action, actions.Refuse):
                refused.add(action.claim_id)
            self.apply(action, is_cut=draw_cut())
        raise AssertionError(f"does not converge: {self.calls[-12:]}")

    def summary(self) -> Any:
        return (
            self.staging,
            {i: k for i, k in self.published.items() if k != "absent"},
            {i: a.claim for i, a in self.claims.items()},
            sorted(i for i, u in self.uses.items() if u.phase != "gone"),
        )


PATHS: st.SearchStrategy[PathKind] = st.sampled_from(["absent", "plain", "mount", "broken"])
TARGETS: st.SearchStrategy[TargetKind] = st.sampled_from(
    ["absent", "empty_directory", "full_directory", "empty_file", "other", "link", "mount"]
)  # fmt: skip


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    """A node in any state that a crash, a reboot, a lost journal or a meddler could leave behind."""
    node = Node(stages=draw(st.booleans()))
    node.staging = draw(PATHS) if node.info.requires_stage else "absent"
    for claim_id in IDS[: draw(st.integers(1, 3))]:
        _add_claim(draw, node, claim_id)
    return node


def _add_claim(draw: st.DrawFn, node: Node, claim_id: ClaimId) -> None:
    path = LAYOUT.publish(claim_id)
    staging_path = LAYOUT.staging(DISK) if node.info.requires_stage else ""
    target = draw(st.sampled_from(["", f"/srv/{claim_id}"]))
    known = Mounted(path=target or path, publish_path=path, staging_path=staging_path)
    states: list[ClaimState] = [Taken(), Attached(), known, NodeDetached()]
    state = draw(st.sampled_from(states))
    wanted = "released" if isinstance(state, NodeDetached) else draw(st.sampled_from(["held", "released"]))
    claim = Claim(
        id=claim_id,
        allocation_id=AllocationId("alloc"),
        name="data",
        namespace=NamespaceName("default"),
        volume_id=VolumeId("vol"),
        plugin_id=DISK.plugin_id,
        external_id=DISK.external_id,
        external_node_id="n",
        node_id=NodeId("node"),
        read_only=False,
        access_mode="single-node-multi-writer",
        attachment_mode="file-system",
        target=target,
        wanted=wanted,  # type: ignore[arg-type]
        state=state,
        progress=Progress(last_fault=draw(st.sampled_from([None, FAULT]))),
    )
    if draw(st.integers(0, 4)):
        grow = draw(st.sampled_from([0, 100]))
        node.claims[claim_id] = ClaimAssignment(claim=claim, revision=Revision(1), grow_to_bytes=grow)
    node.published[claim_id] = draw(PATHS)
    if target:
        kind: TargetKind = draw(TARGETS)
        node.targets[claim_id] = TargetSeen(kind, kind in ("mount", "link") and draw(st.booleans()))
    if draw(st.booleans()):
        node.uses[claim_id] = Use(
            claim_id=claim_id,
            plugin_id=DISK.plugin_id,
            external_id=DISK.external_id,
            publish_path=path,
            staging_path=staging_path,
            target=target,
            boot_id=draw(st.sampled_from(["boot", "older"])),
            phase=draw(st.sampled_from(["begun", "done", "foul", "gone"])),
            seen_as=draw(st.sampled_from(["plain", "mount"])),
            bind=draw(st.sampled_from(["none", "begun", "done"])) if target else "none",
        )
        # What is done with a use is on record with its staging: both are written before the first call.
        if staging_path and (node.uses[claim_id].phase != "gone" or draw(st.booleans())):
            node.staged = Staging(
                plugin_id=DISK.plugin_id,
                external_id=DISK.external_id,
                staging_path=staging_path,
                boot_id=draw(st.sampled_from(["boot", "older"])),
                phase=draw(st.sampled_from(["begun", "done", "foul"])),
                seen_as="mount",
            )


def check_end(node: Node) -> None:
    for claim_id in IDS:
        known = node.claims.get(claim_id)
        goal = goal_of(known)
        assert goal != "unmount"
        if goal == "none":
            assert claim_id not in node.uses
            continue
        assert known is not None
        if claim_id not in node.refused:
            assert isinstance(known.claim.state, Mounted)
            assert node.uses[claim_id].phase == "done"
            assert node.published[claim_id] == node.uses[claim_id].seen_as
            assert known.claim.state.grown_bytes >= known.grow_to_bytes
            assert not known.claim.target or node.targets[claim_id].is_same
    if not any(goal_of(a) == "mount" for a in node.claims.values()):
        assert node.staged is None


@settings(max_examples=400, deadline=None)
@given(nodes())
def test_any_start_converges(node: Node) -> None:
    assert node.settle() <= ACTIONS_MAX
    check_end(node)
    assert node.settle() <= len(IDS)  # only refusals are asked for again


@settings(max_examples=400, deadline=None)
@given(nodes(), st.data())
def test_stopped_after_any_action_and_resumed_it_ends_the_same(node: Node, data: st.DataObject) -> None:
    twin = msgspec_copy(node)
    node.settle()
    cuts = iter(data.draw(st.lists(st.booleans(), max_size=25)))
    twin.settle(lambda: next(cuts, False))
    check_end(twin)
    # Whether a target that somebody else took is refused may depend on what the journal still knew.
    assert node.refused or twin.refused or twin.summary() == node.summary()


@settings(max_examples=200, deadline=None)
@given(nodes())
def test_all_released_leaves_nothing(node: Node) -> None:
    node.settle()
    for claim_id, known in list(node.claims.items()):
        if isinstance(known.claim.state, (Attached, Mounted)):
            released = replace(known.claim, wanted="released")
            node.claims[claim_id] = replace(known, claim=released, revision=Revision(known.revision + 1))
    node.settle()
    assert not node.uses
    assert node.staged is None
    assert not {i for i in node.alive() if goal_of(node.claims.get(i)) != "none"}


def test_two_claims_are_staged_once_and_unstaged_once() -> None:
    node = Node(stages=True)
    for claim_id in IDS[:2]:
        node.claims[claim_id] = _held(claim_id)
    node.settle()
    assert node.calls.count("Stage") == 1
    assert node.calls.count("Publish") == 2
    node.calls.clear()
    for claim_id in IDS[:2]:
        known = node.claims[claim_id]
        node.claims[claim_id] = replace(known, claim=replace(known.claim, wanted="released"))
        node.settle()
    assert node.calls.count("Unstage") == 1
    assert node.calls.index("Unstage") > max(i for i, c in enumerate(node.calls) if c == "Unpublish")


def test_a_refused_claim_does_not_keep_a_broken_staging_from_the_others() -> None:
    """Found by chance: b's target is taken, so b was held back with what it had published; a waited for b for ever."""
    node = Node(stages=True)
    for claim_id in IDS[:2]:
        node.claims[claim_id] = _held(claim_id)
    other = IDS[1]
    node.settle()
    target = f"/srv/{other}"
    taken = replace(node.claims[other], claim=replace(node.claims[other].claim, target=target))
    node.claims[other] = taken
    node.uses = {other: replace(node.uses[other], target=target, phase="begun")}
    node.targets[other] = TargetSeen("full_directory")
    node.published[IDS[0]], node.staging = "absent", "broken"
    node.calls.clear()
    node.settle()
    assert node.refused == {other}
    assert (node.staging, node.published[IDS[0]]) == ("mount", "mount")
    assert node.calls.index("Unpublish") < node.calls.index("Unstage") < node.calls.index("Stage")
    check_end(node)


def _held(claim_id: ClaimId) -> ClaimAssignment:
    claim = Claim(
        id=claim_id,
        allocation_id=AllocationId("alloc"),
        name="data",
        namespace=NamespaceName("default"),
        volume_id=VolumeId("vol"),
        plugin_id=DISK.plugin_id,
        external_id=DISK.external_id,
        external_node_id="n",
        node_id=NodeId("node"),
        read_only=False,
        access_mode="single-node-multi-writer",
        attachment_mode="file-system",
        state=Attached(),
    )
    return ClaimAssignment(claim=claim, revision=Revision(1))


def msgspec_copy(node: Node) -> Node:
    """A twin that shares only immutable values."""
    twin = Node(stages=node.info.requires_stage, boot=node.boot)
    twin.staging, twin.staged, twin.driver_staged = node.staging, node.staged, node.driver_staged
    twin.published, twin.targets = dict(node.published), dict(node.targets)
    twin.uses, twin.claims = dict(node.uses), dict(node.claims)
    return twin
