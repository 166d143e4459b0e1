"""Steps to CSI requests, and the table of how each kind of step travels.

Requests hold exactly what the specification allows: a sub-message with nothing to say is left out, and a field that
needs a capability is sent only where the driver advertises it (``Features``).
Never: I/O, clock, logs.
Source: CSI spec 1.12; contract csi-wire §7, §11; csi-engine §B.3, §I.15.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec
from google.protobuf.message import Message

from moorage.csi import answers, calls
from moorage.csi.modes import MODE_NUMBERS, NEWER_MODES
from moorage.csi.proto import csi_pb2 as csi
from moorage.errors import BadRequest
from moorage.model import steps
from moorage.model.volume import BLOCK_DEVICE, SINGLE_NODE_WRITER, Capability, MountOptions, Topology, TopologyRequest
from moorage.rpc import Rpc
from moorage.rules.explanations import find_unknown_mode

INT32_MAX = 2**31 - 1


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver advertises that decides what a request may hold."""

    supports_topologies: bool = False
    supports_read_only_attach: bool = False
    # SINGLE_NODE_MULTI_WRITER of each service: the two newer single-node modes may be sent.
    controller_knows_single_node_modes: bool = False
    node_knows_single_node_modes: bool = False


class _WithOptions(Protocol):
    """A step that has mount options."""

    @property
    def mount_options(self) -> MountOptions | None: ...


class Conversion(msgspec.Struct, frozen=True):
    """How one kind of step travels: the method, step → request, (step, answer) → outcome."""

    rpc: Rpc[Any, Any]
    build: Callable[[Any, Features], Message]
    read: Callable[[Any, Any], steps.Outcome]


# -- parts of requests -----------------------------------------------------------------------------------------------


def build_capability(
    capability: Capability, options: MountOptions | None, *, knows_single_node_modes: bool
) -> csi.VolumeCapability:
    """One capability; mount options go with a filesystem only.

    Raises: BadRequest for a mode that does not exist.
    """
    if text := find_unknown_mode(capability):
        raise BadRequest(text)
    mode = capability.access_mode
    if mode in NEWER_MODES and not knows_single_node_modes:
        mode = SINGLE_NODE_WRITER
    message = csi.VolumeCapability(access_mode=csi.VolumeCapability.AccessMode(mode=MODE_NUMBERS[mode]))
    if capability.attachment_mode == BLOCK_DEVICE:
        message.block.SetInParent()
        return message
    message.mount.SetInParent()
    if options is not None:
        message.mount.fs_type = options.fs_type
        message.mount.mount_flags.extend(options.mount_flags or ())
    return message


def _range(required_bytes: int, limit_bytes: int) -> csi.CapacityRange | None:
    if not required_bytes and not limit_bytes:
        return None
    return csi.CapacityRange(required_bytes=required_bytes, limit_bytes=limit_bytes)


def _topologies(topologies: Iterable[Topology] | None) -> list[csi.Topology]:
    return [csi.Topology(segments=t.segments) for t in topologies or () if t.segments]


def _requirement(request: TopologyRequest | None) -> csi.TopologyRequirement | None:
    if request is None:
        return None
    requisite, preferred = _topologies(request.required), _topologies(request.preferred)
    return csi.TopologyRequirement(requisite=requisite, preferred=preferred) if requisite or preferred else None


def _source(step: steps.CreateVolume) -> csi.VolumeContentSource | None:
    kind = csi.VolumeContentSource
    if step.snapshot_id:
        return kind(snapshot=kind.SnapshotSource(snapshot_id=step.snapshot_id))
    if step.clone_id:
        return kind(volume=kind.VolumeSource(volume_id=step.clone_id))
    return None


def _controller_capability(step: _WithOptions, capability: Capability, features: Features) -> csi.VolumeCapability:
    knows = features.controller_knows_single_node_modes
    return build_capability(capability, step.mount_options, knows_single_node_modes=knows)


def _node_capability(step: _WithOptions, capability: Capability, features: Features) -> csi.VolumeCapability:
    knows = features.node_knows_single_node_modes
    return build_capability(capability, step.mount_options, knows_single_node_modes=knows)


# -- controller ------------------------------------------------------------------------------------------------------


