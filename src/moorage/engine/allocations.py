"""Use cases for allocations: start a use of volumes on a node, and stop it.

Admission touches every volume in the same write, so that one compare serializes all claimants of a disk: the loser
decides again on what the winner wrote. So it is with claimants of a node whose driver takes so many volumes only.
"""

from __future__ import annotations

import msgspec

from moorage.engine.plugin_facts import PluginFacts
from moorage.engine.ports import Chance, Clock
from moorage.engine.reads import Reads
from moorage.engine.retrying import TRIES_MAX_CROWDED, TRIES_MAX_QUEUED, decide_again
from moorage.errors import BadRequest, Conflict, NotFound
from moorage.model.claim import Allocation, Claim, TaskEvent, VolumeRequest
from moorage.model.ids import AllocationId, ClaimId, NodeId
from moorage.model.node import Node, Turnstile
from moorage.model.plugin import MAX_VOLUMES_UNLIMITED
from moorage.model.volume import Progress, Volume
from moorage.rules.allocations import add_event, choose_volume, is_terminal
from moorage.rules.claims import admit_claim, check_room, complete_request
from moorage.state import keys
from moorage.state.repo import Repo, Write
from moorage.state.store import TXN_OPS_MAX
from moorage.state.view import Record

replace = msgspec.structs.replace
VOLUMES_MAX = 32


