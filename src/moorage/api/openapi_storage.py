"""What the rows of the route table about storage do: volumes, snapshots, plugins, allocations, nodes."""

from __future__ import annotations

from typing import Any

import msgspec

from moorage.api.bodies import DrainBody, EligibilityBody, FenceBody, SnapshotsBody, StartBody, VolumesBody
from moorage.api.openapi_parts import INDEX, META, Operation, Operations
from moorage.api.schema_parts import list_of, ref
from moorage.model.assignment import (
    ClaimAssignments,
    NodeRegistered,
    NodeRegistration,
    PluginReport,
    PluginsReported,
    Reports,
    StepAssignments,
)

READ = ("region", "stale", "pretty")
NAMED_READ = ("namespace", *READ)
PAGED = ("per_page", "next_token")
WRITE = ("region", "namespace", "pretty")
_DRIVER_READ = ("plugin_id", *PAGED, *READ)
_SECRETS = ("X-Nomad-CSI-Secrets",)
_POST = "POST is taken like PUT."
OWN = "The whole route is moorage's own."

_REGISTER = Operation(
    group="Volumes",
    summary="register volumes that the driver has already, or change registered ones",
    notes=(
        "Registering again changes what may change: capabilities, mount options, secrets, context, capacity bounds "
        "(which may make the volume bigger). The volume's ID is the body's; the path's is not looked at."
    ),
    parameters=WRITE,
    body=VolumesBody,
    answer=ref("VolumesWritten"),
    headers=(*META, "X-Moorage-Warnings"),
)
_MAKE_SNAPSHOTS = Operation(
    group="Snapshots",
    summary="make snapshots of volumes",
    parameters=WRITE,
    body=SnapshotsBody,
    answer=ref("SnapshotsMade"),
)
_READ_SNAPSHOT_PATH = msgspec.structs.replace(
    _MAKE_SNAPSHOTS,
    notes="The path's ID is the volume of every snapshot in the body that names none.",
    extension="The documentation shows this path; recorded servers do not have it.",
)

_VOLUMES: Operations = {
    "/v1/volumes": {
        "GET": Operation(
            group="Volumes",
            summary="list volumes",
            notes="Without `type` the list is empty; `type=host` is empty too; another type is refused with 404.",
            parameters=("type", "prefix", "plugin_id", "node_id", "filter", *PAGED, "reverse", *NAMED_READ),
            answer=list_of(ref("VolumeStub")),
            headers=(*META, "X-Nomad-NextToken"),
        ),
        "PUT": _REGISTER,
    },
    "/v1/volumes/external": {
        "GET": Operation(
            group="Volumes",
            summary="list the volumes that a driver has",
            notes="The driver is asked at once; `index` and `wait` are looked at and have no effect.",
            parameters=_DRIVER_READ,
            answer=ref("ExternalVolumes"),
        )
    },
    "/v1/volumes/snapshot": {
        "GET": Operation(
            group="Snapshots",
            summary="list the snapshots that a driver has",
            parameters=(*_DRIVER_READ, *_SECRETS),
            answer=ref("Snapshots"),
        ),
        "PUT": _MAKE_SNAPSHOTS,
        "DELETE": Operation(
            group="Snapshots",
            summary="delete a snapshot",
            parameters=("plugin_id", "snapshot_id", "region", *_SECRETS),
        ),
    },
    "/v1/volumes/snapshot/:id": {"PUT": _READ_SNAPSHOT_PATH},
    "/v1/volume/csi/:id": {
        "GET": Operation(
            group="Volumes",
            summary="read a volume",
            notes="With `namespace=*` the only volume of that ID in any namespace is found.",
            parameters=NAMED_READ,
            answer=ref("Volume"),
        ),
        "PUT": msgspec.structs.replace(_REGISTER, extension=_POST),
        "DELETE": Operation(
            group="Volumes",
            summary="deregister a volume: forget it; its data stay at the driver",
            parameters=("force", "namespace", "region"),
        ),
    },
    "/v1/volume/csi/:id/create": {
        "PUT": Operation(
            group="Volumes",
            summary="create volumes at their driver and register them, or make created ones bigger",
            notes=(
                "Answered when the driver has made them. A volume that exists is updated. When time is up or the "
                "driver did not say for certain, the refusal says so, work goes on, and asking again is safe."
            ),
            parameters=WRITE,
            body=VolumesBody,
            answer=ref("VolumesWritten"),
            headers=(*META, "X-Moorage-Warnings"),
            extension=_POST,
        )
    },
    "/v1/volume/csi/:id/delete": {
        "DELETE": Operation(
            group="Volumes",
            summary="delete a volume and its data",
            notes="Secrets of the header are laid over the stored ones.",
            parameters=("namespace", "region", *_SECRETS),
        )
    },
    "/v1/volume/csi/:id/detach": {
        "DELETE": Operation(
            group="Volumes",
            summary="detach a volume from a node",
            notes="A volume that is in use there is not detached; nothing attached there is success.",
            parameters=("node", "namespace", "region"),
            extension="It works: in every recorded version it is broken.",
        )
    },
    "/v1/volume/csi/:id/snapshot": {"PUT": _READ_SNAPSHOT_PATH},
}

