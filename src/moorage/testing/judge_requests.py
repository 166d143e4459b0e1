"""Rules on one request by itself: fields that are missing, empty or not allowed by the driver's capabilities. Pure.

Shapes: a request is the dict that ``judge_records`` makes of the message.
Source: CSI spec 1.12; contract csi-wire §2 (gates), §3 (required fields), §7 (limits), §11.2 (modes, readonly).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from moorage.csi.proto import csi_pb2 as csi

Controller = csi.ControllerServiceCapability.RPC
NodeRpc = csi.NodeServiceCapability.RPC
Plugin = csi.PluginCapability.Service
Mode = csi.VolumeCapability.AccessMode

# method → (list of capabilities, the one that it needs)
GATES: dict[str, tuple[str, int]] = {
    "CreateVolume": ("controller", Controller.CREATE_DELETE_VOLUME),
    "DeleteVolume": ("controller", Controller.CREATE_DELETE_VOLUME),
    "ControllerPublishVolume": ("controller", Controller.PUBLISH_UNPUBLISH_VOLUME),
    "ControllerUnpublishVolume": ("controller", Controller.PUBLISH_UNPUBLISH_VOLUME),
    "ListVolumes": ("controller", Controller.LIST_VOLUMES),
    "GetCapacity": ("controller", Controller.GET_CAPACITY),
    "CreateSnapshot": ("controller", Controller.CREATE_DELETE_SNAPSHOT),
    "DeleteSnapshot": ("controller", Controller.CREATE_DELETE_SNAPSHOT),
    "ListSnapshots": ("controller", Controller.LIST_SNAPSHOTS),
    "ControllerExpandVolume": ("controller", Controller.EXPAND_VOLUME),
    "ControllerModifyVolume": ("controller", Controller.MODIFY_VOLUME),
    "NodeStageVolume": ("node", NodeRpc.STAGE_UNSTAGE_VOLUME),
    "NodeUnstageVolume": ("node", NodeRpc.STAGE_UNSTAGE_VOLUME),
    "NodeExpandVolume": ("node", NodeRpc.EXPAND_VOLUME),
}
REQUIRED: dict[str, tuple[str, ...]] = {
    "CreateVolume": ("name", "volume_capabilities"),
    "DeleteVolume": ("volume_id",),
    "ControllerPublishVolume": ("volume_id", "node_id", "volume_capability"),
    "ControllerUnpublishVolume": ("volume_id",),
    "ValidateVolumeCapabilities": ("volume_id", "volume_capabilities"),
    "ControllerExpandVolume": ("volume_id", "capacity_range"),
    "ControllerModifyVolume": ("volume_id", "mutable_parameters"),
    "CreateSnapshot": ("source_volume_id", "name"),
    "DeleteSnapshot": ("snapshot_id",),
    "NodeStageVolume": ("volume_id", "staging_target_path", "volume_capability"),
    "NodeUnstageVolume": ("volume_id", "staging_target_path"),
    "NodePublishVolume": ("volume_id", "target_path", "volume_capability"),
    "NodeUnpublishVolume": ("volume_id", "target_path"),
    "NodeGetVolumeStats": ("volume_id", "volume_path"),
    "NodeExpandVolume": ("volume_id", "volume_path"),
}
NEVER_EMPTY = ("capacity_range", "accessibility_requirements", "volume_content_source", "volume_capability")
PATHS = ("staging_target_path", "target_path", "volume_path")
STRING_BYTES_MAX = 128
NODE_ID_BYTES_MAX = 256
MAP_BYTES_MAX = 4096
_ALPHA_MODES = (Mode.SINGLE_NODE_SINGLE_WRITER, Mode.SINGLE_NODE_MULTI_WRITER)

Complaint = tuple[str, str]
"""(name of the rule, a sentence)."""


class Abilities(msgspec.Struct, frozen=True, kw_only=True):
    """The capabilities that a driver lists, by number; None while it has not been asked."""

    plugin: frozenset[int] | None = None
    controller: frozenset[int] | None = None
    node: frozenset[int] | None = None


def read_abilities(known: Abilities, method: str, answer: Mapping[str, Any]) -> Abilities:
    """What is known after ``answer`` to ``method``."""
    entries = answer.get("capabilities", [])
    if method == "GetPluginCapabilities":
        return msgspec.structs.replace(known, plugin=frozenset(e.get("service", {}).get("type", 0) for e in entries))
    numbers = frozenset(e.get("rpc", {}).get("type", 0) for e in entries)
    if method == "ControllerGetCapabilities":
        return msgspec.structs.replace(known, controller=numbers)
    if method == "NodeGetCapabilities":
        return msgspec.structs.replace(known, node=numbers)
    return known


def check_request(
    method: str, request: Mapping[str, Any], abilities: Abilities, *, attaches: bool | None
) -> Iterator[Complaint]:
    """All that is wrong with a request by itself. ``attaches``: whether the plugin has PUBLISH_UNPUBLISH_VOLUME."""
    gate, number = GATES.get(method, ("", 0))
    gated = getattr(abilities, gate) if gate else None
    if gated is not None and number not in gated:
        yield "no_capability", f"{method} is called, yet the driver does not list the capability for it"
    for field in REQUIRED.get(method, ()):
        if field not in request:
            yield "missing_field", f"{field} is required"
    yield from _check_empty(request)
    yield from _check_sizes(request)
    if method == "ControllerUnpublishVolume" and not request.get("node_id"):
        yield "empty_node_id", "node_id is empty, which detaches the volume from every node"
    topology = Plugin.VOLUME_ACCESSIBILITY_CONSTRAINTS
    if "accessibility_requirements" in request and abilities.plugin is not None and topology not in abilities.plugin:
        yield "no_capability", "accessibility_requirements without VOLUME_ACCESSIBILITY_CONSTRAINTS"
    listed = abilities.controller
    is_readonly = method == "ControllerPublishVolume" and request.get("readonly")
    if is_readonly and listed is not None and Controller.PUBLISH_READONLY not in listed:
        yield "readonly_attach", "readonly is set, yet the driver does not list PUBLISH_READONLY"
    if request.get("publish_context") and attaches is False:
        yield "uncalled_context", "publish_context is set, yet the driver does not list PUBLISH_UNPUBLISH_VOLUME"
    yield from _check_modes(method, request, abilities)
    is_mutable = method == "CreateVolume" and "mutable_parameters" in request
    if is_mutable and listed is not None and Controller.MODIFY_VOLUME not in listed:
        yield "no_capability", "mutable_parameters without MODIFY_VOLUME"


def list_capabilities(request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The volume capabilities of a request."""
    one = [request["volume_capability"]] if "volume_capability" in request else []
    return [*one, *request.get("volume_capabilities", [])]


