"""The route table: each path with its methods, their handlers, and the grant that each needs.

A pattern's ``:name`` takes one segment of the decoded path: an ID with ``/`` cannot be addressed, as recorded, and is
refused when it is registered.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from moorage.api import (
    acl,
    agents,
    allocations,
    elsewhere,
    events,
    grants,
    identities,
    metrics,
    namespaces,
    node_care,
    nodes,
    openapi,
    operator,
    orphans,
    plugins,
    search,
    volume_lists,
    volumes,
    why,
)
from moorage.api.grants import Grant
from moorage.api.http import Answer, Request
from moorage.engine.service import Service

Handler = Callable[..., Coroutine[Any, Any, Answer]]


class Served(msgspec.Struct, frozen=True):
    """What serves a method, and what it takes to ask it. There is no route without a grant."""

    handler: Handler
    grant: Grant


class Route(msgspec.Struct, frozen=True):
    """A path's pattern and what serves each method. ``is_blocking``: honours ``index`` and ``wait``."""

    pattern: str
    handlers: dict[str, Served]
    is_blocking: bool = False


def _get(handler: Handler, grant: Grant) -> dict[str, Served]:
    return {"GET": Served(handler, grant)}


def _delete(handler: Handler, grant: Grant) -> dict[str, Served]:
    return {"DELETE": Served(handler, grant)}


def _put(handler: Handler, grant: Grant) -> dict[str, Served]:
    """PUT alone: between server and agent."""
    return {"PUT": Served(handler, grant)}


def _write(handler: Handler, grant: Grant) -> dict[str, Served]:
    return {"PUT": Served(handler, grant), "POST": Served(handler, grant)}


async def _plugin_part(service: Service, request: Request, plugin_id: str, part: str) -> Answer:
    """A second part of a plugin's path is not looked at, as recorded."""
    return await plugins.read_plugin(service, request, plugin_id)


async def _snapshot_of(service: Service, request: Request, volume_id: str) -> Answer:
    return await volumes.create_snapshots(service, request, volume_id)


