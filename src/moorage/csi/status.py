"""What a gRPC status means for a CSI method: the call is done, over, or may still be running.

Shapes: one default row for all methods, and the cells where a method differs.
Never: I/O; texts of drivers (they are for people).
Source: CSI spec 1.12 error tables; contract csi-engine §I.13; docs/decisions/0004; a query whose page token is refused
must start over, not repeat.
"""

from __future__ import annotations

from typing import Literal

Verdict = Literal["done", "final", "uncertain"]
"""``done``: what was asked for is so. ``final``: refused, nothing is in progress. ``uncertain``: it may be running."""

DEFAULT: dict[str, Verdict] = {
    "CANCELLED": "uncertain",
    "UNKNOWN": "uncertain",
    "INVALID_ARGUMENT": "final",
    "DEADLINE_EXCEEDED": "uncertain",
    "NOT_FOUND": "final",
    "ALREADY_EXISTS": "final",
    "PERMISSION_DENIED": "final",
    "RESOURCE_EXHAUSTED": "uncertain",
    "FAILED_PRECONDITION": "final",
    "ABORTED": "uncertain",
    "OUT_OF_RANGE": "final",
    "UNIMPLEMENTED": "final",
    "INTERNAL": "uncertain",
    "UNAVAILABLE": "uncertain",
    "DATA_LOSS": "final",
    "UNAUTHENTICATED": "final",
}

# Calls that change nothing: whatever failed, nothing of theirs is left anywhere, and whoever asked is told at once.
QUERIES = (
    "ControllerGetCapabilities",
    "GetCapacity",
    "GetPluginCapabilities",
    "GetPluginInfo",
    "GetVolumeGroupSnapshot",
    "GroupControllerGetCapabilities",
    "ListSnapshots",
    "ListVolumes",
    "NodeGetCapabilities",
    "NodeGetInfo",
    "NodeGetVolumeStats",
    "Probe",
    "ValidateVolumeCapabilities",
)

# Going away: what is not there is gone. For NodeUnpublishVolume and NodeUnstageVolume the agent looks at the mount
# table as well; ControllerUnpublishVolume is only called after the node let go.
BY_METHOD: dict[tuple[str, str], Verdict] = {
    ("DeleteVolume", "NOT_FOUND"): "done",
    ("DeleteSnapshot", "NOT_FOUND"): "done",
    ("ControllerUnpublishVolume", "NOT_FOUND"): "done",
    ("NodeUnpublishVolume", "NOT_FOUND"): "done",
    ("NodeUnstageVolume", "NOT_FOUND"): "done",
    # ABORTED says here that the starting token is not valid any more.
    ("ListVolumes", "ABORTED"): "final",
    ("ListSnapshots", "ABORTED"): "final",
}
BY_METHOD.update({(method, status): "final" for method in QUERIES for status in ("UNKNOWN", "INTERNAL")})


def judge(method: str, status: str) -> Verdict:
    """What ``status`` (a gRPC code's name) means for the CSI method ``method`` (its bare name).

    A status outside gRPC's list, such as that of an unreadable answer, is uncertain: the call may have worked.
    """
    found = BY_METHOD.get((method, status))
    return found if found is not None else DEFAULT.get(status, "uncertain")
