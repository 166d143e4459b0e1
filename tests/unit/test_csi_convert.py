"""Steps to requests and answers to outcomes: every field of every builder, golden style."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.message import Message

from moorage.csi.convert import CONVERSIONS, Features, build_capability
from moorage.csi.proto import csi_pb2 as csi
from moorage.errors import BadRequest
from moorage.model import steps
from moorage.model.volume import ACCESS_MODES, Capability, MountOptions, Secrets, Topology, TopologyRequest

NONE = Features()
ALL = Features(
    supports_topologies=True,
    supports_read_only_attach=True,
    controller_knows_single_node_modes=True,
    node_knows_single_node_modes=True,
)
FILES = Capability(access_mode="single-node-writer", attachment_mode="file-system")
BLOCK = Capability(access_mode="multi-node-multi-writer", attachment_mode="block-device")
ONE_WORKLOAD = Capability(access_mode="single-node-single-writer", attachment_mode="file-system")
OPTIONS = MountOptions(fs_type="ext4", mount_flags=("noatime", "ro"))
SECRETS = Secrets({"k": "s3cret"})
A, B = Topology(segments={"zone": "a", "rack": "1"}), Topology(segments={"zone": "b"})

FILES_TEXT = "mount { } access_mode { mode: SINGLE_NODE_WRITER }"
OPTIONS_TEXT = 'mount { fs_type: "ext4" mount_flags: "noatime" mount_flags: "ro" } access_mode { mode: %s }'
BLOCK_TEXT = "block { } access_mode { mode: MULTI_NODE_MULTI_WRITER }"
SECRETS_TEXT = 'secrets { key: "k" value: "s3cret" }'

GOLDEN: list[tuple[steps.Step, Features, str]] = [
    (
        steps.CreateVolume(
            name="n",
            capabilities=(FILES, BLOCK),
            mount_options=OPTIONS,
            parameters={"p": "1"},
            secrets=SECRETS,
            required_bytes=10,
            limit_bytes=20,
            snapshot_id="snap",
            topologies=TopologyRequest(required=(A,), preferred=(B,)),
        ),
        ALL,
        f"""name: "n" capacity_range {{ required_bytes: 10 limit_bytes: 20 }}
        volume_capabilities {{ {OPTIONS_TEXT % "SINGLE_NODE_WRITER"} }} volume_capabilities {{ {BLOCK_TEXT} }}
        parameters {{ key: "p" value: "1" }} {SECRETS_TEXT}
        volume_content_source {{ snapshot {{ snapshot_id: "snap" }} }}
        accessibility_requirements {{
          requisite {{ segments {{ key: "rack" value: "1" }} segments {{ key: "zone" value: "a" }} }}
          preferred {{ segments {{ key: "zone" value: "b" }} }} }}""",
    ),
    # Nothing that is empty, nothing that the driver does not advertise.
    (
        steps.CreateVolume(
            name="n", capabilities=(ONE_WORKLOAD,), clone_id="v0", topologies=TopologyRequest(required=(A,))
        ),
        NONE,
        f'name: "n" volume_capabilities {{ {FILES_TEXT} }} volume_content_source {{ volume {{ volume_id: "v0" }} }}',
    ),
    (
        steps.CreateVolume(
            name="n",
            capabilities=(ONE_WORKLOAD,),
            limit_bytes=5,
            topologies=TopologyRequest(required=(), preferred=(Topology(),)),
        ),
        ALL,
        """name: "n" capacity_range { limit_bytes: 5 }
        volume_capabilities { mount { } access_mode { mode: SINGLE_NODE_SINGLE_WRITER } }""",
    ),
    (steps.DeleteVolume(external_id="v", secrets=SECRETS), NONE, f'volume_id: "v" {SECRETS_TEXT}'),
    (
        steps.ExpandVolume(
            external_id="v",
            required_bytes=10,
            limit_bytes=20,
            capability=FILES,
            mount_options=OPTIONS,
            secrets=SECRETS,
        ),
        NONE,
        f"""volume_id: "v" capacity_range {{ required_bytes: 10 limit_bytes: 20 }} {SECRETS_TEXT}
        volume_capability {{ {OPTIONS_TEXT % "SINGLE_NODE_WRITER"} }}""",
    ),
    (
        steps.ExpandVolume(external_id="v", required_bytes=10),
        NONE,
        'volume_id: "v" capacity_range { required_bytes: 10 }',
    ),
    (
        steps.ValidateVolume(
            external_id="v",
            capabilities=(FILES, BLOCK),
            context={"c": "1"},
            parameters={"p": "1"},
            secrets=SECRETS,
        ),
        NONE,
        f"""volume_id: "v" volume_context {{ key: "c" value: "1" }} volume_capabilities {{ {FILES_TEXT} }}
        volume_capabilities {{ {BLOCK_TEXT} }} parameters {{ key: "p" value: "1" }} {SECRETS_TEXT}""",
    ),
    (
        steps.AttachVolume(
            external_id="v",
            external_node_id="n",
            capability=FILES,
            mount_options=OPTIONS,
            read_only=True,
            context={"c": "1"},
            secrets=SECRETS,
        ),
        ALL,
        f"""volume_id: "v" node_id: "n" volume_capability {{ {OPTIONS_TEXT % "SINGLE_NODE_WRITER"} }} readonly: true
        {SECRETS_TEXT} volume_context {{ key: "c" value: "1" }}""",
    ),
    (
        steps.AttachVolume(external_id="v", external_node_id="n", capability=FILES, read_only=True),
        NONE,
        f'volume_id: "v" node_id: "n" volume_capability {{ {FILES_TEXT} }}',
    ),
    (
        steps.DetachVolume(external_id="v", external_node_id="n", secrets=SECRETS),
        NONE,
        f'volume_id: "v" node_id: "n" {SECRETS_TEXT}',
    ),
    (steps.ListVolumes(entries_max=2**40, starting_token="t"), NONE, 'max_entries: 2147483647 starting_token: "t"'),
    (steps.ListVolumes(), NONE, ""),
    (
        steps.ListSnapshots(
            entries_max=3, starting_token="t", external_source_id="v", snapshot_id="s", secrets=SECRETS
        ),
        NONE,
        f'max_entries: 3 starting_token: "t" source_volume_id: "v" snapshot_id: "s" {SECRETS_TEXT}',
    ),
    (
        steps.CreateSnapshot(external_source_id="v", name="n", parameters={"p": "1"}, secrets=SECRETS),
        NONE,
        f'source_volume_id: "v" name: "n" {SECRETS_TEXT} parameters {{ key: "p" value: "1" }}',
    ),
    (steps.DeleteSnapshot(snapshot_id="s", secrets=SECRETS), NONE, f'snapshot_id: "s" {SECRETS_TEXT}'),
    (
        steps.GetCapacity(capabilities=(BLOCK,), parameters={"p": "1"}, topology=B),
        ALL,
        f"""volume_capabilities {{ {BLOCK_TEXT} }} parameters {{ key: "p" value: "1" }}
        accessible_topology {{ segments {{ key: "zone" value: "b" }} }}""",
    ),
    (steps.GetCapacity(topology=B), NONE, ""),
    (
        steps.StageVolume(
            external_id="v",
            staging_path="/stage",
            capability=ONE_WORKLOAD,
            mount_options=OPTIONS,
            publish_context={"d": "1"},
            context={"c": "1"},
            secrets=SECRETS,
        ),
        ALL,
        f"""volume_id: "v" publish_context {{ key: "d" value: "1" }} staging_target_path: "/stage"
        volume_capability {{ {OPTIONS_TEXT % "SINGLE_NODE_SINGLE_WRITER"} }} {SECRETS_TEXT}
        volume_context {{ key: "c" value: "1" }}""",
    ),
    (
        steps.PublishVolume(
            external_id="v",
            target_path="/target",
            capability=FILES,
            staging_path="/stage",
            read_only=True,
            mount_options=OPTIONS,
            publish_context={"d": "1"},
            context={"c": "1"},
            secrets=SECRETS,
        ),
        NONE,
        f"""volume_id: "v" publish_context {{ key: "d" value: "1" }} staging_target_path: "/stage"
        target_path: "/target" volume_capability {{ {OPTIONS_TEXT % "SINGLE_NODE_WRITER"} }} readonly: true
        {SECRETS_TEXT} volume_context {{ key: "c" value: "1" }}""",
    ),
    (
        steps.UnpublishVolume(external_id="v", target_path="/target"),
        NONE,
        'volume_id: "v" target_path: "/target"',
    ),
    (
        steps.UnstageVolume(external_id="v", staging_path="/stage"),
        NONE,
        'volume_id: "v" staging_target_path: "/stage"',
    ),
    (
        steps.ExpandNodeVolume(
            external_id="v",
            volume_path="/target",
            staging_path="/stage",
            required_bytes=10,
            limit_bytes=20,
            capability=FILES,
            mount_options=OPTIONS,
            secrets=SECRETS,
        ),
        NONE,
        f"""volume_id: "v" volume_path: "/target" capacity_range {{ required_bytes: 10 limit_bytes: 20 }}
        staging_target_path: "/stage" volume_capability {{ {OPTIONS_TEXT % "SINGLE_NODE_WRITER"} }} {SECRETS_TEXT}""",
    ),
    (
        steps.ExpandNodeVolume(external_id="v", volume_path="/target"),
        NONE,
        'volume_id: "v" volume_path: "/target"',
    ),
    (
        steps.GetVolumeStats(external_id="v", volume_path="/target", staging_path="/stage"),
        NONE,
        'volume_id: "v" volume_path: "/target" staging_target_path: "/stage"',
    ),
]


@pytest.mark.parametrize(("step", "features", "text"), GOLDEN, ids=lambda v: type(v).__name__)
def test_request(step: steps.Step, features: Features, text: str) -> None:
    conversion = CONVERSIONS[type(step)]
    request = conversion.build(step, features)
    expected: Message = text_format.Parse(text, conversion.rpc.request_type())
    assert request == expected, f"{request}"
    assert conversion.rpc.request_type.FromString(request.SerializeToString()) == request


def test_every_step_has_a_golden_request_that_fills_every_field() -> None:
    assert set(CONVERSIONS) == {type(step) for step, _, _ in GOLDEN} == set(steps.Step.__args__)
    # Not offered: mutable parameters.
    skipped = {"mutable_parameters"}
    for kind, conversion in CONVERSIONS.items():
        filled: set[str] = set()
        for step, features, _ in GOLDEN:
            if type(step) is kind:
                filled |= {field.name for field, _ in conversion.build(step, features).ListFields()}
        assert filled >= {f.name for f in conversion.rpc.request_type.DESCRIPTOR.fields} - skipped, kind


def test_steps_are_left_as_they_were() -> None:
    parameters = {"p": "1"}
    step = steps.CreateVolume(name="n", capabilities=(FILES,), parameters=parameters)
    request: Any = CONVERSIONS[steps.CreateVolume].build(step, ALL)
    request.parameters["p"] = "2"
    assert parameters == {"p": "1"}


@pytest.mark.parametrize("mode", ACCESS_MODES)
@pytest.mark.parametrize("knows", [True, False])
def test_access_modes(mode: str, knows: bool) -> None:
    capability = Capability(access_mode=mode, attachment_mode="block-device")
    got = build_capability(capability, OPTIONS, knows_single_node_modes=knows)
    newer = mode in ("single-node-single-writer", "single-node-multi-writer")
    expected = "SINGLE_NODE_WRITER" if newer and not knows else mode.replace("-", "_").upper()
    assert csi.VolumeCapability.AccessMode.Mode.Name(got.access_mode.mode) == expected
    assert got.WhichOneof("access_type") == "block"


@pytest.mark.parametrize(
    ("access", "attachment", "text"),
    [
        ("zz", "file-system", "unknown volume access mode: zz"),
        ("single-node-writer", "zz", "unknown volume attachment mode: zz"),
        ("zz", "zz", "unknown volume attachment mode: zz"),
        ("", "", "unknown volume attachment mode: "),
    ],
)
def test_modes_that_do_not_exist(access: str, attachment: str, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        build_capability(Capability(access_mode=access, attachment_mode=attachment), None, knows_single_node_modes=True)
    assert caught.value.message == text
