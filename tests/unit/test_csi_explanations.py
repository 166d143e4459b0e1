"""Texts around drivers' faults, in the recorded wording, and refusals without a call."""

from __future__ import annotations

import grpc
import pytest

from moorage.csi.convert import CONVERSIONS
from moorage.model import steps
from moorage.model.volume import Capability, Fault
from moorage.rules.explanations import check_created, check_step, explain, get_method, quote

FILES = Capability(access_mode="single-node-writer", attachment_mode="file-system")
CREATE = steps.CreateVolume(name="x", capabilities=(FILES,))
FROM_SNAPSHOT = steps.CreateVolume(name="vs", capabilities=(FILES,), snapshot_id="none")
CLONE = steps.CreateVolume(name="vc", capabilities=(FILES,), clone_id="none")
DELETE = steps.DeleteVolume(external_id="v")
EXPAND = steps.ExpandVolume(external_id="v", required_bytes=1)
VALIDATE = steps.ValidateVolume(external_id="v", capabilities=(FILES,))
ATTACH = steps.AttachVolume(external_id="v", external_node_id="n", capability=FILES)
DETACH = steps.DetachVolume(external_id="v", external_node_id="n")
LIST = steps.ListVolumes(starting_token='b"d')
LIST_SNAPSHOTS = steps.ListSnapshots(starting_token="bad")
SNAP = steps.CreateSnapshot(external_source_id="v", name="s")
UNSNAP = steps.DeleteSnapshot(snapshot_id="s")
STAGE = steps.StageVolume(external_id="v", staging_path="/s", capability=FILES)
PUBLISH = steps.PublishVolume(external_id="v", target_path="/t", capability=FILES)
UNPUBLISH = steps.UnpublishVolume(external_id="v", target_path="/t")
UNSTAGE = steps.UnstageVolume(external_id="v", staging_path="/s")
GROW = steps.ExpandNodeVolume(external_id="v", volume_path="/t")
STATS = steps.GetVolumeStats(external_id="v", volume_path="/t")
ONE_OF_EACH: list[steps.Step] = [
    CREATE,
    DELETE,
    EXPAND,
    VALIDATE,
    ATTACH,
    DETACH,
    LIST,
    LIST_SNAPSHOTS,
    SNAP,
    UNSNAP,
    steps.GetCapacity(),
    STAGE,
    PUBLISH,
    UNPUBLISH,
    UNSTAGE,
    GROW,
    STATS,
]
INTERNAL = "controller plugin returned an internal error, check the plugin allocation logs for more information"


