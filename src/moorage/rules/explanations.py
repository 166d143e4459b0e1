"""Texts around the faults of drivers, and the refusals that need no driver to be asked.

Shapes: a step and the fault it met → the sentence that clients of the recorded API match on.
Never: I/O; secrets (a fault's message is scrubbed before it gets here).
Source: contract, texts added around plugin errors; golden case create-invalid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moorage.model import steps
from moorage.model.volume import ACCESS_MODES, ATTACHMENT_MODES, Capability, Fault

INT64_MAX = 2**63 - 1

_CODE_NAMES = {
    "CANCELLED": "Canceled",
    "UNKNOWN": "Unknown",
    "INVALID_ARGUMENT": "InvalidArgument",
    "DEADLINE_EXCEEDED": "DeadlineExceeded",
    "NOT_FOUND": "NotFound",
    "ALREADY_EXISTS": "AlreadyExists",
    "PERMISSION_DENIED": "PermissionDenied",
    "RESOURCE_EXHAUSTED": "ResourceExhausted",
    "FAILED_PRECONDITION": "FailedPrecondition",
    "ABORTED": "Aborted",
    "OUT_OF_RANGE": "OutOfRange",
    "UNIMPLEMENTED": "Unimplemented",
    "INTERNAL": "Internal",
    "UNAVAILABLE": "Unavailable",
    "DATA_LOSS": "DataLoss",
    "UNAUTHENTICATED": "Unauthenticated",
}

# Step → (service and operation, method) as the recorded texts name them, and the CSI method.
_CALLS: dict[type[Any], tuple[str, str, str]] = {
    steps.CreateVolume: ("controller create volume", "ControllerCreateVolume", "CreateVolume"),
    steps.DeleteVolume: ("controller delete volume", "ControllerDeleteVolume", "DeleteVolume"),
    steps.ExpandVolume: ("controller expand volume", "ControllerExpandVolume", "ControllerExpandVolume"),
    steps.ValidateVolume: ("controller validate volume", "ControllerValidateVolume", "ValidateVolumeCapabilities"),
    steps.AttachVolume: ("controller attach volume", "ControllerAttachVolume", "ControllerPublishVolume"),
    steps.DetachVolume: ("controller detach volume", "ControllerDetachVolume", "ControllerUnpublishVolume"),
    steps.ListVolumes: ("controller list volumes", "ControllerListVolumes", "ListVolumes"),
    steps.ListSnapshots: ("controller list snapshots", "ControllerListSnapshots", "ListSnapshots"),
    steps.CreateSnapshot: ("controller create snapshot", "ControllerCreateSnapshot", "CreateSnapshot"),
    steps.DeleteSnapshot: ("controller delete snapshot", "ControllerDeleteSnapshot", "DeleteSnapshot"),
    steps.GetCapacity: ("controller get capacity", "ControllerGetCapacity", "GetCapacity"),
    steps.StageVolume: ("node stage volume", "NodeStageVolume", "NodeStageVolume"),
    steps.PublishVolume: ("node publish volume", "NodePublishVolume", "NodePublishVolume"),
    steps.UnpublishVolume: ("node unpublish volume", "NodeUnpublishVolume", "NodeUnpublishVolume"),
    steps.UnstageVolume: ("node unstage volume", "NodeUnstageVolume", "NodeUnstageVolume"),
    steps.ExpandNodeVolume: ("node expand volume", "NodeExpandVolume", "NodeExpandVolume"),
    steps.GetVolumeStats: ("node get volume stats", "NodeGetVolumeStats", "NodeGetVolumeStats"),
}

_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def get_method(step: steps.Step) -> str:
    """The bare name of the CSI method that carries out ``step``, such as ``ControllerPublishVolume``."""
    return _CALLS[type(step)][2]


def explain(step: steps.Step, fault: Fault) -> str:
    """The fault of ``step`` as one sentence in the recorded server's wording.

    A fault whose status is no gRPC code (a local refusal) shows its message alone.
    """
    operation, method, _ = _CALLS[type(step)]
    prefix = f"{operation}: CSI.{method}: "
    code = _CODE_NAMES.get(fault.status)
    if code is None:
        return prefix + fault.message
    explanation = _explanation(step, fault.status, operation.partition(" ")[0])
    return f"{prefix}{explanation}rpc error: code = {code} desc = {fault.message}"


def check_step(step: steps.Step) -> Fault | None:
    """Why ``step`` must not be sent to any driver, or None.

    The fault has no status; ``explain`` makes the whole sentence of it.
    """
    text = _find_unknown_mode(step) or _CHECKS.get(type(step), _nothing_to_say)(step)
    return Fault(method=get_method(step), status="", message=text, final=True) if text else None


def check_created(step: steps.CreateVolume, created: steps.Created) -> Fault | None:
    """Why the volume that the driver made is not the one asked for, or None.

    The caller knows whether it may be deleted: the same name may have answered with a volume that others use.
    Units: bytes; a capacity of 0 is unknown and passes.
    """
    size = created.capacity_bytes
    text = ""
    if size and step.required_bytes > 0 and size < step.required_bytes:
        text = f"the driver made {size} bytes, less than the {step.required_bytes} asked for"
    elif size and step.limit_bytes > 0 and size > step.limit_bytes:
        text = f"the driver made {size} bytes, more than the limit of {step.limit_bytes}"
    elif not created.is_source_kept:
        source = f"snapshot {quote(step.snapshot_id)}" if step.snapshot_id else f"volume {quote(step.clone_id)}"
        text = f"the driver did not fill the new volume from {source}"
    if not text:
        return None
    return Fault(method="CreateVolume", status="", message=f"{text}: volume {quote(created.external_id)}", final=True)


def quote(text: str) -> str:
    """``text`` in double quotes, with control characters and quotes escaped as the recorded texts do."""
    out = []
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif char.isprintable():
            out.append(char)
        elif char in _ESCAPES:
            out.append(_ESCAPES[char])
        else:
            number = ord(char)
            width = (r"\x", 2) if number < 0x80 else (r"\u", 4) if number < 0x10000 else (r"\U", 8)
            out.append(f"{width[0]}{number:0{width[1]}x}")
    return f'"{"".join(out)}"'


# -- explanations by status ------------------------------------------------------------------------------------------


def _explanation(step: steps.Step, status: str, service: str) -> str:
    if status == "INTERNAL":
        text = f"{service} plugin returned an internal error, check the plugin allocation logs for more information"
    else:
        text = _EXPLAINERS.get(type(step), _no_explanations)(step).get(status, "")
    if not text and isinstance(step, steps.ExpandVolume):
        text = "controller plugin returned an error"
    return f"{text}: " if text else ""


def _explain_create(step: steps.CreateVolume) -> dict[str, str]:
    name, source = quote(step.name), f"&{{{quote(step.snapshot_id)} {quote(step.clone_id)}}}"
    return {
        "INVALID_ARGUMENT": f"volume {name} snapshot source {source} is not compatible with these parameters",
        "NOT_FOUND": f"volume {name} content source {source} does not exist",
        "ALREADY_EXISTS": f"volume {name} already exists but is incompatible with these parameters",
        "RESOURCE_EXHAUSTED": f"unable to provision {name} in accessible_topology",
        "OUT_OF_RANGE": f"unsupported capacity_range for volume {name}",
    }


def _explain_expand(step: steps.ExpandVolume) -> dict[str, str]:
    volume = quote(step.external_id)
    return {
        "INVALID_ARGUMENT": f"requested capabilities not compatible with volume {volume}",
        "NOT_FOUND": f"volume {volume} could not be found",
        "FAILED_PRECONDITION": f"volume {volume} cannot be expanded online",
        "OUT_OF_RANGE": f"unsupported capacity_range for volume {volume}",
    }


def _explain_create_snapshot(step: steps.CreateSnapshot) -> dict[str, str]:
    name, volume = quote(step.name), quote(step.external_source_id)
    return {
        "ALREADY_EXISTS": f"snapshot {name} already exists but is incompatible with volume ID {volume}",
        "ABORTED": f"snapshot {name} is already pending",
        "RESOURCE_EXHAUSTED": "storage provider does not have enough space for this snapshot",
    }


def _explain_delete_snapshot(step: steps.DeleteSnapshot) -> dict[str, str]:
    snapshot = quote(step.snapshot_id)
    return {
        "FAILED_PRECONDITION": f"snapshot {snapshot} could not be deleted because it is in use",
        "ABORTED": f"snapshot {snapshot} has a pending operation",
    }


def _explain_list(step: steps.ListVolumes | steps.ListSnapshots) -> dict[str, str]:
    return {"ABORTED": f"invalid starting token {quote(step.starting_token)}"}


def _no_explanations(step: steps.Step) -> dict[str, str]:
    return {}


_EXPLAINERS: dict[type[Any], Callable[[Any], dict[str, str]]] = {
    steps.ValidateVolume: lambda step: {"NOT_FOUND": f"volume {quote(step.external_id)} could not be found"},
    steps.CreateVolume: _explain_create,
    steps.DeleteVolume: lambda step: {"FAILED_PRECONDITION": f"volume {quote(step.external_id)} is in use"},
    steps.ExpandVolume: _explain_expand,
    steps.ListVolumes: _explain_list,
    steps.ListSnapshots: _explain_list,
    steps.CreateSnapshot: _explain_create_snapshot,
    steps.DeleteSnapshot: _explain_delete_snapshot,
}


# -- refusals before the call ----------------------------------------------------------------------------------------


def find_unknown_mode(capability: Capability) -> str:
    """The recorded sentence about an access or attachment mode that does not exist, or an empty text."""
    if capability.attachment_mode not in ATTACHMENT_MODES:
        return f"unknown volume attachment mode: {capability.attachment_mode}"
    if capability.access_mode not in ACCESS_MODES:
        return f"unknown volume access mode: {capability.access_mode}"
    return ""


def _find_unknown_mode(step: steps.Step) -> str:
    capabilities: tuple[Capability, ...] = getattr(step, "capabilities", ())
    capability: Capability | None = getattr(step, "capability", None)
    if capability is not None:
        capabilities = (*capabilities, capability)
    return next((text for c in capabilities if (text := find_unknown_mode(c))), "")


def _check_range(step: steps.CreateVolume | steps.ExpandVolume | steps.ExpandNodeVolume) -> str:
    for name, size in (("RequiredBytes", step.required_bytes), ("LimitBytes", step.limit_bytes)):
        if not -INT64_MAX <= size <= INT64_MAX:
            return f"{name} must fit in 64 bits"
    if 0 < step.limit_bytes < step.required_bytes:
        return "LimitBytes cannot be less than RequiredBytes"
    return ""


def _check_create(step: steps.CreateVolume) -> str:
    if not step.name:
        return "missing Name"
    if not step.capabilities:
        return "missing VolumeCapabilities"
    if step.clone_id and step.snapshot_id:
        return "only one of SnapshotID and CloneID is allowed"
    return _check_range(step)


def _check_missing(**names: str) -> Callable[[Any], str]:
    """A check that the fields (by name) are not empty; each value is the word for it in the sentence."""

    def check(step: Any) -> str:
        return next((f"missing {word}" for field, word in names.items() if not getattr(step, field)), "")

    return check


def _check_sized(check: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda step: check(step) or _check_range(step)


def _check_list(step: steps.ListVolumes | steps.ListSnapshots) -> str:
    return "MaxEntries cannot be negative" if step.entries_max < 0 else ""


def _nothing_to_say(step: steps.Step) -> str:
    return ""


_VOLUME = _check_missing(external_id="ExternalVolumeID")

_CHECKS: dict[type[Any], Callable[[Any], str]] = {
    steps.CreateVolume: _check_create,
    steps.DeleteVolume: _VOLUME,
    steps.ExpandVolume: _check_sized(_VOLUME),
    steps.ValidateVolume: _check_missing(external_id="ExternalVolumeID", capabilities="VolumeCapabilities"),
    # An empty node would detach from every node.
    steps.AttachVolume: _check_missing(external_id="ExternalVolumeID", external_node_id="ExternalNodeID"),
    steps.DetachVolume: _check_missing(external_id="ExternalVolumeID", external_node_id="ExternalNodeID"),
    steps.ListVolumes: _check_list,
    steps.ListSnapshots: _check_list,
    steps.CreateSnapshot: _check_missing(external_source_id="VolumeID", name="Name"),
    steps.DeleteSnapshot: _check_missing(snapshot_id="SnapshotID"),
    steps.StageVolume: _check_missing(external_id="ExternalVolumeID", staging_path="StagingTargetPath"),
    steps.PublishVolume: _check_missing(external_id="ExternalVolumeID", target_path="TargetPath"),
    steps.UnpublishVolume: _check_missing(external_id="ExternalVolumeID", target_path="TargetPath"),
    steps.UnstageVolume: _check_missing(external_id="ExternalVolumeID", staging_path="StagingTargetPath"),
    steps.ExpandNodeVolume: _check_sized(_check_missing(external_id="ExternalVolumeID", volume_path="VolumePath")),
    steps.GetVolumeStats: _check_missing(external_id="ExternalVolumeID", volume_path="VolumePath"),
}
