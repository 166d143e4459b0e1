"""Planning: from the records in the view to what is to be done for one key now. Takes no action."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from moorage.engine.callers import Callers
from moorage.engine.plugin_facts import PluginFacts
from moorage.engine.ports import EngineSettings
from moorage.model.assignment import StepAssignment
from moorage.model.claim import Allocation, Claim, ClaimState
from moorage.model.ids import NodeId, PluginId
from moorage.model.operation import Operation
from moorage.model.steps import (
    ControllerStep,
    CreateSnapshot,
    DeleteSnapshot,
    GetCapacity,
    ListSnapshots,
    ListVolumes,
)
from moorage.model.volume import Progress, Volume
from moorage.rules import allocations as allocation_rules
from moorage.rules import claims as claim_rules
from moorage.rules import volumes as volume_rules
from moorage.rules.operations import make_serial_key
from moorage.state import keys
from moorage.state.view import Record, View

_SECOND = 1_000_000_000


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A controller call with the node that is to make it."""

    node_id: NodeId
    assignment: StepAssignment


class Removal(msgspec.Struct, frozen=True):
    """Settle by removing the record."""


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """Settle by moving the claim to a state that it has reached without a call.

    ``because``: the store key of the claim that is the reason, with its revision; it must be so still, or else two
    claims may leave the detaching to each other.
    """

    state: ClaimState
    because: dict[str, int] = {}


class Refresh(msgspec.Struct, frozen=True):
    """Settle by folding the claims of an allocation into it."""


