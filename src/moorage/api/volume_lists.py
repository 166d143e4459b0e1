"""The list of volumes: conditions, filter, order and pages. Source: contract volumes-api §2.1, §5."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from moorage.api import answers
from moorage.api.elsewhere import list_nothing
from moorage.api.http import Answer, Meta, Request, json_answer, text_answer
from moorage.api.params import ReadOptions, check_page_size, parse_read
from moorage.api.volumes import wait_for_change
from moorage.engine.reads import VOLUMES_TOPICS, VolumeRead
from moorage.engine.service import Service
from moorage.model.ids import ALL_NAMESPACES
from moorage.rules.authorize import LIST
from moorage.rules.filter import Filter, compile_filter
from moorage.rules.filter_types import VOLUME


async def list_volumes(service: Service, request: Request) -> Answer:
    """GET /v1/volumes."""
    kind = request.query.get("type")
    if kind is None:
        may_list = request.access.may(ALL_NAMESPACES, LIST)
        return json_answer(request, [], Meta(index=service.reads.volumes_index if may_list else 0))
    if kind == "host":
        return await list_nothing(service, request)
    if kind != "csi":
        return text_answer(404, "resource not found")
    options = parse_read(request)
    check_page_size(options)
    chosen = compile_filter(options.filter, VOLUME, service.settings.filters) if options.filter else None
    reads = service.reads
    await wait_for_change(service, options, VOLUMES_TOPICS, lambda: reads.volumes_index)
    meta = Meta(index=reads.volumes_index)
    page, next_token = _cut_page(_select(service, request, options, chosen), options)
    headers = {"X-Nomad-NextToken": next_token} if next_token else {}
    return json_answer(request, [answers.volume_stub(r) for r in page], meta, **headers)


def _select(service: Service, request: Request, options: ReadOptions, chosen: Filter | None) -> Iterator[VolumeRead]:
    """Volumes that all conditions hold for, in order, from the page's first on. A filter is asked last, so that its
    errors come only from volumes that the other conditions let through."""
    plugin_id = request.query.get("plugin_id", "")
    node_id = request.query.get("node_id", "")
    found = service.reads.list_volumes(
        options.namespace, options.prefix, start=_parse_token(options.next_token), is_reversed=options.is_reversed
    )
    is_seen = request.access.chooser(LIST)
    for read in found:
        if not is_seen(read.record.value.namespace):
            continue
        if plugin_id and read.record.value.plugin_id != plugin_id:
            continue
        if node_id and not any(c.node_id.startswith(node_id) for c in read.claims):
            continue
        if chosen is not None and not chosen.matches(_datum(read)):
            continue
        yield read


def _datum(read: VolumeRead) -> answers.Json:
    """What a filter sees: the volume as it is answered, with the counters of the list."""
    return answers.volume(read) | answers.counters(read)


def _cut_page(found: Iterable[VolumeRead], options: ReadOptions) -> tuple[list[VolumeRead], str]:
    """One page, and the token of the next: the namespace and ID of its first volume."""
    page: list[VolumeRead] = []
    for read in found:
        if options.per_page and len(page) == options.per_page:
            namespace, volume_id = read.record.value.key
            return page, f"{namespace}.{volume_id}"
        page.append(read)
    return page, ""


def _parse_token(token: str) -> tuple[str, str] | None:
    if not token:
        return None
    # A namespace holds no dot: the first one parts it from the ID.
    namespace, _, volume_id = token.partition(".")
    return namespace, volume_id
