"""Handlers of "why": what holds a thing up, since when, the last call, the next try, and the commands that help."""

from __future__ import annotations

from typing import Any

from moorage.api.http import Answer, Meta, Request, json_answer, text_answer
from moorage.api.params import parse_read
from moorage.engine.service import Service
from moorage.model.times import format_time
from moorage.rules.authorize import READ, READ_ALLOCATION
from moorage.rules.why import Explanation, Holder, LastCall, Queue

Json = dict[str, Any]


async def explain_volume(service: Service, request: Request, volume_id: str) -> Answer:
    """GET /v1/volume/csi/:id/why; a volume that is being created is found too."""
    options = parse_read(request)
    found = service.why.explain_volume(options.namespace, volume_id, is_seen=request.access.chooser(READ))
    return _answer(service, request, found, "volume not found")


async def explain_allocation(service: Service, request: Request, allocation_id: str) -> Answer:
    """GET /v1/allocation/:id/why."""
    parse_read(request)
    record = service.reads.find_allocation(allocation_id)
    is_seen = record is not None and request.access.may(record.value.namespace, READ_ALLOCATION)
    found = service.why.explain_allocation(allocation_id) if is_seen else None
    return _answer(service, request, found, "alloc not found")


async def explain_plugin(service: Service, request: Request, plugin_id: str) -> Answer:
    """GET /v1/plugin/csi/:id/why; a plugin that nobody reports is found as long as a volume names it."""
    parse_read(request)
    return _answer(service, request, service.why.explain_plugin(plugin_id), "plugin not found")


async def explain_node(service: Service, request: Request, node_id: str) -> Answer:
    """GET /v1/node/:id/why."""
    parse_read(request)
    return _answer(service, request, service.why.explain_node(node_id), "node not found")


def _answer(service: Service, request: Request, found: Explanation | None, missing: str) -> Answer:
    meta = Meta(index=service.reads.revision)
    return text_answer(404, missing, meta) if found is None else json_answer(request, show_explanation(found), meta)


def show_explanation(found: Explanation) -> Json:
    """An explanation as JSON; the members are always the same, times are RFC 3339 or null."""
    return {
        "Kind": found.kind,
        "ID": found.id,
        "Namespace": found.namespace,
        "State": found.state,
        "Summary": found.summary,
        "Since": format_time(found.since_ns),
        "Holders": [_holder(h) for h in found.holders],
        "LastCall": _last_call(found.last_call) if found.last_call else None,
        "NextTry": format_time(found.next_try_ns),
        "Queue": _queue(found.queue) if found.queue else None,
        "Blocks": list(found.blocks),
        "Commands": [{"Command": c.command, "Why": c.why} for c in found.commands],
    }


def _holder(holder: Holder) -> Json:
    return {
        "AllocationID": holder.allocation_id,
        "Name": holder.name,
        "VolumeID": holder.volume_id,
        "NodeID": holder.node_id,
        "NodeName": holder.node_name,
        "Mode": holder.mode,
        "State": holder.state,
        "Since": format_time(holder.since_ns),
        "Path": holder.path,
    }


def _last_call(call: LastCall) -> Json:
    return {
        "Method": call.method,
        "Status": call.status,
        "Message": call.message,
        "Final": call.final,
        "At": format_time(call.at_ns),
        "Attempts": call.attempts,
    }


def _queue(queue: Queue) -> Json:
    return {
        "Position": queue.position,
        "Length": queue.length,
        "Step": queue.method,
        "NodeID": queue.node_id,
        "NodeName": queue.node_name,
        "InFlightSince": format_time(queue.since_ns),
        "Ahead": [{"Step": a.method, "Of": a.subject} for a in queue.ahead],
    }