def _check_empty(request: Mapping[str, Any]) -> Iterator[Complaint]:
    for field in NEVER_EMPTY:
        if request.get(field) == {}:
            yield "empty_message", f"{field} is present but empty: leave it out, or fill it"
    for capability in list_capabilities(request):
        if not capability:
            continue  # said above, or by the required field
        if "mount" not in capability and "block" not in capability:
            yield "empty_message", "a volume capability has neither mount nor block"
        if not capability.get("access_mode", {}).get("mode"):
            yield "empty_message", "a volume capability has no access mode"
    for side in ("requisite", "preferred"):
        for topology in request.get("accessibility_requirements", {}).get(side, []):
            if not topology.get("segments"):
                yield "empty_message", f"accessibility_requirements.{side} has a topology without segments"


def _check_modes(method: str, request: Mapping[str, Any], abilities: Abilities) -> Iterator[Complaint]:
    is_node = method.startswith("Node")
    listed = abilities.node if is_node else abilities.controller
    needed = NodeRpc.SINGLE_NODE_MULTI_WRITER if is_node else Controller.SINGLE_NODE_MULTI_WRITER
    if listed is None or needed in listed:
        return
    for capability in list_capabilities(request):
        mode = capability.get("access_mode", {}).get("mode", 0)
        if mode in _ALPHA_MODES:
            yield "mode_without_capability", f"access mode {mode} needs SINGLE_NODE_MULTI_WRITER, which is not listed"


def _check_sizes(request: Mapping[str, Any]) -> Iterator[Complaint]:
    for field, value in request.items():
        if field in PATHS:
            if not value.startswith("/"):
                yield "bad_path", f"{field} is not absolute"
        elif isinstance(value, str):
            limit = NODE_ID_BYTES_MAX if field == "node_id" else STRING_BYTES_MAX
            if len(value.encode()) > limit:
                yield "too_long", f"{field} has more than {limit} bytes"
        elif _measure_map(value) > MAP_BYTES_MAX:
            yield "too_long", f"{field} has more than {MAP_BYTES_MAX} bytes"


def _measure_map(value: Any) -> int:
    """The bytes of a map of texts; 0 for anything else."""
    if not isinstance(value, dict) or not all(isinstance(inner, str) for inner in value.values()):
        return 0
    return sum(len(f"{key}{inner}".encode()) for key, inner in value.items())
