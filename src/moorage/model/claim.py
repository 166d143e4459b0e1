"""Allocations (uses of volumes on a node) and claims (one allocation's hold on one volume).

A claim keeps two things apart: ``wanted`` (intent, written only by the service) and ``state`` (fact, written only when
a step's outcome is folded in). Each state holds only the fields that exist in it.

    taken ──attach──▶ attached ──mount──▶ mounted ──unmount──▶ node_detached ──detach──▶ controller_detached ──▶ gone

Never: I/O, clock. The tables that move a claim are in ``rules.claims``.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from moorage.model.ids import AllocationId, ClaimId, NamespaceName, NodeId, PluginId, VolumeId
from moorage.model.volume import MountOptions, Progress


class _State(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    pass


class Taken(_State, frozen=True, kw_only=True, tag="taken"):
    """Admitted; an attach may have begun."""


class Attached(_State, frozen=True, kw_only=True, tag="attached"):
    """The controller made the volume available on the node (or need not); a mount may have begun."""

    publish_context: dict[str, str] = {}


class Mounted(_State, frozen=True, kw_only=True, tag="mounted"):
    """Published on the node. ``path`` is where the consumer finds the volume (the claim's target, if it named one).

    ``staging_path`` is empty where the driver does not stage; ``publish_path`` is where the driver published it;
    ``grown_bytes`` the size that the node has grown the filesystem to (0: never had to).
    """

    path: str
    publish_path: str = ""
    staging_path: str = ""
    grown_bytes: int = 0
    publish_context: dict[str, str] = {}


class NodeDetached(_State, frozen=True, kw_only=True, tag="node_detached"):
    """Unpublished (and unstaged, if it was the last use) on the node; the controller may still have it attached.

    ``evidence`` is empty when the agent said so, else what stood in for its word on a node that was lost.
    """

    evidence: str = ""


class ControllerDetached(_State, frozen=True, kw_only=True, tag="controller_detached"):
    """Nothing of this claim is left anywhere; the record goes next."""


ClaimState = Taken | Attached | Mounted | NodeDetached | ControllerDetached
ClaimWanted = Literal["held", "released"]


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A claim's record. It carries all that is needed to release it without its owner.

    ``name`` is the request's name within the allocation; ``target`` the path the user asked for, or empty.
    ``external_node_id`` is the driver's own name for the node, kept from the admission on: a detach uses it for ever.
    """

    id: ClaimId
    allocation_id: AllocationId
    name: str
    namespace: NamespaceName
    volume_id: VolumeId
    plugin_id: PluginId
    external_id: str
    node_id: NodeId
    external_node_id: str
    read_only: bool
    access_mode: str
    attachment_mode: str
    mount_options: MountOptions | None = None
    target: str = ""
    wanted: ClaimWanted = "held"
    state: ClaimState = Taken()
    created_at_ns: int = 0
    progress: Progress = Progress()

    @property
    def volume_key(self) -> tuple[NamespaceName, VolumeId]:
        """(namespace, volume ID) of the volume held."""
        return (self.namespace, self.volume_id)


class VolumeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One volume that an allocation asks for; field names follow the recorded API's volume request.

    ``per_alloc``: the volume is ``SOURCE[INDEX]``, with the index of the allocation's name. ``volume_id`` is the volume
    that was claimed, once it was.
    """

    name: str
    source: VolumeId
    per_alloc: bool = False
    volume_id: VolumeId = VolumeId("")
    read_only: bool = False
    access_mode: str = ""
    attachment_mode: str = ""
    mount_options: MountOptions | None = None
    target: str = ""


class TaskEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to an allocation's tasks; ``at_ns`` nanoseconds since the epoch."""

    type: str
    at_ns: int
    message: str = ""
    details: dict[str, str] = {}


AllocationWanted = Literal["run", "stop"]
AllocationStatus = Literal["pending", "running", "complete", "failed", "lost"]


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """A use of one or more volumes on a node. ``paths`` maps a request's name to where its volume is mounted."""

    id: AllocationId
    namespace: NamespaceName
    node_id: NodeId
    name: str = ""
    node_name: str = ""
    job_id: str = ""
    task_group: str = ""
    tasks: tuple[str, ...] = ()
    volumes: tuple[VolumeRequest, ...] = ()
    wanted: AllocationWanted = "run"
    status: AllocationStatus = "pending"
    description: str = ""
    events: tuple[TaskEvent, ...] = ()
    paths: dict[str, str] = {}
    created_at_ns: int = 0
    modified_at_ns: int = 0
    started_at_ns: int = 0
    finished_at_ns: int = 0