ROUTES: tuple[Route, ...] = (
    Route(
        "/v1/volumes",
        _get(volume_lists.list_volumes, grants.VOLUME_LIST) | _write(volumes.register, grants.VOLUME_WRITE),
        is_blocking=True,
    ),
    Route("/v1/volumes/external", _get(volumes.list_external, grants.EXTERNAL_LIST)),
    Route("/v1/volumes/orphans", _get(orphans.list_orphans, grants.OPERATOR_READ)),
    Route(
        "/v1/volumes/snapshot",
        _get(volumes.list_snapshots, grants.SNAPSHOT_LIST)
        | _delete(volumes.delete_snapshot, grants.SNAPSHOT_DELETE)
        | _write(volumes.create_snapshots, grants.SNAPSHOT_CREATE),
    ),
    Route("/v1/volumes/snapshot/:id", _write(_snapshot_of, grants.SNAPSHOT_CREATE)),
    Route(
        "/v1/volume/csi/:id",
        _get(volumes.read_volume, grants.VOLUME_READ)
        | _delete(volumes.deregister, grants.VOLUME_DEREGISTER)
        | _write(volumes.register, grants.VOLUME_WRITE),
        is_blocking=True,
    ),
    Route("/v1/volume/csi/:id/why", _get(why.explain_volume, grants.VOLUME_READ)),
    Route("/v1/volume/csi/:id/create", _write(volumes.create, grants.VOLUME_WRITE)),
    Route("/v1/volume/csi/:id/delete", _delete(volumes.delete, grants.VOLUME_DELETE)),
    Route("/v1/volume/csi/:id/detach", _delete(volumes.detach, grants.VOLUME_DETACH)),
    Route("/v1/volume/csi/:id/snapshot", _write(_snapshot_of, grants.SNAPSHOT_CREATE)),
    Route("/v1/plugins", _get(plugins.list_plugins, grants.PLUGIN_LIST), is_blocking=True),
    Route("/v1/plugin/csi/:id", _get(plugins.read_plugin, grants.PLUGIN_READ), is_blocking=True),
    Route("/v1/plugin/csi/:id/why", _get(why.explain_plugin, grants.PLUGIN_WHY)),
    Route("/v1/plugin/csi/:id/:part", _get(_plugin_part, grants.PLUGIN_READ), is_blocking=True),
    Route("/v1/nodes", _get(nodes.list_nodes, grants.NODE_READ), is_blocking=True),
    Route(
        "/v1/nodes/join-tokens",
        _get(identities.list_tokens, grants.NODE_WRITE) | _write(identities.create_token, grants.NODE_WRITE),
    ),
    Route("/v1/nodes/join-token/:id", _delete(identities.delete_token, grants.NODE_WRITE)),
    Route("/v1/node/:id", _get(nodes.read_node, grants.NODE_READ), is_blocking=True),
    Route("/v1/node/:id/allocations", _get(nodes.list_node_allocations, grants.NODE_ALLOCATIONS), is_blocking=True),
    Route("/v1/node/:id/why", _get(why.explain_node, grants.NODE_WHY)),
    Route("/v1/node/:id/drain", _write(node_care.drain, grants.NODE_WRITE)),
    Route("/v1/node/:id/eligibility", _write(node_care.set_eligibility, grants.NODE_WRITE)),
    Route("/v1/node/:id/fence", _write(node_care.fence, grants.NODE_WRITE)),
    Route("/v1/node/:id/reset-identity", _write(identities.reset, grants.NODE_WRITE)),
    # What lets a node in is no token of access control: the handler asks for it.
    Route("/v1/node/:id/join", _put(identities.join, grants.ANONYMOUS)),
    Route("/v1/node/:id/register", _put(nodes.register_node, grants.NODE_SELF)),
    Route("/v1/node/:id/plugins", _put(nodes.report_plugins, grants.NODE_SELF)),
    Route("/v1/node/:id/steps", _get(nodes.wait_steps, grants.NODE_SELF), is_blocking=True),
    Route("/v1/node/:id/claims", _get(nodes.wait_claims, grants.NODE_SELF), is_blocking=True),
    Route("/v1/node/:id/reports", _put(nodes.report_outcomes, grants.NODE_SELF)),
    Route(
        "/v1/allocations",
        _get(allocations.list_allocations, grants.ALLOCATION_LIST) | _write(allocations.start, grants.ALLOCATION_START),
        is_blocking=True,
    ),
    Route("/v1/allocation/:id", _get(allocations.read_allocation, grants.ALLOCATION_READ), is_blocking=True),
    Route("/v1/allocation/:id/why", _get(why.explain_allocation, grants.ALLOCATION_READ)),
    Route("/v1/allocation/:id/stop", _write(allocations.stop, grants.ALLOCATION_STOP)),
    Route("/v1/namespaces", _get(namespaces.list_namespaces, grants.OWN), is_blocking=True),
    Route("/v1/namespace", _write(namespaces.write_namespace, grants.MANAGEMENT)),
    Route(
        "/v1/namespace/:name",
        _get(namespaces.read_namespace, grants.NAMESPACE_READ)
        | _delete(namespaces.delete_namespace, grants.MANAGEMENT)
        | _write(namespaces.write_namespace, grants.MANAGEMENT),
        is_blocking=True,
    ),
    Route("/v1/search", _write(search.search, grants.SEARCH)),
    Route("/v1/search/fuzzy", _write(search.search_fuzzy, grants.SEARCH)),
    Route("/v1/event/stream", _get(events.stream_events, grants.EVENTS)),
    Route("/v1/status/leader", _get(agents.read_leader, grants.ANONYMOUS)),
    Route("/v1/status/peers", _get(agents.list_peers, grants.ANONYMOUS)),
    Route("/v1/regions", _get(agents.list_regions, grants.ANONYMOUS)),
    Route("/v1/metrics", _get(metrics.read_metrics, grants.METRICS)),
    Route("/v1/agent/health", _get(agents.read_health, grants.ANONYMOUS)),
    Route("/v1/openapi.json", _get(openapi.read_openapi, grants.ANY_TOKEN)),
    Route("/v1/agent/self", _get(agents.read_self, grants.AGENT_READ)),
    Route("/v1/agent/members", _get(agents.read_members, grants.NODE_READ)),
    Route("/v1/agent/servers", _get(agents.list_servers, grants.AGENT_READ)),
    # Pages of things that moorage does not have.
    Route("/v1/jobs", _get(elsewhere.list_nothing, grants.JOBS), is_blocking=True),
    Route("/v1/evaluations", _get(elsewhere.list_nothing, grants.JOBS), is_blocking=True),
    Route("/v1/deployments", _get(elsewhere.list_nothing, grants.JOBS), is_blocking=True),
    # The recorded server looks at no method here.
    Route(
        "/v1/volumes/claims",
        _get(elsewhere.list_nothing, grants.VOLUME_READ)
        | _delete(elsewhere.list_nothing, grants.VOLUME_READ)
        | _write(elsewhere.list_nothing, grants.VOLUME_READ),
        is_blocking=True,
    ),
    Route("/v1/volumes/claim/:id", _delete(elsewhere.delete_host_claim, grants.VOLUME_DEREGISTER)),
    Route("/v1/volume/host/create", _write(elsewhere.create_host_volume, grants.VOLUME_WRITE)),
    Route("/v1/volume/host/register", _write(elsewhere.create_host_volume, grants.VOLUME_WRITE)),
    Route(
        "/v1/volume/host/:id",
        _get(elsewhere.read_host_volume, grants.VOLUME_READ)
        | _delete(elsewhere.delete_host_volume, grants.VOLUME_DEREGISTER),
    ),
    Route("/v1/operator/raft/configuration", _get(elsewhere.read_raft, grants.OPERATOR_READ)),
    Route("/v1/operator/scheduler/configuration", _get(elsewhere.read_scheduler, grants.OPERATOR_READ)),
    Route("/v1/operator/secrets", _get(operator.read_secrets, grants.OPERATOR_READ)),
    Route("/v1/operator/secrets/rotate", _write(operator.rotate_secrets, grants.MANAGEMENT)),
    Route("/v1/operator/calls", _get(operator.read_calls, grants.OPERATOR_READ)),
    Route("/v1/operator/log", _get(operator.read_log, grants.OPERATOR_READ)),
    Route("/v1/operator/settings", _get(operator.read_settings, grants.OPERATOR_READ)),
    Route("/v1/system/gc", _write(elsewhere.collect_garbage, grants.MANAGEMENT)),
    Route("/v1/acl/bootstrap", _write(acl.bootstrap, grants.ANONYMOUS)),
    Route("/v1/acl/policies", _get(acl.list_policies, grants.OWN), is_blocking=True),
    Route("/v1/acl/policy/self", _get(acl.list_own_policies, grants.OWN)),
    Route(
        "/v1/acl/policy/:name",
        _get(acl.read_policy, grants.POLICY_READ)
        | _delete(acl.delete_policy, grants.MANAGEMENT)
        | _write(acl.write_policy, grants.MANAGEMENT),
        is_blocking=True,
    ),
    Route("/v1/acl/tokens", _get(acl.list_tokens, grants.MANAGEMENT), is_blocking=True),
    Route("/v1/acl/token", _write(acl.write_token, grants.MANAGEMENT)),
    Route("/v1/acl/token/self", _get(acl.read_own_token, grants.SELF)),
    Route(
        "/v1/acl/token/:id",
        _get(acl.read_token, grants.TOKEN_READ)
        | _delete(acl.delete_token, grants.MANAGEMENT)
        | _write(acl.write_token, grants.MANAGEMENT),
        is_blocking=True,
    ),
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
        # Where a path may go two ways, the one that is not taken first is put aside.
        aside: list[tuple[_Node, int, tuple[str, ...]]] = [(self._root, 0, ())]
        while aside:
            node, begun, taken = aside.pop()
            for at, part in enumerate(parts[begun:], start=begun + 1):
                named = node.named.get(part)
                if named is None:
                    if node.any is None:
                        break
                    node, taken = node.any, (*taken, part)
                    continue
                if node.any is not None:
                    aside.append((node.any, at, (*taken, part)))
                node = named
            else:
                if node.route is not None:
                    return Found(node.route, taken)
        return None
