"""A world for agents under test: the server's agent pages over plain dicts, a scripted driver, mounts in memory.

``Pages`` answers what a server answers to agents and folds their reports in the simplest way. ``ScriptedDriver`` does
what a driver does to paths, by way of the ``Mounter`` it is given: in memory, or the host's own.
Never: decides about volumes; keeps anything on disk but what a driver would.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import anyio
import msgspec

from moorage.client.transport import Answer
from moorage.errors import DriverUncertain, Unavailable
from moorage.model import steps
from moorage.model.assignment import (
    ClaimAssignment,
    ClaimAssignments,
    MountedReport,
    MountFailedReport,
    NodeRegistered,
    NodeRegistration,
    PluginReport,
    Report,
    Reports,
    StepAssignment,
    StepAssignments,
    StepReport,
)
from moorage.model.claim import Claim, ClaimState, Mounted
from moorage.model.ids import ClaimId, NodeId, PluginId, Revision
from moorage.model.node import Node
from moorage.model.plugin import ControllerInfo, Instance, NodeInfo
from moorage.model.volume import Fault

replace = msgspec.structs.replace
UNTIL_S = 10.0


class Pages:
    """The server's side of one or more agents. Its ``handle`` fits ``client.transport.CallTransport``.

    ``node_revision``: what the list of claims names as the revision of the node's record.
    """

    def __init__(self, *, lease_s: float = 3.0) -> None:
        self.lease_s = lease_s
        self.index = 1
        self.node_revision = 1
        self.is_down = False
        self.nodes: dict[NodeId, Node] = {}
        self.instances: dict[PluginId, Instance] = {}
        self.steps: dict[str, StepAssignment] = {}
        self.claims: dict[ClaimId, ClaimAssignment] = {}
        self.reports: list[Report] = []
        self.requests: list[str] = []
        self._changed = anyio.Event()

    def change(self) -> None:
        """Something is new: wake who waits."""
        self.index += 1
        self._changed.set()
        self._changed = anyio.Event()

    def hand_out(self, assignment: StepAssignment) -> None:
        """List a step."""
        self.steps[assignment.key] = assignment
        self.change()

    def put_claim(self, claim: Claim, **more: Any) -> None:
        """Put a claim on record at the next revision."""
        before = self.claims.get(claim.id)
        revision = Revision(before.revision + 1 if before else 1)
        kept = replace(before, claim=claim, revision=revision) if before else None
        self.claims[claim.id] = kept or ClaimAssignment(claim=claim, revision=revision, **more)
        self.change()

    def release(self, claim_id: ClaimId) -> None:
        """Want a claim released."""
        self.put_claim(replace(self.claims[claim_id].claim, wanted="released"))

    async def until(self, is_so: Callable[[], object], *, timeout_s: float = UNTIL_S) -> None:
        """Wait for something to be so; looked at after each request."""
        with anyio.fail_after(timeout_s):
            while not is_so():
                with anyio.move_on_after(0.02):
                    await self._changed.wait()

    async def handle(self, method: str, path: str, query: Mapping[str, str], body: bytes | None) -> Answer:
        """Answer one request."""
        _, _, _, node_id, page = path.split("/")
        self.requests.append(f"{method} {page}")
        await anyio.lowlevel.checkpoint()
        if self.is_down:
            raise Unavailable("connection refused")
        if page == "register":
            registration = msgspec.json.decode(body or b"", type=NodeRegistration)
            self.nodes[registration.node.id] = registration.node
            self.change()
            return _ok(NodeRegistered(lease_s=self.lease_s))
        if NodeId(node_id) not in self.nodes:
            return Answer(404, {}, f'node "{node_id}" is not registered'.encode())
        if page == "plugins":
            self.instances = msgspec.json.decode(body or b"", type=PluginReport).instances
            self.change()
        elif page == "reports":
            self._fold(msgspec.json.decode(body or b"", type=Reports).reports)
        else:
            return await self._wait(page, query)
        return Answer(200, {}, b"")

    async def _wait(self, page: str, query: Mapping[str, str]) -> Answer:
        wait_s = float(query["wait"].removesuffix("ms")) / 1000
        with anyio.move_on_after(wait_s):
            while int(query["index"]) == self.index:
                await self._changed.wait()
        if self.is_down:
            raise Unavailable("connection reset")
        if page == "steps":
            return _ok(StepAssignments(index=self.index, steps=tuple(self.steps.values())))
        claims = tuple(self.claims.values())
        return _ok(ClaimAssignments(index=self.index, claims=claims, node_revision=self.node_revision))

    def _fold(self, reports: Iterable[Report]) -> None:
        for report in reports:
            self.reports.append(report)
            if isinstance(report, StepReport):
                known = self.steps.get(report.key)
                if known is not None and known.revision == report.revision:
                    del self.steps[report.key]
            elif (claim := self.claims.get(report.claim_id)) and claim.revision == report.revision:
                self._fold_claim(claim.claim, report)
        self.change()

    def _fold_claim(self, claim: Claim, report: Report) -> None:
        if isinstance(report, MountFailedReport):
            is_over = report.fault.final and claim.wanted == "held"
            self.put_claim(replace(claim, wanted="released") if is_over else claim)
        elif isinstance(report, MountedReport):
            context = getattr(claim.state, "publish_context", {})
            state: ClaimState = Mounted(
                path=report.path,
                publish_path=report.publish_path,
                staging_path=report.staging_path,
                grown_bytes=report.grown_bytes,
                publish_context=context,
            )
            self.put_claim(replace(claim, state=state))
        else:
            del self.claims[claim.id]

    def faults(self) -> list[Fault]:
        """The faults of all failed mounts, in order."""
        return [r.fault for r in self.reports if isinstance(r, MountFailedReport)]

    def path_of(self, claim_id: ClaimId) -> str:
        """Where a claim is mounted, or empty."""
        known = self.claims.get(claim_id)
        return known.claim.state.path if known and isinstance(known.claim.state, Mounted) else ""


def _ok(body: msgspec.Struct) -> Answer:
    return Answer(200, {}, msgspec.json.encode(body))


class MemoryMounter:
    """Mounts in memory over real directories. ``busy``: paths that cannot be unmounted."""

    def __init__(self) -> None:
        self.mounts: dict[str, list[tuple[str, bool]]] = {}
        self.busy: set[str] = set()

    def reboot(self) -> None:
        """All mounts are gone."""
        self.mounts.clear()

    def find_mounted(self, paths: Iterable[str]) -> frozenset[str]:
        """Those of ``paths`` that are mounted."""
        return frozenset(path for path in paths if self.mounts.get(path))

    def origin(self, path: str) -> str:
        """What a path shows in the end."""
        while self.mounts.get(path):
            path = self.mounts[path][-1][0]
        return os.path.realpath(path)

    def is_same(self, one: str, other: str) -> bool:
        """Whether both paths show the same."""
        return os.path.exists(one) and os.path.exists(other) and self.origin(one) == self.origin(other)

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """Mount; the target must be there."""
        os.stat(source)
        os.stat(target)
        self.mounts.setdefault(target, []).append((self.origin(source), read_only))

    def unmount(self, path: str) -> None:
        """Unmount the uppermost."""
        if path in self.busy:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        if not self.mounts.get(path):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        self.mounts[path].pop()


class PathMounter(Protocol):
    """What a scripted driver needs of mounts."""

    def find_mounted(self, paths: Iterable[str]) -> frozenset[str]:
        """Those of ``paths`` that are mounted."""
        ...

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """Show ``source`` at ``target``."""
        ...

    def unmount(self, path: str) -> None:
        """Undo a bind."""
        ...


class ScriptedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a scripted driver tells about itself."""

    is_ready: bool = True
    health_description: str = "healthy"
    requires_stage: bool = True

    def to_instance(self, node_id: NodeId, *, now_ns: int, alloc_id: str = "") -> Instance:
        """As a record."""
        return Instance(
            node_id=node_id,
            healthy=self.is_ready,
            health_description=self.health_description,
            provider="scripted",
            provider_version="1",
            controller=ControllerInfo(supports_create_delete=True),
            node=NodeInfo(external_id="n", requires_stage=self.requires_stage, supports_expand=True),
            updated_at_ns=now_ns,
            alloc_id=alloc_id,
        )


