"""What answers look like: records to the recorded API's JSON. The only place that spells answer members.

Secrets are always null, mount flags always redacted. Source: contract volumes-api §1.8, §3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from moorage.engine.listings import SnapshotMade
from moorage.engine.reads import VolumeRead
from moorage.model.claim import Allocation, Claim, Mounted, TaskEvent, VolumeRequest
from moorage.model.snapshot import ExternalVolume, Snapshot
from moorage.model.times import format_time
from moorage.model.volume import MountOptions, Topology, TopologyRequest, Volume
from moorage.rules.plugins import Health
from moorage.rules.registration import REDACTED

Json = dict[str, Any]


def volume_stub(read: VolumeRead) -> Json:
    """A volume as lists show it (§3.1)."""
    return _volume_common(read) | counters(read)


def counters(read: VolumeRead) -> Json:
    """How many claims read and write a volume."""
    readers = sum(c.read_only for c in read.claims)
    return {"CurrentReaders": readers, "CurrentWriters": len(read.claims) - readers}


# A stub's members in five parts, in byte order one after the other: the volume's, its plugin's, and so on. Lists
# keep their bytes apart (``moorage.api.spelling``).


def volume_lead(volume: Volume) -> Json:
    """A stub's first members: the modes."""
    return {
        "AccessMode": volume.access_mode or volume.shown_access_mode,
        "AttachmentMode": volume.attachment_mode or volume.shown_attachment_mode,
    }


def controllers(health: Health, *, is_required: bool) -> Json:
    """What a volume shows of its plugin's controllers. ``is_required``: by what the volume's record knows."""
    return {
        "ControllerRequired": health.is_controller_required or is_required,
        "ControllersExpected": health.controllers_expected,
        "ControllersHealthy": health.controllers_healthy,
    }


def volume_core(read: VolumeRead) -> Json:
    """A stub's own members in the middle, without the counters."""
    volume = read.record.value
    return {
        "CreateIndex": read.record.created,
        "CreateTime": volume.created_at_ns,
        "ExternalID": volume.external_id,
        "ID": volume.id,
        "ModifyIndex": read.record.modified,
        "ModifyTime": volume.modified_at_ns,
        "Name": volume.name,
        "Namespace": volume.namespace,
    }


def plugin_part(health: Health, plugin_id: str, provider: str) -> Json:
    """What a volume shows of its plugin's nodes and name. ``provider``: as the volume's record knows it."""
    return {
        "NodesExpected": health.nodes_expected,
        "NodesHealthy": health.nodes_healthy,
        "PluginID": plugin_id,
        "Provider": health.provider or provider,
        "ResourceExhausted": None,
        "Schedulable": health.is_schedulable,
    }


def volume_tail(volume: Volume) -> Json:
    """A stub's last members: the topologies."""
    return {"Topologies": [topology_of(t) for t in volume.topologies]}


def _volume_common(read: VolumeRead) -> Json:
    volume, health = read.record.value, read.health
    return (
        volume_lead(volume)
        | controllers(health, is_required=volume.controller_required)
        | volume_core(read)
        | plugin_part(health, volume.plugin_id, volume.provider)
        | volume_tail(volume)
    )


def volume(read: VolumeRead) -> Json:
    """A volume whole (§3.2)."""
    record = read.record.value
    version = read.health.provider_version or record.provider_version
    return _volume_common(read) | {
        "Allocations": [allocation_stub(r.value, r.created, r.modified) for r in read.allocations],
        "Capacity": record.capacity_bytes,
        "CloneID": record.clone_id,
        "Context": record.context,
        "MountOptions": _mount_options(record.mount_options),
        "Parameters": record.parameters,
        "ProviderVersion": version,
        "ReadAllocs": _claimants(read.claims, is_reading=True),
        "RequestedCapabilities": None
        if record.capabilities is None
        else [{"AccessMode": c.access_mode, "AttachmentMode": c.attachment_mode} for c in record.capabilities],
        "RequestedCapacityMax": record.requested_max_bytes,
        "RequestedCapacityMin": record.requested_min_bytes,
        "RequestedTopologies": _topology_request(record.requested_topologies),
        "Secrets": None,
        "SnapshotID": record.snapshot_id,
        "Version": version,
        "WriteAllocs": _claimants(read.claims, is_reading=False),
    }


