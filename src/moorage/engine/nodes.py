"""What agents ask and tell: registration, plugin instances, standing queries, reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

from moorage.engine.driver_calls import DriverCalls
from moorage.engine.handouts import Handouts
from moorage.engine.leases import Leases
from moorage.engine.plugin_reports import PluginReports
from moorage.engine.ports import Clock, EngineSettings
from moorage.engine.questions import QUESTIONS, Questions
from moorage.engine.reads import Reads
from moorage.engine.reconciler import Reconciler, claims_topic, steps_topic
from moorage.engine.retrying import TRIES_MAX_CROWDED, decide_again
from moorage.errors import NotFound
from moorage.model.assignment import (
    ClaimAssignment,
    ClaimAssignments,
    NodeRegistered,
    PluginsReported,
    Report,
    StepAssignments,
    StepReport,
)
from moorage.model.ids import ClaimId, NodeId, PluginId
from moorage.model.node import Node, NodeWanted
from moorage.model.plugin import Instance
from moorage.model.volume import Secrets
from moorage.rules.nodes import check_taken_back, find_reboot, fold_registration, set_wanted
from moorage.state import keys
from moorage.state.feed import Change
from moorage.state.repo import Repo, Write

log = structlog.get_logger()


class Nodes:
    """The agents' side of the engine."""

    def __init__(
        self,
        repo: Repo,
        reads: Reads,
        reconciler: Reconciler,
        *,
        clock: Clock,
        settings: EngineSettings,
        leases: Leases,
        questions: Questions,
    ) -> None:
        self._repo = repo
        self._reads = reads
        self._reconciler = reconciler
        self._clock = clock
        self._settings = settings
        self._leases = leases
        self._questions = questions
        self._plugin_reports = PluginReports(repo, clock, first=reconciler.epoch)
        self.driver_calls = DriverCalls()

    async def register(
        self,
        node: Node,
        *,
        clean_by: int = 0,
        is_empty: bool = False,
        epoch: int | None = None,
        calling: Iterable[str] = (),
    ) -> NodeRegistered:
        """Put the node on record and renew its lease; written only when something about it is new.

        One that was lost is taken back only clean by the newest list of its claims (see ``NodeRegistration``): raises
        Conflict, and the agent unmounts first what was taken from it. One that has booted since and holds nothing is
        evidence itself. ``calling`` is heard from a node that has heard of this run of the server.
        """

        async def decide() -> int:
            found = self._reads.find_node(node.id)
            known = found.value if found else None
            now_ns = self._clock.now_ns()
            if found is not None and known is not None:
                check_taken_back(known, found.modified, clean_by)
                fence = find_reboot(known, node, is_empty=is_empty, now_ns=now_ns)
                if fence is not None:
                    found = await self._leases.free_rebooted(found, fence)
            ready = fold_registration(known, node, now_ns=now_ns)
            if found is not None and ready == known:
                return found.modified
            write = Write().put(keys.node_key(node.id), ready, revision=found.modified if found else 0)
            return await self._repo.commit(write)

        revision = await decide_again(decide, _restless(node.id), tries_max=TRIES_MAX_CROWDED)
        self._leases.renew(node.id)
        if epoch is None or epoch == self._reconciler.epoch:
            self._reconciler.hear(node.id, calling)
        return NodeRegistered(
            lease_s=self._leases.lease_s,
            grace_s=self._settings.fencing.grace_s,
            node_revision=revision,
            epoch=self._reconciler.epoch,
        )

    async def set_wanted(self, node_id: str, wanted: NodeWanted) -> int:
        """Say whether the node takes uses (active), no new ones (closed), or lets go of the running ones too
        (draining). Returns the revision. Raises NotFound, Unavailable."""

        async def decide() -> int:
            found = self._reads.find_node(node_id)
            if found is None:
                raise NotFound(f'no such node "{node_id}"', code="node_missing", node=node_id)
            after = set_wanted(found.value, wanted, now_ns=self._clock.now_ns())
            return await self._repo.commit(Write().put(keys.node_key(after.id), after, revision=found.modified))

        return await decide_again(decide, _restless(node_id), tries_max=TRIES_MAX_CROWDED)

    async def report_plugins(
        self,
        node_id: NodeId,
        instances: Mapping[PluginId, Instance],
        *,
        calling: Iterable[str] = (),
        after: int | None = None,
    ) -> PluginsReported:
        """Fold the node's driver instances into the plugins' records, unless the report is not the next one of the
        node. Raises NotFound for an unknown node, Unavailable."""
        self._get_node(node_id)
        count = self._plugin_reports.count(node_id, after)
        if count is None:
            return PluginsReported(count=self.find_report_count(node_id), is_taken=False)
        if after is not None:
            # Before the record says that the driver is sick, and before it says again that it is well.
            self._reconciler.tell(node_id, calling)
        await self._plugin_reports.take(node_id, instances)
        return PluginsReported(count=count)

    def find_report_count(self, node_id: NodeId) -> int:
        """The count of the node's last report that was taken; that of the server's run where none was."""
        return self._plugin_reports.find_count(node_id)

    async def wait_steps(self, node_id: NodeId, *, index: int, wait_s: float, epoch: int = 0) -> StepAssignments:
        """The controller calls due for the node, as soon as they differ from those of ``index``; only what is new
        since then where ``epoch`` shows that the asker has the rest."""
        self._get_node(node_id)
        handouts, changed = await self._wait(steps_topic(node_id), index, epoch, wait_s)
        steps = self._reconciler.find_steps(node_id, changed)
        has = {step.key for step in steps}
        return StepAssignments(
            index=handouts.version,
            steps=steps,
            epoch=self._reconciler.epoch,
            is_delta=changed is not None,
            gone=tuple(key for key in changed or () if key not in has),
        )

    async def wait_claims(self, node_id: NodeId, *, index: int, wait_s: float, epoch: int = 0) -> ClaimAssignments:
        """The node's claims, as soon as they differ from those of ``index``; for a lost node too, which has to know
        what it still has before it may come back. ``epoch``: as in ``wait_steps``."""
        if self._reads.find_node(node_id) is None:
            raise NotFound(f'node "{node_id}" is not registered', code="node_missing", node=node_id)
        handouts, changed = await self._wait(claims_topic(node_id), index, epoch, wait_s)
        found = self._reads.find_node(node_id)
        claims = self._find_claims(node_id, changed)
        has = {assignment.claim.id for assignment in claims}
        return ClaimAssignments(
            index=handouts.version,
            claims=claims,
            node_revision=found.modified if found else 0,
            epoch=self._reconciler.epoch,
            is_delta=changed is not None,
            gone=tuple(ClaimId(key) for key in changed or () if key not in has),
        )

    async def _wait(self, topic: str, index: int, epoch: int, wait_s: float) -> tuple[Handouts, tuple[str, ...] | None]:
        """Wait for news beyond the index. Returns the list's versions, and what is new; None: all has to be told."""
        handouts = self._reconciler.handouts(topic)
        is_known = epoch == self._reconciler.epoch
        if is_known:
            handouts.forget(index)
        if handouts.version == index:

            def moved(change: Change) -> bool | None:
                return True

            await self._reconciler.signals.wait((topic,), moved, timeout_s=wait_s)
        return handouts, handouts.find_since(index) if is_known else None

    def _find_claims(self, node_id: NodeId, only: Iterable[str] | None) -> tuple[ClaimAssignment, ...]:
        view = self._repo.view
        found = []
        if only is None:
            records = view.claims.of_node(node_id)
        else:
            named = (view.claims.get(ClaimId(claim_id)) for claim_id in only)
            records = [r for r in named if r is not None and r.value.node_id == node_id]
        for record in records:
            claim = record.value
            volume = view.volumes.get(claim.namespace, claim.volume_id)
            stored = volume.value if volume else None
            found.append(
                ClaimAssignment(
                    claim=claim,
                    revision=record.modified,
                    context=stored.context if stored else {},
                    mount_options=claim.mount_options or (stored.mount_options if stored else None),
                    secrets=stored.secrets if stored else Secrets(),
                    grow_to_bytes=stored.node_expansion_bytes if stored else 0,
                    timeout_s=self._settings.node_call_s,
                )
            )
        return tuple(found)

    async def report(self, node_id: NodeId, reports: tuple[Report, ...]) -> None:
        """Fold outcomes; a report on a record that has moved on, or that is not this node's to tell about, is dropped.

        Raises NotFound, StoreUnavailable.
        """
        self._get_node(node_id)
        own = tuple(report for report in reports if self._is_own(node_id, report))
        if len(own) < len(reports):
            log.warning("report.foreign", node=node_id, count=len(reports) - len(own))
        self.driver_calls.note(own, self._reconciler.assigned)
        recorded = []
        for report in own:
            if isinstance(report, StepReport):
                self._reconciler.note_told(node_id, report.key, report.revision)
            if isinstance(report, StepReport) and report.key.startswith(QUESTIONS):
                self._questions.fold(report)
            else:
                recorded.append(report)
        if recorded:
            await self._reconciler.outcomes.fold_reports(recorded)

    def _is_own(self, node_id: NodeId, report: Report) -> bool:
        """Whether the node may tell this: of a mount where it is the claim's node, of a step where it has a controller
        of the plugin and the step is with no other one. A record that is gone is nobody's; the report is stale then."""
        view = self._repo.view
        if not isinstance(report, StepReport):
            claim = view.claims.get(report.claim_id)
            return claim is None or claim.value.node_id == node_id
        if self._reconciler.is_elsewhere(node_id, report.key):
            return False
        if report.key.startswith(QUESTIONS):
            return True
        table = view.tables_by_prefix.get(report.key[: report.key.find("/") + 1])
        found = table.find(report.key) if table is not None else None
        plugin = view.find_plugin(getattr(found.value, "plugin_id", "")) if found is not None else None
        instance = plugin.value.instances.get(node_id) if plugin is not None else None
        return found is None or (instance is not None and instance.controller is not None)

    def _get_node(self, node_id: NodeId) -> None:
        found = self._reads.find_node(node_id)
        if found is None or found.value.status == "down":
            # A node that was lost registers again first, after it has cleaned up what it no longer owns.
            raise NotFound(f'node "{node_id}" is not registered', code="node_missing", node=node_id)


def _restless(node_id: str) -> str:
    return f'node "{node_id}" keeps changing; try again'
