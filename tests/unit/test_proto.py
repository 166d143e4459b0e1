"""The CSI messages: generated from the committed source, with the numbers of the specification."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import moorage.csi.proto
from moorage.csi.calls import CONTROLLER, GROUP_CONTROLLER, IDENTITY, NODE, RPCS
from moorage.csi.modes import get_enum_name
from moorage.csi.proto import csi_pb2 as csi

FOLDER = Path(moorage.csi.proto.__file__).parent
SOURCES = FOLDER.parents[2]


def test_modules_are_what_the_source_generates(tmp_path: Path) -> None:
    source = FOLDER / "csi.proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{SOURCES}", f"--python_out={tmp_path}"]
    subprocess.run([*command, f"--pyi_out={tmp_path}", str(source)], check=True, timeout=50)
    for name in ("csi_pb2.py", "csi_pb2.pyi"):
        fresh = (tmp_path / "moorage/csi/proto" / name).read_bytes()
        assert fresh == (FOLDER / name).read_bytes(), f"{name} is stale: run `make proto`"


def test_source_names_the_version_of_the_specification() -> None:
    assert "version 1.12" in (FOLDER / "csi.proto").read_text(encoding="utf-8").partition("syntax")[0]


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (
            csi.NodeStageVolumeRequest,
            "volume_id publish_context staging_target_path volume_capability secrets volume_context",
        ),
        (
            csi.NodePublishVolumeRequest,
            "volume_id publish_context staging_target_path target_path volume_capability readonly secrets"
            " volume_context",
        ),
        (
            csi.CreateVolumeRequest,
            "name capacity_range volume_capabilities parameters secrets volume_content_source"
            " accessibility_requirements mutable_parameters",
        ),
        (
            csi.ControllerPublishVolumeRequest,
            "volume_id node_id volume_capability readonly secrets volume_context",
        ),
        (csi.ControllerExpandVolumeRequest, "volume_id capacity_range secrets volume_capability"),
        (
            csi.NodeExpandVolumeRequest,
            "volume_id volume_path capacity_range staging_target_path volume_capability secrets",
        ),
        (csi.CreateSnapshotRequest, "source_volume_id name secrets parameters"),
        (csi.ListSnapshotsRequest, "max_entries starting_token source_volume_id snapshot_id secrets"),
        (csi.Volume, "capacity_bytes volume_id volume_context content_source accessible_topology"),
        (
            csi.Snapshot,
            "size_bytes snapshot_id source_volume_id creation_time ready_to_use group_snapshot_id",
        ),
        (csi.VolumeCapability, "block mount access_mode"),
        (csi.VolumeUsage, "available total used unit"),
        (csi.NodeGetInfoResponse, "node_id max_volumes_per_node accessible_topology"),
    ],
    ids=lambda v: v.DESCRIPTOR.name if not isinstance(v, str) else "",
)
def test_fields_are_numbered_from_one_in_this_order(message: type, fields: str) -> None:
    numbers = {f.name: f.number for f in message.DESCRIPTOR.fields}  # type: ignore[attr-defined]
    assert numbers == {name: n for n, name in enumerate(fields.split(), start=1)}


def test_bytes_on_the_wire_are_the_specifications() -> None:
    request = csi.NodePublishVolumeRequest(volume_id="v", target_path="/t", readonly=True)
    assert request.SerializeToString() == b"\x0a\x01v\x22\x02/t\x30\x01"


def test_every_secrets_field_is_marked_and_nothing_else_is() -> None:
    for message in csi.DESCRIPTOR.message_types_by_name.values():
        for field in message.fields:
            options: Any = field.GetOptions()
            assert options.Extensions[csi.csi_secret] == (field.name == "secrets"), field.full_name
    assert csi.csi_secret.number == 1059


def test_capability_numbers() -> None:
    kind = csi.ControllerServiceCapability.RPC
    assert kind.Type.items()[-1] == ("GET_SNAPSHOT", 15)
    assert (kind.PUBLISH_READONLY, kind.EXPAND_VOLUME, kind.SINGLE_NODE_MULTI_WRITER, kind.MODIFY_VOLUME) == (
        8,
        9,
        13,
        14,
    )
    node = csi.NodeServiceCapability.RPC
    assert (node.STAGE_UNSTAGE_VOLUME, node.EXPAND_VOLUME, node.VOLUME_MOUNT_GROUP) == (1, 3, 6)


def test_a_newer_enum_value_survives_and_has_a_name() -> None:
    mode = csi.VolumeCapability.AccessMode
    got = mode.FromString(mode(mode=99).SerializeToString())  # type: ignore[arg-type]
    assert got.mode == 99
    assert get_enum_name(mode.Mode, got.mode) == "99"
    assert get_enum_name(mode.Mode, 5) == "MULTI_NODE_MULTI_WRITER"


def test_the_table_of_calls_is_what_the_services_declare() -> None:
    declared = {
        f"/{service.full_name}/{method.name}": (method.input_type.full_name, method.output_type.full_name)
        for service in csi.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    table = {
        path: (rpc.request_type.DESCRIPTOR.full_name, rpc.response_type.DESCRIPTOR.full_name)
        for path, rpc in RPCS.items()
    }
    assert table == declared
    assert {rpc.service for rpc in RPCS.values()} == {IDENTITY, CONTROLLER, GROUP_CONTROLLER, NODE}