def _claimants(claims: Iterable[Claim], *, is_reading: bool) -> dict[str, None]:
    return {c.allocation_id: None for c in claims if c.read_only is is_reading}


def topology_of(topology: Topology) -> Json:
    """A topology."""
    return {"Segments": topology.segments}


def _topology_request(asked: TopologyRequest | None) -> Json | None:
    if asked is None:
        return None
    return {
        "Preferred": None if asked.preferred is None else [topology_of(t) for t in asked.preferred],
        "Required": None if asked.required is None else [topology_of(t) for t in asked.required],
    }


def _mount_options(options: MountOptions | None) -> Json:
    if options is None:
        return {"FSType": "", "MountFlags": None}
    flags = options.mount_flags
    shown = [REDACTED] if flags else (None if flags is None else [])
    return {"FSType": options.fs_type, "MountFlags": shown}


# -- allocations -----------------------------------------------------------------------------------------------------


def allocation_stub(allocation: Allocation, created: int, modified: int) -> Json:
    """An allocation as lists and volumes show it (§3.6)."""
    return {
        "ClientDescription": allocation.description,
        "ClientStatus": allocation.status,
        "CreateIndex": created,
        "CreateTime": allocation.created_at_ns,
        "DeploymentStatus": None,
        "DesiredDescription": "",
        "DesiredStatus": allocation.wanted,
        "DesiredTransition": {
            "ForceReschedule": None,
            "Migrate": None,
            "MigrateDisablePlacement": None,
            "NoShutdownDelay": None,
            "Reschedule": None,
        },
        "EvalID": "",
        "FollowupEvalID": "",
        "ID": allocation.id,
        "JobID": allocation.job_id,
        "JobType": "service",
        "JobVersion": 0,
        "ModifyIndex": modified,
        "ModifyTime": allocation.modified_at_ns,
        "Name": allocation.name,
        "Namespace": allocation.namespace,
        "NextAllocation": "",
        "NodeID": allocation.node_id,
        "NodeName": allocation.node_name,
        "PreemptedAllocations": None,
        "PreemptedByAllocation": "",
        "RescheduleTracker": None,
        "TaskGroup": allocation.task_group,
        "TaskStates": _task_states(allocation),
    }


def allocation_whole(allocation: Allocation, created: int, modified: int, claims: Iterable[Claim]) -> Json:
    """An allocation whole: the stub, its volume requests, and where they are mounted.

    The job members are what the recorded CLI needs to show an allocation. Source: contract clients §2.
    """
    by_name = {c.name: c for c in claims}
    zero = {"CPU": 0, "MemoryMB": 0, "DiskMB": 0}
    tasks = [
        {
            "Name": task,
            "Driver": "",
            "VolumeMounts": [
                {"Volume": v.name, "Destination": v.target, "ReadOnly": v.read_only} for v in allocation.volumes
            ],
        }
        for task in allocation.tasks
    ]
    requested = {v.name: {"Name": v.name, "Type": "csi", **_request(v)} for v in allocation.volumes}
    group = {"Name": allocation.task_group, "Volumes": requested, "Tasks": tasks}
    return allocation_stub(allocation, created, modified) | {
        "Job": {
            "ID": allocation.job_id,
            "Name": allocation.job_id,
            "Version": 0,
            "Type": "service",
            "TaskGroups": [group],
        },
        "Mounts": [_mount(v, allocation, by_name.get(v.name)) for v in allocation.volumes],
        "Volumes": [{"Name": v.name, **_request(v)} for v in allocation.volumes],
        "Resources": zero,
        "TaskResources": dict.fromkeys(allocation.tasks, zero),
        "Metrics": {},
    }


def allocation_row(allocation: Allocation, created: int, modified: int, claims: Iterable[Claim]) -> Json:
    """An allocation in a list: the stub with its mounts."""
    by_name = {c.name: c for c in claims}
    stub = allocation_stub(allocation, created, modified)
    return stub | {"Mounts": [_mount(v, allocation, by_name.get(v.name)) for v in allocation.volumes]}


