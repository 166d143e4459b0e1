"""JSON schemas of the answers, for the API's description. They say what ``answers.py`` writes, member by member.

Every member of an answer is always sent, so all are required; more may come with later versions, so objects are left
open. Plain data: nothing here is looked at when a request is answered.
"""

from __future__ import annotations

from moorage.api.schema_around import AROUND_SCHEMAS
from moorage.api.schema_parts import (
    ANYTHING,
    BOOL,
    COUNT,
    EMPTY,
    ENVELOPE,
    INDEXES,
    INTEGER,
    NULL,
    TEXT,
    TEXTS,
    TIME,
    TIME_NS,
    Schema,
    list_of,
    map_of,
    or_null,
    record,
    ref,
)

_HEALTH = {
    "ControllerRequired": BOOL,
    "ControllersExpected": COUNT,
    "ControllersHealthy": COUNT,
    "NodesExpected": COUNT,
    "NodesHealthy": COUNT,
    "Provider": TEXT,
}
_VOLUME_SHARED = (
    INDEXES
    | _HEALTH
    | {
        "AccessMode": TEXT,
        "AttachmentMode": TEXT,
        "CreateTime": TIME_NS,
        "ExternalID": TEXT,
        "ID": TEXT,
        "ModifyTime": TIME_NS,
        "Name": TEXT,
        "Namespace": TEXT,
        "PluginID": TEXT,
        "ResourceExhausted": NULL,
        "Schedulable": BOOL,
        "Topologies": list_of(ref("Topology")),
    }
)
_CLAIMANTS: Schema = map_of(NULL) | {"description": "IDs of the allocations, each with null"}

_VOLUMES: dict[str, Schema] = {
    "Topology": record("Where a node or a volume is.", {"Segments": TEXTS}),
    "Capability": record("One way a volume may be used.", {"AccessMode": TEXT, "AttachmentMode": TEXT}),
    "MountOptions": record("How a volume is mounted.", {"FSType": TEXT, "MountFlags": or_null(list_of(TEXT))}),
    "TopologyRequest": record(
        "Where a volume is to be.",
        {"Preferred": or_null(list_of(ref("Topology"))), "Required": or_null(list_of(ref("Topology")))},
    ),
    "VolumeStub": record(
        "A volume as lists show it.", _VOLUME_SHARED | {"CurrentReaders": COUNT, "CurrentWriters": COUNT}
    ),
    "Volume": record(
        "A volume whole.",
        _VOLUME_SHARED
        | {
            "Allocations": list_of(ref("AllocationStub")),
            "Capacity": INTEGER,
            "CloneID": TEXT,
            "Context": TEXTS,
            "MountOptions": ref("MountOptions"),
            "Parameters": TEXTS,
            "ProviderVersion": TEXT,
            "ReadAllocs": _CLAIMANTS,
            "RequestedCapabilities": or_null(list_of(ref("Capability"))),
            "RequestedCapacityMax": INTEGER,
            "RequestedCapacityMin": INTEGER,
            "RequestedTopologies": or_null(ref("TopologyRequest")),
            "Secrets": NULL,
            "SnapshotID": TEXT,
            "Version": TEXT,
            "WriteAllocs": _CLAIMANTS,
        },
    ),
    "VolumesWritten": record(
        "The volumes as they are now.", ENVELOPE | {"Volumes": list_of(ref("Volume")), "Warnings": TEXT}
    ),
    "ExternalVolume": record(
        "A volume of a driver's own listing.",
        {
            "CapacityBytes": INTEGER,
            "CloneID": TEXT,
            "ExternalID": TEXT,
            "IsAbnormal": BOOL,
            "PublishedExternalNodeIDs": or_null(list_of(TEXT)),
            "SnapshotID": TEXT,
            "Status": TEXT,
            "VolumeContext": or_null(TEXTS),
        },
    ),
    "ExternalVolumes": record("A page of a driver's volumes.", ENVELOPE | {"Volumes": list_of(ref("ExternalVolume"))}),
    "Snapshot": record(
        "A snapshot.",
        {
            "CreateTime": INTEGER | {"description": "seconds since the epoch"},
            "ExternalSourceVolumeID": TEXT,
            "ID": TEXT | {"description": "the driver's own name of it"},
            "IsReady": BOOL,
            "Name": TEXT,
            "Parameters": NULL,
            "PluginID": TEXT,
            "Secrets": NULL,
            "SizeBytes": INTEGER,
            "SourceVolumeID": TEXT,
        },
    ),
    "Snapshots": record("A page of a driver's snapshots.", ENVELOPE | {"Snapshots": list_of(ref("Snapshot"))}),
    "SnapshotsMade": record("Snapshots just made.", ENVELOPE | {"Snapshots": or_null(list_of(ref("Snapshot")))}),
}