@pytest.mark.parametrize(
    ("step", "status", "text"),
    [
        (
            CREATE,
            "INVALID_ARGUMENT",
            'controller create volume: CSI.ControllerCreateVolume: volume "x" snapshot source &{"" ""} is not'
            " compatible with these parameters: rpc error: code = InvalidArgument desc = why",
        ),
        (
            FROM_SNAPSHOT,
            "NOT_FOUND",
            'controller create volume: CSI.ControllerCreateVolume: volume "vs" content source &{"none" ""} does not'
            " exist: rpc error: code = NotFound desc = why",
        ),
        (
            CLONE,
            "NOT_FOUND",
            'controller create volume: CSI.ControllerCreateVolume: volume "vc" content source &{"" "none"} does not'
            " exist: rpc error: code = NotFound desc = why",
        ),
        (
            CREATE,
            "ALREADY_EXISTS",
            'controller create volume: CSI.ControllerCreateVolume: volume "x" already exists but is incompatible with'
            " these parameters: rpc error: code = AlreadyExists desc = why",
        ),
        (
            CREATE,
            "RESOURCE_EXHAUSTED",
            'controller create volume: CSI.ControllerCreateVolume: unable to provision "x" in accessible_topology:'
            " rpc error: code = ResourceExhausted desc = why",
        ),
        (
            CREATE,
            "OUT_OF_RANGE",
            'controller create volume: CSI.ControllerCreateVolume: unsupported capacity_range for volume "x":'
            " rpc error: code = OutOfRange desc = why",
        ),
        (
            CREATE,
            "INTERNAL",
            f"controller create volume: CSI.ControllerCreateVolume: {INTERNAL}: rpc error: code = Internal desc = why",
        ),
        (
            CREATE,
            "CANCELLED",
            "controller create volume: CSI.ControllerCreateVolume: rpc error: code = Canceled desc = why",
        ),
        (CREATE, "", "controller create volume: CSI.ControllerCreateVolume: why"),
        (CREATE, "UNREADABLE", "controller create volume: CSI.ControllerCreateVolume: why"),
        (
            VALIDATE,
            "NOT_FOUND",
            'controller validate volume: CSI.ControllerValidateVolume: volume "v" could not be found:'
            " rpc error: code = NotFound desc = why",
        ),
        (
            DELETE,
            "FAILED_PRECONDITION",
            'controller delete volume: CSI.ControllerDeleteVolume: volume "v" is in use:'
            " rpc error: code = FailedPrecondition desc = why",
        ),
        (
            EXPAND,
            "INVALID_ARGUMENT",
            "controller expand volume: CSI.ControllerExpandVolume: requested capabilities not compatible with volume"
            ' "v": rpc error: code = InvalidArgument desc = why',
        ),
        (
            EXPAND,
            "NOT_FOUND",
            'controller expand volume: CSI.ControllerExpandVolume: volume "v" could not be found:'
            " rpc error: code = NotFound desc = why",
        ),
        (
            EXPAND,
            "FAILED_PRECONDITION",
            'controller expand volume: CSI.ControllerExpandVolume: volume "v" cannot be expanded online:'
            " rpc error: code = FailedPrecondition desc = why",
        ),
        (
            EXPAND,
            "OUT_OF_RANGE",
            'controller expand volume: CSI.ControllerExpandVolume: unsupported capacity_range for volume "v":'
            " rpc error: code = OutOfRange desc = why",
        ),
        (
            EXPAND,
            "INTERNAL",
            f"controller expand volume: CSI.ControllerExpandVolume: {INTERNAL}: rpc error: code = Internal desc = why",
        ),
        (
            EXPAND,
            "UNKNOWN",
            "controller expand volume: CSI.ControllerExpandVolume: controller plugin returned an error:"
            " rpc error: code = Unknown desc = why",
        ),
        (
            LIST,
            "ABORTED",
            r'controller list volumes: CSI.ControllerListVolumes: invalid starting token "b\"d":'
            " rpc error: code = Aborted desc = why",
        ),
        (
            LIST_SNAPSHOTS,
            "ABORTED",
            'controller list snapshots: CSI.ControllerListSnapshots: invalid starting token "bad":'
            " rpc error: code = Aborted desc = why",
        ),
        (
            SNAP,
            "ALREADY_EXISTS",
            'controller create snapshot: CSI.ControllerCreateSnapshot: snapshot "s" already exists but is'
            ' incompatible with volume ID "v": rpc error: code = AlreadyExists desc = why',
        ),
        (
            SNAP,
            "ABORTED",
            'controller create snapshot: CSI.ControllerCreateSnapshot: snapshot "s" is already pending:'
            " rpc error: code = Aborted desc = why",
        ),
        (
            SNAP,
            "RESOURCE_EXHAUSTED",
            "controller create snapshot: CSI.ControllerCreateSnapshot: storage provider does not have enough space"
            " for this snapshot: rpc error: code = ResourceExhausted desc = why",
        ),
        (
            SNAP,
            "NOT_FOUND",
            "controller create snapshot: CSI.ControllerCreateSnapshot: rpc error: code = NotFound desc = why",
        ),
        (
            UNSNAP,
            "FAILED_PRECONDITION",
            'controller delete snapshot: CSI.ControllerDeleteSnapshot: snapshot "s" could not be deleted because it'
            " is in use: rpc error: code = FailedPrecondition desc = why",
        ),
        (
            UNSNAP,
            "ABORTED",
            'controller delete snapshot: CSI.ControllerDeleteSnapshot: snapshot "s" has a pending operation:'
            " rpc error: code = Aborted desc = why",
        ),
        (
            PUBLISH,
            "UNAVAILABLE",
            "node publish volume: CSI.NodePublishVolume: rpc error: code = Unavailable desc = why",
        ),
        (
            STAGE,
            "INTERNAL",
            "node stage volume: CSI.NodeStageVolume: node plugin returned an internal error, check the plugin"
            " allocation logs for more information: rpc error: code = Internal desc = why",
        ),
    ],
)
def test_wording(step: steps.Step, status: str, text: str) -> None:
    fault = Fault(method=get_method(step), status=status, message="why", final=True)
    assert explain(step, fault) == text


@pytest.mark.parametrize("step", ONE_OF_EACH, ids=lambda s: type(s).__name__)
def test_every_step_and_every_status_has_a_sentence(step: steps.Step) -> None:
    assert check_step(step) is None
    assert CONVERSIONS[type(step)].rpc.name == get_method(step)
    for code in grpc.StatusCode:
        if code is not grpc.StatusCode.OK:
            text = explain(step, Fault(method="", status=code.name, message="why", final=True))
            assert f"rpc error: code = {code.name.title().replace('_', '')[:6]}" in text
            assert text.endswith(" desc = why")


def test_one_of_each_step_is_tried() -> None:
    assert {type(s) for s in ONE_OF_EACH} == set(CONVERSIONS)


