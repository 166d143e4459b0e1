"""The route table: each path with its methods and handlers. Everything about who may ask what is here.

A pattern's ``:name`` takes one segment of the decoded path: an ID with ``/`` cannot be addressed, as recorded, and is
refused when it is registered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from moorage.api import (
    agents,
    allocations,
    elsewhere,
    events,
    namespaces,
    node_care,
    nodes,
    openapi,
    orphans,
    plugins,
    search,
    volume_lists,
    volumes,
    why,
)
from moorage.api.http import Answer, Request
from moorage.engine.service import Service

Handler = Callable[..., Awaitable[Answer]]


class Route(msgspec.Struct, frozen=True):
    """A path's pattern and the handler of each method. ``is_blocking``: honours ``index`` and ``wait``."""

    pattern: str
    handlers: dict[str, Handler]
    is_blocking: bool = False


def _write(handler: Handler) -> dict[str, Handler]:
    return {"PUT": handler, "POST": handler}


def _all(handler: Handler) -> dict[str, Handler]:
    return {"GET": handler, "DELETE": handler, **_write(handler)}


async def _plugin_part(service: Service, request: Request, plugin_id: str, part: str) -> Answer:
    """A second part of a plugin's path is not looked at, as recorded."""
    return await plugins.read_plugin(service, request, plugin_id)


async def _snapshot_of(service: Service, request: Request, volume_id: str) -> Answer:
    return await volumes.create_snapshots(service, request, volume_id)


