"""Checks that the volumes' use cases share: look-ups with the recorded refusals, driver validation, answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial

import anyio
import msgspec

from moorage.engine.operations import Operations
from moorage.engine.ports import EngineSettings
from moorage.engine.reads import Reads, VolumeRead
from moorage.engine.sharing import Sharing
from moorage.errors import Conflict, DeadlineExceeded, MoorageError, NotFound, PluginUnavailable, Rejected, Unavailable
from moorage.model.ids import DEFAULT_NAMESPACE, PluginId
from moorage.model.namespace import Namespace
from moorage.model.plugin import Plugin
from moorage.model.steps import Failed, Outcome, ValidateVolume
from moorage.model.volume import Volume
from moorage.rules.allocations import is_terminal
from moorage.rules.explanations import explain
from moorage.rules.operations import make_serial_key
from moorage.rules.plugins import Health, find_controller_info, is_controller_required, measure_health
from moorage.rules.registration import check_volume, merge
from moorage.rules.volumes import is_given_up
from moorage.state import keys
from moorage.state.repo import Repo, Write
from moorage.state.view import Record

VALIDATIONS_AT_ONCE = 32
QUESTIONS_COMPARED = 32


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What a register or create answers: the records as stored, the revision, and warnings for people."""

    volumes: tuple[VolumeRead, ...]
    revision: int
    warnings: str = ""