class Allocations:
    """Start and stop."""

    def __init__(self, repo: Repo, reads: Reads, clock: Clock, chance: Chance) -> None:
        self._repo = repo
        self._reads = reads
        self._clock = clock
        self._chance = chance
        self._facts = PluginFacts(repo.view)

    async def start(self, asked: Allocation) -> Record[Allocation]:
        """Admit an allocation: its record, its claims and the touched volumes in one write.

        An empty ID is chosen here; asking again with the ID of one that exists answers with that one.
        Raises BadRequest, NotFound, Conflict (who holds the volume), Unavailable.
        """
        if asked.id:
            existing = self._reads.find_allocation(asked.id)
            if existing is not None:
                return existing
        allocation = self._prepare(asked)

        async def decide() -> Record[Allocation]:
            existing = self._reads.find_allocation(allocation.id)
            if existing is not None:
                return existing
            write = Write()
            claimed = [
                self._claim(write, allocation, request, position) for position, request in enumerate(asked.volumes)
            ]
            final = replace(allocation, volumes=tuple(claimed))
            write.put(keys.allocation_key(final.id), final, revision=0)
            if write.is_too_long:
                raise Conflict(
                    f"the disks of these volumes have {len(write.compares)} records, of which all would have to be "
                    f"guarded at once; at most {TXN_OPS_MAX} can be: deregister those that nobody needs "
                    "(`moorage volume orphans` names the doubles)",
                    code="crowded_disk", volume=final.volumes[0].volume_id,
                )  # fmt: skip
            revision = await self._repo.commit(write)
            return self._reads.find_allocation(final.id) or Record(final, revision, revision)

        text = "the volumes keep changing while they are claimed; try again"
        return await decide_again(decide, text, tries_max=TRIES_MAX_QUEUED)

    def _prepare(self, asked: Allocation) -> Allocation:
        if not asked.volumes:
            raise BadRequest("Allocation.Volumes: name at least one volume")
        if len(asked.volumes) > VOLUMES_MAX:
            raise BadRequest(f"Allocation.Volumes: at most {VOLUMES_MAX} volumes in one allocation")
        names = [v.name for v in asked.volumes]
        for position, name in enumerate(names):
            if not name or "/" in name or name in names[:position]:
                raise BadRequest(
                    f"Allocation.Volumes[{position}].Name {name!r}: give each volume a name of its own, without /"
                )
        node = self._choose_node(asked.node_id)
        now_ns = self._clock.now_ns()
        received = TaskEvent(type="Received", at_ns=now_ns, message="Volumes are claimed")
        prepared = replace(
            asked,
            id=asked.id or AllocationId(self._chance.new_id()),
            node_id=node.id,
            node_name=node.name,
            tasks=asked.tasks or ("main",),
            description="Volumes are being mounted",
            created_at_ns=now_ns,
            modified_at_ns=now_ns,
        )
        return add_event(prepared, received)

    def _choose_node(self, node_id: str) -> Node:
        if node_id:
            found = self._reads.find_node(node_id)
            if found is None:
                raise NotFound(f'no such node "{node_id}"', code="node_missing", node=node_id)
            return _check_takes_uses(found.value)
        ready = [r.value for r in self._reads.list_nodes() if r.value.status == "ready" and r.value.wanted == "active"]
        if len(ready) == 1:
            return ready[0]
        raise BadRequest(f"Allocation.NodeID is missing, and {len(ready)} nodes are ready: name one")

    def _claim(self, write: Write, allocation: Allocation, request: VolumeRequest, position: int) -> VolumeRequest:
        """Put one claim and its touched volume into the write; returns the request with its modes filled in."""
        view = self._repo.view
        where = f"Allocation.Volumes[{position}]"
        try:
            volume_id = choose_volume(request, allocation.name)
        except BadRequest as error:
            raise BadRequest(f"{where}: {error.message}") from error
        request = replace(request, volume_id=volume_id)
        found = view.volumes.get(allocation.namespace, volume_id)
        if found is None or found.value.state != "ready":
            why = f' (PerAlloc: "{request.source}" with the index of "{allocation.name}")' if request.per_alloc else ""
            text = f'{where}.Source: no such volume "{volume_id}" in namespace "{allocation.namespace}"{why}'
            raise NotFound(text, code="volume_missing", volume=volume_id)
        volume = found.value
        disk = view.volumes.of_disk(volume.plugin_id, volume.external_id)
        if any(r.value.wanted == "absent" for r in disk):
            raise Conflict(f'volume "{volume.id}" is being deleted', code="busy", volume=volume.id)
        complete = complete_request(request, volume)
        claim = self._make_claim(allocation, complete, volume)
        holders = [r.value for r in view.claims.of_disk(volume.plugin_id, volume.external_id)]
        holders += [
            c for c in _claims_in(write) if (c.plugin_id, c.external_id) == (claim.plugin_id, claim.external_id)
        ]
        admit_claim(claim, volume, holders)
        max_volumes = self._max_volumes(claim)
        if max_volumes < MAX_VOLUMES_UNLIMITED:
            on_node = [r.value for r in view.claims.of_node(claim.node_id)] + _claims_in(write)
            if check_room(claim, on_node, max_volumes):
                # Another disk than those counted may be on its way to the node: then one of the two counts again.
                key = keys.turnstile_key(claim.node_id, claim.plugin_id)
                passed = view.turnstiles.find(key)
                turnstile = Turnstile(node_id=claim.node_id, plugin_id=claim.plugin_id)
                write.put(key, turnstile, revision=passed.modified if passed else 0)
        write.put(keys.claim_key(claim.id), claim, revision=0)
        # Every record of the disk is touched, so that claims through another one are serialized too.
        for same in disk:
            key = keys.volume_key(*same.value.key)
            touched = same.value
            if same.value.key == volume.key:
                touched = replace(
                    volume,
                    access_mode=volume.access_mode or claim.access_mode,
                    attachment_mode=volume.attachment_mode or claim.attachment_mode,
                    shown_access_mode="",
                    shown_attachment_mode="",
                    modified_at_ns=self._clock.now_ns(),
                )
            write.put(key, touched, revision=same.modified)
        return complete

    def _make_claim(self, allocation: Allocation, request: VolumeRequest, volume: Volume) -> Claim:
        plugin = self._reads.find_plugin(volume.plugin_id)
        instance = plugin.value.instances.get(allocation.node_id) if plugin else None
        health = self._facts.find(volume.plugin_id).health
        if not health.is_schedulable:
            text = (
                f'volume is currently unschedulable: plugin "{volume.plugin_id}" of volume "{volume.id}" has '
                f"{health.nodes_healthy} healthy nodes and {health.controllers_healthy} healthy controllers"
            )
            raise Conflict(text, code="unschedulable", volume=volume.id, plugin=volume.plugin_id)
        if instance is None or instance.node is None or not instance.healthy:
            text = (
                f'volume "{volume.id}" cannot be used on node {allocation.node_id}: '
                f'plugin "{volume.plugin_id}" is not healthy there'
            )
            raise Conflict(text, code="unschedulable", volume=volume.id, node=allocation.node_id)
        return Claim(
            id=ClaimId(f"{allocation.id}/{request.name}"),
            allocation_id=allocation.id,
            name=request.name,
            namespace=volume.namespace,
            volume_id=volume.id,
            plugin_id=volume.plugin_id,
            external_id=volume.external_id,
            node_id=NodeId(allocation.node_id),
            external_node_id=instance.node.external_id,
            read_only=request.read_only,
            access_mode=request.access_mode,
            attachment_mode=request.attachment_mode,
            mount_options=request.mount_options,
            target=request.target,
            created_at_ns=self._clock.now_ns(),
            progress=Progress(since_ns=self._clock.now_ns()),
        )

    def _max_volumes(self, claim: Claim) -> int:
        """How many disks the driver takes on the claim's node, by what it says of itself."""
        plugin = self._reads.find_plugin(claim.plugin_id)
        instance = plugin.value.instances.get(claim.node_id) if plugin else None
        assert instance is not None
        assert instance.node is not None, "the claim was made from it"
        return instance.node.max_volumes

    async def stop(self, allocation_id: str) -> int:
        """Release an allocation's claims; it is complete when the last is gone. Returns the revision.

        Stopping again is harmless. Raises NotFound, Unavailable.
        """

        async def decide() -> int:
            found = self._reads.find_allocation(allocation_id)
            if found is None:
                raise NotFound(f'no such allocation "{allocation_id}"', code="allocation_missing")
            if is_terminal(found.value):
                return found.modified
            killing = TaskEvent(type="Killing", at_ns=self._clock.now_ns(), message="Volumes are being released")
            stopped = add_event(replace(found.value, wanted="stop", description=killing.message), killing)
            write = Write().put(keys.allocation_key(found.value.id), stopped, revision=found.modified)
            for claim in self._repo.view.claims.of_allocation(found.value.id):
                if claim.value.wanted == "held":
                    released = replace(claim.value, wanted="released", progress=Progress())
                    write.put(keys.claim_key(claim.value.id), released, revision=claim.modified)
            return await self._repo.commit(write)

        text = f'allocation "{allocation_id}" keeps changing; try again'
        return await decide_again(decide, text, tries_max=TRIES_MAX_CROWDED)


def _check_takes_uses(node: Node) -> Node:
    if node.status != "ready":
        raise Conflict(
            f'node "{node.id}" is {node.status}: no use can start there', code="node_not_ready", node=node.id
        )
    if node.wanted != "active":
        undo = f"`moorage node drain -disable {node.id}` ends that"
        text = f'node "{node.id}" is {node.wanted}: it takes no new uses; {undo}'
        raise Conflict(text, code="node_closed", node=node.id)
    return node


def _claims_in(write: Write) -> list[Claim]:
    return [c for c in write.records.values() if isinstance(c, Claim)]
