"""Use cases for volumes: register, create, update, expand (``removals`` has the rest).

Each is a guarded write of intent, then a wait for what the reconciler makes of it. All volumes of a request are
checked before anything is written or any driver is called for one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import anyio
import msgspec

from moorage.engine.checks import Checks, Written, still_trying
from moorage.engine.ports import Clock, EngineSettings
from moorage.engine.reads import Reads
from moorage.engine.retrying import decide_again
from moorage.errors import Conflict, MoorageError, NotFound, Rejected, StateConflict, Unavailable
from moorage.model.ids import PluginId
from moorage.model.steps import ControllerStep
from moorage.model.volume import Fault, Progress, Volume
from moorage.rules.backoff import find_lasting
from moorage.rules.explanations import check_step, explain
from moorage.rules.plugins import Health, find_controller_info
from moorage.rules.registration import is_growth_asked, join_errors, plan_growth, prepare_new
from moorage.rules.volumes import Remove, Rest, is_given_up, is_told_failed, next_step
from moorage.state import keys
from moorage.state.feed import Change
from moorage.state.repo import Repo, Write
from moorage.state.store import TXN_OPS_MAX
from moorage.state.view import Record

replace = msgspec.structs.replace
WARNINGS_MAX = 4
_GONE = Fault(method="", status="", message="the volume was removed", final=True)


class Registrations:
    """Register, create, update, expand."""

    def __init__(self, repo: Repo, reads: Reads, checks: Checks, *, clock: Clock, settings: EngineSettings) -> None:
        self._repo = repo
        self._reads = reads
        self._checks = checks
        self._clock = clock
        self._settings = settings

    # -- register ----------------------------------------------------------------------------------------------------

    async def register(self, volumes: Sequence[Volume]) -> Written:
        """Register volumes that exist at their drivers, or update registered ones; all or none. More than a store takes
        in one transaction, some 128, are written in several: cut off in between, the first ones stay.

        Raises Rejected and its kinds with the recorded texts, Unavailable.
        """
        return await decide_again(
            lambda: self._try_register(volumes), "the volumes keep changing while they are registered; try again"
        )

    async def _try_register(self, volumes: Sequence[Volume]) -> Written:
        self._checks.check_request(volumes)
        stored: list[tuple[Volume, Record[Volume] | None]] = []
        # A batch is nearly always of one plugin, which is looked at once.
        healths: dict[PluginId, Health] = {}
        for sent in volumes:
            health = healths.get(sent.plugin_id)
            if health is None:
                self._checks.find_working_plugin(sent)
                health = healths[sent.plugin_id] = self._checks.health(sent.plugin_id)
            old = self._checks.find_stored(sent)
            if old is not None:
                merged = self._checks.merge(old, sent, prefix="unable to update volume: ")
                stored.append((merged, old))
            else:
                stored.append((self._prepare_registered(sent, health), None))
        for sent, (_, old) in zip(volumes, stored, strict=True):
            if old is not None:
                self._plan_growth(old.value, sent, prefix="unable to update volume: ")
        await self._checks.validate_all([volume for volume, _ in stored])
        self._checks.check_namespaces(volumes)
        for index, (sent, (volume, old)) in enumerate(zip(volumes, stored, strict=True)):
            if old is not None:
                grown = await self._grow(old, sent, prefix="unable to update volume: ")
                stored[index] = (_with_growth(volume, grown.value, sent), grown)
        warnings = self._warn_doubles([volume for volume, old in stored if old is None])
        revision = await self._write(stored)
        return self._checks.answer([volume for volume, _ in stored], revision, warnings)

    async def _write(self, stored: Sequence[tuple[Volume, Record[Volume] | None]]) -> int:
        """Put volumes on record, each with its record before. Returns the last revision."""
        if len(stored) <= TXN_OPS_MAX:
            write = Write()
            for volume, old in stored:
                key = keys.volume_key(volume.namespace, volume.id)
                self._checks.expect_namespace(write, volume)
                # The version before: a record that is new has none, one that is to be removed may be written over.
                write.put(key, volume, revision=old.modified if old else self._checks.revision_of(key))
            self._serialize_with_deletions(write, [volume for volume, old in stored if old is None])
            if not write.is_too_long:
                return await self._repo.commit(write)
        # One volume alone is never too much. What the first half changes of the second is found when that is committed,
        # and then all is decided again: by then the first half is on record as it was sent.
        middle = len(stored) // 2
        await self._write(stored[:middle])
        return await self._write(stored[middle:])

    def _prepare_registered(self, sent: Volume, health: Health) -> Volume:
        volume = prepare_new(_with_provider(sent, health), now_ns=self._clock.now_ns())
        return replace(volume, state="ready", wanted="present", external_id=volume.external_id or volume.id)

    def _serialize_with_deletions(self, write: Write, volumes: Sequence[Volume]) -> None:
        """No new record of a disk that is being deleted, and no deletion of one that just got another record.

        A deletion is refused while there are two records, so only the one record of a disk has to be touched.
        """
        for volume in volumes:
            others = self._repo.view.volumes.count_disk(volume.plugin_id, volume.external_id)
            if others.leaving:
                text = f'external ID "{volume.external_id}" of volume "{volume.id}" is being deleted'
                raise Conflict(text, code="busy", volume=volume.id)
            if others.count == 1:
                key = next(others.keys())
                other = self._repo.view.volumes.find(key)
                if other is not None and key not in write.ops:
                    write.put(key, other.value, revision=other.modified)

    def _warn_doubles(self, volumes: Sequence[Volume]) -> str:
        """What is odd about a register: a disk with a record already. Bounded: it goes into a header."""
        view = self._repo.view
        texts: list[str] = []
        for volume in volumes:
            others = view.volumes.count_disk(volume.plugin_id, volume.external_id)
            if others.count and len(texts) < WARNINGS_MAX:
                named = view.volumes.find(next(iter(others.by_namespace.get(volume.namespace, ())), ""))
                first = f'"{named.value.id}"' if named is not None else "a volume of another namespace"
                more = f" and {others.count - 1} more" if others.count > 1 else ""
                texts.append(
                    f'external ID "{volume.external_id}" of volume "{volume.id}" is registered already as '
                    f"{first}{more}: claims on all records of that disk are admitted together"
                )
        return "; ".join(texts)

    # -- create ------------------------------------------------------------------------------------------------------

    async def create(self, volumes: Sequence[Volume]) -> Written:
        """Create volumes at their drivers; one that is registered already is updated.

        All are checked first. Raises Rejected with the failures of all, in the recorded form; what was created stays.
        """
        self._checks.check_request(volumes)
        for volume in volumes:
            self._checks.check_can_create(volume, self._checks.find_working_plugin(volume))
        self._check_targets(volumes)
        results: list[Volume | None] = [None] * len(volumes)
        failures: dict[int, MoorageError] = {}

        async def make(index: int, volume: Volume) -> None:
            try:
                results[index] = await self._create_one(volume)
            except MoorageError as error:
                failures[index] = error

        if len(volumes) == 1:
            await make(0, volumes[0])
        else:
            async with anyio.create_task_group() as group:
                for index, volume in enumerate(volumes):
                    group.start_soon(make, index, volume)
        if failures:
            raise _join_failures([failures[i] for i in sorted(failures)])
        return self._checks.answer([v for v in results if v is not None], self._reads.volumes_index, "")

    def _check_targets(self, volumes: Sequence[Volume]) -> None:
        """Namespaces exist, and a volume that comes twice is the same; refusals have the form of a failed create."""
        try:
            self._checks.check_namespaces(volumes)
        except NotFound as error:
            raise NotFound(join_errors([error.message]), code=error.code, **error.fields) from error
        seen: dict[tuple[str, str], Volume] = {}
        for volume in volumes:
            if seen.setdefault(volume.key, volume) != volume:
                raise Conflict(join_errors([f"volume identity cannot be updated: {volume.id}"]), code="double")

    async def _create_one(self, sent: Volume) -> Volume:
        async def decide() -> Volume:
            old = self._checks.find_stored(sent)
            return await (self._make_new(sent) if old is None else self._update_created(old, sent))

        return await decide_again(decide, f'volume "{sent.id}" keeps changing while it is created; try again')

    async def _make_new(self, sent: Volume) -> Volume:
        with_provider = _with_provider(sent, self._checks.health(sent.plugin_id))
        volume = prepare_new(with_provider, now_ns=self._clock.now_ns())
        volume = replace(volume, state="absent", wanted="present", external_id="", topologies=())
        refused = check_step(_step_of(volume))
        if refused is not None:
            raise Rejected(explain(_step_of(volume), refused), code="driver_refused", volume=volume.id)
        key = keys.volume_key(volume.namespace, volume.id)
        under_way = self._repo.view.volumes.find(key)
        if under_way is not None and not _may_replace(under_way.value, volume):
            return await self._join_creation(key, under_way.value, volume)
        return await self._wait_ready(key, volume, revision=under_way.modified if under_way else 0)

    async def _join_creation(self, key: str, under_way: Volume, volume: Volume) -> Volume:
        """The same volume is being created by an earlier request: wait with it, if it asks for the same."""
        if under_way.wanted == "absent" or next_step(under_way) != next_step(volume):
            raise Conflict(f'volume "{volume.id}" is being created or deleted by another request', code="busy")
        return await self._wait_ready(key, volume, revision=None)

    async def _wait_ready(self, key: str, volume: Volume, *, revision: int | None) -> Volume:
        def settled(change: Change) -> Volume | Fault | None:
            after = change.after
            if not isinstance(after, Volume):
                return Fault(method="", status="", message="the volume was removed", final=True)
            if after.wanted == "absent":
                # Final for the caller, also where what may be left is still looked for.
                return replace(after.progress.last_fault or _GONE, final=True)
            return after if after.state == "ready" else find_lasting(after.progress)

        with self._repo.feed.signals.listen((key,), settled) as listening:
            if revision is not None:
                write = Write().put(key, volume, revision=revision)
                self._checks.expect_namespace(write, volume)
                await self._repo.commit(write)
            result = await listening.result(timeout_s=self._settings.request_s)
        if result is None:
            raise self._checks.too_late(key, "is not created yet")
        if isinstance(result, Fault) and result.final:
            raise Rejected(explain(_step_of(volume), result), code="driver_refused", volume=volume.id)
        if isinstance(result, Fault):
            raise still_trying(explain(_step_of(volume), result), f'delete volume "{volume.id}" to give up')
        return cast(Volume, result)

    async def _update_created(self, old: Record[Volume], sent: Volume) -> Volume:
        merged = self._checks.merge(old, sent, prefix="")
        self._plan_growth(old.value, sent, prefix="")
        grown = await self._grow(old, sent, prefix="")
        volume = _with_growth(merged, grown.value, sent)
        key = keys.volume_key(volume.namespace, volume.id)
        await self._repo.commit(Write().put(key, volume, revision=grown.modified))
        return volume

    # -- growth ------------------------------------------------------------------------------------------------------

    def _plan_growth(self, old: Volume, sent: Volume, *, prefix: str) -> tuple[int, int] | None:
        plugin = self._repo.view.find_plugin(old.plugin_id)
        info = find_controller_info(plugin.value if plugin else None)
        try:
            return plan_growth(old, sent, supports_expand=info is not None and info.supports_expand)
        except Rejected as error:
            raise Rejected(prefix + error.message, code=error.code, volume=old.id) from error

    async def _grow(self, old: Record[Volume], sent: Volume, *, prefix: str) -> Record[Volume]:
        """Have the driver expand the volume if the new bounds ask for it; returns the record after it."""
        bounds = self._plan_growth(old.value, sent, prefix=prefix)
        if bounds is None:
            return old
        key = keys.volume_key(old.value.namespace, old.value.id)
        intent = replace(old.value, expand_min_bytes=bounds[0], expand_max_bytes=bounds[1], progress=Progress())

        def settled(change: Change) -> Volume | None:
            after = change.after
            if isinstance(after, Volume):
                is_settled = not (after.expand_min_bytes or after.expand_max_bytes)
                return after if is_settled or find_lasting(after.progress) else None
            return replace(old.value, progress=Progress(last_fault=_GONE))

        with self._repo.feed.signals.listen((key,), settled) as listening:
            await self._repo.commit(Write().put(key, intent, revision=old.modified))
            after = await listening.result(timeout_s=self._settings.request_s)
        if after is None:
            raise self._checks.too_late(key, "is not expanded yet")
        fault = after.progress.last_fault
        if fault is not None:
            text = explain(_step_of(intent), fault)
            if not fault.final:
                raise still_trying(f"{prefix}unable to expand volume: {text}", "")
            raise Rejected(f"{prefix}unable to expand volume: {text}", code="driver_refused", volume=after.id)
        found = self._repo.view.volumes.find(key)
        if found is None:
            raise StateConflict("the volume was removed", key=key)
        return found


def _with_provider(volume: Volume, health: Health) -> Volume:
    return replace(
        volume,
        provider=health.provider,
        provider_version=health.provider_version,
        controller_required=health.is_controller_required,
    )


def _may_replace(under_way: Volume, volume: Volume) -> bool:
    """Whether a create may take the record of one that was told to have failed. Of the same name it also takes on what
    that one may have left at the driver."""
    is_same_name = (under_way.plugin_id, under_way.name) == (volume.plugin_id, volume.name)
    return is_given_up(under_way) or (is_told_failed(under_way) and is_same_name)


def _join_failures(failures: Sequence[MoorageError]) -> MoorageError:
    """All failures as one, in the recorded form and the order of the request.

    It is of the kind that asking again may cure, if one of them is.
    """
    text = join_errors([error.message for error in failures])
    for error in failures:
        if isinstance(error, Unavailable):
            return Unavailable(text, code=error.code, retry_after_s=error.retry_after_s, **error.fields)
    first = failures[0]
    return type(first)(text, code=first.code, **first.fields) if isinstance(first, Rejected) else Rejected(text)


def _with_growth(merged: Volume, grown: Volume, sent: Volume) -> Volume:
    """The merged record with the size that growth made of it, and with the bounds that were asked for."""
    bounds = (
        (sent.requested_min_bytes, sent.requested_max_bytes)
        if is_growth_asked(grown, sent)
        else (grown.requested_min_bytes, grown.requested_max_bytes)
    )
    return replace(
        merged,
        capacity_bytes=grown.capacity_bytes,
        node_expansion_bytes=grown.node_expansion_bytes,
        requested_min_bytes=bounds[0],
        requested_max_bytes=bounds[1],
        progress=grown.progress,
    )


def _step_of(volume: Volume) -> ControllerStep:
    """The call that the record asks for next; there is one, since the caller has just written that intent."""
    decision = next_step(volume)
    assert not isinstance(decision, (Rest, Remove))
    return decision
