"""The storage behind the simulated drivers: one truth, whatever anybody was told about it.

It takes the steps that a driver gets, with an effect at one instant and an answer later (or never). What must never
happen is told to the ``Judge`` that watches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from moorage.model import steps
from moorage.model.snapshot import Snapshot
from moorage.model.volume import MULTI_NODE_MULTI_WRITER, MULTI_NODE_READER, MULTI_NODE_SINGLE_WRITER, Fault

GIB = 1024**3
SHARED_MODES = frozenset({MULTI_NODE_READER, MULTI_NODE_SINGLE_WRITER, MULTI_NODE_MULTI_WRITER})


class Disk(msgspec.Struct, kw_only=True):
    """A volume as the backend has it; ``attached``: external node IDs with the access mode; ``last_writer``: who
    wrote last."""

    external_id: str
    name: str
    capacity_bytes: int
    attached: dict[str, str] = {}
    writes: int = 0
    last_writer: str = ""


class Mounts(Protocol):
    """A host's mount table as its driver uses it."""

    def mount(self, path: str, origin: str, *, read_only: bool) -> None:
        """Show ``origin`` at ``path``."""
        ...

    def unmount_all(self, path: str) -> None:
        """Nothing is mounted at ``path`` any more."""
        ...

    def origin(self, path: str) -> str:
        """What is mounted at ``path``, or empty."""
        ...

    def find_origin(self, origin: str) -> list[str]:
        """The paths that show ``origin``."""
        ...


class Judge(Protocol):
    """Watches the backend."""

    def violate(self, validator: str, text: str) -> None:
        """Something happened that must not."""
        ...

    def check_unattached(self, disk: Disk, node: str, what: str) -> None:
        """A node asks for a disk that is not attached to it."""
        ...

    def check_detach(self, disk: Disk, node: str) -> None:
        """A controller is about to take the disk from the node."""
        ...

    def check_publish(self, disk: Disk, node: str, path: str, *, read_only: bool) -> None:
        """A path on a node is about to show the disk."""
        ...


def origin_of(external_id: str) -> str:
    """What a mount of the disk shows."""
    return f"disk:{external_id}"


