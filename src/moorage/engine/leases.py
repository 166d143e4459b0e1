"""Leases: which nodes were heard of lately; what happens to those that were not.

Silence is measured by a clock that nobody sets, and kept in memory: a server that starts gives every node a full lease
and a full grace again. Each finding is a guarded write, so that a node that registers at the same moment wins or loses
as a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import anyio
import structlog

from moorage.engine.allocations import Allocations
from moorage.engine.fence_hooks import FenceHooks
from moorage.engine.ports import Clock
from moorage.engine.reads import Reads
from moorage.engine.retrying import decide_again
from moorage.errors import MoorageError, NotFound, StateConflict
from moorage.model.claim import Claim
from moorage.model.ids import NodeId
from moorage.model.node import Fence, Node
from moorage.rules import nodes as rules
from moorage.rules.nodes import FencingSettings
from moorage.state import keys
from moorage.state.repo import Repo, Write
from moorage.state.view import Record

log = structlog.get_logger()

LOOK_S = 0.5
CLAIMS_AT_ONCE = 50
NODES_AT_ONCE = 50
_SECOND = 1_000_000_000


class Leases:
    """Watches the nodes' silence and frees what evidence allows."""

    def __init__(
        self,
        repo: Repo,
        reads: Reads,
        clock: Clock,
        settings: FencingSettings,
        *,
        allocations: Allocations,
        hooks: FenceHooks,
    ) -> None:
        self._repo = repo
        self._reads = reads
        self._clock = clock
        self._settings = settings
        self._allocations = allocations
        self.hooks = hooks
        self._heard_ns: dict[NodeId, int] = {}
        self._lost_ns: dict[NodeId, int] = {}
        self._started_ns = clock.monotonic_ns()

    @property
    def lease_s(self) -> float:
        """How long a node may be silent, in seconds."""
        return self._settings.lease_s

    def renew(self, node_id: NodeId) -> None:
        """The node was heard of now."""
        self._heard_ns[node_id] = self._clock.monotonic_ns()

    def silent_s(self, node_id: NodeId) -> float:
        """For how long the node has been silent, in seconds, since it was heard of or since this server started."""
        heard = self._heard_ns.get(node_id, self._started_ns)
        return max(0.0, (self._clock.monotonic_ns() - heard) / _SECOND)

    def lost_s(self, node_id: NodeId) -> float:
        """For how long this server has known the node to be lost, in seconds; a new server starts at zero."""
        now_ns = self._clock.monotonic_ns()
        return (now_ns - self._lost_ns.setdefault(node_id, now_ns)) / _SECOND

    async def run(self) -> None:
        """Look at all nodes again and again, until cancelled."""
        async with anyio.create_task_group() as group:
            while True:
                silent = self._find_silent()
                for start in range(0, len(silent), NODES_AT_ONCE):
                    await self._try_lose(silent[start : start + NODES_AT_ONCE])
                for record in self._find_noted():
                    try:
                        await self._look_at(record, group)
                    except StateConflict:
                        continue
                    except MoorageError as error:
                        log.warning("lease.look_failed", node=record.value.id, code=error.code, error=error.message)
                await anyio.sleep(LOOK_S)

    def _find_silent(self) -> list[Record[Node]]:
        """Nodes that were not heard of within their lease, by ID."""
        now_ns, lease_ns = self._clock.monotonic_ns(), int(self._settings.lease_s * _SECOND)
        heard, started_ns = self._heard_ns, self._started_ns
        found = [
            r
            for r in self._repo.view.nodes
            if now_ns - heard.get(r.value.id, started_ns) > lease_ns and r.value.status == "ready"
        ]
        return sorted(found, key=_id_of)

    def _find_noted(self) -> list[Record[Node]]:
        """Nodes of which something may have to be done, by ID. Nearly all are well and have nothing to forget: then
        they cost no more than this look."""
        noted = [
            r
            for r in self._repo.view.nodes
            if r.value.status != "ready" or r.value.wanted == "draining" or self._remembers(r.value.id)
        ]
        return sorted(noted, key=_id_of)

    def _remembers(self, node_id: NodeId) -> bool:
        """Whether anything of an earlier loss is kept."""
        return node_id in self._lost_ns or self.hooks.find(node_id) is not None

    def _is_silent(self, node_id: NodeId) -> bool:
        return self.silent_s(node_id) > self._settings.lease_s

    async def _try_lose(self, nodes: Sequence[Record[Node]]) -> None:
        """Lose silent nodes in one write, because each write of their plugins costs as much as there are nodes; one by
        one where one of them was heard of in between."""
        try:
            await self._lose(nodes)
        except StateConflict:
            for record in nodes if len(nodes) > 1 else ():
                await self._try_lose((record,))
        except MoorageError as error:
            for record in nodes:
                log.warning("lease.look_failed", node=record.value.id, code=error.code, error=error.message)

    async def _lose(self, nodes: Sequence[Record[Node]]) -> None:
        now_ns, write = self._clock.now_ns(), Write()
        lost = [r for r in nodes if self._is_silent(r.value.id)]
        if not lost:
            return
        # First of all, so that where it takes several transactions no lost node has a healthy driver.
        self._put_unhealthy(write, {r.value.id for r in lost}, now_ns=now_ns)
        for record in lost:
            write.put(keys.node_key(record.value.id), rules.lose(record.value, now_ns=now_ns), revision=record.modified)
        silent_s = {r.value.id: round(self.silent_s(r.value.id), 1) for r in lost}
        await self._repo.commit_parts(write)
        for record in lost:
            node = record.value
            log.warning("node.lost", node=node.id, name=node.name, silent_s=silent_s[node.id])

    async def _look_at(self, record: Record[Node], group: anyio.abc.TaskGroup) -> None:
        node = record.value
        now_ns = self._clock.now_ns()
        if node.status == "ready":
            self.hooks.forget(node.id)
            self._lost_ns.pop(node.id, None)
            if node.wanted == "draining":
                await self._drain(record)
            return
        if node.status != "down":
            return
        claims = self._repo.view.claims.of_node(node.id)
        if node.fence is None and any(rules.needs_evidence(c.value) for c in claims):
            self.hooks.start_due(node, group, self._take_hook_word)
        fence = rules.find_evidence(node, self._settings, lost_s=self.lost_s(node.id), now_ns=now_ns)
        if fence is not None and node.fence is None:
            await self._write_fence(record, fence)
            return
        await self._free_claims(record)

    def _put_unhealthy(self, write: Write, lost: Collection[NodeId], *, now_ns: int) -> None:
        """Lost nodes' drivers are not healthy: no controller call goes there, no use starts there."""
        text = "the node is lost"
        for plugin in self._reads.list_plugins():
            instances = plugin.value.instances
            sick = {
                node_id: rules.replace(instance, healthy=False, health_description=text, updated_at_ns=now_ns)
                for node_id in lost
                if (instance := instances.get(node_id)) is not None and instance.healthy
            }
            if sick:
                record = rules.replace(plugin.value, instances={**instances, **sick}, modified_at_ns=now_ns)
                write.put(keys.plugin_key(record.id), record, revision=plugin.modified)

    async def _take_hook_word(self, node: Node, reason: str) -> None:
        """The hook says that the node was cut off. It speaks of the loss that it was started for: a node that was back
        in between, and is lost anew, may have mounted something since. Raises Unavailable."""

        async def decide() -> None:
            found = self._reads.find_node(node.id)
            if found is None or found.value.status != "down" or found.value.fence is not None:
                return
            if found.value.lost_at_ns == node.lost_at_ns:
                await self._write_fence(found, Fence(kind="hook", reason=reason, at_ns=self._clock.now_ns()))

        await decide_again(decide, f'node "{node.id}" keeps changing')

    async def _write_fence(self, record: Record[Node], fence: Fence) -> int:
        node = rules.replace(record.value, fence=fence)
        revision = await self._repo.commit(Write().put(keys.node_key(node.id), node, revision=record.modified))
        log.warning("node.fenced", node=node.id, kind=fence.kind, reason=fence.reason, by=fence.by)
        return revision

    async def _drain(self, record: Record[Node]) -> None:
        """Release the node's running uses, the youngest first, one at a time: the next when the last is gone. When
        none is left the drain is over, and the node stays closed."""
        node = record.value
        found = sorted(self._reads.list_allocations("*", "", node.id), key=lambda r: (-r.created, r.value.id))
        left = [r.value for r in found if self._reads.claims_of(r.value)]
        if left and not any(a.wanted == "stop" for a in left):
            await self._allocations.stop(left[0].id)
        if not left and not self._repo.view.claims.of_node(node.id):
            closed = rules.set_wanted(node, "closed", now_ns=self._clock.now_ns())
            await self._repo.commit(Write().put(keys.node_key(node.id), closed, revision=record.modified))
            log.info("node.drained", node=node.id, name=node.name)

    # -- what an operator says ---------------------------------------------------------------------------------------

    async def fence(self, node_id: str, *, reason: str, by: str, is_forced: bool) -> int:
        """An operator's word that the node holds nothing; kept with the reason. Returns the revision.

        Raises NotFound, Conflict (the node is alive, or no reason), Unavailable.
        """

        async def decide() -> int:
            found = self._reads.find_node(node_id)
            if found is None:
                raise NotFound(f'no such node "{node_id}"', code="node_missing", node=node_id)
            rules.check_fence(found.value, is_forced=is_forced, reason=reason)
            now_ns = self._clock.now_ns()
            node = found.value if found.value.status == "down" else rules.lose(found.value, now_ns=now_ns)
            return await self._write_fence(
                rules.replace(found, value=node), Fence(kind="operator", reason=reason, by=by, at_ns=now_ns)
            )

        return await decide_again(decide, f'node "{node_id}" keeps changing; try again')

    # -- freeing -----------------------------------------------------------------------------------------------------

    async def _free_claims(self, record: Record[Node]) -> None:
        """Free what may be freed on a lost node. The node's record is expected unchanged in the same write: a node
        that registers in between keeps what it holds."""
        node, now_ns = record.value, self._clock.now_ns()
        free: list[tuple[Record[Claim], Fence]] = []
        for claim in self._repo.view.claims.of_node(node.id):
            fence = rules.is_freed_by(claim.value, node, self._settings, lost_s=self.lost_s(node.id), now_ns=now_ns)
            if fence is not None and rules.free_claim(claim.value, fence) is not None:
                free.append((claim, fence))
        await self._free(record, free, now_ns=now_ns)

    async def free_rebooted(self, record: Record[Node], fence: Fence) -> Record[Node]:
        """A lost node has booted anew and holds nothing: free what was being released there, or all by the setting.
        Returns the node's record as it is then. Raises StateConflict, StoreUnavailable.

        Where all goes, the evidence is on record with the first of it, so that a crash in between leaves nothing held.
        """
        is_all = self._settings.is_freeing_on_reboot
        free = [
            (claim, fence)
            for claim in self._repo.view.claims.of_node(record.value.id)
            if (is_all or claim.value.wanted == "released") and rules.free_claim(claim.value, fence) is not None
        ]
        fenced = rules.replace(record, value=rules.replace(record.value, fence=fence)) if is_all else record
        return await self._free(fenced, free, now_ns=fence.at_ns)

    async def _free(
        self, record: Record[Node], free: Sequence[tuple[Record[Claim], Fence]], *, now_ns: int
    ) -> Record[Node]:
        """Free claims, some at a time. Each write makes a new revision of the node's record: an agent that is clean by
        a list from before it is not taken back by that."""
        for start in range(0, len(free), CLAIMS_AT_ONCE):
            record = await self._free_some(record, free[start : start + CLAIMS_AT_ONCE], now_ns=now_ns)
        return record

    async def _free_some(
        self, record: Record[Node], batch: Sequence[tuple[Record[Claim], Fence]], *, now_ns: int
    ) -> Record[Node]:
        node = rules.replace(record.value, freed_at_ns=now_ns)
        write = Write().put(keys.node_key(node.id), node, revision=record.modified)
        put_freed(self._repo, write, batch, now_ns=now_ns)
        if write.is_too_long:
            # Their allocations have many other claims. One claim alone is never too much.
            middle = len(batch) // 2
            record = await self._free_some(record, batch[:middle], now_ns=now_ns)
            return await self._free_some(record, batch[middle:], now_ns=now_ns)
        revision = await self._repo.commit(write)
        log.warning("claims.freed", node=node.id, count=len(batch), kinds=sorted({f.kind for _, f in batch}))
        return rules.replace(record, value=node, modified=revision)


def _id_of(record: Record[Node]) -> NodeId:
    return record.value.id


def put_freed(repo: Repo, write: Write, freed: Sequence[tuple[Record[Claim], Fence]], *, now_ns: int) -> None:
    """Put freed claims into a write, with their allocations, whose other claims are released too."""
    for record, fence in freed:
        after = rules.free_claim(record.value, fence)
        if after is not None:
            write.put(keys.claim_key(after.id), after, revision=record.modified)
    for record, fence in freed:
        found = repo.view.find_allocation(record.value.allocation_id)
        if found is None or keys.allocation_key(found.value.id) in write.ops:
            continue
        lost = rules.lose_allocation(found.value, fence, now_ns=now_ns)
        if lost is found.value:
            continue
        write.put(keys.allocation_key(lost.id), lost, revision=found.modified)
        for other in repo.view.claims.of_allocation(lost.id):
            key = keys.claim_key(other.value.id)
            if key not in write.ops and other.value.wanted == "held":
                write.put(key, rules.replace(other.value, wanted="released"), revision=other.modified)
