"""Handlers of plugins."""

from __future__ import annotations

from moorage.api import plugin_answers
from moorage.api.http import Answer, Meta, Request, json_answer, text_answer
from moorage.api.params import parse_read
from moorage.api.volumes import wait_for_change
from moorage.engine.reads import PLUGINS
from moorage.engine.service import Service


async def list_plugins(service: Service, request: Request) -> Answer:
    """GET /v1/plugins."""
    kind = request.query.get("type")
    reads = service.reads
    if kind != "csi":
        index = reads.table_index(PLUGINS) if request.access.may_list_plugins else 0
        return json_answer(request, [], Meta(index=index))
    options = parse_read(request)
    await wait_for_change(service, options, (PLUGINS,), lambda: reads.table_index(PLUGINS))
    found = reads.list_plugins(options.prefix)
    rows = [plugin_answers.plugin_stub(r.value, r.created, r.modified) for r in found]
    return json_answer(request, rows, Meta(index=reads.table_index(PLUGINS)))


async def read_plugin(service: Service, request: Request, plugin_id: str) -> Answer:
    """GET /v1/plugin/csi/:id."""
    options = parse_read(request)
    if not plugin_id:
        return text_answer(500, "missing plugin ID")
    reads = service.reads
    await wait_for_change(service, options, (PLUGINS + plugin_id,), lambda: reads.table_index(PLUGINS))
    found = reads.find_plugin(plugin_id)
    if found is None:
        return text_answer(404, "plugin not found", Meta(index=0))
    body = plugin_answers.plugin_whole(found.value, found.created, found.modified)
    return json_answer(request, body, Meta(index=reads.table_index(PLUGINS)))