Settlement = Removal | Move | Refresh


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done for a key now.

    ``planned``: a controller call; ``settlement``: a write without a call; ``due_at_ns``: look again then (0: no need);
    ``is_finished``: nothing is left to do until the record changes.
    """

    planned: Planned | None = None
    settlement: Settlement | None = None
    due_at_ns: int = 0
    is_finished: bool = True

    @property
    def is_settling(self) -> bool:
        """Whether there is a write to do."""
        return self.settlement is not None


FINISHED = Plan()
UNFINISHED = Plan(is_finished=False)


class Planner:
    """Reads the view, asks the rules."""

    def __init__(self, view: View, settings: EngineSettings) -> None:
        self._view = view
        self._settings = settings
        self._facts = PluginFacts(view)
        # Operations whose answer has been read: their records may go.
        self.read_operations: set[str] = set()
        # Operations that are on no record: calls that change nothing (see ``engine.questions``).
        self.questions: dict[str, Record[Operation]] = {}
        self.callers = Callers(self._is_lost)

    def plan(self, key: str, *, now_ns: int) -> Plan:
        """The plan for the record under a store key; FINISHED when there is none."""
        table = self._view.tables_by_prefix.get(keys.table_of(key))
        if table is None:
            return self._plan_question(key, now_ns)
        record = table.find(key)
        if record is None:
            return FINISHED
        match record.value:
            case Volume() as volume:
                return self._plan_volume(key, record, volume, now_ns)
            case Claim() as claim:
                return self.plan_claim(key, record, claim, now_ns)
            case Operation() as operation:
                return self._plan_operation(key, record, operation, now_ns)
            case Allocation() as allocation:
                return self._plan_allocation(allocation, now_ns)
        return FINISHED

    # -- by kind -----------------------------------------------------------------------------------------------------

    def _plan_volume(self, key: str, record: Record[Volume], volume: Volume, now_ns: int) -> Plan:
        match volume_rules.next_step(volume):
            case volume_rules.Rest():
                return FINISHED
            case volume_rules.Remove():
                return Plan(settlement=Removal(), is_finished=False)
            case step:
                serial, progress = make_serial(volume), volume.progress
                return self._assign(
                    key, record.modified, volume.plugin_id, step, serial=serial, progress=progress, now_ns=now_ns
                )

    def plan_claim(self, key: str, record: Record[Claim], claim: Claim, now_ns: int) -> Plan:
        """The plan for a claim's record."""
        info = self._facts.find(claim.plugin_id).info
        siblings = [
            r
            for r in self._view.claims.of_disk(claim.plugin_id, claim.external_id)
            if r.value.node_id == claim.node_id and r.value.id != claim.id
        ]
        around = claim_rules.Surroundings(
            volume=self._find_volume(claim),
            is_attaching=self._is_attaching(claim.plugin_id, info.supports_attach_detach if info else None),
            siblings=tuple(r.value for r in siblings),
        )
        match claim_rules.next_step(claim, around):
            case volume_rules.Rest():
                return FINISHED if around.is_attaching is not None else UNFINISHED
            case claim_rules.NodeWork():
                return FINISHED
            case volume_rules.Remove():
                return Plan(settlement=Removal(), is_finished=False)
            case claim_rules.Advance(state=state):
                using = [r for r in siblings if claim_rules.is_using(r.value)][:1] if around.is_attaching else []
                because = {keys.claim_key(r.value.id): int(r.modified) for r in using}
                return Plan(settlement=Move(state=state, because=because), is_finished=False)
            case step:
                serial, progress = make_serial(claim), claim.progress
                return self._assign(
                    key, record.modified, claim.plugin_id, step, serial=serial, progress=progress, now_ns=now_ns
                )

    def _is_attaching(self, plugin_id: PluginId, told: bool | None) -> bool | None:
        """Whether the driver attaches. Unknown while a controller is required and none has told: then claims wait."""
        if told is not None:
            return told
        facts = self._facts.find(plugin_id)
        return None if facts.plugin is None or facts.health.is_controller_required else False

    def _plan_operation(self, key: str, record: Record[Operation], operation: Operation, now_ns: int) -> Plan:
        if operation.expires_at_ns <= now_ns or key in self.read_operations:
            return Plan(settlement=Removal(), is_finished=False)
        if operation.state == "done":
            return Plan(due_at_ns=operation.expires_at_ns, is_finished=False)
        plan = self._assign_operation(key, record, now_ns)
        due = min(plan.due_at_ns or operation.expires_at_ns, operation.expires_at_ns)
        return msgspec.structs.replace(plan, due_at_ns=due)

    def assign_question(self, key: str, record: Record[Operation], *, now_ns: int) -> Planned | None:
        """The call that answers a question which is handed out to nobody, and its node; None while nobody can make
        it."""
        return self._assign_operation(key, record, now_ns).planned

    def _plan_question(self, key: str, now_ns: int) -> Plan:
        found = self.questions.get(key)
        if found is None or found.value.state == "done":
            return FINISHED
        return self._assign_operation(key, found, now_ns)

    def _assign_operation(self, key: str, record: Record[Operation], now_ns: int) -> Plan:
        operation = record.value
        return self._assign(
            key,
            record.modified,
            operation.plugin_id,
            operation.step,
            serial=operation.serial_key,
            progress=operation.progress,
            now_ns=now_ns,
        )

    def _plan_allocation(self, allocation: Allocation, now_ns: int) -> Plan:
        claims = [r.value for r in self._view.claims.of_allocation(allocation.id)]
        if allocation_rules.fold_claims(allocation, claims, now_ns=now_ns) is not allocation:
            return Plan(settlement=Refresh(), is_finished=False)
        if claims or not allocation_rules.is_terminal(allocation):
            return FINISHED
        gone_at = allocation.finished_at_ns + int(self._settings.allocation_kept_s * _SECOND)
        if gone_at <= now_ns:
            return Plan(settlement=Removal(), is_finished=False)
        return Plan(due_at_ns=gone_at, is_finished=False)

    def _assign(
        self,
        key: str,
        revision: int,
        plugin_id: PluginId,
        step: ControllerStep,
        *,
        serial: str,
        progress: Progress,
        now_ns: int,
    ) -> Plan:
        if progress.next_try_at_ns > now_ns:
            return Plan(due_at_ns=progress.next_try_at_ns, is_finished=False)
        node_id = self.callers.choose(self._facts.find(plugin_id), serial)
        if node_id is None:
            return UNFINISHED
        assignment = StepAssignment(
            key=key,
            revision=type(self._view.revision)(revision),
            plugin_id=plugin_id,
            serial_key=serial,
            step=step,
            timeout_s=self._timeout_s(step),
        )
        return Plan(planned=Planned(node_id=node_id, assignment=assignment), is_finished=False)

    def find_basis(self, plugin_id: PluginId) -> object | None:
        """What of a plugin, beside its healthy controllers, the steps of its records rest on; None: there is none."""
        return self._facts.find(plugin_id).basis

    def is_able(self, planned: Planned) -> bool:
        """Whether the node that has the call can make it still."""
        return planned.node_id in self._facts.find(planned.assignment.plugin_id).controllers

    def _timeout_s(self, step: ControllerStep) -> float:
        if isinstance(step, (CreateSnapshot, DeleteSnapshot)):
            return self._settings.snapshot_call_s
        if isinstance(step, (ListVolumes, ListSnapshots, GetCapacity)):
            return self._settings.list_call_s
        return self._settings.controller_call_s

    # -- who calls ---------------------------------------------------------------------------------------------------

    def hear(self, node_id: NodeId, calling: Iterable[str]) -> bool:
        """A node tells what it is calling; whether steps that had to wait for that may be handed out now."""
        return self.callers.hear(node_id, calling) and self._has_opened(node_id)

    def tell(self, node_id: NodeId, calling: Iterable[str]) -> bool:
        """A node tells with its drivers' health what it is calling; whether that leaves a volume to others."""
        return self.callers.tell(node_id, calling)

    def release(self, node_id: NodeId) -> bool:
        """The node is lost; whether steps that waited for it may be handed out now."""
        is_busy = self.callers.release(node_id)
        return self._has_opened(node_id) or is_busy

    def _has_opened(self, node_id: NodeId) -> bool:
        served = [self._facts.find(r.value.id) for r in self._view.plugins if node_id in r.value.instances]
        opened = [self.callers.has_opened(facts) for facts in served]
        return any(opened)

    def find_silent(self, plugin_id: PluginId) -> list[NodeId]:
        """Nodes that have not told this run of the server what they are calling, while the plugin's calls wait."""
        return self.callers.find_silent(self._facts.find(plugin_id))

    def find_busy(self, record: Volume | Claim) -> NodeId | None:
        """The node that is at a call for the record's disk while its driver is sick, so that the disk's calls wait."""
        return self.callers.find_busy(self._facts.find(record.plugin_id), make_serial(record))

    def _is_lost(self, node_id: NodeId) -> bool:
        # No record of a node ever goes; while a server starts, it may not have been loaded yet.
        found = self._view.find_node(node_id)
        return found is not None and found.value.status == "down"

    # -- what depends on what ----------------------------------------------------------------------------------------

    def find_dependents(self, key: str, record: object) -> Iterable[str]:
        """Keys whose next step may have changed because this record did, the key itself left out."""
        if isinstance(record, Claim):
            found = [keys.allocation_key(record.allocation_id)]
            for sibling in self._view.claims.of_disk(record.plugin_id, record.external_id):
                if sibling.value.id != record.id and sibling.value.node_id == record.node_id:
                    found.append(keys.claim_key(sibling.value.id))
            return found
        if isinstance(record, Volume):
            claims = self._view.claims.of_volume(record.namespace, record.id)
            return [keys.claim_key(claim.value.id) for claim in claims] if claims else ()
        return ()

    def find_shown_claims(self, record: object) -> Iterable[Claim]:
        """Claims whose assignments show something of this record: the claim itself, or those of the volume."""
        if isinstance(record, Claim):
            return (record,)
        if isinstance(record, Volume):
            claims = self._view.claims.of_volume(record.namespace, record.id)
            return [c.value for c in claims] if claims else ()
        return ()

    def _find_volume(self, claim: Claim) -> Volume | None:
        record = self._view.volumes.get(claim.namespace, claim.volume_id)
        return record.value if record else None


def make_serial(record: Volume | Claim) -> str:
    """The serial key of a record's steps: its disk. A volume that is not ready has no external ID yet; its name is what
    the driver may not see twice."""
    name = f"name:{record.name}" if isinstance(record, Volume) else ""
    return make_serial_key(record.plugin_id, record.external_id or name)
