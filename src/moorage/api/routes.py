"""The route table: each path with its methods and handlers. Everything about who may ask what is here.

A pattern's ``:name`` takes one segment of the decoded path: an ID with ``/`` cannot be addressed, as recorded, and is
refused when it is registered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from moorage.api import allocations, nodes, plugins, volumes
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


async def _snapshot_of(service: Service, request: Request, volume_id: str) -> Answer:
    return await volumes.create_snapshots(service, request, volume_id)


ROUTES: tuple[Route, ...] = (
    Route("/v1/volumes", {"GET": volumes.list_volumes, **_write(volumes.register)}, is_blocking=True),
    Route("/v1/volumes/external", {"GET": volumes.list_external}),
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
    Route("/v1/volume/csi/:id/create", _write(volumes.create)),
    Route("/v1/volume/csi/:id/delete", {"DELETE": volumes.delete}),
    Route("/v1/volume/csi/:id/detach", {"DELETE": volumes.detach}),
    Route("/v1/volume/csi/:id/snapshot", _write(_snapshot_of)),
    Route("/v1/plugins", {"GET": plugins.list_plugins}, is_blocking=True),
    Route("/v1/plugin/csi/:id", {"GET": plugins.read_plugin}, is_blocking=True),
    Route("/v1/nodes", {"GET": nodes.list_nodes}, is_blocking=True),
    Route("/v1/node/:id", {"GET": nodes.read_node}, is_blocking=True),
    Route("/v1/node/:id/allocations", {"GET": nodes.list_node_allocations}, is_blocking=True),
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
    Route("/v1/allocation/:id/stop", _write(allocations.stop)),
    Route("/v1/status/leader", {"GET": plugins.read_leader}),
    Route("/v1/status/peers", {"GET": plugins.list_peers}),
    Route("/v1/regions", {"GET": plugins.list_regions}),
    Route("/v1/agent/health", {"GET": plugins.read_health}),
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
