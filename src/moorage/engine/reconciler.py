"""The reconciler: whenever a record changes, decide its next step and see that it is done.

A step that calls a driver's controller becomes an assignment to the node that has it; the agent there asks for its
assignments with a standing query and reports outcomes, which are folded into the record. A step that needs no call is
written here. Nothing depends on an event having been seen: at the start every record is looked at, and a record whose
step cannot be made now (no healthy controller, a pause after a fault) is looked at again when that changes.

It never raises outward: a failure is a field of the record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import anyio
import structlog
from anyio.abc import TaskStatus

from moorage.engine.due import DueKeys
from moorage.engine.handouts import Handouts
from moorage.engine.outcomes import Outcomes
from moorage.engine.planning import Plan, Planned, Planner
from moorage.engine.ports import Chance, Clock, EngineSettings
from moorage.errors import MoorageError, StateConflict
from moorage.model.assignment import StepAssignment
from moorage.model.ids import NodeId, PluginId
from moorage.model.node import Node
from moorage.model.operation import Operation
from moorage.model.plugin import Plugin
from moorage.state import keys
from moorage.state.feed import Change, Signals
from moorage.state.repo import Repo
from moorage.state.view import Record, View

log = structlog.get_logger()

WRITERS = 16
LOOK_S = 60.0  # the clock of the day may be set back or forth: never sleep longer than this
_SECOND = 1_000_000_000


def steps_topic(node_id: str) -> str:
    """The signal for "this node's controller steps changed"."""
    return f"steps@{node_id}"


def claims_topic(node_id: str) -> str:
    """The signal for "this node's claims, or what mounting them takes, changed"."""
    return f"claims@{node_id}"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What decides and what writes; a test that plants a defect puts others in their place."""

    planner: Callable[[View, EngineSettings], Planner] = Planner
    outcomes: Callable[[Repo, Clock, Chance], Outcomes] = Outcomes


