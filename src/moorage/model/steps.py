"""Steps: calls to a driver, as data; and outcomes: what came of them.

A step is what ``rules`` decide, what records of operations keep, and what an agent carries out. Stored and sent as
JSON with the class name as tag. Never: I/O, clock.
Source: CSI spec 1.12, one step a method; docs/decisions/0001-steps-in-model.md.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from moorage.model.snapshot import ExternalVolume, Snapshot
from moorage.model.volume import Capability, Fault, MountOptions, Secrets, Topology, TopologyRequest


class _Step(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Fields that every step has: none yet; the base makes the tag."""


# -- controller ------------------------------------------------------------------------------------------------------


class CreateVolume(_Step, frozen=True, kw_only=True):
    """CreateVolume. ``limit_bytes`` 0: no limit; both 0: no capacity range is sent."""

    name: str
    capabilities: tuple[Capability, ...]
    mount_options: MountOptions | None = None
    parameters: dict[str, str] = {}
    secrets: Secrets = Secrets()
    required_bytes: int = 0
    limit_bytes: int = 0
    clone_id: str = ""
    snapshot_id: str = ""
    topologies: TopologyRequest | None = None


class DeleteVolume(_Step, frozen=True, kw_only=True):
    """DeleteVolume."""

    external_id: str
    secrets: Secrets = Secrets()


class ExpandVolume(_Step, frozen=True, kw_only=True):
    """ControllerExpandVolume. ``capability`` is the mode in use; None when unclaimed."""

    external_id: str
    required_bytes: int
    limit_bytes: int = 0
    capability: Capability | None = None
    mount_options: MountOptions | None = None
    secrets: Secrets = Secrets()


class ValidateVolume(_Step, frozen=True, kw_only=True):
    """ValidateVolumeCapabilities."""

    external_id: str
    capabilities: tuple[Capability, ...]
    mount_options: MountOptions | None = None
    context: dict[str, str] = {}
    parameters: dict[str, str] = {}
    secrets: Secrets = Secrets()


class AttachVolume(_Step, frozen=True, kw_only=True):
    """ControllerPublishVolume. ``read_only`` is sent only where the driver advertises PUBLISH_READONLY."""

    external_id: str
    external_node_id: str
    capability: Capability
    mount_options: MountOptions | None = None
    read_only: bool = False
    context: dict[str, str] = {}
    secrets: Secrets = Secrets()


class DetachVolume(_Step, frozen=True, kw_only=True):
    """ControllerUnpublishVolume. ``external_node_id`` is never empty: empty would mean every node."""

    external_id: str
    external_node_id: str
    secrets: Secrets = Secrets()


class ListVolumes(_Step, frozen=True, kw_only=True):
    """ListVolumes. ``entries_max`` 0: no cap."""

    entries_max: int = 0
    starting_token: str = ""


class ListSnapshots(_Step, frozen=True, kw_only=True):
    """ListSnapshots. Filters are optional; ``entries_max`` 0: no cap."""

    entries_max: int = 0
    starting_token: str = ""
    external_source_id: str = ""
    snapshot_id: str = ""
    secrets: Secrets = Secrets()


class CreateSnapshot(_Step, frozen=True, kw_only=True):
    """CreateSnapshot."""

    external_source_id: str
    name: str
    parameters: dict[str, str] = {}
    secrets: Secrets = Secrets()


class DeleteSnapshot(_Step, frozen=True, kw_only=True):
    """DeleteSnapshot."""

    snapshot_id: str
    secrets: Secrets = Secrets()


class GetCapacity(_Step, frozen=True, kw_only=True):
    """GetCapacity."""

    capabilities: tuple[Capability, ...] = ()
    parameters: dict[str, str] = {}
    topology: Topology | None = None


# -- node ------------------------------------------------------------------------------------------------------------


class StageVolume(_Step, frozen=True, kw_only=True):
    """NodeStageVolume. The agent makes ``staging_path`` before the call."""

    external_id: str
    staging_path: str
    capability: Capability
    mount_options: MountOptions | None = None
    publish_context: dict[str, str] = {}
    context: dict[str, str] = {}
    secrets: Secrets = Secrets()


class PublishVolume(_Step, frozen=True, kw_only=True):
    """NodePublishVolume. The agent makes the parent of ``target_path``; the driver makes the target."""

    external_id: str
    target_path: str
    capability: Capability
    staging_path: str = ""
    read_only: bool = False
    mount_options: MountOptions | None = None
    publish_context: dict[str, str] = {}
    context: dict[str, str] = {}
    secrets: Secrets = Secrets()