_CONTROLLER_ABILITIES = (
    "AttachDetach Clone Condition CreateDelete CreateDeleteSnapshot Expand Get GetCapacity ListSnapshots ListVolumes "
    "ListVolumesAttachedNodes ReadOnlyAttach"
)
_INSTANCE = {
    "AllocID": TEXT,
    "HealthDescription": TEXT,
    "Healthy": BOOL,
    "PluginID": TEXT,
    "Provider": TEXT,
    "ProviderVersion": TEXT,
    "RequiresControllerPlugin": BOOL,
    "RequiresTopologies": BOOL,
    "UpdateTime": TIME,
}
_PLUGINS: dict[str, Schema] = {
    "PluginStub": record("A plugin as lists show it.", INDEXES | _HEALTH | {"ID": TEXT}),
    "Plugin": record(
        "A plugin whole.",
        INDEXES
        | _HEALTH
        | {
            "Allocations": list_of(ANYTHING) | {"maxItems": 0},
            "ControllerJobs": EMPTY,
            "Controllers": map_of(ref("ControllerInstance")),
            "CreateTime": TIME_NS,
            "ID": TEXT,
            "ModifyTime": TIME_NS,
            "NodeJobs": EMPTY,
            "Nodes": map_of(ref("NodeInstance")),
            "Version": TEXT,
        },
    ),
    "ControllerInstance": record(
        "A driver's controller service on one node.", _INSTANCE | {"ControllerInfo": ref("ControllerInfo")}
    ),
    "NodeInstance": record("A driver's node service on one node.", _INSTANCE | {"NodeInfo": ref("NodeInfo")}),
    "ControllerInfo": record(
        "What a driver's controller service can do.",
        {f"Supports{ability}": BOOL for ability in _CONTROLLER_ABILITIES.split()},
    ),
    "NodeInfo": record(
        "What a driver's node service can do.",
        {
            "AccessibleTopology": or_null(ref("Topology")),
            "ID": TEXT | {"description": "the driver's own name of the node"},
            "MaxVolumes": INTEGER,
            "RequiresNodeStageVolume": BOOL,
            "SupportsCondition": BOOL,
            "SupportsExpand": BOOL,
            "SupportsStats": BOOL,
        },
    ),
}

_NODE_STUB = INDEXES | {
    "Address": TEXT,
    "Attributes": or_null(TEXTS),
    "Datacenter": TEXT,
    "Drain": BOOL,
    "Drivers": EMPTY,
    "HostVolumes": EMPTY,
    "ID": TEXT,
    "LastDrain": or_null(ref("LastDrain")),
    "Name": TEXT,
    "NodeClass": TEXT,
    "NodePool": TEXT,
    "SchedulingEligibility": TEXT,
    "Status": {"enum": ["initializing", "ready", "down"]},
    "StatusDescription": TEXT,
    "Version": TEXT,
}
_SIZES = record("Plain sizes.", {"CPU": INTEGER, "DiskMB": INTEGER, "MemoryMB": INTEGER})
_RESOURCES = record(
    "Sizes by kind.",
    {
        "Cpu": record("Processors.", {"CpuShares": INTEGER}),
        "Disk": record("Disk.", {"DiskMB": INTEGER}),
        "Memory": record("Memory.", {"MemoryMB": INTEGER}),
    },
)
_NODES: dict[str, Schema] = {
    "NodeStub": record("A node as lists show it.", _NODE_STUB),
    "Node": record(
        "A node whole.",
        _NODE_STUB
        | {
            "Attributes": TEXTS,
            "CSIControllerPlugins": map_of(ref("ControllerInstance")),
            "CSINodePlugins": map_of(ref("NodeInstance")),
            "DrainStrategy": or_null(ref("DrainStrategy")),
            "Events": list_of(ANYTHING),
            "HTTPAddr": TEXT,
            "HostNetworks": EMPTY,
            "Links": EMPTY,
            "Meta": TEXTS,
            "NodeResources": _RESOURCES,
            "Reserved": _SIZES,
            "ReservedResources": _RESOURCES,
            "Resources": _SIZES,
            "StatusUpdatedAt": INTEGER | {"description": "seconds since the epoch"},
            "TLSEnabled": BOOL,
        },
    ),
}

