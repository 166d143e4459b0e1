"""A driver in memory that answers steps as a good driver would, and fails on command.

Shipped: users and the project's own tests drive the engine with it. It keeps what a backend would keep, so that a test
can compare it with the records afterwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from moorage.model import steps
from moorage.model.ids import NodeId
from moorage.model.plugin import ControllerInfo, Instance, NodeInfo
from moorage.model.snapshot import ExternalVolume, Snapshot
from moorage.model.volume import Fault

GIB = 1024**3
FULL_CONTROLLER = ControllerInfo(
    supports_create_delete=True,
    supports_attach_detach=True,
    supports_list_volumes=True,
    supports_create_delete_snapshot=True,
    supports_list_snapshots=True,
    supports_clone=True,
    supports_expand=True,
)


class BackendVolume(msgspec.Struct, kw_only=True):
    """A volume as the backend has it."""

    external_id: str
    name: str
    capacity_bytes: int
    source: str = ""
    nodes: set[str] = msgspec.field(default_factory=set)


Failure = Fault | Callable[[steps.Step], Fault | None]


def fault(status: str, *, final: bool, method: str = "", message: str = "scripted") -> Fault:
    """A fault to script."""
    return Fault(method=method, status=status, message=message, final=final)


class ScriptedDriver:
    """Carries out steps on what it keeps in memory.

    ``before`` and ``after``: failures by step type, used up one a call; one in ``before`` fails without an effect, one
    in ``after`` has its effect and loses the answer. ``calls`` is every step in order.
    """

    def __init__(self) -> None:
        self.volumes: dict[str, BackendVolume] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.calls: list[steps.Step] = []
        self.before: dict[type, deque[Fault]] = {}
        self.after: dict[type, deque[Fault]] = {}
        self._count = 0

    def fail(self, step: type, *faults: Fault, after_effect: bool = False) -> None:
        """Fail the next calls of this kind, one fault each."""
        where = self.after if after_effect else self.before
        where.setdefault(step, deque()).extend(faults)

    def instance(self, node_id: NodeId, *, healthy: bool = True) -> Instance:
        """This driver's instance on a node: controller and node in one."""
        return Instance(
            node_id=node_id,
            healthy=healthy,
            provider="scripted.example",
            provider_version="1",
            requires_controller=True,
            controller=FULL_CONTROLLER,
            node=NodeInfo(external_id=f"ext-{node_id}", requires_stage=True),
        )

    def run(self, step: steps.Step) -> steps.Outcome:
        """The outcome of a step, now."""
        self.calls.append(step)
        scripted = self.before.get(type(step))
        if scripted:
            return steps.Failed(fault=msgspec.structs.replace(scripted.popleft(), method=type(step).__name__))
        outcome = self._act(step)
        lost = self.after.get(type(step))
        if lost:
            return steps.Failed(fault=msgspec.structs.replace(lost.popleft(), method=type(step).__name__))
        return outcome

    def _new_id(self, kind: str) -> str:
        self._count += 1
        return f"{kind}-{self._count}"

    def _act(self, step: Any) -> steps.Outcome:
        match step:
            case steps.CreateVolume():
                return self._create(step)
            case steps.DeleteVolume():
                found = self.volumes.get(step.external_id)
                if found is not None and found.nodes:
                    return _failed(step, "FAILED_PRECONDITION", "volume is in use")
                self.volumes.pop(step.external_id, None)
                return steps.Done()
            case steps.ExpandVolume():
                if step.external_id not in self.volumes:
                    return _failed(step, "NOT_FOUND", "no such volume")
                volume = self.volumes[step.external_id]
                volume.capacity_bytes = max(volume.capacity_bytes, step.required_bytes)
                return steps.Expanded(capacity_bytes=volume.capacity_bytes, is_node_expansion_required=True)
            case steps.AttachVolume():
                if step.external_id not in self.volumes:
                    return _failed(step, "NOT_FOUND", "no such volume")
                self.volumes[step.external_id].nodes.add(step.external_node_id)
                return steps.Attached(publish_context={"device": f"/dev/{step.external_id}"})
            case steps.DetachVolume():
                if step.external_id in self.volumes:
                    self.volumes[step.external_id].nodes.discard(step.external_node_id)
                return steps.Done()
            case steps.ListVolumes():
                found_all = [
                    ExternalVolume(external_id=v.external_id, capacity_bytes=v.capacity_bytes)
                    for v in self.volumes.values()
                ]
                return steps.VolumesListed(volumes=tuple(found_all))
            case steps.CreateSnapshot():
                return self._snapshot(step)
            case steps.DeleteSnapshot():
                self.snapshots.pop(step.snapshot_id, None)
                return steps.Done()
            case steps.ListSnapshots():
                return steps.SnapshotsListed(snapshots=tuple(self.snapshots.values()))
        return steps.Done()

    def _create(self, step: steps.CreateVolume) -> steps.Outcome:
        for volume in self.volumes.values():
            if volume.name == step.name:
                if volume.capacity_bytes < step.required_bytes:
                    return _failed(step, "ALREADY_EXISTS", "exists with another size")
                return steps.Created(external_id=volume.external_id, capacity_bytes=volume.capacity_bytes)
        made = BackendVolume(
            external_id=self._new_id("vol"),
            name=step.name,
            capacity_bytes=step.required_bytes or GIB,
            source=step.snapshot_id or step.clone_id,
        )
        self.volumes[made.external_id] = made
        return steps.Created(external_id=made.external_id, capacity_bytes=made.capacity_bytes)

    def _snapshot(self, step: steps.CreateSnapshot) -> steps.Outcome:
        for known_name, snapshot in ((s.id.partition("@")[2], s) for s in self.snapshots.values()):
            if known_name == step.name:
                return steps.SnapshotCreated(snapshot=snapshot)
        made = Snapshot(
            id=f"{self._new_id('snap')}@{step.name}", external_source_id=step.external_source_id, is_ready=True
        )
        self.snapshots[made.id] = made
        return steps.SnapshotCreated(snapshot=made)


def _failed(step: steps.Step, status: str, message: str) -> steps.Failed:
    return steps.Failed(fault=Fault(method=type(step).__name__, status=status, message=message, final=True))
