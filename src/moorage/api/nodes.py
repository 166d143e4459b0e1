"""Handlers of nodes, for people and tools; and the pages between server and agent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from moorage.api import answers, plugin_answers
from moorage.api.http import JSON, Answer, Meta, Request, empty_answer, json_answer, text_answer
from moorage.api.identities import check_own
from moorage.api.params import ReadOptions, check_page_size, parse_epoch, parse_read
from moorage.api.volumes import wait_for_change
from moorage.engine.reads import ALLOCATIONS, NODES, VOLUMES_TOPICS
from moorage.engine.service import Service
from moorage.errors import BadRequest
from moorage.model.assignment import NodeRegistration, PluginReport, Reports
from moorage.model.ids import NodeId
from moorage.model.node import Node
from moorage.model.plugin import Plugin
from moorage.model.times import format_time
from moorage.rules.authorize import READ_ALLOCATION
from moorage.rules.filter import Filter, compile_filter
from moorage.rules.filter_types import NODE_STUB
from moorage.rules.search import check_node_prefix
from moorage.rules.why_claims import describe_hook

T = TypeVar("T")


def _stub(node: Node, created: int, modified: int, hook_text: str = "") -> dict[str, Any]:
    return {
        "Address": node.address.rpartition(":")[0] or node.address,
        "Attributes": None,
        "CreateIndex": created,
        "Datacenter": node.datacenter,
        "Drain": node.wanted == "draining",
        "Drivers": {},
        "HostVolumes": {},
        "ID": node.id,
        "LastDrain": _last_drain(node),
        "ModifyIndex": modified,
        "Name": node.name,
        "NodeClass": node.node_class,
        "NodePool": node.node_pool,
        "SchedulingEligibility": "eligible" if node.wanted == "active" else "ineligible",
        "Status": node.status,
        "StatusDescription": _describe(node, hook_text),
        "Version": node.version,
    }


def _last_drain(node: Node) -> dict[str, Any] | None:
    if not node.drain_began_at_ns:
        return None
    updated = node.drain_ended_at_ns or node.drain_began_at_ns
    return {
        "AccessorID": "",
        "Meta": None,
        "StartedAt": format_time(node.drain_began_at_ns),
        "Status": "complete" if node.drain_ended_at_ns else "draining",
        "UpdatedAt": format_time(updated),
    }


def _drain_strategy(node: Node) -> dict[str, Any] | None:
    """There while a drain is in hand: the recorded CLI waits for it to go."""
    if node.wanted != "draining":
        return None
    return {
        "Deadline": 0,
        "ForceDeadline": None,
        "IgnoreSystemJobs": False,
        "StartedAt": format_time(node.drain_began_at_ns),
    }


def _describe(node: Node, hook_text: str) -> str:
    if node.status != "down":
        return ""
    if node.fence is None:
        text = "lost: claims that write wait for evidence that it holds nothing (moorage node fence)"
        return f"{text}; {hook_text}" if hook_text else text
    by = f" by {node.fence.by}" if node.fence.by else ""
    return f"lost, fenced ({node.fence.kind}{by}): {node.fence.reason}"


def _tell_hook(service: Service, node: Node) -> str:
    """How a lost node fares with the fence hook."""
    tries = service.leases.hooks.find(node.id)
    return describe_hook(tries, now_ns=service.clock.now_ns()) if tries is not None else ""


async def list_nodes(service: Service, request: Request) -> Answer:
    """GET /v1/nodes."""
    options = parse_read(request)
    check_node_prefix(options.prefix)
    check_page_size(options)
    chosen = compile_filter(options.filter, NODE_STUB, service.settings.filters) if options.filter else None
    reads = service.reads
    await wait_for_change(service, options, (NODES,), lambda: reads.table_index(NODES))
    rows = (
        _stub(r.value, r.created, r.modified, _tell_hook(service, r.value)) for r in reads.list_nodes(options.prefix)
    )
    page, next_token = cut_rows(rows, options, chosen)
    headers = {"X-Nomad-NextToken": next_token} if next_token else {}
    return json_answer(request, page, Meta(index=reads.table_index(NODES)), **headers)


def cut_rows(
    rows: Iterable[dict[str, Any]], options: ReadOptions, chosen: Filter | None
) -> tuple[list[dict[str, Any]], str]:
    """One page of rows in order of their IDs, or backwards if asked for, and the ID that the next page begins with."""
    page: list[dict[str, Any]] = []
    token = options.next_token
    for row in reversed(tuple(rows)) if options.is_reversed else rows:
        is_before = row["ID"] > token if options.is_reversed and token else row["ID"] < token
        if is_before or (chosen is not None and not chosen.matches(row)):
            continue
        if options.per_page and len(page) == options.per_page:
            return page, str(row["ID"])
        page.append(row)
    return page, ""


async def read_node(service: Service, request: Request, node_id: str) -> Answer:
    """GET /v1/node/:id. Four resource blocks, since recorded clients of either age break without theirs."""
    options = parse_read(request)
    reads = service.reads
    await wait_for_change(service, options, (NODES + node_id,), lambda: reads.table_index(NODES))
    found = reads.find_node(node_id)
    if found is None:
        return _no_node(node_id)
    body = node_whole(found.value, found.created, found.modified, [r.value for r in reads.list_plugins()])
    body["StatusDescription"] = _describe(found.value, _tell_hook(service, found.value))
    return json_answer(request, body, Meta(index=reads.table_index(NODES)))


def node_whole(node: Node, created: int, modified: int, plugins: Iterable[Plugin]) -> dict[str, Any]:
    """A node whole, with its instances of the plugins."""
    controllers, nodes = {}, {}
    for plugin in plugins:
        instance = plugin.instances.get(node.id)
        if instance is not None and instance.controller is not None:
            controllers[plugin.id] = plugin_answers.plugin_on_node(plugin, instance, is_controller=True)
        if instance is not None and instance.node is not None:
            nodes[plugin.id] = plugin_answers.plugin_on_node(plugin, instance, is_controller=False)
    sizes = {"CPU": node.cpu_mhz, "MemoryMB": node.memory_mb, "DiskMB": node.disk_mb}
    resources = {
        "Cpu": {"CpuShares": node.cpu_mhz},
        "Memory": {"MemoryMB": node.memory_mb},
        "Disk": {"DiskMB": node.disk_mb},
    }
    nothing = {"Cpu": {"CpuShares": 0}, "Memory": {"MemoryMB": 0}, "Disk": {"DiskMB": 0}}
    return _stub(node, created, modified) | {
        "Attributes": node.attributes,
        "CSIControllerPlugins": controllers,
        "DrainStrategy": _drain_strategy(node),
        "CSINodePlugins": nodes,
        "Events": [],
        "HTTPAddr": node.address,
        "HostNetworks": {},
        "Links": {},
        "Meta": node.meta,
        "NodeResources": resources,
        "Reserved": {"CPU": 0, "MemoryMB": 0, "DiskMB": 0},
        "ReservedResources": nothing,
        "Resources": sizes,
        "StatusUpdatedAt": node.status_updated_at_ns // 1_000_000_000,
        "TLSEnabled": False,
    }


def _no_node(node_id: str) -> Answer:
    if len(node_id) != 36:
        return text_answer(500, "node lookup failed: index error: UUID must be 36 characters")
    return text_answer(404, "node not found")


async def list_node_allocations(service: Service, request: Request, node_id: str) -> Answer:
    """GET /v1/node/:id/allocations: whole ones, because clients read each one's job unchecked.

    Source: contract clients §2.
    """
    options = parse_read(request)
    reads = service.reads
    topics = (ALLOCATIONS, *VOLUMES_TOPICS)
    await wait_for_change(service, options, topics, lambda: reads.table_index(ALLOCATIONS))
    if reads.find_node(node_id) is None:
        return _no_node(node_id)
    is_seen = request.access.chooser(READ_ALLOCATION)
    rows = [
        answers.allocation_whole(r.value, r.created, r.modified, reads.claims_of(r.value))
        for r in reads.list_allocations("*", "", node_id)
        if is_seen(r.value.namespace)
    ]
    return json_answer(request, rows, Meta(index=reads.table_index(ALLOCATIONS)))


# -- between server and agent ----------------------------------------------------------------------------------------


def _decode(kind: type[T], body: bytes) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"json: {error}") from error
    except RecursionError as error:
        raise BadRequest("json: the body is nested too deeply") from error


async def register_node(service: Service, request: Request, node_id: str) -> Answer:
    """PUT /v1/node/:id/register."""
    check_own(service, request, node_id)
    sent = _decode(NodeRegistration, request.body)
    check_own(service, request, node_id, name=sent.node.name)
    if sent.node.id != node_id:
        raise BadRequest(f"node.id {sent.node.id!r} is not the node of the path, {node_id!r}")
    registered = await service.nodes.register(
        sent.node, clean_by=sent.clean_by, is_empty=sent.is_empty, epoch=sent.epoch, calling=sent.calling
    )
    return Answer(body=msgspec.json.encode(registered), content_type=JSON)


async def report_plugins(service: Service, request: Request, node_id: str) -> Answer:
    """PUT /v1/node/:id/plugins."""
    check_own(service, request, node_id)
    sent = _decode(PluginReport, request.body)
    told = await service.nodes.report_plugins(NodeId(node_id), sent.instances, calling=sent.calling, after=sent.after)
    return Answer(body=msgspec.json.encode(told), content_type=JSON)


async def wait_steps(service: Service, request: Request, node_id: str) -> Answer:
    """GET /v1/node/:id/steps."""
    check_own(service, request, node_id)
    options = parse_read(request)
    found = await service.nodes.wait_steps(
        NodeId(node_id), index=options.index, wait_s=options.wait_s, epoch=parse_epoch(request)
    )
    return Answer(body=msgspec.json.encode(found), content_type=JSON, headers={"X-Nomad-Index": str(found.index)})


async def wait_claims(service: Service, request: Request, node_id: str) -> Answer:
    """GET /v1/node/:id/claims."""
    check_own(service, request, node_id)
    options = parse_read(request)
    found = await service.nodes.wait_claims(
        NodeId(node_id), index=options.index, wait_s=options.wait_s, epoch=parse_epoch(request)
    )
    return Answer(body=msgspec.json.encode(found), content_type=JSON, headers={"X-Nomad-Index": str(found.index)})


async def report_outcomes(service: Service, request: Request, node_id: str) -> Answer:
    """PUT /v1/node/:id/reports."""
    check_own(service, request, node_id)
    reports = _decode(Reports, request.body).reports
    await service.nodes.report(NodeId(node_id), reports)
    service.diagnostics.note(NodeId(node_id), reports, now_ns=service.clock.now_ns())
    return empty_answer()
