"""Answers of CSI drivers become outcomes: every field read, contradictions refused."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format

from moorage.csi.convert import CONVERSIONS
from moorage.model import steps
from moorage.model.snapshot import ExternalVolume, Snapshot
from moorage.model.volume import Capability, MountOptions, Topology

FILES = Capability(access_mode="single-node-writer", attachment_mode="file-system")
BLOCK = Capability(access_mode="multi-node-multi-writer", attachment_mode="block-device")
ONE_WORKLOAD = Capability(access_mode="single-node-single-writer", attachment_mode="file-system")
OPTIONS = MountOptions(fs_type="ext4", mount_flags=("noatime", "ro"))
A, B = Topology(segments={"zone": "a", "rack": "1"}), Topology(segments={"zone": "b"})

FILES_TEXT = "mount { } access_mode { mode: SINGLE_NODE_WRITER }"
OPTIONS_TEXT = 'mount { fs_type: "ext4" mount_flags: "noatime" mount_flags: "ro" } access_mode { mode: %s }'
BLOCK_TEXT = "block { } access_mode { mode: MULTI_NODE_MULTI_WRITER }"


def read(step: steps.Step, text: str) -> steps.Outcome:
    conversion = CONVERSIONS[type(step)]
    return conversion.read(step, text_format.Parse(text, conversion.rpc.response_type()))


CREATE = steps.CreateVolume(name="n", capabilities=(FILES,))
STATS = steps.GetVolumeStats(external_id="v", volume_path="/t")


def test_created() -> None:
    text = """volume { capacity_bytes: 10 volume_id: "v" volume_context { key: "c" value: "1" }
      accessible_topology { segments { key: "zone" value: "a" } segments { key: "rack" value: "1" } }
      accessible_topology { } }"""
    expected = steps.Created(external_id="v", capacity_bytes=10, context={"c": "1"}, topologies=(A,))
    assert read(CREATE, text) == expected


@pytest.mark.parametrize("text", ["", "volume { }", "volume { capacity_bytes: 10 }"])
def test_created_without_an_id_is_a_failure(text: str) -> None:
    got = read(CREATE, text)
    assert isinstance(got, steps.Failed)
    assert (got.fault.method, got.fault.status, got.fault.final) == ("CreateVolume", "", True)
    assert got.fault.message == "the driver answered without a volume ID"


@pytest.mark.parametrize(
    ("source", "text", "kept"),
    [
        ({}, "", True),
        ({}, 'snapshot { snapshot_id: "s" }', True),
        ({"snapshot_id": "s"}, 'snapshot { snapshot_id: "s" }', True),
        ({"snapshot_id": "s"}, 'snapshot { snapshot_id: "t" }', False),
        ({"snapshot_id": "s"}, 'volume { volume_id: "s" }', False),
        ({"snapshot_id": "s"}, "", False),
        ({"clone_id": "v0"}, 'volume { volume_id: "v0" }', True),
        ({"clone_id": "v0"}, "", False),
    ],
)
def test_source_is_echoed(source: dict[str, Any], text: str, kept: bool) -> None:
    step = steps.CreateVolume(name="n", capabilities=(FILES,), **source)
    got = read(step, f'volume {{ volume_id: "v" {f"content_source {{ {text} }}" if text else ""} }}')
    assert isinstance(got, steps.Created)
    assert got.is_source_kept is kept


def confirmed(*texts: str) -> str:
    return f"confirmed {{ {' '.join(f'volume_capabilities {{ {t} }}' for t in texts)} }}"


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (None, ""),
        (None, 'message: "no idea"'),
        (None, "confirmed { }"),
        (None, confirmed(FILES_TEXT)),
        (None, confirmed("mount { }")),
        (None, confirmed("")),
        (None, confirmed("mount { } access_mode { mode: UNKNOWN }")),
        (None, confirmed(BLOCK_TEXT, FILES_TEXT)),
        (None, confirmed('mount { fs_type: "xfs" } access_mode { mode: SINGLE_NODE_WRITER }')),
        (OPTIONS, confirmed(OPTIONS_TEXT % "SINGLE_NODE_WRITER")),
        (OPTIONS, confirmed("access_mode { mode: SINGLE_NODE_WRITER }")),
    ],
)
def test_validation_accepts(options: MountOptions | None, answer: str) -> None:
    step = steps.ValidateVolume(external_id="v", capabilities=(FILES,), mount_options=options)
    assert read(step, answer) == steps.Done()


@pytest.mark.parametrize(
    ("options", "answer", "reason"),
    [
        (
            None,
            confirmed("mount { } access_mode { mode: MULTI_NODE_READER_ONLY }"),
            "requested access mode single-node-writer, confirmed MULTI_NODE_READER_ONLY",
        ),
        (
            None,
            confirmed("mount { } access_mode { mode: 99 }"),
            "requested access mode single-node-writer, confirmed 99",
        ),
        (
            None,
            confirmed("block { } access_mode { mode: SINGLE_NODE_WRITER }"),
            "requested attachment mode file-system, confirmed block",
        ),
        (
            OPTIONS,
            confirmed('mount { fs_type: "xfs" } access_mode { mode: SINGLE_NODE_WRITER }'),
            "requested filesystem type 'ext4', confirmed 'xfs'",
        ),
        (
            OPTIONS,
            confirmed('mount { fs_type: "ext4" mount_flags: "ro" }'),
            "not every requested mount flag was confirmed",
        ),
        (
            None,
            confirmed("block { }") + 'message: "files only over there"',
            "requested attachment mode file-system, confirmed block: files only over there",
        ),
    ],
)
def test_validation_refuses_contradictions(options: MountOptions | None, answer: str, reason: str) -> None:
    step = steps.ValidateVolume(external_id="v", capabilities=(FILES,), mount_options=options)
    got = read(step, answer)
    assert isinstance(got, steps.Failed)
    assert got.fault.message == f"volume capability validation failed: {reason}"
    assert (got.fault.method, got.fault.status, got.fault.final) == ("ValidateVolumeCapabilities", "", True)


def test_validation_of_a_newer_mode_accepts_its_fallback() -> None:
    step = steps.ValidateVolume(external_id="v", capabilities=(ONE_WORKLOAD,))
    assert read(step, confirmed(FILES_TEXT)) == steps.Done()


def test_every_asked_capability_must_be_confirmed() -> None:
    step = steps.ValidateVolume(external_id="v", capabilities=(FILES, BLOCK))
    assert isinstance(read(step, confirmed(FILES_TEXT)), steps.Failed)


def test_listed_volumes() -> None:
    got = read(
        steps.ListVolumes(),
        """entries { volume { volume_id: "v" capacity_bytes: 5 volume_context { key: "c" value: "1" }
             content_source { snapshot { snapshot_id: "s" } }
             accessible_topology { segments { key: "zone" value: "b" } } }
             status { published_node_ids: "n1" volume_condition { abnormal: true message: "degraded" } } }
           entries { volume { volume_id: "w" content_source { volume { volume_id: "v" } } } }
           entries { } next_token: "2" """,
    )
    full = ExternalVolume(
        external_id="v",
        capacity_bytes=5,
        context={"c": "1"},
        snapshot_id="s",
        topologies=(B,),
        published_node_ids=("n1",),
        is_abnormal=True,
        status="degraded",
    )
    bare = ExternalVolume(external_id="w", clone_id="v")
    assert got == steps.VolumesListed(volumes=(full, bare), next_token="2")


SNAPSHOT_TEXT = """snapshot { size_bytes: 7 snapshot_id: "s" source_volume_id: "v"
  creation_time { seconds: 1700000000 nanos: 5 } ready_to_use: true }"""
SNAPSHOT = Snapshot(id="s", external_source_id="v", size_bytes=7, created_at_s=1700000000, is_ready=True)


def test_snapshots() -> None:
    create = steps.CreateSnapshot(external_source_id="v", name="n")
    assert read(create, SNAPSHOT_TEXT) == steps.SnapshotCreated(snapshot=SNAPSHOT)
    assert isinstance(read(create, ""), steps.Failed)
    listed = read(steps.ListSnapshots(), f'entries {{ {SNAPSHOT_TEXT} }} entries {{ }} next_token: "2"')
    assert listed == steps.SnapshotsListed(snapshots=(SNAPSHOT,), next_token="2")


def test_stats() -> None:
    got = read(
        STATS,
        """usage { available: 4 total: 10 used: 6 unit: BYTES } usage { total: 100 unit: INODES }
           usage { total: 1 unit: 9 } usage { total: 5 unit: BYTES }
           volume_condition { abnormal: true message: "bad" }""",
    )
    expected = steps.StatsTold(
        total_bytes=10, used_bytes=6, available_bytes=4, total_inodes=100, is_abnormal=True, condition="bad"
    )
    assert got == expected
    assert read(STATS, "") == steps.StatsTold()


def test_other_answers() -> None:
    attach = steps.AttachVolume(external_id="v", external_node_id="n", capability=FILES)
    told = read(attach, 'publish_context { key: "d" value: "1" }')
    assert told == steps.Attached(publish_context={"d": "1"})
    expand = steps.ExpandVolume(external_id="v", required_bytes=1)
    expanded = steps.Expanded(capacity_bytes=9, is_node_expansion_required=True)
    assert read(expand, "capacity_bytes: 9 node_expansion_required: true") == expanded
    node = steps.ExpandNodeVolume(external_id="v", volume_path="/t")
    assert read(node, "capacity_bytes: 9") == steps.Expanded(capacity_bytes=9)
    assert read(steps.GetCapacity(), "available_capacity: 5") == steps.CapacityTold(available_bytes=5)
    largest = read(steps.GetCapacity(), "available_capacity: 5 maximum_volume_size { }")
    assert largest == steps.CapacityTold(available_bytes=5, volume_max_bytes=0)
    for step in (
        steps.DeleteVolume(external_id="v"),
        steps.DetachVolume(external_id="v", external_node_id="n"),
        steps.DeleteSnapshot(snapshot_id="s"),
        steps.StageVolume(external_id="v", staging_path="/s", capability=FILES),
        steps.PublishVolume(external_id="v", target_path="/t", capability=FILES),
        steps.UnpublishVolume(external_id="v", target_path="/t"),
        steps.UnstageVolume(external_id="v", staging_path="/s"),
    ):
        assert read(step, "") == steps.Done()
