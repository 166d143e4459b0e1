"""CSI answers to outcomes.

Never: I/O, clock, logs.
Source: CSI spec 1.12; contract csi-wire §11; csi-engine §B.3 (what counts as a contradiction).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moorage.csi.modes import MODE_NUMBERS, NEWER_MODES, get_enum_name
from moorage.csi.proto import csi_pb2 as csi
from moorage.model import steps
from moorage.model.snapshot import ExternalVolume, Snapshot
from moorage.model.volume import BLOCK_DEVICE, Capability, Fault, MountOptions, Topology

_Mode = csi.VolumeCapability.AccessMode


def read_create(step: steps.CreateVolume, answer: csi.CreateVolumeResponse) -> steps.Outcome:
    """A volume, or a failure where the driver named none; whether the source was kept is told, not judged."""
    volume = answer.volume
    if not volume.volume_id:
        return _broken("CreateVolume", "the driver answered without a volume ID")
    source = volume.content_source
    has_snapshot = source.snapshot.snapshot_id == step.snapshot_id
    has_volume = source.volume.volume_id == step.clone_id
    return steps.Created(
        external_id=volume.volume_id,
        capacity_bytes=volume.capacity_bytes,
        context=dict(volume.volume_context),
        topologies=_read_topologies(volume.accessible_topology),
        is_source_kept=(has_snapshot and has_volume) or not (step.snapshot_id or step.clone_id),
    )


def read_expand(step: steps.ExpandVolume, answer: csi.ControllerExpandVolumeResponse) -> steps.Outcome:
    """The new size and whether nodes owe growth."""
    return steps.Expanded(
        capacity_bytes=answer.capacity_bytes, is_node_expansion_required=answer.node_expansion_required
    )


def read_validate(step: steps.ValidateVolume, answer: csi.ValidateVolumeCapabilitiesResponse) -> steps.Outcome:
    """Done unless what was confirmed contradicts what was asked.

    Drivers that confirm nothing, or only part, pass: many do.
    """
    confirmed = answer.confirmed.volume_capabilities
    if not confirmed:
        return steps.Done()
    for capability in step.capabilities:
        reasons = [_contradiction(capability, step.mount_options, have) for have in confirmed]
        if all(reasons):
            text = f"volume capability validation failed: {reasons[0]}"
            return _broken("ValidateVolumeCapabilities", f"{text}: {answer.message}" if answer.message else text)
    return steps.Done()


def _contradiction(want: Capability, options: MountOptions | None, have: csi.VolumeCapability) -> str:
    """What the confirmed capability ``have`` says against ``want``; empty when nothing."""
    mode = have.access_mode.mode
    accepted = {_Mode.UNKNOWN, MODE_NUMBERS[want.access_mode]}
    if want.access_mode in NEWER_MODES:
        accepted.add(_Mode.SINGLE_NODE_WRITER)
    if mode not in accepted:
        return f"requested access mode {want.access_mode}, confirmed {get_enum_name(_Mode.Mode, mode)}"
    kind = have.WhichOneof("access_type")
    if kind is not None and (kind == "block") != (want.attachment_mode == BLOCK_DEVICE):
        return f"requested attachment mode {want.attachment_mode}, confirmed {kind}"
    if kind != "mount" or options is None:
        return ""
    if options.fs_type and have.mount.fs_type != options.fs_type:
        return f"requested filesystem type {options.fs_type!r}, confirmed {have.mount.fs_type!r}"
    if set(options.mount_flags or ()) - set(have.mount.mount_flags):
        # The flags themselves may hold credentials.
        return "not every requested mount flag was confirmed"
    return ""


def read_attach(step: steps.AttachVolume, answer: csi.ControllerPublishVolumeResponse) -> steps.Outcome:
    """The publish context."""
    return steps.Attached(publish_context=dict(answer.publish_context))


def read_list_volumes(step: steps.ListVolumes, answer: csi.ListVolumesResponse) -> steps.Outcome:
    """A page of volumes; entries without an ID are dropped."""
    volumes = tuple(_read_entry(e) for e in answer.entries if e.volume.volume_id)
    return steps.VolumesListed(volumes=volumes, next_token=answer.next_token)


def _read_entry(entry: csi.ListVolumesResponse.Entry) -> ExternalVolume:
    volume, status = entry.volume, entry.status
    return ExternalVolume(
        external_id=volume.volume_id,
        capacity_bytes=volume.capacity_bytes,
        context=dict(volume.volume_context) or None,
        clone_id=volume.content_source.volume.volume_id,
        snapshot_id=volume.content_source.snapshot.snapshot_id,
        topologies=_read_topologies(volume.accessible_topology),
        published_node_ids=tuple(status.published_node_ids) if entry.HasField("status") else None,
        is_abnormal=status.volume_condition.abnormal,
        status=status.volume_condition.message,
    )


def read_list_snapshots(step: steps.ListSnapshots, answer: csi.ListSnapshotsResponse) -> steps.Outcome:
    """A page of snapshots; entries without an ID are dropped."""
    snapshots = tuple(_read_snapshot(e.snapshot) for e in answer.entries if e.snapshot.snapshot_id)
    return steps.SnapshotsListed(snapshots=snapshots, next_token=answer.next_token)


def read_create_snapshot(step: steps.CreateSnapshot, answer: csi.CreateSnapshotResponse) -> steps.Outcome:
    """A snapshot, or a failure where the driver named none."""
    if not answer.snapshot.snapshot_id:
        return _broken("CreateSnapshot", "the driver answered without a snapshot ID")
    return steps.SnapshotCreated(snapshot=_read_snapshot(answer.snapshot))


def _read_snapshot(snapshot: csi.Snapshot) -> Snapshot:
    return Snapshot(
        id=snapshot.snapshot_id,
        external_source_id=snapshot.source_volume_id,
        size_bytes=snapshot.size_bytes,
        created_at_s=snapshot.creation_time.seconds,
        is_ready=snapshot.ready_to_use,
    )


def read_get_capacity(step: steps.GetCapacity, answer: csi.GetCapacityResponse) -> steps.Outcome:
    """The free bytes of the pool."""
    largest = answer.maximum_volume_size.value if answer.HasField("maximum_volume_size") else None
    return steps.CapacityTold(available_bytes=answer.available_capacity, volume_max_bytes=largest)


def read_expand_node(step: steps.ExpandNodeVolume, answer: csi.NodeExpandVolumeResponse) -> steps.Outcome:
    """The filesystem's size; 0 where the driver does not tell."""
    return steps.Expanded(capacity_bytes=answer.capacity_bytes)