ROUTES: tuple[Route, ...] = (
    Route("/v1/volumes", {"GET": volume_lists.list_volumes, **_write(volumes.register)}, is_blocking=True),
    Route("/v1/volumes/external", {"GET": volumes.list_external}),
    Route("/v1/volumes/orphans", {"GET": orphans.list_orphans}),
    Route(
        "/v1/volumes/snapshot",
        {
            "GET": volumes.list_snapshots,
            "DELETE": volumes.delete_snapshot,
            **_write(volumes.create_snapshots),
        },
    ),
    Route("/v1/volumes/snapshot/:id", _write(_snapshot_of)),
    Route(
        "/v1/volume/csi/:id",
        {"GET": volumes.read_volume, "DELETE": volumes.deregister, **_write(volumes.register)},
        is_blocking=True,
    ),
    Route("/v1/volume/csi/:id/why", {"GET": why.explain_volume}),
    Route("/v1/volume/csi/:id/create", _write(volumes.create)),
    Route("/v1/volume/csi/:id/delete", {"DELETE": volumes.delete}),
    Route("/v1/volume/csi/:id/detach", {"DELETE": volumes.detach}),
    Route("/v1/volume/csi/:id/snapshot", _write(_snapshot_of)),
    Route("/v1/plugins", {"GET": plugins.list_plugins}, is_blocking=True),
    Route("/v1/plugin/csi/:id", {"GET": plugins.read_plugin}, is_blocking=True),
    Route("/v1/plugin/csi/:id/why", {"GET": why.explain_plugin}),
    Route("/v1/plugin/csi/:id/:part", {"GET": _plugin_part}, is_blocking=True),
    Route("/v1/nodes", {"GET": nodes.list_nodes}, is_blocking=True),
    Route("/v1/node/:id", {"GET": nodes.read_node}, is_blocking=True),
    Route("/v1/node/:id/allocations", {"GET": nodes.list_node_allocations}, is_blocking=True),
    Route("/v1/node/:id/why", {"GET": why.explain_node}),
    Route("/v1/node/:id/drain", _write(node_care.drain)),
    Route("/v1/node/:id/eligibility", _write(node_care.set_eligibility)),
    Route("/v1/node/:id/fence", _write(node_care.fence)),
    Route("/v1/node/:id/register", {"PUT": nodes.register_node}),
    Route("/v1/node/:id/plugins", {"PUT": nodes.report_plugins}),
    Route("/v1/node/:id/steps", {"GET": nodes.wait_steps}, is_blocking=True),
    Route("/v1/node/:id/claims", {"GET": nodes.wait_claims}, is_blocking=True),
    Route("/v1/node/:id/reports", {"PUT": nodes.report_outcomes}),
    Route(
        "/v1/allocations",
        {"GET": allocations.list_allocations, **_write(allocations.start)},
        is_blocking=True,
    ),
    Route("/v1/allocation/:id", {"GET": allocations.read_allocation}, is_blocking=True),
    Route("/v1/allocation/:id/why", {"GET": why.explain_allocation}),
    Route("/v1/allocation/:id/stop", _write(allocations.stop)),
    Route("/v1/namespaces", {"GET": namespaces.list_namespaces}, is_blocking=True),
    Route("/v1/namespace", _write(namespaces.write_namespace)),
    Route(
        "/v1/namespace/:name",
        {
            "GET": namespaces.read_namespace,
            "DELETE": namespaces.delete_namespace,
            **_write(namespaces.write_namespace),
        },
        is_blocking=True,
    ),
    Route("/v1/search", _write(search.search)),
    Route("/v1/search/fuzzy", _write(search.search_fuzzy)),
    Route("/v1/event/stream", {"GET": events.stream_events}),
    Route("/v1/status/leader", {"GET": agents.read_leader}),
    Route("/v1/status/peers", {"GET": agents.list_peers}),
    Route("/v1/regions", {"GET": agents.list_regions}),
    Route("/v1/agent/health", {"GET": agents.read_health}),
    Route("/v1/openapi.json", {"GET": openapi.read_openapi}),
    Route("/v1/agent/self", {"GET": agents.read_self}),
    Route("/v1/agent/members", {"GET": agents.read_members}),
    Route("/v1/agent/servers", {"GET": agents.list_servers}),
    # Pages of things that moorage does not have.
    Route("/v1/jobs", {"GET": elsewhere.list_nothing}, is_blocking=True),
    Route("/v1/evaluations", {"GET": elsewhere.list_nothing}, is_blocking=True),
    Route("/v1/deployments", {"GET": elsewhere.list_nothing}, is_blocking=True),
    Route("/v1/volumes/claims", {"GET": elsewhere.list_nothing}, is_blocking=True),
    Route("/v1/volumes/claim/:id", {"DELETE": elsewhere.delete_host_claim}),
    Route("/v1/volume/host/create", _write(elsewhere.create_host_volume)),
    Route("/v1/volume/host/register", _write(elsewhere.create_host_volume)),
    Route("/v1/volume/host/:id", {"GET": elsewhere.read_host_volume, "DELETE": elsewhere.delete_host_volume}),
    Route("/v1/operator/raft/configuration", {"GET": elsewhere.read_raft}),
    Route("/v1/operator/scheduler/configuration", {"GET": elsewhere.read_scheduler}),
    Route("/v1/system/gc", _write(elsewhere.collect_garbage)),
    Route("/v1/acl/bootstrap", _write(elsewhere.refuse_acl)),
    Route("/v1/acl/policies", {"GET": elsewhere.refuse_acl}),
    Route("/v1/acl/policy/:name", _all(elsewhere.refuse_acl)),
    Route("/v1/acl/tokens", {"GET": elsewhere.refuse_acl}),
    Route("/v1/acl/token", _write(elsewhere.refuse_acl)),
    Route("/v1/acl/token/self", {"GET": elsewhere.read_own_token}),
    Route("/v1/acl/token/:id", _all(elsewhere.refuse_acl)),
)


class Found(msgspec.Struct, frozen=True):
    """A route with what its pattern took from the path."""

    route: Route
    arguments: tuple[str, ...]


class _Node:
    """One segment in the tree of patterns."""

    __slots__ = ("any", "named", "route")

    def __init__(self) -> None:
        self.named: dict[str, _Node] = {}
        self.any: _Node | None = None
        self.route: Route | None = None


class Router:
    """Finds the route of a path, a fixed segment before a ``:name``."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._root = _Node()
        for route in routes:
            node = self._root
            for part in route.pattern.split("/")[1:]:
                if part.startswith(":"):
                    node.any = node.any or _Node()
                    node = node.any
                else:
                    node = node.named.setdefault(part, _Node())
            node.route = route

    def find(self, parts: tuple[str, ...]) -> Found | None:
        """The route of a path's segments, or None."""
        return self._find(self._root, parts, 0, ())

    def _find(self, node: Any, parts: tuple[str, ...], at: int, taken: tuple[str, ...]) -> Found | None:
        if at == len(parts):
            return Found(node.route, taken) if node.route is not None else None
        named = node.named.get(parts[at])
        if named is not None:
            found = self._find(named, parts, at + 1, taken)
            if found is not None:
                return found
        if node.any is not None:
            return self._find(node.any, parts, at + 1, (*taken, parts[at]))
        return None
