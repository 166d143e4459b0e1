"""What each gRPC status means for each CSI method: every cell by name."""

from __future__ import annotations

import grpc
import pytest

from moorage.csi.calls import RPCS
from moorage.csi.status import BY_METHOD, DEFAULT, judge
from moorage.rpc import UNREADABLE

UNCERTAIN = {"CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "UNAVAILABLE", "UNKNOWN", "INTERNAL"}
# What may have done something when it failed with UNKNOWN or INTERNAL.
CHANGING = {
    "CreateVolume", "DeleteVolume", "ControllerPublishVolume", "ControllerUnpublishVolume", "ControllerExpandVolume",
    "ControllerModifyVolume", "CreateSnapshot", "DeleteSnapshot", "CreateVolumeGroupSnapshot",
    "DeleteVolumeGroupSnapshot", "NodeStageVolume", "NodeUnstageVolume", "NodePublishVolume", "NodeUnpublishVolume",
    "NodeExpandVolume",
}  # fmt: skip
DONE = {
    "DeleteVolume",
    "DeleteSnapshot",
    "ControllerUnpublishVolume",
    "NodeUnpublishVolume",
    "NodeUnstageVolume",
}
STATUSES = sorted(code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK)
METHODS = sorted(rpc.name for rpc in RPCS.values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("status", STATUSES)
def test_cell(method: str, status: str) -> None:
    expected = "uncertain" if status in UNCERTAIN else "final"
    if status in {"UNKNOWN", "INTERNAL"} and method not in CHANGING:
        expected = "final"
    if status == "NOT_FOUND" and method in DONE:
        expected = "done"
    if status == "ABORTED" and method in {"ListVolumes", "ListSnapshots"}:
        expected = "final"
    assert judge(method, status) == expected


def test_default_row_has_every_status() -> None:
    assert sorted(DEFAULT) == STATUSES


def test_exceptions_name_real_methods_and_statuses() -> None:
    assert {method for method, _ in BY_METHOD} <= set(METHODS)
    assert {status for _, status in BY_METHOD} <= set(STATUSES)


@pytest.mark.parametrize("status", [UNREADABLE, "", "NEWER_CODE"])
def test_what_is_no_grpc_status_is_uncertain(status: str) -> None:
    assert judge("CreateVolume", status) == "uncertain"