def read_stats(step: steps.GetVolumeStats, answer: csi.NodeGetVolumeStatsResponse) -> steps.Outcome:
    """One row of bytes and one of inodes; rows in other units are dropped."""
    rows = {row.unit: row for row in reversed(answer.usage)}
    total_bytes, used_bytes, available_bytes = _read_usage(rows.get(csi.VolumeUsage.BYTES))
    total_inodes, used_inodes, available_inodes = _read_usage(rows.get(csi.VolumeUsage.INODES))
    return steps.StatsTold(
        total_bytes=total_bytes,
        used_bytes=used_bytes,
        available_bytes=available_bytes,
        total_inodes=total_inodes,
        used_inodes=used_inodes,
        available_inodes=available_inodes,
        is_abnormal=answer.volume_condition.abnormal,
        condition=answer.volume_condition.message,
    )


def _read_usage(row: csi.VolumeUsage | None) -> tuple[int | None, int | None, int | None]:
    """(total, used, available). Nothing used and nothing free of something: those two were not told."""
    if row is None:
        return None, None, None
    if row.total and not row.used and not row.available:
        return row.total, None, None
    return row.total, row.used, row.available


def read_done(step: Any, answer: Any) -> steps.Outcome:
    """Done: the answer says nothing more."""
    return steps.Done()


def _read_topologies(topologies: Iterable[csi.Topology]) -> tuple[Topology, ...]:
    return tuple(Topology(segments=dict(t.segments)) for t in topologies if t.segments)


def _broken(method: str, text: str) -> steps.Failed:
    return steps.Failed(fault=Fault(method=method, status="", message=text, final=True))
