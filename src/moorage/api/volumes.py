"""Handlers of the volumes page, and the blocking query that all reads share."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from moorage.api import answers
from moorage.api.bodies import (
    CapabilityBody,
    MountOptionsBody,
    SnapshotBody,
    SnapshotsBody,
    TopologyBody,
    TopologyRequestBody,
    VolumeBody,
    VolumesBody,
    decode,
)
from moorage.api.http import NO_TABLE, Answer, Hold, Meta, Request, empty_answer, json_answer, raw_answer, text_answer
from moorage.api.params import (
    ReadOptions,
    check_region,
    parse_bool,
    parse_namespace,
    parse_read,
    parse_secrets,
    read_secrets,
)
from moorage.api.timing import waiting
from moorage.engine.checks import Written, no_namespace
from moorage.engine.listings import SnapshotRequest
from moorage.engine.reads import VOLUMES_TOPICS
from moorage.engine.service import Service
from moorage.errors import BadRequest, MoorageError, Rejected
from moorage.model.ids import ALL_NAMESPACES, NamespaceName, PluginId, VolumeId
from moorage.model.volume import Capability, MountOptions, Topology, TopologyRequest, Volume
from moorage.rules import authorize
from moorage.rules.authorize import Access, demand, refuse

JITTER_FRACTION = 16
WARNINGS = "X-Moorage-Warnings"


async def wait_for_change(
    service: Service, options: ReadOptions, topics: Iterable[str], index_of: Callable[[], int]
) -> None:
    """Hold a read back until something under it is newer than the index it names. Source: contract §1.7."""
    above, waited = options.index, options.waited
    if not above or (waited is not None and waited.left_s is None):
        return
    least_s = wait_s = options.wait_s
    if waited is None:
        wait_s *= 1 + service.chance.jitter() / JITTER_FRACTION
    else:
        # What it waits for has not changed so far, whatever else has.
        above, wait_s = max(above, index_of()), waited.left_s or 0.0
    if options.is_asking:
        is_due = index_of() > above
        await Hold(topics=tuple(topics), above=above, least_s=least_s, most_s=wait_s, is_due=is_due)
    with waiting():
        await service.reads.wait(topics, index_of, above=above, timeout_s=wait_s)


# -- reads -----------------------------------------------------------------------------------------------------------


async def read_volume(service: Service, request: Request, volume_id: str) -> Answer:
    """GET /v1/volume/csi/:id."""
    options = parse_read(request)
    if not volume_id:
        return text_answer(500, "missing volume ID")
    reads = service.reads

    def index() -> int:
        return reads.volumes_index

    topics: tuple[str, ...] = VOLUMES_TOPICS
    is_seen = request.access.chooser(authorize.READ)
    is_named = options.index and options.namespace != ALL_NAMESPACES
    if is_named and reads.find_volume(options.namespace, volume_id) is not None:
        topics = service.reads.topics_of_volume(options.namespace, volume_id)
    await wait_for_change(service, options, topics, index)
    meta = Meta(index=reads.volumes_index)
    if options.namespace == ALL_NAMESPACES:
        named = reads.find_volume(options.namespace, volume_id, is_seen=is_seen)
        body = service.shelf.find_whole(*named.record.value.key) if named is not None else None
    else:
        body = service.shelf.find_whole(options.namespace, volume_id)
    if body is None:
        return text_answer(404, "volume not found", meta)
    return raw_answer(request, body, meta)


# -- writes ----------------------------------------------------------------------------------------------------------


async def register(service: Service, request: Request, volume_id: str = "") -> Answer:
    """PUT or POST /v1/volumes and PUT /v1/volume/csi/:id."""
    written = await service.registrations.register(_parse_volumes(service, request))
    return _written(request, written)


async def create(service: Service, request: Request, volume_id: str) -> Answer:
    """PUT /v1/volume/csi/:id/create."""
    written = await service.registrations.create(_parse_volumes(service, request))
    return _written(request, written)


def _written(request: Request, written: Written) -> Answer:
    volumes = [answers.volume(v) for v in written.volumes]
    body = answers.enveloped(written.revision, Volumes=volumes, Warnings="")
    # A header, because the recorded answer's member is empty here and clients compare it (decision 0002).
    headers = {WARNINGS: written.warnings} if written.warnings else {}
    return json_answer(request, body, Meta(index=written.revision), **headers)


def _parse_volumes(service: Service, request: Request) -> list[Volume]:
    body = decode(VolumesBody, request.body)
    namespace = _find_namespace(request, body)
    # The path's ID is not looked at: the recorded server never compares it with the body's.
    volumes = [_volume(v, namespace) for v in body.volumes or []]
    if not request.access.is_full:
        for volume in volumes:
            _demand_write(service, request.access, volume)
    return volumes


def _demand_write(service: Service, access: Access, volume: Volume) -> None:
    """The caller may write the volume in its namespace, and take the disks that it names. Raises Forbidden.

    A disk that is registered belongs to its namespaces: to register it once more takes the right to write in all of
    them, to copy it the right to read in one. Else a token for one namespace would reach the data of another.
    """
    if not access.may_write(volume.namespace):
        raise _refuse_namespace(access, volume)
    known = service.reads.find_volume(volume.namespace, volume.id)
    if volume.external_id and (known is None or known.record.value.external_id != volume.external_id):
        held = service.reads.list_namespaces_of_disk(volume.plugin_id, volume.external_id)
        demand(all(access.may_write(namespace) for namespace in held))
    if volume.clone_id:
        _demand_copy(service, access, volume.plugin_id, volume.clone_id)


def _refuse_namespace(access: Access, volume: Volume) -> MoorageError:
    """Why the caller may not write there. To who writes elsewhere, a namespace in which it holds nothing is not there,
    whether it exists or not: a writer learns no names of others by trying. Strict: 403, as recorded."""
    is_seen = access.may(volume.namespace, authorize.ANYTHING)
    if access.is_strict or is_seen or not access.may(ALL_NAMESPACES, authorize.WRITE):
        return refuse()
    return no_namespace(volume)


def _find_namespace(request: Request, body: VolumesBody | SnapshotsBody) -> str:
    """The namespace of a write: the query's, else the body's; so with the region, which must be ours.

    Source: contract §1.4.
    """
    namespace = parse_namespace(request)
    if not request.query.get("region"):
        check_region({"region": body.region})
    return namespace if request.query.get("namespace") else body.namespace or namespace


def _volume(body: VolumeBody, namespace: str) -> Volume:
    topologies = [t for t in body.topologies or [] if t.segments]
    return Volume(
        id=VolumeId(body.id),
        namespace=NamespaceName(body.namespace or namespace),
        plugin_id=PluginId(body.plugin_id),
        name=body.name,
        external_id=body.external_id,
        snapshot_id=body.snapshot_id,
        clone_id=body.clone_id,
        requested_min_bytes=body.requested_min,
        requested_max_bytes=body.requested_max,
        capabilities=_capabilities(body.capabilities),
        mount_options=mount_options(body.mount_options),
        requested_topologies=_topology_request(body.requested_topologies),
        topologies=tuple(_topology(t) for t in topologies),
        secrets=read_secrets(body.secrets or {}),
        parameters=body.parameters or {},
        context=body.context or {},
        shown_access_mode=body.access_mode,
        shown_attachment_mode=body.attachment_mode,
    )


def _capabilities(bodies: list[CapabilityBody] | None) -> tuple[Capability, ...] | None:
    if bodies is None:
        return None
    return tuple(Capability(access_mode=b.access_mode, attachment_mode=b.attachment_mode) for b in bodies)


def mount_options(body: MountOptionsBody | None) -> MountOptions | None:
    """Mount options from a body; none given is None."""
    if body is None:
        return None
    flags = None if body.mount_flags is None else tuple(body.mount_flags)
    return MountOptions(fs_type=body.fs_type, mount_flags=flags)


def _topology(body: TopologyBody) -> Topology:
    return Topology(segments=body.segments or {})


def _topology_request(body: TopologyRequestBody | None) -> TopologyRequest | None:
    """A side that was not given stays None; nothing given at all is no request (Terraform compares it)."""
    if body is None or (body.required is None and body.preferred is None):
        return None
    return TopologyRequest(
        required=None if body.required is None else tuple(_topology(t) for t in body.required),
        preferred=None if body.preferred is None else tuple(_topology(t) for t in body.preferred),
    )


async def deregister(service: Service, request: Request, volume_id: str) -> Answer:
    """DELETE /v1/volume/csi/:id."""
    force = request.query.get("force", "")
    is_forced = parse_bool(force) if force else False
    if is_forced is None:
        raise BadRequest("invalid force value")
    revision = await service.removals.deregister(parse_namespace(request), volume_id, force=is_forced)
    return empty_answer(Meta(index=revision))


async def delete(service: Service, request: Request, volume_id: str) -> Answer:
    """DELETE /v1/volume/csi/:id/delete."""
    secrets = read_secrets(parse_secrets(request))
    revision = await service.removals.delete(parse_namespace(request), volume_id, secrets=secrets)
    return empty_answer(Meta(index=revision))


async def detach(service: Service, request: Request, volume_id: str) -> Answer:
    """DELETE /v1/volume/csi/:id/detach."""
    node_id = request.query.get("node", "")
    if not node_id:
        raise BadRequest("detach requires node ID")
    revision = await service.removals.detach(parse_namespace(request), volume_id, node_id)
    return empty_answer(Meta(index=revision))


# -- what drivers list -----------------------------------------------------------------------------------------------


async def list_external(service: Service, request: Request) -> Answer:
    """GET /v1/volumes/external."""
    options = parse_read(request)
    plugin_id = request.query.get("plugin_id", "")
    page = await service.listings.list_external(
        plugin_id, entries_max=options.per_page, starting_token=options.next_token
    )
    is_seen = _disk_chooser(service, request, plugin_id)
    volumes = [answers.external_volume(v) for v in page.volumes if is_seen(v.external_id)]
    body = answers.enveloped(0, is_leader_known=False, next_token=page.next_token, Volumes=volumes)
    return json_answer(request, body, NO_TABLE)


def _disk_chooser(service: Service, request: Request, plugin_id: str) -> Callable[[str], bool]:
    """Whether a driver's volume may be shown, by its external ID: not when it is registered, and only in namespaces
    whose volumes the caller may not list."""
    access = request.access
    is_listed = access.chooser(authorize.LIST if access.is_strict else authorize.LIST_EXTERNAL)

    def choose(external_id: str) -> bool:
        if access.is_full:
            return True
        held = service.reads.list_namespaces_of_disk(plugin_id, external_id)
        return not held or any(is_listed(namespace) for namespace in held)

    return choose


async def list_snapshots(service: Service, request: Request) -> Answer:
    """GET /v1/volumes/snapshot."""
    options = parse_read(request)
    plugin_id = request.query.get("plugin_id", "")
    page = await service.listings.list_snapshots(
        plugin_id,
        entries_max=options.per_page,
        starting_token=options.next_token,
        secrets=read_secrets(parse_secrets(request)),
    )
    is_seen = _disk_chooser(service, request, plugin_id)
    snapshots = [answers.snapshot(s, plugin_id=plugin_id) for s in page.snapshots if is_seen(s.external_source_id)]
    body = answers.enveloped(0, is_leader_known=False, next_token=page.next_token, Snapshots=snapshots)
    return json_answer(request, body, NO_TABLE)


async def create_snapshots(service: Service, request: Request, source_volume_id: str = "") -> Answer:
    """PUT or POST /v1/volumes/snapshot, and both forms that the documentation shows with a volume ID in the path."""
    body = decode(SnapshotsBody, request.body)
    namespace = _find_namespace(request, body)
    demand(request.access.may_write(namespace))
    asked = [_snapshot_request(s, source_volume_id) for s in body.snapshots or []]
    for one in asked:
        _demand_source(service, request.access, namespace, one)
    made = await service.listings.create_snapshots(namespace, asked)
    snapshots = [answers.snapshot_made(m) for m in made] or None
    return json_answer(request, answers.enveloped(0, is_leader_known=False, Snapshots=snapshots), NO_TABLE)


def _demand_source(service: Service, access: Access, namespace: str, asked: SnapshotRequest) -> None:
    """The disk that the snapshot's plugin will be asked for is the caller's to read. Raises Forbidden.

    A request may name another plugin than its volume's, to which the same external ID may mean somebody's disk.
    """
    found = service.reads.find_volume(namespace, asked.source_volume_id)
    if found is not None and asked.plugin_id not in ("", found.record.value.plugin_id):
        _demand_copy(service, access, asked.plugin_id, found.record.value.external_id)


def _demand_copy(service: Service, access: Access, plugin_id: str, external_id: str) -> None:
    held = service.reads.list_namespaces_of_disk(plugin_id, external_id)
    demand(not held or any(access.may(namespace, authorize.READ | authorize.WRITE) for namespace in held))


def _snapshot_request(body: SnapshotBody | None, source_volume_id: str) -> SnapshotRequest:
    if body is None:
        raise Rejected("snapshot cannot be nil", code="validation")
    source = body.source_volume_id if isinstance(body.source_volume_id, str) else ""
    return SnapshotRequest(
        source_volume_id=source or source_volume_id,
        plugin_id=body.plugin_id,
        name=body.name,
        secrets=read_secrets(body.secrets or {}),
        parameters=body.parameters or {},
    )


async def delete_snapshot(service: Service, request: Request) -> Answer:
    """DELETE /v1/volumes/snapshot."""
    check_region(request.query)
    await service.listings.delete_snapshot(
        request.query.get("plugin_id", ""),
        request.query.get("snapshot_id", ""),
        secrets=read_secrets(parse_secrets(request)),
    )
    return empty_answer(NO_TABLE)