class UnpublishVolume(_Step, frozen=True, kw_only=True):
    """NodeUnpublishVolume."""

    external_id: str
    target_path: str


class UnstageVolume(_Step, frozen=True, kw_only=True):
    """NodeUnstageVolume."""

    external_id: str
    staging_path: str


class ExpandNodeVolume(_Step, frozen=True, kw_only=True):
    """NodeExpandVolume."""

    external_id: str
    volume_path: str
    staging_path: str = ""
    required_bytes: int = 0
    limit_bytes: int = 0
    capability: Capability | None = None
    mount_options: MountOptions | None = None
    secrets: Secrets = Secrets()


class GetVolumeStats(_Step, frozen=True, kw_only=True):
    """NodeGetVolumeStats."""

    external_id: str
    volume_path: str
    staging_path: str = ""


ControllerStep = (
    CreateVolume
    | DeleteVolume
    | ExpandVolume
    | ValidateVolume
    | AttachVolume
    | DetachVolume
    | ListVolumes
    | ListSnapshots
    | CreateSnapshot
    | DeleteSnapshot
    | GetCapacity
)
NodeStep = StageVolume | PublishVolume | UnpublishVolume | UnstageVolume | ExpandNodeVolume | GetVolumeStats
Step = ControllerStep | NodeStep

# take: makes a volume, or makes it usable; give: the undoing of that; ask: changes nothing.
Direction = Literal["take", "give", "ask"]
_GIVING = (DeleteVolume, DetachVolume, DeleteSnapshot, UnpublishVolume, UnstageVolume)
_ASKING = (ValidateVolume, ListVolumes, ListSnapshots, GetCapacity, GetVolumeStats)


def direction_of(step: Step) -> Direction:
    """What a step does for the consumers of volumes; calls of different directions take turns at a busy driver."""
    if isinstance(step, _GIVING):
        return "give"
    return "ask" if isinstance(step, _ASKING) else "take"


# -- outcomes --------------------------------------------------------------------------------------------------------


class _Outcome(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Fields that every outcome has: none yet; the base makes the tag."""


class Created(_Outcome, frozen=True, kw_only=True):
    """A volume exists. ``capacity_bytes`` 0: unknown. ``is_source_kept``: the answer names the source asked for."""

    external_id: str
    capacity_bytes: int = 0
    context: dict[str, str] = {}
    topologies: tuple[Topology, ...] = ()
    is_source_kept: bool = True


class Done(_Outcome, frozen=True, kw_only=True):
    """It is so; there is nothing to say about it (deleted, detached, unpublished, staged, published, validated)."""


class Attached(_Outcome, frozen=True, kw_only=True):
    """Attached to the node; ``publish_context`` goes unchanged into stage and publish."""

    publish_context: dict[str, str] = {}


class Expanded(_Outcome, frozen=True, kw_only=True):
    """The volume has ``capacity_bytes``; nodes that hold it may still owe the filesystem's growth."""

    capacity_bytes: int
    is_node_expansion_required: bool = False


class VolumesListed(_Outcome, frozen=True, kw_only=True):
    """A page of the driver's volumes; ``next_token`` empty on the last."""

    volumes: tuple[ExternalVolume, ...] = ()
    next_token: str = ""


class SnapshotsListed(_Outcome, frozen=True, kw_only=True):
    """A page of the driver's snapshots; ``next_token`` empty on the last."""

    snapshots: tuple[Snapshot, ...] = ()
    next_token: str = ""


class SnapshotCreated(_Outcome, frozen=True, kw_only=True):
    """A snapshot was cut; ``snapshot.is_ready`` may still be false."""

    snapshot: Snapshot


class CapacityTold(_Outcome, frozen=True, kw_only=True):
    """Free capacity of the pool in bytes; ``volume_max_bytes`` None: not told."""

    available_bytes: int
    volume_max_bytes: int | None = None


class StatsTold(_Outcome, frozen=True, kw_only=True):
    """Usage of a mounted volume; None where the driver tells nothing."""

    total_bytes: int | None = None
    used_bytes: int | None = None
    available_bytes: int | None = None
    total_inodes: int | None = None
    used_inodes: int | None = None
    available_inodes: int | None = None
    is_abnormal: bool = False
    condition: str = ""


class Failed(_Outcome, frozen=True, kw_only=True):
    """The step failed; ``fault.final`` says whether it is over."""

    fault: Fault


Outcome = (
    Created
    | Done
    | Attached
    | Expanded
    | VolumesListed
    | SnapshotsListed
    | SnapshotCreated
    | CapacityTold
    | StatsTold
    | Failed
)