class ScriptedDriver:
    """A driver that does as it is told. Its volumes are directories below ``data_dir``, by external ID.

    ``faults``: what the next calls of a method answer instead of working; ``gates``: events that calls of a method wait
    for first; ``publishes_links``: publish by symlink, as drivers without root do.
    """

    def __init__(self, mounter: PathMounter, data_dir: str, *, requires_stage: bool = True) -> None:
        self.facts = ScriptedFacts(requires_stage=requires_stage)
        self.calls: list[steps.Step] = []
        self.faults: dict[type, deque[Fault]] = {}
        self.gates: dict[type, anyio.Event] = {}
        self.is_sick = False
        self.probes = 0
        self.running = 0
        self.running_max = 0
        self.publishes_links = False
        self.staged: set[str] = set()
        self._mounter = mounter
        self._data_dir = data_dir

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    def is_connected(self) -> bool:
        """It has no connection that could break."""
        return True

    async def probe(self, *, timeout_s: float) -> ScriptedFacts:
        """Tell what it is."""
        self.probes += 1
        if gate := self.gates.get(ScriptedFacts):
            await gate.wait()
        if self.is_sick:
            raise DriverUncertain("connection refused", method="GetPluginInfo", status="UNAVAILABLE", final=False)
        return self.facts

    def fail(self, step: type, *, final: bool = False, message: str = "no", times: int = 1) -> None:
        """The next calls of a method fail."""
        fault = Fault(method=step.__name__, status="INTERNAL", message=message, final=final)
        self.faults.setdefault(step, deque()).extend([fault] * times)

    def names(self) -> list[str]:
        """The calls so far, by name."""
        return [type(c).__name__.removesuffix("Volume") for c in self.calls]

    async def run(self, step: steps.Step, *, timeout_s: float) -> steps.Outcome:
        """Do a step."""
        self.calls.append(step)
        self.running += 1
        self.running_max = max(self.running, self.running_max)
        try:
            if gate := self.gates.get(type(step)):
                await gate.wait()
            if faults := self.faults.get(type(step)):
                return steps.Failed(fault=faults.popleft())
            try:
                return self._do(step)
            except OSError as e:
                return steps.Failed(fault=Fault(method="", status="INTERNAL", message=str(e), final=False))
        finally:
            self.running -= 1

    def _do(self, step: steps.Step) -> steps.Outcome:
        match step:
            case steps.CreateVolume():
                os.makedirs(os.path.join(self._data_dir, step.name), exist_ok=True)
                return steps.Created(external_id=step.name, capacity_bytes=step.required_bytes)
            case steps.StageVolume():
                self._mount(self._data(step.external_id), step.staging_path, read_only=False)
                self.staged.add(step.staging_path)
            case steps.PublishVolume():
                self._publish(step)
            case steps.UnpublishVolume():
                self._unmount(step.target_path)
            case steps.UnstageVolume():
                self._unmount(step.staging_path)
                self.staged.discard(step.staging_path)
            case steps.ExpandNodeVolume():
                return steps.Expanded(capacity_bytes=step.required_bytes)
            case _:
                pass
        return steps.Done()

    def _data(self, external_id: str) -> str:
        return os.path.join(self._data_dir, external_id)

    def _publish(self, step: steps.PublishVolume) -> None:
        source = step.staging_path or self._data(step.external_id)
        if self.publishes_links:
            with contextlib.suppress(FileExistsError):
                os.symlink(self._data(step.external_id), step.target_path)
            return
        os.makedirs(step.target_path, exist_ok=True)
        self._mount(source, step.target_path, read_only=step.read_only)

    def _mount(self, source: str, target: str, *, read_only: bool) -> None:
        if not self._mounter.find_mounted([target]):
            self._mounter.bind(source, target, read_only=read_only)

    def _unmount(self, path: str) -> None:
        if os.path.islink(path):
            os.unlink(path)
        elif self._mounter.find_mounted([path]):
            self._mounter.unmount(path)