def _build_create(step: steps.CreateVolume, features: Features) -> csi.CreateVolumeRequest:
    return csi.CreateVolumeRequest(
        name=step.name,
        capacity_range=_range(step.required_bytes, step.limit_bytes),
        volume_capabilities=[_controller_capability(step, c, features) for c in step.capabilities],
        parameters=step.parameters,
        secrets=step.secrets.values,
        volume_content_source=_source(step),
        accessibility_requirements=_requirement(step.topologies) if features.supports_topologies else None,
    )


def _build_delete(step: steps.DeleteVolume, features: Features) -> csi.DeleteVolumeRequest:
    return csi.DeleteVolumeRequest(volume_id=step.external_id, secrets=step.secrets.values)


def _build_expand(step: steps.ExpandVolume, features: Features) -> csi.ControllerExpandVolumeRequest:
    return csi.ControllerExpandVolumeRequest(
        volume_id=step.external_id,
        capacity_range=_range(step.required_bytes, step.limit_bytes),
        secrets=step.secrets.values,
        volume_capability=_controller_capability(step, step.capability, features) if step.capability else None,
    )


def _build_validate(step: steps.ValidateVolume, features: Features) -> csi.ValidateVolumeCapabilitiesRequest:
    return csi.ValidateVolumeCapabilitiesRequest(
        volume_id=step.external_id,
        volume_context=step.context,
        volume_capabilities=[_controller_capability(step, c, features) for c in step.capabilities],
        parameters=step.parameters,
        secrets=step.secrets.values,
    )


def _build_attach(step: steps.AttachVolume, features: Features) -> csi.ControllerPublishVolumeRequest:
    return csi.ControllerPublishVolumeRequest(
        volume_id=step.external_id,
        node_id=step.external_node_id,
        volume_capability=_controller_capability(step, step.capability, features),
        readonly=step.read_only and features.supports_read_only_attach,
        secrets=step.secrets.values,
        volume_context=step.context,
    )


def _build_detach(step: steps.DetachVolume, features: Features) -> csi.ControllerUnpublishVolumeRequest:
    return csi.ControllerUnpublishVolumeRequest(
        volume_id=step.external_id, node_id=step.external_node_id, secrets=step.secrets.values
    )


def _build_list_volumes(step: steps.ListVolumes, features: Features) -> csi.ListVolumesRequest:
    return csi.ListVolumesRequest(max_entries=min(step.entries_max, INT32_MAX), starting_token=step.starting_token)


def _build_list_snapshots(step: steps.ListSnapshots, features: Features) -> csi.ListSnapshotsRequest:
    return csi.ListSnapshotsRequest(
        max_entries=min(step.entries_max, INT32_MAX),
        starting_token=step.starting_token,
        source_volume_id=step.external_source_id,
        snapshot_id=step.snapshot_id,
        secrets=step.secrets.values,
    )


def _build_create_snapshot(step: steps.CreateSnapshot, features: Features) -> csi.CreateSnapshotRequest:
    return csi.CreateSnapshotRequest(
        source_volume_id=step.external_source_id,
        name=step.name,
        secrets=step.secrets.values,
        parameters=step.parameters,
    )


def _build_delete_snapshot(step: steps.DeleteSnapshot, features: Features) -> csi.DeleteSnapshotRequest:
    return csi.DeleteSnapshotRequest(snapshot_id=step.snapshot_id, secrets=step.secrets.values)


def _build_get_capacity(step: steps.GetCapacity, features: Features) -> csi.GetCapacityRequest:
    topologies = _topologies([step.topology]) if step.topology and features.supports_topologies else []
    knows = features.controller_knows_single_node_modes
    return csi.GetCapacityRequest(
        volume_capabilities=[build_capability(c, None, knows_single_node_modes=knows) for c in step.capabilities],
        parameters=step.parameters,
        accessible_topology=topologies[0] if topologies else None,
    )


# -- node ------------------------------------------------------------------------------------------------------------


def _build_stage(step: steps.StageVolume, features: Features) -> csi.NodeStageVolumeRequest:
    return csi.NodeStageVolumeRequest(
        volume_id=step.external_id,
        publish_context=step.publish_context,
        staging_target_path=step.staging_path,
        volume_capability=_node_capability(step, step.capability, features),
        secrets=step.secrets.values,
        volume_context=step.context,
    )


