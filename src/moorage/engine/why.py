"""Why a thing is not ready: gathers the records around it for ``rules.why``. Reads only; waits for nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from moorage.engine.leases import Leases
from moorage.engine.planning import Planned
from moorage.engine.ports import Clock, EngineSettings
from moorage.engine.reads import Reads
from moorage.engine.reconciler import Reconciler
from moorage.model.assignment import StepAssignment
from moorage.model.claim import Claim, Mounted
from moorage.model.ids import ALL_NAMESPACES, NodeId, PluginId
from moorage.model.volume import Volume
from moorage.rules.explanations import get_method
from moorage.rules.volumes import is_expanding
from moorage.rules.why import Ahead, Explanation, Queue, name_node
from moorage.rules.why_claims import ClaimCase
from moorage.rules.why_hosts import NodeCase, PluginCase, explain_node, explain_plugin
from moorage.rules.why_uses import AllocationCase, explain_allocation
from moorage.rules.why_volumes import VolumeCase, explain_volume
from moorage.state import keys
from moorage.state.feed import Change
from moorage.state.repo import Repo

# Volumes whose state is worked out for a plugin's explanation; people read no more.
WAITING_MAX = 200
_STEPPING = (keys.VOLUMES, keys.CLAIMS, keys.OPERATIONS)


class Why:
    """Explains volumes, allocations, plugins and nodes from memory.

    It is made after the reconciler, so that it sees an assignment in the same turn and knows since when it is out.
    """

    def __init__(
        self,
        repo: Repo,
        reads: Reads,
        reconciler: Reconciler,
        clock: Clock,
        *,
        settings: EngineSettings,
        leases: Leases,
    ) -> None:
        self._repo = repo
        self._reads = reads
        self._reconciler = reconciler
        self._clock = clock
        self._settings = settings
        self._leases = leases
        self._handed_out: dict[str, tuple[tuple[int, str], int]] = {}
        repo.feed.subscribe(self._note)

    # -- the four kinds ----------------------------------------------------------------------------------------------

    def explain_volume(
        self, namespace: str, volume_id: str, *, is_seen: Callable[[str], bool] | None = None
    ) -> Explanation | None:
        """The volume, also one that is being created; ``*``: the one of that ID in any namespace (of those that are
        seen). None: no such."""
        volume = self._find_volume(namespace, volume_id, is_seen)
        if volume is None:
            return None
        return explain_volume(self._volume_case(volume, is_seen), now_ns=self._clock.now_ns())

    def explain_allocation(self, allocation_id: str) -> Explanation | None:
        """The allocation, or None."""
        found = self._reads.find_allocation(allocation_id)
        if found is None:
            return None
        node = self._reads.find_node(found.value.node_id)
        case = AllocationCase(
            allocation=found.value,
            node=node.value if node else None,
            claims=self._claim_cases(self._reads.claims_of(found.value)),
        )
        return explain_allocation(case, now_ns=self._clock.now_ns())

    def explain_plugin(self, plugin_id: str) -> Explanation | None:
        """The plugin; also one that no agent reports, as long as a volume names it. None: no such."""
        found = self._reads.find_plugin(plugin_id)
        volumes = [r.value for r in self._repo.view.volumes if r.value.plugin_id == plugin_id]
        if found is None and not volumes:
            return None
        plugin = found.value if found else None
        ids = plugin.instances if plugin else ()
        nodes = {str(i): record.value for i in ids if (record := self._reads.find_node(i)) is not None}
        now_ns = self._clock.now_ns()
        waiting = [v for v in volumes if plugin is None or self._is_at_work(v)][:WAITING_MAX]
        states = {str(v.id): explain_volume(self._volume_case(v), now_ns=now_ns).state for v in waiting}
        case = PluginCase(plugin_id=plugin_id, plugin=plugin, nodes=nodes, waiting=states)
        return explain_plugin(case, now_ns=now_ns)

    def explain_node(self, node_id: str) -> Explanation | None:
        """The node, or None."""
        found = self._reads.find_node(node_id)
        if found is None:
            return None
        node = found.value
        plugins = {r.value.id: r.value for r in self._reads.list_plugins()}
        case = NodeCase(
            node=node,
            claims=self._claim_cases(r.value for r in self._repo.view.claims.of_node(node.id)),
            instances={p: plugin.instances[node.id] for p, plugin in plugins.items() if node.id in plugin.instances},
            hook=self._leases.hooks.find(node.id),
        )
        return explain_node(case, now_ns=self._clock.now_ns())

    # -- gathering ---------------------------------------------------------------------------------------------------

    def _find_volume(self, namespace: str, volume_id: str, is_seen: Callable[[str], bool] | None) -> Volume | None:
        view = self._repo.view
        if namespace == ALL_NAMESPACES:
            found = [r.value for r in view.volumes.ordered(None, volume_id) if r.value.id == volume_id]
            found = [v for v in found if is_seen is None or is_seen(v.namespace)]
            return found[0] if len(found) == 1 else None
        record = view.volumes.get(namespace, volume_id)
        return record.value if record else None

    def _is_at_work(self, volume: Volume) -> bool:
        """Whether the volume waits for a step of its plugin's driver."""
        if volume.wanted == "absent" or volume.state == "absent" or is_expanding(volume):
            return True
        claims = (r.value for r in self._repo.view.claims.of_volume(*volume.key))
        return any(c.wanted == "released" or not isinstance(c.state, Mounted) for c in claims)

    def _volume_case(self, volume: Volume, is_seen: Callable[[str], bool] | None = None) -> VolumeCase:
        """``is_seen``: of claims on the same disk by other namespaces, only those of these are told of."""
        view = self._repo.view
        plugin = view.find_plugin(volume.plugin_id)
        same = view.volumes.of_disk(volume.plugin_id, volume.external_id) if volume.external_id else []
        records = view.claims.of_disk(volume.plugin_id, volume.external_id) if volume.external_id else []
        return VolumeCase(
            volume=volume,
            plugin=plugin.value if plugin else None,
            claims=self._claim_cases(r.value for r in records if is_seen is None or is_seen(r.value.namespace)),
            queue=self._find_queue(keys.volume_key(*volume.key), volume.progress.next_try_at_ns),
            silent=self._name_silent(volume.plugin_id),
            busy=self._name_busy(volume),
            others=_name_others(volume, [r.value for r in same]),
        )

    def _claim_cases(self, claims: Iterable[Claim]) -> tuple[ClaimCase, ...]:
        return tuple(self._claim_case(c) for c in claims)

    def _claim_case(self, claim: Claim) -> ClaimCase:
        view = self._repo.view
        node = view.find_node(claim.node_id)
        volume = view.volumes.get(claim.namespace, claim.volume_id)
        plugin = view.find_plugin(claim.plugin_id)
        allocation = view.find_allocation(claim.allocation_id)
        is_down = node is not None and node.value.status == "down"
        return ClaimCase(
            claim=claim,
            allocation=allocation.value if allocation else None,
            volume=volume.value if volume else None,
            node=node.value if node else None,
            plugin=plugin.value if plugin else None,
            queue=self._find_queue(keys.claim_key(claim.id), claim.progress.next_try_at_ns),
            silent=self._name_silent(claim.plugin_id),
            busy=self._name_busy(claim),
            fencing=self._settings.fencing,
            lost_s=self._leases.lost_s(claim.node_id) if is_down else 0.0,
            hook=self._leases.hooks.find(claim.node_id),
        )

    # -- steps that are out ------------------------------------------------------------------------------------------

    def _find_queue(self, key: str, tried_at_ns: int) -> Queue | None:
        """Where the record's step stands at its agent; None when none is handed out."""
        planned = self._reconciler.assigned.get(key)
        if planned is None:
            return None
        own = planned.assignment
        steps = [s for s in self._reconciler.find_steps(planned.node_id) if s.plugin_id == own.plugin_id]
        position = next((n for n, s in enumerate(steps) if s.key == key), 0)
        node = self._reads.find_node(planned.node_id)
        ahead = [s for s in steps[:position] if own.serial_key and s.serial_key == own.serial_key]
        return Queue(
            position=position + 1,
            length=len(steps),
            method=get_method(own.step),
            node_id=planned.node_id,
            node_name=node.value.name if node else "",
            ahead=tuple(Ahead(method=get_method(s.step), subject=self._name_subject(s)) for s in ahead),
            since_ns=self._find_since(key, planned, tried_at_ns),
        )

    def _name_silent(self, plugin_id: PluginId) -> tuple[str, ...]:
        return tuple(map(self._name_node, self._reconciler.planner.find_silent(plugin_id)))

    def _name_busy(self, record: Volume | Claim) -> str:
        node_id = self._reconciler.planner.find_busy(record)
        return self._name_node(node_id) if node_id is not None else ""

    def _name_node(self, node_id: NodeId) -> str:
        found = self._reads.find_node(node_id)
        return name_node(found.value if found else None, node_id)

    def _name_subject(self, step: StepAssignment) -> str:
        table = self._repo.view.tables_by_prefix.get(keys.table_of(step.key))
        record = table.find(step.key) if table is not None else None
        match record.value if record else None:
            case Volume() as volume:
                return f'volume "{volume.id}"'
            case Claim() as claim:
                return f'volume "{claim.volume_id}" for allocation {claim.allocation_id}'
        return "a request that somebody waits for"

    def _find_since(self, key: str, planned: Planned, tried_at_ns: int) -> int:
        """Since when the step is out: since the assignment was seen, or since the pause before it was over."""
        mark, at_ns = self._handed_out.get(key, ((0, ""), 0))
        return max(at_ns if mark == _mark(planned) else 0, tried_at_ns)

    def _note(self, change: Change) -> None:
        """Keep the moment at which a step was handed out. Called in the feed's loop turn, after the reconciler."""
        if change.key.startswith(keys.PLUGINS):
            for key in self._reconciler.assigned:
                self._note_key(key)
            for key in [k for k in self._handed_out if k not in self._reconciler.assigned]:
                del self._handed_out[key]
        elif change.key.startswith(_STEPPING):
            self._note_key(change.key)
            record = change.after if change.after is not None else change.before
            for other in self._reconciler.planner.find_dependents(change.key, record):
                self._note_key(other)

    def _note_key(self, key: str) -> None:
        planned = self._reconciler.assigned.get(key)
        if planned is None:
            self._handed_out.pop(key, None)
            return
        if self._handed_out.get(key, (None, 0))[0] != _mark(planned):
            self._handed_out[key] = (_mark(planned), self._clock.now_ns())


def _name_others(volume: Volume, same_disk: Iterable[Volume]) -> tuple[str, ...]:
    """The other records of a volume's disk; of those in other namespaces no more than that there are some."""
    others = [v for v in same_disk if v.key != volume.key]
    named = sorted(f'"{v.id}"' for v in others if v.namespace == volume.namespace)
    return (*named, "a volume of another namespace") if len(named) < len(others) else tuple(named)


def _mark(planned: Planned) -> tuple[int, str]:
    return (planned.assignment.revision, planned.node_id)
