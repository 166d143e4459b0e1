"""The agent's table for a mount whose server died: the order of the repair, and when it counts as mended."""

from __future__ import annotations

import msgspec

from moorage.model.assignment import ClaimAssignment, MountedReport
from moorage.model.claim import Claim, Mounted
from moorage.model.ids import AllocationId, ClaimId, NamespaceName, NodeId, PluginId, Revision, VolumeId
from moorage.model.plugin import NodeInfo
from moorage.model.volume import Fault, Progress
from moorage.rules import mount_actions as actions
from moorage.rules.mount_actions import View
from moorage.rules.mount_records import Disk, Layout, Seen, Staging, TargetSeen, Use
from moorage.rules.mounts import next_action

replace = msgspec.structs.replace
A = ClaimId("a")
DISK, LAYOUT, TARGET = Disk(PluginId("nas"), "ext"), Layout("/state"), "/srv/a"
STAGING, PATH = LAYOUT.staging(DISK), LAYOUT.publish(A)
FAULT = Fault(method="Look", status="ENOTCONN", message="broken", final=False)
CLAIM = Claim(
    id=A,
    allocation_id=AllocationId("alloc"),
    name="data",
    namespace=NamespaceName("default"),
    volume_id=VolumeId("vol"),
    plugin_id=DISK.plugin_id,
    external_id=DISK.external_id,
    node_id=NodeId("node"),
    external_node_id="n",
    read_only=False,
    access_mode="single-node-writer",
    attachment_mode="file-system",
    target=TARGET,
    state=Mounted(path=TARGET, publish_path=PATH, staging_path=STAGING),
    progress=Progress(attempts=1, last_fault=FAULT),
)
USE = Use(
    claim_id=A,
    plugin_id=DISK.plugin_id,
    external_id=DISK.external_id,
    publish_path=PATH,
    staging_path=STAGING,
    target=TARGET,
    boot_id="boot",
    phase="done",
    seen_as="mount",
    bind="done",
)
STAGED = Staging(
    plugin_id=DISK.plugin_id,
    external_id=DISK.external_id,
    staging_path=STAGING,
    boot_id="boot",
    phase="done",
    seen_as="mount",
)
WELL = Seen(staging="mount", published={A: "mount"}, targets={A: TargetSeen("mount", True)})
BROKEN = Seen(staging="broken", published={A: "broken"}, targets={A: TargetSeen("mount", False)})


def view(seen: Seen, *, use: Use = USE, staging: Staging | None = STAGED, claim: Claim = CLAIM, grow: int = 0) -> View:
    return View(
        disk=DISK,
        layout=LAYOUT,
        boot_id="boot",
        assignments=(ClaimAssignment(claim=claim, revision=Revision(5), grow_to_bytes=grow),),
        uses=(use,),
        staging=staging,
        seen=seen,
        node=NodeInfo(requires_stage=True, supports_expand=True),
    )


def test_a_broken_mount_is_taken_down_from_the_consumer_inwards_and_made_again() -> None:
    order = [type(next_action(view(BROKEN)))]
    unbound = replace(USE, bind="none")
    order.append(type(next_action(view(replace(BROKEN, targets={A: TargetSeen("empty_directory")}), use=unbound))))
    gone = replace(unbound, phase="begun", seen_as="absent")
    order.append(type(next_action(view(Seen(staging="broken"), use=gone))))
    order.append(type(next_action(view(Seen(), use=gone, staging=None))))
    order.append(type(next_action(view(Seen(staging="mount"), use=gone))))
    order.append(type(next_action(view(replace(WELL, targets={}), use=unbound))))
    assert order == [
        actions.Unbind,
        actions.Unpublish,
        actions.Unstage,
        actions.Stage,
        actions.Publish,
        actions.Bind,
    ]


def test_a_broken_mount_is_not_given_up_by_its_unpublish() -> None:
    action = next_action(view(BROKEN, use=replace(USE, bind="none")))
    assert isinstance(action, actions.Unpublish)
    assert action.then == "begun"


def test_a_mount_that_works_again_is_told_once() -> None:
    mended = view(WELL)
    action = next_action(mended)
    assert isinstance(action, actions.ReportMounted)
    assert action.report == MountedReport(
        claim_id=A, revision=Revision(5), path=TARGET, publish_path=PATH, staging_path=STAGING
    )
    assert next_action(replace(mended, reported={A: action.report})) == actions.REST
    assert next_action(view(WELL, claim=replace(CLAIM, progress=Progress()))) == actions.REST


def test_a_fault_of_a_growth_that_is_still_owed_stays_on_record() -> None:
    assert isinstance(next_action(view(WELL, grow=100)), actions.Grow)
