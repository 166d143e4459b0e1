"""Use cases that ask a driver: external volumes and snapshots."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from moorage.engine.operations import Operations
from moorage.engine.reads import Reads
from moorage.errors import NotFound, Rejected
from moorage.model.ids import PluginId
from moorage.model.plugin import ControllerInfo, Plugin
from moorage.model.snapshot import ExternalVolume, Snapshot
from moorage.model.steps import (
    CreateSnapshot,
    DeleteSnapshot,
    Failed,
    ListSnapshots,
    ListVolumes,
    SnapshotCreated,
    SnapshotsListed,
    VolumesListed,
)
from moorage.model.volume import Secrets
from moorage.rules.driver_pages import cut_page, parse_place
from moorage.rules.explanations import explain
from moorage.rules.operations import make_serial_key
from moorage.rules.plugins import find_controller_info
from moorage.rules.registration import join_errors


class SnapshotRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot to make: of which registered volume, through which plugin (empty: the volume's)."""

    source_volume_id: str = ""
    plugin_id: str = ""
    name: str = ""
    secrets: Secrets = Secrets()
    parameters: dict[str, str] = {}


class SnapshotMade(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot with the names under which it was asked for."""

    snapshot: Snapshot
    request: SnapshotRequest
    plugin_id: PluginId


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A page of what a driver lists; ``next_token`` is empty on the last."""

    volumes: tuple[ExternalVolume, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    next_token: str = ""


class Listings:
    """Asks drivers by way of operations."""

    def __init__(self, reads: Reads, operations: Operations) -> None:
        self._reads = reads
        self._operations = operations

    async def list_external(self, plugin_id: str, *, entries_max: int, starting_token: str) -> Page:
        """The driver's own volumes. Raises NotFound (``no such plugin``), Rejected, DeadlineExceeded."""
        plugin, info = self._find_plugin(plugin_id, "no such plugin")
        if info is None or not info.supports_list_volumes:
            raise Rejected("unimplemented for this plugin", code="unsupported", plugin=plugin_id)
        place = parse_place(starting_token)
        step = ListVolumes(entries_max=entries_max, starting_token=place.token)
        outcome = await self._operations.run(plugin.id, step)
        if isinstance(outcome, VolumesListed):
            token = outcome.next_token
            volumes, token = cut_page(outcome.volumes, place, entries_max=entries_max, next_token=token)
            return Page(volumes=volumes, next_token=token)
        assert isinstance(outcome, Failed)
        raise Rejected(explain(step, outcome.fault), code="driver_refused", plugin=plugin_id)

    async def list_snapshots(self, plugin_id: str, *, entries_max: int, starting_token: str, secrets: Secrets) -> Page:
        """The driver's snapshots. Raises NotFound (``no such plugin``), Rejected, DeadlineExceeded."""
        plugin, info = self._find_plugin(plugin_id, "no such plugin")
        if info is None or not info.supports_list_snapshots:
            raise Rejected("plugin does not support listing snapshots", code="unsupported", plugin=plugin_id)
        place = parse_place(starting_token)
        step = ListSnapshots(entries_max=entries_max, starting_token=place.token, secrets=secrets)
        outcome = await self._operations.run(plugin.id, step)
        if isinstance(outcome, SnapshotsListed):
            token = outcome.next_token
            snapshots, token = cut_page(outcome.snapshots, place, entries_max=entries_max, next_token=token)
            return Page(snapshots=snapshots, next_token=token)
        assert isinstance(outcome, Failed)
        raise Rejected(explain(step, outcome.fault), code="driver_refused", plugin=plugin_id)

    async def create_snapshots(self, namespace: str, requests: Sequence[SnapshotRequest]) -> list[SnapshotMade]:
        """Make snapshots; all requests are checked before the driver is called for any. One that is refused does not
        keep the others from being made. Raises Rejected with the failures of all, in the order of the requests; what
        was made stays."""
        prepared = []
        refusals: dict[int, str] = {}
        for position, request in enumerate(requests):
            try:
                prepared.append((position, *self._prepare(namespace, request)))
            except Rejected as error:
                refusals[position] = error.message
        made: list[SnapshotMade] = []
        for position, request, plugin_id, step, serial_key in prepared:
            outcome = await self._operations.run(plugin_id, step, serial_key=serial_key)
            if isinstance(outcome, SnapshotCreated):
                made.append(SnapshotMade(snapshot=outcome.snapshot, request=request, plugin_id=plugin_id))
            else:
                assert isinstance(outcome, Failed)
                refusals[position] = f"could not create snapshot: {explain(step, outcome.fault)}"
        if refusals:
            raise Rejected(join_errors([refusals[p] for p in sorted(refusals)]), code="snapshot_refused")
        return made

    def _prepare(
        self, namespace: str, request: SnapshotRequest
    ) -> tuple[SnapshotRequest, PluginId, CreateSnapshot, str]:
        read = self._reads.find_volume(namespace, request.source_volume_id)
        if read is None:
            raise NotFound(f'no such volume "{request.source_volume_id}"', code="volume_missing")
        volume = read.record.value
        plugin_id = request.plugin_id or volume.plugin_id
        plugin, info = self._find_plugin(plugin_id, f'no such plugin "{plugin_id}"')
        if info is None or not info.supports_create_delete_snapshot:
            raise Rejected(f'plugin "{plugin_id}" does not support snapshot', code="unsupported", plugin=plugin_id)
        step = CreateSnapshot(
            external_source_id=volume.external_id,
            name=request.name,
            parameters=request.parameters,
            secrets=volume.secrets.overlaid(request.secrets),
        )
        return request, plugin.id, step, make_serial_key(plugin.id, volume.external_id)

    async def delete_snapshot(self, plugin_id: str, snapshot_id: str, *, secrets: Secrets) -> None:
        """Delete a snapshot at its driver; one that is gone is success. Raises Rejected, DeadlineExceeded."""
        try:
            plugin, info = self._find_plugin(plugin_id, "no such plugin")
            if info is None or not info.supports_create_delete_snapshot:
                raise Rejected("plugin does not support snapshot", code="unsupported", plugin=plugin_id)
            step = DeleteSnapshot(snapshot_id=snapshot_id, secrets=secrets)
            outcome = await self._operations.run(plugin.id, step, serial_key=f"snapshot/{plugin.id}/{snapshot_id}")
            if isinstance(outcome, Failed):
                text = f'could not delete "{snapshot_id}": {explain(step, outcome.fault)}'
                raise Rejected(text, code="driver_refused", snapshot=snapshot_id)
        except Rejected as error:
            raise Rejected(join_errors([error.message]), code=error.code, **error.fields) from error

    def _find_plugin(self, plugin_id: str, refusal: str) -> tuple[Plugin, ControllerInfo | None]:
        found = self._reads.find_plugin(plugin_id)
        if found is None:
            raise NotFound(refusal, code="plugin_missing", plugin=plugin_id)
        return found.value, find_controller_info(found.value)
