"""The agent's table: (claims, seen, journal) → action, and the records around it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import msgspec
import pytest

from moorage.errors import BadRequest
from moorage.model.assignment import ClaimAssignment
from moorage.model.claim import Attached, Claim, ControllerDetached, Mounted, NodeDetached, Taken
from moorage.model.ids import AllocationId, ClaimId, NamespaceName, NodeId, PluginId, Revision, VolumeId
from moorage.model.plugin import NodeInfo
from moorage.model.volume import Secrets
from moorage.rules import mount_actions as actions
from moorage.rules.mount_actions import View
from moorage.rules.mount_records import (
    Disk,
    Layout,
    Seen,
    Staging,
    TargetSeen,
    Use,
    check_state_dir,
    check_target,
)
from moorage.rules.mounts import BINDS, NEXT, Goal, PublishFact, next_action

LAYOUT = Layout("/state")
DISK = Disk(PluginId("nas"), "ext-1")
A, B = ClaimId("a"), ClaimId("b")
STAGES = NodeInfo(requires_stage=True, supports_expand=True)
PLAIN = NodeInfo()
replace = msgspec.structs.replace


def claim(claim_id: ClaimId = A, state: Any = None, **more: Any) -> Claim:
    return Claim(
        id=claim_id,
        allocation_id=AllocationId("alloc"),
        name="data",
        namespace=NamespaceName("default"),
        volume_id=VolumeId("vol"),
        plugin_id=DISK.plugin_id,
        external_id=DISK.external_id,
        external_node_id="n-1",
        node_id=NodeId("node"),
        access_mode="single-node-writer",
        attachment_mode=more.pop("attachment_mode", "file-system"),
        read_only=more.pop("read_only", False),
        state=state or Attached(publish_context={"lun": "7"}),
        **more,
    )


def known(claim_id: ClaimId = A, state: Any = None, *, grow: int = 0, **more: Any) -> ClaimAssignment:
    return ClaimAssignment(
        claim=claim(claim_id, state, **more),
        revision=Revision(5),
        grow_to_bytes=grow,
        secrets=Secrets({"k": "hunter2"}),
    )


def use(claim_id: ClaimId = A, **more: Any) -> Use:
    more = {"staging_path": LAYOUT.staging(DISK), "boot_id": "boot", **more}
    return Use(
        claim_id=claim_id,
        plugin_id=DISK.plugin_id,
        external_id=DISK.external_id,
        publish_path=LAYOUT.publish(claim_id),
        **more,
    )


def staging(**more: Any) -> Staging:
    more = {"boot_id": "boot", "phase": "done", "seen_as": "mount", **more}
    return Staging(plugin_id=DISK.plugin_id, external_id=DISK.external_id, staging_path=LAYOUT.staging(DISK), **more)


def mounted(claim_id: ClaimId = A, **more: Any) -> Mounted:
    path = LAYOUT.publish(claim_id)
    return Mounted(**{"path": path, "publish_path": path, "staging_path": LAYOUT.staging(DISK), **more})


def view(
    claims: Iterable[ClaimAssignment] = (), uses: Iterable[Use] = (), *, seen: Seen | None = None, **more: Any
) -> View:
    more = {"node": STAGES, "boot_id": "boot", **more}
    return View(disk=DISK, layout=LAYOUT, assignments=tuple(claims), uses=tuple(uses), seen=seen or Seen(), **more)


UP = Seen(staging="mount", published={A: "mount"})
DONE = use(phase="done", seen_as="mount")


def test_no_cell_is_empty() -> None:
    pairs = {(g, p) for g in get_args(Goal) for p in get_args(PublishFact)}
    assert set(NEXT) == pairs
    assert all(len(row) == len(BINDS) and all(row) for row in NEXT.values())


CASES: dict[str, tuple[View, type[actions.Action]]] = {
    # mounting
    "attached: into the journal first": (view([known()]), actions.Begin),
    "capabilities not known: wait": (view([known()], node=None), actions.Rest),
    "begun, driver stages": (view([known()], [use()]), actions.Stage),
    "begun, driver does not stage": (view([known()], [use(staging_path="")], node=PLAIN), actions.Publish),
    "stage of unknown result is repeated": (view([known()], [use()], staging=staging(phase="begun")), actions.Stage),
    "staged": (view([known()], [use()], staging=staging(), seen=Seen(staging="mount")), actions.Publish),
    "staged, yet not seen": (view([known()], [use()], staging=staging()), actions.Stage),
    "staged before the boot": (
        view([known()], [use()], staging=staging(boot_id="older"), seen=Seen(staging="mount")),
        actions.Stage,
    ),
    "published": (view([known()], [DONE], staging=staging(), seen=UP), actions.ReportMounted),
    "published, target wanted": (
        view([known(target="/srv/a")], [replace(DONE, target="/srv/a")], staging=staging(), seen=UP),
        actions.Bind,
    ),
    "mounted: rest": (view([known(state=mounted())], [DONE], staging=staging(), seen=UP), actions.Rest),
    "mounted elsewhere than told: tell": (
        view([known(state=mounted(path="/old"))], [DONE], staging=staging(), seen=UP),
        actions.ReportMounted,
    ),
    "mounted, growth owed": (
        view([known(state=mounted(), grow=10)], [DONE], staging=staging(), seen=UP),
        actions.Grow,
    ),
    "grown: tell": (
        view([known(state=mounted(), grow=10)], [replace(DONE, grown_bytes=10)], staging=staging(), seen=UP),
        actions.ReportMounted,
    ),
    "told as grown: rest": (
        view([known(state=mounted(grown_bytes=10), grow=10)], [DONE], staging=staging(), seen=UP),
        actions.Rest,
    ),
    "growth owed, read-only": (
        view([known(state=mounted(), grow=10)], [replace(DONE, read_only=True)], staging=staging(), seen=UP),
        actions.Rest,
    ),
    # broken and rebooted
    "mounted, host rebooted": (
        view([known(state=mounted())], [DONE], staging=staging(), boot_id="newer"),
        actions.Stage,
    ),
    "mounted before the boot, path still there": (
        view([known(state=mounted())], [replace(DONE, boot_id="older")], staging=staging(), seen=UP),
        actions.Publish,
    ),
    "mounted, path gone": (
        view([known(state=mounted())], [DONE], staging=staging(), seen=Seen(staging="mount")),
        actions.Publish,
    ),
    "mounted, path dead": (
        view(
            [known(state=mounted())],
            [DONE],
            staging=staging(),
            seen=Seen(staging="mount", published={A: "broken"}),
        ),
        actions.Unpublish,
    ),
    "staging dead, this use stands on it": (
        view([known()], [use()], staging=staging(), seen=Seen(staging="broken", published={A: "mount"})),
        actions.Unpublish,
    ),
    "staging dead, another use stands on it": (
        view(
            [known(), known(B)],
            [use(), use(B)],
            staging=staging(),
            seen=Seen(staging="broken", published={B: "mount"}),
        ),
        actions.Unpublish,
    ),
    "staging dead, nothing stands on it": (
        view([known()], [use()], staging=staging(), seen=Seen(staging="broken")),
        actions.Unstage,
    ),
    # releasing
    "released: unbind first": (
        view(
            [known(state=mounted(), wanted="released")],
            [replace(DONE, target="/srv/a", bind="done")],
            staging=staging(),
            seen=UP,
        ),
        actions.Unbind,
    ),
    "released: unpublish": (
        view([known(state=mounted(), wanted="released")], [DONE], staging=staging(), seen=UP),
        actions.Unpublish,
    ),
    "released, begun only: undone all the same": (
        view([known(wanted="released")], [use()], staging=staging(phase="begun")),
        actions.Unpublish,
    ),
    "unpublished, last use": (
        view([known(wanted="released")], [use(phase="gone")], staging=staging(), seen=Seen(staging="mount")),
        actions.Unstage,
    ),
    "unpublished, another is published": (
        view(
            [known(wanted="released"), known(B, mounted(B))],
            [use(phase="gone"), use(B, phase="done", seen_as="mount")],
            staging=staging(),
            seen=Seen(staging="mount", published={B: "mount"}),
        ),
        actions.ReportUnmounted,
    ),
    "unpublished, another is about to mount": (
        view(
            [known(wanted="released"), known(B)],
            [use(phase="gone")],
            staging=staging(),
            seen=Seen(staging="mount"),
            node=None,
        ),
        actions.ReportUnmounted,
    ),
    "unpublished, another is only taken: its release would not ask us": (
        view([known(wanted="released"), known(B, Taken())], [use(phase="gone")], staging=staging()),
        actions.Unstage,
    ),
    "all gone: tell": (view([known(wanted="released")], [use(phase="gone")]), actions.ReportUnmounted),
    "released before anything was begun": (view([known(wanted="released")]), actions.ReportUnmounted),
    "server knows: forget": (
        view([known(state=NodeDetached(), wanted="released")], [use(phase="gone")]),
        actions.Forget,
    ),
    # orphans
    "claim gone from the server": (view([], [DONE], staging=staging(), seen=UP), actions.Unpublish),
    "claim fenced": (
        view([known(state=ControllerDetached(), wanted="released")], [DONE], staging=staging(), seen=UP),
        actions.Unpublish,
    ),
    "orphan unpublished": (view([], [use(phase="gone")], staging=staging()), actions.Forget),
    "orphaned staging": (view([], [], staging=staging()), actions.Unstage),
    "taken: not ours yet": (view([known(state=Taken())]), actions.Rest),
    # the journal was lost
    "released, journal lost": (view([known(state=mounted(), wanted="released")]), actions.Begin),
}


@pytest.mark.parametrize("name", CASES)
def test_next_action(name: str) -> None:
    given, expected = CASES[name]
    assert type(next_action(given)) is expected


def test_a_foreign_mount_is_undone_before_use() -> None:
    action = next_action(view([known()], seen=Seen(published={A: "mount"}, staging="mount")))
    assert isinstance(action, actions.Begin)
    assert action.use.phase == "foul"
    assert action.staging is not None
    assert action.staging.phase == "foul"


def test_a_mount_that_the_server_knows_is_confirmed_by_the_driver() -> None:
    action = next_action(view([known(state=mounted())], seen=UP))
    assert isinstance(action, actions.Begin)
    assert action.use.phase == "begun"


def test_steps_carry_all_that_the_driver_needs() -> None:
    stage = next_action(view([known()], [use()]))
    assert isinstance(stage, actions.Stage)
    assert stage.step.publish_context == {"lun": "7"}
    assert stage.step.secrets.values == {"k": "hunter2"}
    publish = next_action(view([known(read_only=True)], [use()], staging=staging(), seen=Seen(staging="mount")))
    assert isinstance(publish, actions.Publish)
    assert publish.step.read_only
    assert publish.step.staging_path == LAYOUT.staging(DISK)
    assert publish.step.target_path == LAYOUT.publish(A)
    assert "hunter2" not in repr(publish)


def test_undo_uses_recorded_paths() -> None:
    recorded = replace(DONE, publish_path="/state/p/before/mount")
    action = next_action(view([], [recorded], staging=staging(), seen=UP))
    assert isinstance(action, actions.Unpublish)
    assert action.step.target_path == "/state/p/before/mount"
    assert action.then == "gone"


def test_a_report_on_its_way_is_not_repeated() -> None:
    first = view([known()], [DONE], staging=staging(), seen=UP)
    action = next_action(first)
    assert isinstance(action, actions.ReportMounted)
    assert next_action(replace(first, reported={A: action.report})) == actions.REST
    newer = replace(known(), revision=Revision(6))
    again = next_action(replace(first, assignments=(newer,), reported={A: action.report}))
    assert isinstance(again, actions.ReportMounted)


def test_one_held_back_does_not_hold_the_other() -> None:
    both = view([known(), known(B)], [use(), use(B)], staging=staging(), seen=Seen(staging="mount"))
    action = next_action(both, frozenset({A}))
    assert isinstance(action, actions.Publish)
    assert action.claim_id == B
    assert next_action(both, frozenset({A, B})) == actions.REST


def test_a_last_unstage_that_is_held_back_is_not_done_for_nobody() -> None:
    last = view([known(wanted="released")], [use(phase="gone")], staging=staging())
    assert next_action(last, frozenset({A})) == actions.REST


TARGETS = {
    "absent": ("absent", "file-system", ""),
    "empty directory": ("empty_directory", "file-system", ""),
    "data": ("full_directory", "file-system", "not empty"),
    "a mount of somebody": ("mount", "file-system", "another mount"),
    "a link of somebody": ("link", "file-system", "symlink"),
    "a file": ("empty_file", "file-system", "needs a directory"),
    "a device": ("other", "file-system", "neither"),
    "file for a device": ("empty_file", "block-device", ""),
    "directory for a device": ("empty_directory", "block-device", "needs a file"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets(name: str) -> None:
    kind, mode, why = TARGETS[name]
    seen = Seen(targets={A: TargetSeen(kind)})  # type: ignore[arg-type]
    action = next_action(view([known(target="/srv/a", attachment_mode=mode)], seen=seen))
    if not why:
        assert isinstance(action, actions.Begin)
        return
    assert isinstance(action, actions.Refuse)
    assert why in action.report.fault.message
    assert "'/srv/a'" in action.report.fault.message
    assert action.report.fault.final


def test_a_blocked_target_is_not_the_end_of_a_mounted_claim() -> None:
    seen = Seen(targets={A: TargetSeen("full_directory")})
    action = next_action(view([known(state=mounted(), target="/srv/a")], [replace(DONE, target="/srv/a")], seen=seen))
    assert isinstance(action, actions.Refuse)
    assert not action.report.fault.final


BINDINGS = {
    ("mount", True, "done"): actions.ReportMounted,
    ("link", True, "done"): actions.ReportMounted,
    ("mount", False, "done"): actions.Unbind,
    ("mount", True, "begun"): actions.Unbind,
    ("absent", False, "begun"): actions.Bind,
    ("empty_directory", False, "done"): actions.Bind,
    ("mount", False, "none"): actions.Refuse,
}


@pytest.mark.parametrize("case", BINDINGS)
def test_bindings_of_a_published_volume(case: tuple[Any, bool, Any]) -> None:
    kind, is_same, phase = case
    seen = replace(UP, targets={A: TargetSeen(kind, is_same)})
    bound = replace(DONE, target="/srv/a", bind=phase)
    action = next_action(view([known(target="/srv/a")], [bound], staging=staging(), seen=seen))
    assert type(action) is BINDINGS[case]


@pytest.mark.parametrize(
    "target", ["srv/a", "/", "//", "/srv/../etc", "/srv/./a", "/srv//a", "/srv/", "/a\0b", "/state/p", "/" + "x" * 2000]
)
def test_targets_that_no_one_may_use(target: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_target(target, LAYOUT)
    assert repr(target) in caught.value.message
    assert isinstance(next_action(view([known(target=target)])), actions.Refuse)


def test_the_state_directory_itself_is_no_target() -> None:
    with pytest.raises(BadRequest):
        check_target("/var", Layout("/var/lib/moorage"))
    check_target("/var/lib/other", Layout("/var/lib/moorage"))
    check_target("/var/lib/moorage2", Layout("/var/lib/moorage"))


def test_paths_stay_short() -> None:
    layout = check_state_dir("/" + "d" * 97)
    assert len(layout.publish(ClaimId("x" * 500))) < 128
    assert len(layout.staging(Disk(PluginId("p" * 90), "e" * 128))) < 128
    with pytest.raises(BadRequest) as caught:
        check_state_dir("/" + "d" * 98 + "/x")
    assert "bytes too long" in caught.value.message
    with pytest.raises(BadRequest):
        check_state_dir("relative")


def test_disks_and_claims_do_not_share_paths() -> None:
    assert LAYOUT.staging(Disk(PluginId("a"), "bc")) != LAYOUT.staging(Disk(PluginId("ab"), "c"))
    assert LAYOUT.publish(A) != LAYOUT.publish(B)