class Checks:
    """Reads and refuses; writes nothing."""

    def __init__(self, repo: Repo, reads: Reads, operations: Operations, settings: EngineSettings) -> None:
        self._repo = repo
        self._reads = reads
        self._operations = operations
        self._settings = settings
        self._validations: Sharing[Outcome] = Sharing()

    def check_request(self, volumes: Sequence[Volume]) -> None:
        """There is at least one volume, and each one's fields are sound. Raises Rejected."""
        if not volumes:
            raise Rejected("missing volume definition", code="validation")
        for volume in volumes:
            check_volume(volume)

    def check_namespaces(self, volumes: Sequence[Volume]) -> None:
        """Each volume's namespace exists. Raises NotFound with the recorded text."""
        for volume in volumes:
            if volume.namespace != DEFAULT_NAMESPACE:
                self._get_namespace(volume)

    def _get_namespace(self, volume: Volume) -> Record[Namespace]:
        found = self._repo.view.namespaces.find(keys.namespace_key(volume.namespace))
        if found is None:
            raise no_namespace(volume)
        return found

    def expect_namespace(self, write: Write, volume: Volume) -> None:
        """Bind the write of a new volume to its namespace's record, so that none ends up in a namespace that is
        deleted meanwhile: the write takes a deletion's mark away (see ``engine.namespaces``). Raises NotFound."""
        if volume.namespace == DEFAULT_NAMESPACE:
            return
        found = self._get_namespace(volume)
        key = keys.namespace_key(volume.namespace)
        if found.value.is_closing:
            write.put(key, msgspec.structs.replace(found.value, is_closing=False), revision=found.modified)
        else:
            write.expect(key, found.modified)

    def find_working_plugin(self, volume: Volume) -> Plugin:
        """The volume's plugin, with a healthy controller where one is required. Raises NotFound, PluginUnavailable."""
        found = self._repo.view.find_plugin(volume.plugin_id)
        if found is None:
            text = f"no CSI plugin named: {volume.plugin_id} could be found"
            raise NotFound(text, code="plugin_missing", plugin=volume.plugin_id)
        health = measure_health(found.value)
        if health.is_controller_required and not health.controllers_healthy:
            text = f"no healthy controllers for CSI plugin: {volume.plugin_id}"
            raise PluginUnavailable(text, plugin=volume.plugin_id)
        return found.value

    def check_can_create(self, volume: Volume, plugin: Plugin) -> None:
        """The plugin creates volumes, and it can make them from a source if one is named. Raises Rejected."""
        info = find_controller_info(plugin)
        if info is None or not is_controller_required(plugin):
            raise Rejected("plugin has no controller", code="unsupported", plugin=plugin.id)
        if not info.supports_create_delete:
            raise Rejected("plugin does not support creating volumes", code="unsupported", plugin=plugin.id)

    def health(self, plugin_id: PluginId) -> Health:
        """The plugin's health now."""
        found = self._repo.view.find_plugin(plugin_id)
        return measure_health(found.value if found else None)

    def find_stored(self, volume: Volume) -> Record[Volume] | None:
        """The registered volume of the same identity, or None; one that is being created is not registered yet."""
        found = self._repo.view.volumes.get(volume.namespace, volume.id)
        if found is None or found.value.state != "ready":
            return None
        if found.value.wanted == "absent":
            raise Conflict(f'volume "{volume.id}" is being deleted', code="busy", volume=volume.id)
        return found

    def revision_of(self, key: str) -> int:
        """The revision to expect for a record that may be written over: 0, or that of a create that was given up.

        Raises Conflict while a create of the same volume is under way.
        """
        found = self._repo.view.volumes.find(key)
        if found is None:
            return 0
        if not is_given_up(found.value):
            raise Conflict(f'volume "{found.value.id}" is being created', code="busy", volume=found.value.id)
        return found.modified

    def merge(self, old: Record[Volume], sent: Volume, *, prefix: str) -> Volume:
        """The stored volume with what the request may change. Raises Conflict."""
        claims = self._repo.view.claims.of_volume(*old.value.key)
        try:
            return merge(old.value, sent, is_claimed=bool(claims))
        except Conflict as error:
            raise Conflict(prefix + error.message, code=error.code, volume=old.value.id) from error

    async def validate_all(self, volumes: Sequence[Volume]) -> None:
        """Ask the drivers whether they know the volumes and their capabilities; drivers without a controller are not
        asked, and none is asked the same twice. Raises Rejected with the first refusal in the order of the request."""
        asked: list[tuple[int, Volume, ValidateVolume]] = []
        required: dict[str, bool] = {}
        for index, volume in enumerate(volumes):
            is_required = required.get(volume.plugin_id)
            if is_required is None:
                is_required = required[volume.plugin_id] = self.health(volume.plugin_id).is_controller_required
            if is_required:
                step = _validation_of(volume)
                # One disk under many names is registered in batches; few questions are worth comparing with each other.
                if not any(v.plugin_id == volume.plugin_id and s == step for _, v, s in asked[-QUESTIONS_COMPARED:]):
                    asked.append((index, volume, step))
        if len(asked) == 1:
            _, volume, step = asked[0]
            refusal = await self._validate(volume.plugin_id, step)
            if refusal is not None:
                raise Rejected(refusal, code="driver_refused", volume=volume.id)
            return
        refusals: dict[int, MoorageError] = {}
        limiter = anyio.CapacityLimiter(VALIDATIONS_AT_ONCE)

        async def validate(index: int, volume: Volume, step: ValidateVolume) -> None:
            async with limiter:
                try:
                    refusal = await self._validate(volume.plugin_id, step)
                except MoorageError as error:
                    # Out of a task group it would come as a group, which nobody answers to.
                    refusals[index] = error
                    return
                if refusal is not None:
                    refusals[index] = Rejected(refusal, code="driver_refused", volume=volume.id)

        async with anyio.create_task_group() as group:
            for index, volume, step in asked:
                group.start_soon(validate, index, volume, step)
        if refusals:
            raise refusals[min(refusals)]

    async def _validate(self, plugin_id: PluginId, step: ValidateVolume) -> str | None:
        serial = make_serial_key(plugin_id, step.external_id)
        # A question may hold secrets: of what is kept to compare it with others, only a hash is.
        question = hashlib.blake2b(msgspec.json.encode(step)).digest()
        run = partial(self._operations.run, plugin_id, step, serial_key=serial)
        outcome = await self._validations.ask((plugin_id, question), run)
        return explain(step, outcome.fault) if isinstance(outcome, Failed) else None

    def get_volume(self, namespace: str, volume_id: str) -> VolumeRead:
        """The volume for a write. Raises NotFound (``volume not found: <id>``)."""
        read = self._reads.find_volume(namespace, volume_id)
        if read is None or namespace == "*":
            raise NotFound(f"volume not found: {volume_id}", code="volume_missing", volume=volume_id)
        return read

    def in_use(self, read: VolumeRead) -> Conflict:
        """The refusal of what a claim stands against; the text is the recorded one, the fields name the holder."""
        volume = read.record.value
        claims = read.claims or tuple(
            r.value for r in self._repo.view.claims.of_disk(volume.plugin_id, volume.external_id)
        )
        holder = claims[0]
        return Conflict(
            f"volume in use: {volume.id}",
            code="volume_in_use",
            volume=volume.id,
            allocation=holder.allocation_id,
            node=holder.node_id,
            since_ns=str(holder.created_at_ns),
        )

    def are_all_ended(self, read: VolumeRead) -> bool:
        """Whether every allocation that holds the volume has ended or is gone."""
        ended = {r.value.id for r in read.allocations if is_terminal(r.value)}
        known = {r.value.id for r in read.allocations}
        return all(c.allocation_id in ended or c.allocation_id not in known for c in read.claims)

    def too_late(self, key: str, what: str) -> DeadlineExceeded:
        """The answer when the deadline has passed: the intent is on record, and what the last try said."""
        found = self._repo.view.tables_by_prefix[keys.table_of(key)].find(key)
        record = found.value if found is not None else None
        fault = record.progress.last_fault if record is not None else None
        last = f"; the last try of {fault.method} failed: {fault.status} {fault.message}" if fault else ""
        name = getattr(record, "volume_id", None) or getattr(record, "id", key)
        return DeadlineExceeded(
            f'volume "{name}" {what} after {self._settings.request_s:.0f} s{last}; '
            "the request is on record and work goes on: asking again is safe"
        )

    def answer(self, volumes: Sequence[Volume], revision: int, warnings: str = "") -> Written:
        """The volumes as they are on record now."""
        reads = []
        for volume in volumes:
            found = self._repo.view.volumes.get(volume.namespace, volume.id)
            zero = type(self._repo.view.revision)(0)
            reads.append(self._reads.join(found or Record(volume, zero, zero), with_allocations=True))
        return Written(volumes=tuple(reads), revision=revision, warnings=warnings)


def _validation_of(volume: Volume) -> ValidateVolume:
    return ValidateVolume(
        external_id=volume.external_id or volume.id,
        capabilities=volume.capabilities or (),
        context=volume.context,
        parameters=volume.parameters,
        secrets=volume.secrets,
    )


def no_namespace(volume: Volume) -> NotFound:
    """The refusal of a volume whose namespace is not there; the text is the recorded one."""
    text = f"volume {volume.id} is in nonexistent namespace {volume.namespace}"
    return NotFound(text, code="namespace_missing", volume=volume.id, namespace=volume.namespace)


def still_trying(text: str, advice: str) -> Unavailable:
    """The answer for a step that fails and is tried on."""
    more = f"; {advice}" if advice else ""
    return Unavailable(
        f"{text}; the request is on record and is tried on: asking again is safe{more}", code="still_trying"
    )