class Refused(Exception):
    """The backend says no, for good."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Backend:
    """Applies steps. ``is_staging``, ``is_attaching``: what the driver needs."""

    def __init__(self, judge: Judge, *, is_staging: bool, is_attaching: bool) -> None:
        self.judge = judge
        self.is_staging = is_staging
        self.is_attaching = is_attaching
        self.disks: dict[str, Disk] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self._made = 0
        self._effects: dict[type, Callable[..., steps.Outcome]] = {
            steps.CreateVolume: self._create,
            steps.DeleteVolume: self._delete,
            steps.ExpandVolume: self._expand,
            steps.ValidateVolume: self._validate,
            steps.AttachVolume: self._attach,
            steps.DetachVolume: self._detach,
            steps.CreateSnapshot: self._create_snapshot,
            steps.DeleteSnapshot: self._delete_snapshot,
        }

    def apply(self, step: steps.Step, node: str, mounts: Mounts) -> steps.Outcome:
        """The effect of a step, now. ``node``: the driver's name for the node it runs on."""
        try:
            match step:
                case steps.StageVolume():
                    return self._stage(step, node, mounts)
                case steps.PublishVolume():
                    return self._publish(step, node, mounts)
                case steps.UnpublishVolume():
                    mounts.unmount_all(step.target_path)
                    return steps.Done()
                case steps.UnstageVolume():
                    return self._unstage(step, node, mounts)
                case steps.ExpandNodeVolume():
                    return steps.Expanded(capacity_bytes=step.required_bytes)
            return self._effects[type(step)](step)
        except Refused as refusal:
            return failed(step, refusal.status, refusal.text, is_final=True)

    def is_done(self, step: steps.Step) -> bool:
        """Whether a volume is there already, or gone already, as the step wants it."""
        if isinstance(step, steps.CreateVolume):
            return any(d.name == step.name for d in self.disks.values())
        return isinstance(step, steps.DeleteVolume) and step.external_id not in self.disks

    def _get(self, external_id: str) -> Disk:
        if external_id not in self.disks:
            raise Refused("NOT_FOUND", f"no volume {external_id}")
        return self.disks[external_id]

    # -- controller --------------------------------------------------------------------------------------------------

    def _create(self, step: steps.CreateVolume) -> steps.Outcome:
        for disk in self.disks.values():
            if disk.name == step.name:
                if disk.capacity_bytes < step.required_bytes:
                    raise Refused("ALREADY_EXISTS", "exists with another size")
                return steps.Created(external_id=disk.external_id, capacity_bytes=disk.capacity_bytes)
        if step.snapshot_id and step.snapshot_id not in self.snapshots:
            raise Refused("NOT_FOUND", f"no snapshot {step.snapshot_id}")
        self._made += 1
        made = Disk(external_id=f"e{self._made}", name=step.name, capacity_bytes=step.required_bytes or GIB)
        self.disks[made.external_id] = made
        return steps.Created(external_id=made.external_id, capacity_bytes=made.capacity_bytes)

    def _delete(self, step: steps.DeleteVolume) -> steps.Outcome:
        disk = self.disks.get(step.external_id)
        if disk is not None and disk.attached:
            self.judge.violate("csi_order", f"{disk.external_id} is deleted while attached to {sorted(disk.attached)}")
            raise Refused("FAILED_PRECONDITION", "the volume is attached")
        self.disks.pop(step.external_id, None)
        return steps.Done()

    def _expand(self, step: steps.ExpandVolume) -> steps.Outcome:
        disk = self._get(step.external_id)
        disk.capacity_bytes = max(disk.capacity_bytes, step.required_bytes)
        return steps.Expanded(capacity_bytes=disk.capacity_bytes, is_node_expansion_required=True)

    def _validate(self, step: steps.ValidateVolume) -> steps.Outcome:
        self._get(step.external_id)
        return steps.Done()

    def _attach(self, step: steps.AttachVolume) -> steps.Outcome:
        disk, mode = self._get(step.external_id), step.capability.access_mode
        elsewhere = sorted(n for n in disk.attached if n != step.external_node_id)
        if elsewhere and (mode not in SHARED_MODES or disk.attached[elsewhere[0]] not in SHARED_MODES):
            self.judge.violate("csi_order", f"{disk.external_id} is attached as {mode} while attached to {elsewhere}")
            raise Refused("FAILED_PRECONDITION", f"attached to {elsewhere}")
        disk.attached[step.external_node_id] = mode
        return steps.Attached(publish_context={"device": f"/dev/{disk.external_id}"})

    def _detach(self, step: steps.DetachVolume) -> steps.Outcome:
        disk = self.disks.get(step.external_id)
        if disk is not None:
            self.judge.check_detach(disk, step.external_node_id)
            disk.attached.pop(step.external_node_id, None)
        return steps.Done()

    def _create_snapshot(self, step: steps.CreateSnapshot) -> steps.Outcome:
        self._get(step.external_source_id)
        made = self.snapshots.setdefault(
            f"s-{step.name}", Snapshot(id=f"s-{step.name}", external_source_id=step.external_source_id, is_ready=True)
        )
        return steps.SnapshotCreated(snapshot=made)

    def _delete_snapshot(self, step: steps.DeleteSnapshot) -> steps.Outcome:
        self.snapshots.pop(step.snapshot_id, None)
        return steps.Done()

    # -- node --------------------------------------------------------------------------------------------------------

    def _check_attached(self, step: steps.StageVolume | steps.PublishVolume, node: str) -> Disk:
        disk = self._get(step.external_id)
        if self.is_attaching and node not in disk.attached:
            self.judge.check_unattached(disk, node, type(step).__name__)
            raise Refused("FAILED_PRECONDITION", "not attached here")
        return disk

    def _stage(self, step: steps.StageVolume, node: str, mounts: Mounts) -> steps.Outcome:
        disk = self._check_attached(step, node)
        if not mounts.origin(step.staging_path):
            self.judge.check_publish(disk, node, step.staging_path, read_only=True)
            mounts.mount(step.staging_path, origin_of(disk.external_id), read_only=False)
        return steps.Done()

    def _publish(self, step: steps.PublishVolume, node: str, mounts: Mounts) -> steps.Outcome:
        disk = self._check_attached(step, node)
        if self.is_staging and mounts.origin(step.staging_path) != origin_of(disk.external_id):
            self.judge.violate("csi_order", f"publish of {disk.external_id} on {node} without a stage")
            raise Refused("FAILED_PRECONDITION", "not staged here")
        if not mounts.origin(step.target_path):
            self.judge.check_publish(disk, node, step.target_path, read_only=step.read_only)
            mounts.mount(step.target_path, origin_of(disk.external_id), read_only=step.read_only)
        return steps.Done()

    def _unstage(self, step: steps.UnstageVolume, node: str, mounts: Mounts) -> steps.Outcome:
        others = [p for p in mounts.find_origin(origin_of(step.external_id)) if p != step.staging_path]
        if others:
            self.judge.violate("csi_order", f"unstage of {step.external_id} on {node} while published at {others}")
        mounts.unmount_all(step.staging_path)
        return steps.Done()


def failed(step: steps.Step, status: str, text: str, *, is_final: bool) -> steps.Failed:
    """A failure as the driver's client would tell it."""
    return steps.Failed(fault=Fault(method=type(step).__name__, status=status, message=text, final=is_final))