def _request(request: VolumeRequest) -> Json:
    return {
        "PerAlloc": request.per_alloc,
        "Source": request.source,
        "ReadOnly": request.read_only,
        "AccessMode": request.access_mode,
        "AttachmentMode": request.attachment_mode,
        "MountOptions": _mount_options(request.mount_options),
        "Target": request.target,
    }


def _mount(request: VolumeRequest, allocation: Allocation, claim: Claim | None) -> Json:
    fault = claim.progress.last_fault if claim else None
    return {
        "Name": request.name,
        "Volume": request.volume_id or request.source,
        "Path": allocation.paths.get(request.name, ""),
        "Target": request.target,
        "ReadOnly": request.read_only,
        "State": _claim_state(claim),
        "LastError": f"{fault.method}: {fault.message}" if fault else "",
        "Attempts": claim.progress.attempts if claim else 0,
    }


def _claim_state(claim: Claim | None) -> str:
    if claim is None:
        return "released"
    if isinstance(claim.state, Mounted) and claim.wanted == "held":
        return "mounted"
    kind = str(claim.state.__struct_config__.tag)
    return kind if claim.wanted == "held" else f"releasing, {kind}"


def _task_states(allocation: Allocation) -> Json:
    state = {
        "Events": [_task_event(e) for e in allocation.events],
        "Failed": allocation.status == "failed",
        "FinishedAt": format_time(allocation.finished_at_ns),
        "LastRestart": None,
        "Paused": "",
        "Restarts": 0,
        "StartedAt": format_time(allocation.started_at_ns),
        "State": {"pending": "pending", "running": "running"}.get(allocation.status, "dead"),
        "TaskHandle": None,
    }
    return dict.fromkeys(allocation.tasks, state)


_LEGACY_TEXTS = [
    "DownloadError",
    "DriverError",
    "DriverMessage",
    "FailedSibling",
    "GenericSource",
    "KillError",
    "KillReason",
    "RestartReason",
    "SetupError",
    "TaskSignal",
    "TaskSignalReason",
    "ValidationError",
    "VaultError",
]


def _task_event(event: TaskEvent) -> Json:
    failed = event.message if event.type == "Setup Failure" else ""
    return dict.fromkeys(_LEGACY_TEXTS, "") | {
        "Details": event.details,
        "DiskLimit": 0,
        "DisplayMessage": event.message,
        "ExitCode": 0,
        "FailsTask": bool(failed),
        "KillTimeout": 0,
        "Message": event.message,
        "SetupError": failed,
        "Signal": 0,
        "StartDelay": 0,
        "Time": event.at_ns,
        "Type": event.type,
    }


# -- what drivers list -----------------------------------------------------------------------------------------------


def external_volume(found: ExternalVolume) -> Json:
    """A volume of a driver's own listing (§3.8)."""
    nodes = found.published_node_ids
    return {
        "CapacityBytes": found.capacity_bytes,
        "CloneID": found.clone_id,
        "ExternalID": found.external_id,
        "IsAbnormal": found.is_abnormal,
        "PublishedExternalNodeIDs": None if nodes is None else list(nodes),
        "SnapshotID": found.snapshot_id,
        "Status": found.status,
        "VolumeContext": found.context,
    }


def snapshot(found: Snapshot, *, plugin_id: str, source_volume_id: str = "", name: str = "") -> Json:
    """A snapshot (§3.8)."""
    return {
        "CreateTime": found.created_at_s,
        "ExternalSourceVolumeID": found.external_source_id,
        "ID": found.id,
        "IsReady": found.is_ready,
        "Name": name,
        "Parameters": None,
        "PluginID": plugin_id,
        "Secrets": None,
        "SizeBytes": found.size_bytes,
        "SourceVolumeID": source_volume_id,
    }


def snapshot_made(made: SnapshotMade) -> Json:
    """A snapshot just made, with the names under which it was asked for."""
    return snapshot(
        made.snapshot,
        plugin_id=made.plugin_id,
        source_volume_id=made.request.source_volume_id,
        name=made.request.name,
    )


def enveloped(index: int, *, is_leader_known: bool = True, next_token: str = "", **members: Any) -> Mapping[str, Any]:
    """An answer object with the query's meta members beside its own."""
    return {
        "Index": index,
        "KnownLeader": is_leader_known,
        "LastContact": 0,
        "NextToken": next_token,
        **members,
    }