BAD_ACCESS = Capability(access_mode="zz", attachment_mode="file-system")
BAD_ATTACHMENT = Capability(access_mode="single-node-writer", attachment_mode="zz")


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (
            steps.CreateVolume(name="", capabilities=(FILES,)),
            "controller create volume: CSI.ControllerCreateVolume: missing Name",
        ),
        (
            steps.CreateVolume(name="", capabilities=(FILES, BAD_ACCESS)),
            "controller create volume: CSI.ControllerCreateVolume: unknown volume access mode: zz",
        ),
        (
            steps.CreateVolume(name="x", capabilities=(Capability(),)),
            "controller create volume: CSI.ControllerCreateVolume: unknown volume attachment mode: ",
        ),
        (
            steps.CreateVolume(name="x", capabilities=()),
            "controller create volume: CSI.ControllerCreateVolume: missing VolumeCapabilities",
        ),
        (
            steps.CreateVolume(name="x", capabilities=(FILES,), clone_id="a", snapshot_id="b"),
            "controller create volume: CSI.ControllerCreateVolume: only one of SnapshotID and CloneID is allowed",
        ),
        (
            steps.CreateVolume(name="x", capabilities=(FILES,), required_bytes=30, limit_bytes=20),
            "controller create volume: CSI.ControllerCreateVolume: LimitBytes cannot be less than RequiredBytes",
        ),
        (
            steps.CreateVolume(name="x", capabilities=(FILES,), required_bytes=2**63),
            "controller create volume: CSI.ControllerCreateVolume: RequiredBytes must fit in 64 bits",
        ),
        (
            steps.DeleteVolume(external_id=""),
            "controller delete volume: CSI.ControllerDeleteVolume: missing ExternalVolumeID",
        ),
        (
            steps.ExpandVolume(external_id="", required_bytes=1),
            "controller expand volume: CSI.ControllerExpandVolume: missing ExternalVolumeID",
        ),
        (
            steps.ExpandVolume(external_id="v", required_bytes=3, limit_bytes=2),
            "controller expand volume: CSI.ControllerExpandVolume: LimitBytes cannot be less than RequiredBytes",
        ),
        (
            steps.ValidateVolume(external_id="v", capabilities=(BAD_ATTACHMENT,)),
            "controller validate volume: CSI.ControllerValidateVolume: unknown volume attachment mode: zz",
        ),
        (
            steps.AttachVolume(external_id="v", external_node_id="n", capability=BAD_ACCESS),
            "controller attach volume: CSI.ControllerAttachVolume: unknown volume access mode: zz",
        ),
        (
            steps.DetachVolume(external_id="v", external_node_id=""),
            "controller detach volume: CSI.ControllerDetachVolume: missing ExternalNodeID",
        ),
        (
            steps.ListVolumes(entries_max=-1),
            "controller list volumes: CSI.ControllerListVolumes: MaxEntries cannot be negative",
        ),
        (
            steps.ListSnapshots(entries_max=-1),
            "controller list snapshots: CSI.ControllerListSnapshots: MaxEntries cannot be negative",
        ),
        (
            steps.CreateSnapshot(external_source_id="", name="s"),
            "controller create snapshot: CSI.ControllerCreateSnapshot: missing VolumeID",
        ),
        (
            steps.CreateSnapshot(external_source_id="v", name=""),
            "controller create snapshot: CSI.ControllerCreateSnapshot: missing Name",
        ),
        (
            steps.DeleteSnapshot(snapshot_id=""),
            "controller delete snapshot: CSI.ControllerDeleteSnapshot: missing SnapshotID",
        ),
        (
            steps.UnpublishVolume(external_id="v", target_path=""),
            "node unpublish volume: CSI.NodeUnpublishVolume: missing TargetPath",
        ),
        (
            steps.UnstageVolume(external_id="v", staging_path=""),
            "node unstage volume: CSI.NodeUnstageVolume: missing StagingTargetPath",
        ),
    ],
)
def test_refusal_without_a_call(step: steps.Step, text: str) -> None:
    fault = check_step(step)
    assert fault is not None
    assert (fault.status, fault.final) == ("", True)
    assert explain(step, fault) == text


@pytest.mark.parametrize(
    "step",
    [
        # Negative sizes are for the driver to refuse, and a limit of 0 is none, as recorded.
        steps.CreateVolume(name="x", capabilities=(FILES,), required_bytes=-1, limit_bytes=20),
        steps.CreateVolume(name="x", capabilities=(FILES,), required_bytes=10, limit_bytes=-1),
        steps.CreateVolume(name="x", capabilities=(FILES,), required_bytes=10),
    ],
)
def test_sizes_that_go_to_the_driver(step: steps.Step) -> None:
    assert check_step(step) is None


@pytest.mark.parametrize(
    ("capacity", "kept", "part"),
    [
        (0, True, ""),
        (10, True, ""),
        (20, True, ""),
        (9, True, "made 9 bytes, less than the 10 asked for"),
        (21, True, "made 21 bytes, more than the limit of 20"),
        (15, False, 'did not fill the new volume from snapshot "s1"'),
    ],
)
def test_what_the_driver_made_is_checked(capacity: int, kept: bool, part: str) -> None:
    step = steps.CreateVolume(name="x", capabilities=(FILES,), required_bytes=10, limit_bytes=20, snapshot_id="s1")
    fault = check_created(step, steps.Created(external_id="v", capacity_bytes=capacity, is_source_kept=kept))
    if not part:
        assert fault is None
    else:
        assert fault is not None
        assert part in fault.message
        assert '"v"' in fault.message


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a", '"a"'),
        ('a"\\', r'"a\"\\"'),
        ("\n\t\x01\x7f", r'"\n\t\x01\x7f"'),
        ("é☃", '"é☃"'),
        ("\u200b\U000e0001", r'"\u200b\U000e0001"'),
    ],
)
def test_quoting(text: str, quoted: str) -> None:
    assert quote(text) == quoted