class Reconciler:
    """Decides and assigns. ``assigned`` is derived state: it is rebuilt from the records at every start."""

    def __init__(
        self,
        repo: Repo,
        clock: Clock,
        chance: Chance,
        settings: EngineSettings,
        *,
        parts: Parts | None = None,
    ) -> None:
        parts = parts or Parts()
        self._repo = repo
        self._clock = clock
        self.signals = Signals()
        self.planner = parts.planner(repo.view, settings)
        self.outcomes = parts.outcomes(repo, clock, chance)
        self.assigned: dict[str, Planned] = {}
        self._by_node: dict[NodeId, dict[str, Planned]] = {}
        # Assignments whose outcome their node has told: by their key, the revision they were for.
        self._told: dict[str, int] = {}
        # In the order of their decisions, so that the oldest is looked at first.
        self._unfinished: dict[str, None] = {}
        # What the steps of each plugin's records rest on, as it was when they were decided.
        self._bases: dict[PluginId, object] = {}
        self._due = DueKeys()
        self._is_due_earlier = anyio.Event()
        self._writing: set[str] = set()
        self._again: set[str] = set()
        # Holds keys, each at most once (``_writing``), so it is bounded by the number of records.
        self._queue: deque[str] = deque()
        self._queued = anyio.Semaphore(0)
        # Versions start at the clock so that an agent's index from before a restart never equals a new one. The first
        # one also tells whose versions they are.
        self.epoch = clock.now_ns() // 1000
        self._handouts: dict[str, Handouts] = {}
        repo.feed.subscribe(self.look_at)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Settle what can be settled without a driver, and wake what is due, until cancelled."""
        async with anyio.create_task_group() as group:
            for _ in range(WRITERS):
                group.start_soon(self._write_settlements)
            group.start_soon(self._wake_due)
            task_status.started()

    # -- events ------------------------------------------------------------------------------------------------------

    def look_at(self, change: Change) -> None:
        """A record changed: decide again for all whose step may depend on it. Called in the feed's loop turn."""
        key = change.key
        table = keys.table_of(key)
        if change.after is None:
            self.planner.read_operations.discard(key)
        record = change.after if change.after is not None else change.before
        if table == keys.PLUGINS:
            assert isinstance(record, Plugin)
            self._look_at_plugin(record.id)
            return
        if table == keys.NODES:
            assert isinstance(record, Node)
            # The list of claims names the record's revision, by which the agent is clean.
            self._note(claims_topic(record.id))
            if record.status == "down" and self.planner.release(record.id):
                self._decide_waiting()
            return
        if table == keys.NAMESPACES:
            return
        self._decide(key)
        for other in self.planner.find_dependents(key, record):
            self._decide(other)
        for claim in self.planner.find_shown_claims(record):
            self._note(claims_topic(claim.node_id), claim.id)

    def _look_at_plugin(self, plugin_id: PluginId) -> None:
        """A plugin has an instance for each node, and each report of a node may change it: only what rests on something
        that is otherwise now is decided again. A step stays where it is as long as the controller there is healthy."""
        basis = self.planner.find_basis(plugin_id)
        is_other = basis != self._bases.pop(plugin_id, None)
        if basis is not None:
            self._bases[plugin_id] = basis
        for key in list(self._unfinished):
            planned = self.assigned.get(key)
            if is_other or planned is None or not self.planner.is_able(planned):
                self._decide(key)

    def hear(self, node_id: NodeId, calling: Iterable[str]) -> None:
        """A node tells of which serial keys it is at a call, having dropped what an earlier run handed to it."""
        if self.planner.hear(node_id, calling):
            self._decide_waiting()

    def tell(self, node_id: NodeId, calling: Iterable[str]) -> None:
        """A node tells with its drivers' health of which serial keys it is at a call."""
        if self.planner.tell(node_id, calling):
            self._decide_waiting()

    def _decide_waiting(self) -> None:
        """Steps that nobody has may have somebody now."""
        for key in [key for key in self._unfinished if key not in self.assigned]:
            self._decide(key)

    def forget_operation(self, key: str) -> None:
        """The operation's answer has been read, or nobody waits for it any more: its record goes."""
        self.planner.read_operations.add(key)
        self._decide(key)

    def set_question(self, key: str, record: Record[Operation]) -> None:
        """A question is there, or has moved on: decide what it needs."""
        self.planner.questions[key] = record
        self._decide(key)

    def drop_question(self, key: str) -> None:
        """Nobody waits for the question any more."""
        self.planner.questions.pop(key, None)
        self._decide(key)

    def note_told(self, node_id: NodeId, key: str, revision: int) -> None:
        """A node has told the outcome of its step: it need not be woken to hear that the step is no longer due. Any
        other that has the step must hear it, or else it would still begin it."""
        planned = self.assigned.get(key)
        if planned is not None and (planned.node_id, planned.assignment.revision) == (node_id, revision):
            self._told[key] = revision

    def is_elsewhere(self, node_id: NodeId, key: str) -> bool:
        """Whether the step is with another node by now. What this one tells of it is not taken then: the other may be
        at its call, and what comes after the step must not begin before that has ended."""
        planned = self.assigned.get(key)
        return planned is not None and planned.node_id != node_id

    # -- deciding ----------------------------------------------------------------------------------------------------

    def _decide(self, key: str) -> None:
        plan = self.planner.plan(key, now_ns=self._clock.now_ns())
        self._set_assigned(key, plan.planned)
        if plan.is_finished:
            self._unfinished.pop(key, None)
        else:
            self._unfinished[key] = None
        if plan.due_at_ns:
            self._due.set(key, plan.due_at_ns)
            self._is_due_earlier.set()
        else:
            self._due.drop(key)
        if plan.is_settling:
            self._settle_later(key)

    def _set_assigned(self, key: str, planned: Planned | None) -> None:
        old = self.assigned.get(key)
        if old == planned:
            return
        if old is not None:
            del self._by_node[old.node_id][key]
            # The node that has told the outcome knows that the step is no longer due.
            is_told = self._told.pop(key, None) == old.assignment.revision
            if not is_told and (planned is None or planned.node_id != old.node_id):
                self._note(steps_topic(old.node_id), key)
        if planned is None:
            self.assigned.pop(key, None)
            return
        self.assigned[key] = planned
        self._by_node.setdefault(planned.node_id, {})[key] = planned
        self._note(steps_topic(planned.node_id), key)

    def _note(self, topic: str, key: str = "") -> None:
        self.handouts(topic).note(key)
        self.signals.notify(topic, Change(topic, self._repo.view.revision, None, None))

    def handouts(self, topic: str) -> Handouts:
        """What changed in a node's list, and when; its versions are never ones that an earlier run handed out."""
        found = self._handouts.get(topic)
        if found is None:
            found = self._handouts[topic] = Handouts(self.epoch)
        return found

    def measure_queues(self) -> dict[str, int]:
        """How many records wait: to be written, for their step at all, for a driver's answer, for a time."""
        return {
            "to_write": len(self._queue),
            "unfinished": len(self._unfinished),
            "assigned": len(self.assigned),
            "due_later": len(self._due),
        }

    def find_steps(self, node_id: NodeId, only: Iterable[str] | None = None) -> tuple[StepAssignment, ...]:
        """The controller calls that are due for a node now, oldest record first; of some records, or of all."""
        found = self._by_node.get(node_id, {})
        chosen = found.values() if only is None else [found[key] for key in only if key in found]
        return tuple(sorted((p.assignment for p in chosen), key=lambda a: (a.revision, a.key)))

    # -- settling: writes that need no driver call -------------------------------------------------------------------

    def _settle_later(self, key: str) -> None:
        if key in self._writing:
            self._again.add(key)
            return
        self._writing.add(key)
        self._queue.append(key)
        self._queued.release()

    async def _write_settlements(self) -> None:
        while True:
            await self._queued.acquire()
            key = self._queue.popleft()
            try:
                await self._settle(key)
            finally:
                self._writing.discard(key)
            if key in self._again:
                self._again.discard(key)
                self._decide(key)

    async def _settle(self, key: str) -> None:
        plan: Plan = self.planner.plan(key, now_ns=self._clock.now_ns())
        if plan.settlement is None:
            return
        try:
            await self.outcomes.settle(key, plan.settlement)
        except StateConflict:
            self._again.add(key)
        except MoorageError as error:
            # The store is in trouble: the record is unchanged, so it is looked at again after a pause.
            log.warning("reconciler.write_failed", key=key, code=error.code, error=error.message)
            self._due.set(key, self._clock.now_ns() + _SECOND)
            self._is_due_earlier.set()

    # -- time --------------------------------------------------------------------------------------------------------

    async def _wake_due(self) -> None:
        while True:
            self._is_due_earlier = anyio.Event()
            at = self._due.next_ns()
            wait_s = LOOK_S if at is None else min(LOOK_S, max(0.0, (at - self._clock.now_ns()) / _SECOND))
            with anyio.move_on_after(wait_s):
                await self._is_due_earlier.wait()
            for key in self._due.pop_due(self._clock.now_ns()):
                self._decide(key)