_READ_PLUGIN = Operation(group="Plugins", summary="read a plugin", parameters=READ, answer=ref("Plugin"))
_PLUGINS: Operations = {
    "/v1/plugins": {
        "GET": Operation(
            group="Plugins",
            summary="list plugins: the CSI drivers that agents have reported",
            notes="Without `type=csi` the list is empty.",
            parameters=("type", "prefix", *READ),
            answer=list_of(ref("PluginStub")),
        )
    },
    "/v1/plugin/csi/:id": {"GET": _READ_PLUGIN},
    "/v1/plugin/csi/:id/:part": {
        "GET": msgspec.structs.replace(_READ_PLUGIN, notes="A second part of the path is not looked at, as recorded.")
    },
}

_ALLOCATIONS: Operations = {
    "/v1/allocations": {
        "GET": Operation(
            group="Allocations",
            summary="list allocations: uses of volumes on nodes",
            parameters=("prefix", "filter", "reverse", *PAGED, *NAMED_READ),
            answer=list_of(ref("AllocationRow")),
            headers=(*META, "X-Nomad-NextToken"),
            extension="`Mounts` says where each volume is.",
        ),
        "PUT": Operation(
            group="Allocations",
            summary="claim volumes and have them mounted on a node",
            notes=(
                "Answered once the claims are on record; read the allocation with `index` to see the mounts come. "
                "Sending the same ID again is harmless."
            ),
            parameters=WRITE,
            body=StartBody,
            answer=ref("Allocation"),
            extension=OWN,
        ),
    },
    "/v1/allocation/:id": {
        "GET": Operation(
            group="Allocations",
            summary="read an allocation",
            parameters=READ,
            answer=ref("Allocation"),
            extension="`Mounts` and `Volumes` are moorage's own.",
        )
    },
    "/v1/allocation/:id/stop": {
        "PUT": Operation(
            group="Allocations",
            summary="stop an allocation: unmount its volumes and release its claims",
            notes="Answered once that is on record. The namespace is not needed.",
            parameters=("pretty",),
            answer=ref("Stopped"),
        )
    },
}

_NODES: Operations = {
    "/v1/nodes": {
        "GET": Operation(
            group="Nodes",
            summary="list nodes",
            parameters=("prefix", "filter", "reverse", *PAGED, *READ),
            answer=list_of(ref("NodeStub")),
            headers=(*META, "X-Nomad-NextToken"),
        )
    },
    "/v1/node/:id": {"GET": Operation(group="Nodes", summary="read a node", parameters=READ, answer=ref("Node"))},
    "/v1/node/:id/allocations": {
        "GET": Operation(
            group="Nodes",
            summary="list the allocations on a node",
            parameters=READ,
            answer=list_of(ref("Allocation")),
        )
    },
}


def _node_care(summary: str, body: type[Any], *, notes: str = "", extension: str = "") -> Operation:
    return Operation(
        group="Nodes",
        summary=summary,
        notes=notes,
        parameters=("region", "pretty"),
        body=body,
        answer=ref("NodeChanged"),
        extension=extension,
    )


_NODE_CARE: Operations = {
    "/v1/node/:id/drain": {
        "PUT": _node_care(
            "drain a node, or end a drain",
            DrainBody,
            notes="A drain that ends leaves the node closed to new claims, unless `MarkEligible` is sent.",
        )
    },
    "/v1/node/:id/eligibility": {"PUT": _node_care("close a node to new claims, or open it", EligibilityBody)},
    "/v1/node/:id/fence": {
        "PUT": _node_care(
            "give one's word that a lost node can no longer write; it is kept with its reason",
            FenceBody,
            notes="Volumes that the node's allocations write are then free for others.",
            extension=OWN,
        )
    },
}


def _internal(summary: str, *, body: type[Any] | None = None, answer: type[Any] | None = None) -> Operation:
    reads = ("region", "stale", "epoch") if body is None else ()
    return Operation(
        group="Between server and agent",
        summary=summary,
        parameters=reads,
        body=body,
        answer=answer,
        headers=INDEX if body is None else (),
        extension=OWN,
        is_internal=True,
    )


_AGENT: Operations = {
    "/v1/node/:id/register": {
        "PUT": _internal("an agent says that its node is there", body=NodeRegistration, answer=NodeRegistered)
    },
    "/v1/node/:id/plugins": {
        "PUT": _internal("an agent reports its drivers", body=PluginReport, answer=PluginsReported)
    },
    "/v1/node/:id/steps": {"GET": _internal("the controller calls that are due for this node", answer=StepAssignments)},
    "/v1/node/:id/claims": {"GET": _internal("the claims on this node", answer=ClaimAssignments)},
    "/v1/node/:id/reports": {"PUT": _internal("an agent reports what came of its work", body=Reports)},
}

STORAGE: Operations = {**_VOLUMES, **_PLUGINS, **_ALLOCATIONS, **_NODES, **_NODE_CARE, **_AGENT}