_NODES["LastDrain"] = record(
    "The drain in hand, or the last one.",
    {"AccessorID": TEXT, "Meta": NULL, "StartedAt": TIME, "Status": TEXT, "UpdatedAt": TIME},
)
_NODES["DrainStrategy"] = record(
    "How a node is being drained; the deadline is always 0: nothing is unmounted under a process that writes.",
    {"Deadline": INTEGER, "ForceDeadline": NULL, "IgnoreSystemJobs": BOOL, "StartedAt": TIME},
)
_NODES["NodeChanged"] = record(
    "The index of a write.",
    {
        "EvalCreateIndex": COUNT,
        "EvalIDs": list_of(ANYTHING) | {"maxItems": 0},
        "Index": COUNT,
        "NodeModifyIndex": COUNT,
    },
)

_ALLOCATION_STUB = INDEXES | {
    "ClientDescription": TEXT,
    "ClientStatus": {"enum": ["pending", "running", "complete", "failed", "lost"]},
    "CreateTime": TIME_NS,
    "DeploymentStatus": NULL,
    "DesiredDescription": TEXT,
    "DesiredStatus": {"enum": ["run", "stop"]},
    "DesiredTransition": map_of(NULL),
    "EvalID": TEXT,
    "FollowupEvalID": TEXT,
    "ID": TEXT,
    "JobID": TEXT,
    "JobType": TEXT,
    "JobVersion": INTEGER,
    "ModifyTime": TIME_NS,
    "Name": TEXT,
    "Namespace": TEXT,
    "NextAllocation": TEXT,
    "NodeID": TEXT,
    "NodeName": TEXT,
    "PreemptedAllocations": NULL,
    "PreemptedByAllocation": TEXT,
    "RescheduleTracker": NULL,
    "TaskGroup": TEXT,
    "TaskStates": map_of(ref("TaskState")),
}
_EVENT_TEXTS = (
    "DisplayMessage DownloadError DriverError DriverMessage FailedSibling GenericSource KillError KillReason Message "
    "RestartReason SetupError TaskSignal TaskSignalReason Type ValidationError VaultError"
)
_REQUEST = {
    "AccessMode": TEXT,
    "AttachmentMode": TEXT,
    "MountOptions": ref("MountOptions"),
    "Name": TEXT,
    "PerAlloc": BOOL,
    "ReadOnly": BOOL,
    "Source": TEXT,
    "Target": TEXT,
}
_ALLOCATIONS: dict[str, Schema] = {
    "AllocationStub": record("A use of volumes on a node, as a volume shows it.", _ALLOCATION_STUB),
    "AllocationRow": record(
        "A use of volumes on a node, as lists show it.", _ALLOCATION_STUB | {"Mounts": list_of(ref("Mount"))}
    ),
    "Allocation": record(
        "A use of volumes on a node, whole.",
        _ALLOCATION_STUB
        | {
            "Job": map_of(ANYTHING),
            "Metrics": EMPTY,
            "Mounts": list_of(ref("Mount")),
            "Resources": _SIZES,
            "TaskResources": map_of(_SIZES),
            "Volumes": list_of(ref("VolumeRequest")),
        },
    ),
    "VolumeRequest": record("A volume that an allocation asks for.", _REQUEST),
    "Mount": record(
        "Where one volume of an allocation is.",
        {
            "Attempts": COUNT,
            "LastError": TEXT,
            "Name": TEXT,
            "Path": TEXT,
            "ReadOnly": BOOL,
            "State": TEXT,
            "Target": TEXT,
            "Volume": TEXT | {"description": "the volume's ID"},
        },
    ),
    "TaskState": record(
        "How a task fares.",
        {
            "Events": list_of(ref("TaskEvent")),
            "Failed": BOOL,
            "FinishedAt": TIME,
            "LastRestart": NULL,
            "Paused": TEXT,
            "Restarts": COUNT,
            "StartedAt": TIME,
            "State": {"enum": ["pending", "running", "dead"]},
            "TaskHandle": NULL,
        },
    ),
    "TaskEvent": record(
        "Something that happened to a task.",
        dict.fromkeys(_EVENT_TEXTS.split(), TEXT)
        | {
            "Details": TEXTS,
            "DiskLimit": INTEGER,
            "ExitCode": INTEGER,
            "FailsTask": BOOL,
            "KillTimeout": INTEGER,
            "Signal": INTEGER,
            "StartDelay": INTEGER,
            "Time": TIME_NS,
        },
    ),
    "Stopped": record("The index of a write.", {"EvalID": TEXT, "Index": COUNT}),
}

SCHEMAS: dict[str, Schema] = {**_VOLUMES, **_PLUGINS, **_NODES, **_ALLOCATIONS, **AROUND_SCHEMAS}
