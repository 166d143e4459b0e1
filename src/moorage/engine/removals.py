"""Use cases that end things: deregister, delete, detach."""

from __future__ import annotations

from typing import cast

import msgspec

from moorage.engine.checks import Checks, still_trying
from moorage.engine.ports import Chance, Clock, EngineSettings
from moorage.engine.reads import Reads, VolumeRead
from moorage.engine.retrying import decide_again
from moorage.errors import Conflict, NotFound, Rejected, StateConflict
from moorage.model.ids import ClaimId
from moorage.model.steps import DeleteVolume
from moorage.model.volume import Fault, Progress, Secrets, Volume
from moorage.rules.allocations import is_terminal
from moorage.rules.backoff import find_lasting
from moorage.rules.claims import make_leak
from moorage.rules.explanations import check_step, explain
from moorage.rules.nodes import check_holds_nothing
from moorage.rules.plugins import find_controller_info
from moorage.state import keys
from moorage.state.feed import Change
from moorage.state.repo import Repo, Write
from moorage.state.view import Record

replace = msgspec.structs.replace


class Removals:
    """Deregister, delete, detach."""

    def __init__(
        self, repo: Repo, reads: Reads, checks: Checks, settings: EngineSettings, *, clock: Clock, chance: Chance
    ) -> None:
        self._repo = repo
        self._reads = reads
        self._checks = checks
        self._settings = settings
        self._clock = clock
        self._chance = chance

    async def deregister(self, namespace: str, volume_id: str, *, force: bool) -> int:
        """Remove the record only; the driver is not called. Returns the revision.

        Forced: claims of ended allocations are dropped with it. Raises NotFound, Conflict (in use).
        """

        async def decide() -> int:
            read = self._checks.get_volume(namespace, volume_id)
            if read.claims and not (force and self._checks.are_all_ended(read)):
                raise self._checks.in_use(read)
            write = Write()
            for claim in self._repo.view.claims.of_volume(*read.record.value.key):
                write.delete(keys.claim_key(claim.value.id), revision=claim.modified)
            write.delete(keys.volume_key(*read.record.value.key), revision=read.record.modified)
            return await self._repo.commit_parts(write)

        return await decide_again(decide, _restless(volume_id))

    async def delete(self, namespace: str, volume_id: str, *, secrets: Secrets) -> int:
        """Delete the volume at its driver, then its record. Claims are checked before the driver is called (F1).

        Raises NotFound, Conflict (in use), Rejected (what the driver said), DeadlineExceeded.
        """
        if await self._give_up_creation(namespace, volume_id):
            return self._reads.volumes_index
        read = self._checks.get_volume(namespace, volume_id)
        volume = read.record.value
        self._check_can_delete(read)
        key = keys.volume_key(*volume.key)
        intent = replace(volume, wanted="absent", delete_secrets=secrets, progress=Progress())
        step = DeleteVolume(external_id=volume.external_id)
        refused = check_step(step)
        if refused is not None:
            raise Rejected(explain(step, refused), code="driver_refused", volume=volume_id)

        def settled(change: Change) -> Fault | int | None:
            after = change.after
            if not isinstance(after, Volume):
                return change.revision
            return after.progress.last_fault if after.wanted == "present" else find_lasting(after.progress)

        with self._repo.feed.signals.listen((key,), settled) as listening:
            try:
                if volume.wanted == "present":
                    await self._repo.commit(Write().put(key, intent, revision=read.record.modified))
            except StateConflict:
                return await self.delete(namespace, volume_id, secrets=secrets)
            result = await listening.result(timeout_s=self._settings.request_s)
        if result is None:
            raise self._checks.too_late(key, "is not deleted yet")
        if isinstance(result, Fault) and not result.final:
            raise still_trying(explain(step, result), "")
        if isinstance(result, Fault):
            raise Rejected(explain(step, result), code="driver_refused", volume=volume_id)
        return cast(int, result)

    async def _give_up_creation(self, namespace: str, volume_id: str) -> bool:
        """Turn a create that is still being tried into its undoing, and wait until nothing is left of it.

        What the driver may have made is learned by asking it once more under the same name, then deleted.
        """

        async def decide() -> bool:
            found = self._repo.view.volumes.get(namespace, volume_id)
            if found is None or found.value.state == "ready":
                return False
            return await self._undo_creation(found)

        return await decide_again(decide, _restless(volume_id))

    async def _undo_creation(self, found: Record[Volume]) -> bool:
        key = keys.volume_key(*found.value.key)

        def gone(change: Change) -> Fault | bool | None:
            if not isinstance(change.after, Volume):
                return True
            return find_lasting(change.after.progress)

        with self._repo.feed.signals.listen((key,), gone) as listening:
            if found.value.wanted == "present":
                undo = replace(found.value, wanted="absent", progress=Progress())
                await self._repo.commit(Write().put(key, undo, revision=found.modified))
            result = await listening.result(timeout_s=self._settings.request_s)
        if result is None:
            raise self._checks.too_late(key, "is not deleted yet")
        if isinstance(result, Fault):
            raise still_trying(f"{result.method}: {result.status} {result.message}", "")
        return True

    def _others_of_disk(self, volume: Volume) -> list[Record[Volume]]:
        found = self._repo.view.volumes.of_disk(volume.plugin_id, volume.external_id)
        return [r for r in found if r.value.key != volume.key]

    def _check_can_delete(self, read: VolumeRead) -> None:
        volume = read.record.value
        same_disk = self._repo.view.claims.of_disk(volume.plugin_id, volume.external_id)
        if read.claims or same_disk:
            raise self._checks.in_use(read)
        others = [r.value for r in self._others_of_disk(volume)]
        if others:
            named = [other.id for other in others if other.namespace == volume.namespace]
            other = f'"{named[0]}"' if named else "a volume of another namespace"
            text = (
                f'volume "{volume.id}" and {other} are records of one disk: deleting it would take the data of '
                f"both; deregister the records that should go first"
            )
            raise Conflict(text, code="shared_disk", volume=volume.id, other=named[0] if named else "")
        plugin = self._repo.view.find_plugin(volume.plugin_id)
        if plugin is None:
            raise NotFound(f"plugin not found: {volume.plugin_id}", code="plugin_missing", volume=volume.id)
        if find_controller_info(plugin.value) is None:
            text = f'plugin "{volume.plugin_id}" for volume "{volume.id}" not found'
            raise NotFound(text, code="plugin_missing", volume=volume.id)

    async def detach(self, namespace: str, volume_id: str, node_id: str) -> int:
        """Free what is left of the volume on a node: claims of ended allocations are released and waited for; where no
        claim is on record, an attachment that may have leaked is undone.

        Raises NotFound (``no such volume``), Conflict (a live allocation there uses it, or something may still be
        mounted there), DeadlineExceeded.
        """
        read = self._reads.find_volume(namespace, volume_id)
        if read is None:
            raise NotFound("no such volume", code="volume_missing", volume=volume_id)
        ended = {r.value.id for r in read.allocations if is_terminal(r.value)}
        there = [c for c in read.claims if c.node_id == node_id]
        if any(c.allocation_id not in ended for c in there):
            raise self._checks.in_use(read)
        names = [keys.claim_key(c.id) for c in there] or await self._take_leak(read.record, node_id)

        def gone(change: Change) -> bool | None:
            left = self._repo.view.claims.of_volume(*read.record.value.key)
            return True if not any(r.value.node_id == node_id for r in left) else None

        if names:
            with self._repo.feed.signals.listen(names, gone) as listening:
                if await listening.result(timeout_s=self._settings.request_s) is None:
                    raise self._checks.too_late(names[0], "is not detached yet")
        return self._reads.volumes_index

    async def _take_leak(self, record: Record[Volume], node_id: str) -> list[str]:
        """Put a claim on record that only waits to be detached, so that its undoing stands in line with all claims of
        the disk, survives a crash and is explained like them. Its store key; empty where there is nothing to undo."""
        volume = record.value
        node, plugin = self._reads.find_node(node_id), self._repo.view.find_plugin(volume.plugin_id)
        info = find_controller_info(plugin.value if plugin else None)
        instance = plugin.value.instances.get(node.value.id) if node and plugin else None
        is_settled = (
            volume.state == "ready" and volume.wanted == "present" and bool(volume.external_id and volume.capabilities)
        )
        if node is None or not is_settled or info is None or not info.supports_attach_detach:
            return []
        holders = [r.value for r in self._repo.view.claims.of_disk(volume.plugin_id, volume.external_id)]
        # The record of another volume of this disk may have a claim there: that one's release detaches it.
        if any(c.node_id == node.value.id for c in holders):
            raise Conflict(
                f'volume "{volume.id}" is used on node "{node_id}" by way of another record of its disk',
                code="shared_disk", volume=volume.id,
            )  # fmt: skip
        check_holds_nothing(node.value)
        if instance is None or instance.node is None or not instance.node.external_id:
            return []
        claim = make_leak(
            volume, node.value.id, holders, claim_id=ClaimId(self._chance.new_id()),
            external_node_id=instance.node.external_id, now_ns=self._clock.now_ns(),
        )  # fmt: skip
        key = keys.claim_key(claim.id)
        write = Write().put(key, claim, revision=0).expect(keys.node_key(node.value.id), node.modified)
        write.put(keys.volume_key(*volume.key), volume, revision=record.modified)
        try:
            await self._repo.commit(write)
        except StateConflict as error:
            raise Conflict(_restless(volume.id), code="busy", volume=volume.id) from error
        return [key]


def _restless(volume_id: str) -> str:
    return f'volume "{volume_id}" keeps changing; try again'