def _build_publish(step: steps.PublishVolume, features: Features) -> csi.NodePublishVolumeRequest:
    return csi.NodePublishVolumeRequest(
        volume_id=step.external_id,
        publish_context=step.publish_context,
        staging_target_path=step.staging_path,
        target_path=step.target_path,
        volume_capability=_node_capability(step, step.capability, features),
        readonly=step.read_only,
        secrets=step.secrets.values,
        volume_context=step.context,
    )


def _build_unpublish(step: steps.UnpublishVolume, features: Features) -> csi.NodeUnpublishVolumeRequest:
    return csi.NodeUnpublishVolumeRequest(volume_id=step.external_id, target_path=step.target_path)


def _build_unstage(step: steps.UnstageVolume, features: Features) -> csi.NodeUnstageVolumeRequest:
    return csi.NodeUnstageVolumeRequest(volume_id=step.external_id, staging_target_path=step.staging_path)


def _build_expand_node(step: steps.ExpandNodeVolume, features: Features) -> csi.NodeExpandVolumeRequest:
    return csi.NodeExpandVolumeRequest(
        volume_id=step.external_id,
        volume_path=step.volume_path,
        capacity_range=_range(step.required_bytes, step.limit_bytes),
        staging_target_path=step.staging_path,
        volume_capability=_node_capability(step, step.capability, features) if step.capability else None,
        secrets=step.secrets.values,
    )


def _build_stats(step: steps.GetVolumeStats, features: Features) -> csi.NodeGetVolumeStatsRequest:
    return csi.NodeGetVolumeStatsRequest(
        volume_id=step.external_id, volume_path=step.volume_path, staging_target_path=step.staging_path
    )


CONVERSIONS: dict[type[Any], Conversion] = {
    steps.CreateVolume: Conversion(calls.CREATE_VOLUME, _build_create, answers.read_create),
    steps.DeleteVolume: Conversion(calls.DELETE_VOLUME, _build_delete, answers.read_done),
    steps.ExpandVolume: Conversion(calls.CONTROLLER_EXPAND_VOLUME, _build_expand, answers.read_expand),
    steps.ValidateVolume: Conversion(calls.VALIDATE_VOLUME_CAPABILITIES, _build_validate, answers.read_validate),
    steps.AttachVolume: Conversion(calls.CONTROLLER_PUBLISH_VOLUME, _build_attach, answers.read_attach),
    steps.DetachVolume: Conversion(calls.CONTROLLER_UNPUBLISH_VOLUME, _build_detach, answers.read_done),
    steps.ListVolumes: Conversion(calls.LIST_VOLUMES, _build_list_volumes, answers.read_list_volumes),
    steps.ListSnapshots: Conversion(calls.LIST_SNAPSHOTS, _build_list_snapshots, answers.read_list_snapshots),
    steps.CreateSnapshot: Conversion(calls.CREATE_SNAPSHOT, _build_create_snapshot, answers.read_create_snapshot),
    steps.DeleteSnapshot: Conversion(calls.DELETE_SNAPSHOT, _build_delete_snapshot, answers.read_done),
    steps.GetCapacity: Conversion(calls.GET_CAPACITY, _build_get_capacity, answers.read_get_capacity),
    steps.StageVolume: Conversion(calls.NODE_STAGE_VOLUME, _build_stage, answers.read_done),
    steps.PublishVolume: Conversion(calls.NODE_PUBLISH_VOLUME, _build_publish, answers.read_done),
    steps.UnpublishVolume: Conversion(calls.NODE_UNPUBLISH_VOLUME, _build_unpublish, answers.read_done),
    steps.UnstageVolume: Conversion(calls.NODE_UNSTAGE_VOLUME, _build_unstage, answers.read_done),
    steps.ExpandNodeVolume: Conversion(calls.NODE_EXPAND_VOLUME, _build_expand_node, answers.read_expand_node),
    steps.GetVolumeStats: Conversion(calls.NODE_GET_VOLUME_STATS, _build_stats, answers.read_stats),
}
"""Every kind of step."""
