"""Grants: what a route asks of its caller, as rows for the route table. Nothing here waits or looks at a record.

A grant is asked before its handler runs, from the request alone. Where more can be known only from a body or a record
(a namespace, above all), the grant is the least that any such request needs, says so (``is_narrowed``), and the
handler asks the rest of ``request.access``. Source: contract volumes-api §6.4, §6.6.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from msgspec import Struct

from moorage.api.http import Request
from moorage.model.ids import ALL_NAMESPACES
from moorage.rules import authorize
from moorage.rules.authorize import Access

Test = Callable[[Access, Request, tuple[str, ...]], bool]


def _never(request: Request) -> bool:
    return False


class Grant(Struct, frozen=True):
    """What a caller needs. ``meaning``: for the documentation, continuing "needs …".

    ``test``: whether an access suffices for a request with these path arguments. ``is_narrowed``: the handler asks for
    more, or leaves out what the caller may not see. ``is_free``: requests that need nothing, not even a good token.
    """

    name: str
    meaning: str
    test: Test
    is_narrowed: bool = False
    is_free: Callable[[Request], bool] = _never


def namespace_of(request: Request) -> str:
    """The namespace that the query names."""
    return request.query.get("namespace", "") or "default"


def _may_write(access: Access, request: Request, any_of: Collection[str] = authorize.WRITE) -> bool:
    return access.may_in_one(namespace_of(request), any_of)


def _delete(access: Access, request: Request, path: tuple[str, ...]) -> bool:
    return _may_write(access, request) and (not access.is_strict or access.may_read_plugins)


def _in_namespace(any_of: Collection[str]) -> Test:
    return lambda access, request, path: access.may(namespace_of(request), any_of)


def _anywhere(any_of: Collection[str]) -> Test:
    return lambda access, request, path: access.may(ALL_NAMESPACES, any_of)


def _has_no_type(request: Request) -> bool:
    return "type" not in request.query


# -- for everybody ---------------------------------------------------------------------------------------------------

ANONYMOUS = Grant("anonymous", "nothing", lambda a, r, p: True, is_free=lambda request: True)
ANY_TOKEN = Grant("any_token", "any token", lambda a, r, p: a.is_open or a.caller.kind != "anonymous")
OWN = Grant(
    "own",
    "any token, or an anonymous policy; shows only what the caller may see",
    lambda a, r, p: a.is_open or a.caller.kind != "anonymous" or not a.acl.is_empty,
    is_narrowed=True,
)
POLICY_READ = Grant(
    "policy_read",
    "the policy, or a management token; `anonymous` is for everybody",
    lambda a, r, p: True,
    is_narrowed=True,
)
TOKEN_READ = Grant(
    "token_read",
    "the token itself, or a management token",
    lambda a, r, p: a.is_open or a.caller.kind != "anonymous",
    is_narrowed=True,
)
# Who asks for their own token may have none: the answer says so, as recorded.
SELF = Grant("self", "nothing, but no bad token", lambda a, r, p: True)

# -- nodes' own pages ------------------------------------------------------------------------------------------------


def _is_node(access: Access, request: Request, path: tuple[str, ...]) -> bool:
    caller = access.caller
    return access.is_open or (caller.kind == "node" and caller.node_id == path[0])


# Not even a management token: these pages hold volumes' secrets.
NODE_SELF = Grant("node_self", "the node's own identity", _is_node)

# -- the cluster -----------------------------------------------------------------------------------------------------

MANAGEMENT = Grant("management", "a management token", lambda a, r, p: a.is_full)
PLUGIN_LIST = Grant("plugin_list", "plugin `list` or `read`", lambda a, r, p: a.may_list_plugins, is_free=_has_no_type)
PLUGIN_READ = Grant("plugin_read", "plugin `read`", lambda a, r, p: a.may_read_plugins)
PLUGIN_WHY = Grant(
    "plugin_why",
    "plugin `read` and operator `read`: volumes of all namespaces are named",
    lambda a, r, p: a.may_read_plugins and a.may_read_operator,
)
NODE_READ = Grant("node_read", "node `read`", lambda a, r, p: a.may_read_nodes)
NODE_ALLOCATIONS = Grant(
    "node_allocations",
    "node `read`; shows allocations of namespaces with `read-job` or `csi-mount-volume`",
    lambda a, r, p: a.may_read_nodes,
    is_narrowed=True,
)
NODE_WHY = Grant(
    "node_why",
    "node `read` and operator `read`: volumes of all namespaces are named",
    lambda a, r, p: a.may_read_nodes and a.may_read_operator,
)
NODE_WRITE = Grant("node_write", "node `write`", lambda a, r, p: a.may_write_nodes)
AGENT_READ = Grant("agent_read", "agent `read`", lambda a, r, p: a.may_read_agent)
OPERATOR_READ = Grant("operator_read", "operator `read`", lambda a, r, p: a.may_read_operator)
METRICS = Grant("metrics", "agent `read` or operator `read`", lambda a, r, p: a.may_read_agent or a.may_read_operator)

# -- volumes ---------------------------------------------------------------------------------------------------------


def _list_external(access: Access, request: Request, path: tuple[str, ...]) -> bool:
    any_of = authorize.LIST if access.is_strict else authorize.LIST_EXTERNAL
    return access.may(namespace_of(request), any_of)


def _write_some(access: Access, request: Request, path: tuple[str, ...]) -> bool:
    # A body without volumes is refused as such for those that may read plugins, as recorded.
    is_writer = access.may(ALL_NAMESPACES, authorize.WRITE)
    return access.may_read_plugins if access.is_strict else is_writer or access.may_read_plugins


def _detach(access: Access, request: Request, path: tuple[str, ...]) -> bool:
    may_mount = _may_write(access, request, authorize.MOUNT) and access.may_read_plugins
    return may_mount or (not access.is_strict and _may_write(access, request))


VOLUME_LIST = Grant(
    "volume_list",
    "`csi-list-volume`, `csi-read-volume`, `csi-mount-volume` or `list-jobs`; `*` shows only namespaces with one",
    _in_namespace(authorize.LIST),
    is_narrowed=True,
    is_free=_has_no_type,
)
VOLUME_READ = Grant(
    "volume_read",
    "`csi-read-volume`, `csi-mount-volume` or `read-job`",
    _in_namespace(authorize.READ),
    is_narrowed=True,
)
VOLUME_WRITE = Grant(
    "volume_write",
    "`csi-write-volume` in the namespace of each volume of the body (strict: and plugin `read`)",
    _write_some,
    is_narrowed=True,
)
VOLUME_DEREGISTER = Grant("volume_deregister", "`csi-write-volume`", lambda a, r, p: _may_write(a, r))
VOLUME_DELETE = Grant(
    "volume_delete",
    "`csi-write-volume` (strict: and plugin `read`)",
    _delete,
)
VOLUME_DETACH = Grant(
    "volume_detach",
    "`csi-write-volume`, or `csi-mount-volume` and plugin `read` (strict: the latter)",
    _detach,
)
EXTERNAL_LIST = Grant(
    "external_list",
    "as a list of volumes, or `csi-write-volume` (not when strict); leaves out what is registered where the caller "
    "may not list",
    _list_external,
    is_narrowed=True,
)
SNAPSHOT_LIST = Grant(
    "snapshot_list",
    "as a list of volumes; leaves out snapshots of volumes that are registered where the caller may not list",
    _in_namespace(authorize.LIST),
    is_narrowed=True,
)
SNAPSHOT_CREATE = Grant(
    "snapshot_create",
    "`csi-write-volume` in the namespace of the query or the body (strict: and plugin `read`)",
    lambda a, r, p: a.may(ALL_NAMESPACES, authorize.WRITE) and (not a.is_strict or a.may_read_plugins),
    is_narrowed=True,
)
SNAPSHOT_DELETE = Grant(
    "snapshot_delete",
    "`csi-write-volume` (strict: and plugin `read`)",
    _delete,
)

# -- allocations -----------------------------------------------------------------------------------------------------

ALLOCATION_LIST = Grant(
    "allocation_list",
    "`read-job` or `csi-mount-volume`; `*` shows only namespaces with one",
    _in_namespace(authorize.READ_ALLOCATION),
    is_narrowed=True,
)
ALLOCATION_READ = Grant(
    "allocation_read",
    "`read-job` or `csi-mount-volume` in the allocation's namespace",
    _anywhere(authorize.READ_ALLOCATION),
    is_narrowed=True,
)
ALLOCATION_START = Grant(
    "allocation_start",
    "`csi-mount-volume` in the namespace of the query or the body",
    _anywhere(authorize.MOUNT),
    is_narrowed=True,
)
ALLOCATION_STOP = Grant(
    "allocation_stop",
    "`csi-mount-volume` or `alloc-lifecycle` in the allocation's namespace",
    _anywhere(authorize.STOP_ALLOCATION),
    is_narrowed=True,
)

# -- the rest --------------------------------------------------------------------------------------------------------

NAMESPACE_READ = Grant(
    "namespace_read", "any capability in the namespace", lambda a, r, p: a.may(p[0], authorize.ANYTHING)
)
SEARCH = Grant(
    "search",
    "what the list of each kind needs; volumes: `csi-list-volume`, `csi-read-volume`, `list-jobs` or `read-job`",
    lambda a, r, p: not a.acl.is_empty or a.is_open,
    is_narrowed=True,
)
EVENTS = Grant(
    "events",
    "what a read of each kind needs; shows only what the caller may read",
    lambda a, r, p: not a.acl.is_empty or a.is_open,
    is_narrowed=True,
)
JOBS = Grant("jobs", "`list-jobs` or `read-job`", _in_namespace(authorize.LIST_JOBS))
