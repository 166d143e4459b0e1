"""A second, naive implementation of who may ask what, for tests: from policies as plain data to a verdict on a request.

It shares nothing with ``rules.authorize``, ``api.grants`` or the policy language. ``EXPECTED`` has a line for every row
of the route table; a row without one fails the test that uses it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

READ = ["list-jobs", "parse-job", "read-job", "csi-list-volume", "csi-read-volume", "host-volume-read"]
WRITE = [*READ, "submit-job", "csi-mount-volume", "csi-write-volume", "alloc-lifecycle"]
LEVELS: Mapping[str, list[str]] = {"": [], "deny": ["deny"], "read": READ, "write": WRITE, "scale": ["read-job"]}


@dataclass(frozen=True)
class Rules:
    """A policy as plain data: (pattern, level, capabilities) a namespace, and the levels of the other blocks."""

    namespaces: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    plugin: str = ""
    node: str = ""
    agent: str = ""
    operator: str = ""

    def text(self) -> str:
        """The same in the policy language."""
        lines = []
        for name, level, capabilities in self.namespaces:
            level_text = f'policy = "{level}" ' if level else ""
            given = ", ".join(f'"{c}"' for c in capabilities)
            lines.append(f'namespace "{name}" {{ {level_text}capabilities = [{given}] }}')
        for block in ("plugin", "node", "agent", "operator"):
            if getattr(self, block):
                lines.append(f'{block} {{ policy = "{getattr(self, block)}" }}')
        return "\n".join(lines)


@dataclass
class Who:
    """A caller: ``kind`` is anonymous, bad, client, management or node."""

    kind: str
    policies: tuple[Rules, ...] = ()
    strict: bool = False
    names: frozenset[str] = field(default_factory=frozenset)

    def has(self, namespace: str, *any_of: str) -> bool:
        """Whether one of the capabilities is held there; none given: whether anything is. ``*``: somewhere."""
        if self.kind == "management":
            return True
        if namespace == "*":
            return any(self._find({pattern}, any_of) for pattern in self._held())
        held = self._held()
        if namespace in held:
            return self._find({namespace}, any_of)
        fitting = sorted((len(namespace) - len(p) + p.count("*"), p) for p in held if _fits(p, namespace))
        nearest = {p for distance, p in fitting if distance == fitting[0][0]}
        return all(held[p] for p in nearest) and self._find(nearest, any_of)

    def _find(self, patterns: set[str], any_of: Iterable[str]) -> bool:
        held = set().union(*(self._held()[p] for p in patterns)) if patterns else set()
        return bool(held & set(any_of)) if any_of else bool(held)

    def _held(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for policy in self.policies:
            for name, level, capabilities in policy.namespaces:
                found.setdefault(name, set()).update(LEVELS[level], capabilities)
        return {name: set() if "deny" in held else held for name, held in found.items()}

    def level(self, block: str) -> str:
        """The level of a block over all policies: deny, write, read, list or none."""
        found = {getattr(policy, block) for policy in self.policies}
        return next((level for level in ("deny", "write", "read", "list") if level in found), "")

    def reads(self, block: str) -> bool:
        """Whether a block may be read."""
        if self.kind == "management":
            return True
        if block == "plugin" and self.strict:
            return self.level(block) == "read"
        return self.level(block) in ("read", "write")

    def lists_plugins(self) -> bool:
        """Whether plugins may be listed."""
        return self.reads("plugin") or self.level("plugin") == "list"

    def writes_nodes(self) -> bool:
        """Whether nodes may be written."""
        return self.kind == "management" or self.level("node") == "write"

    def is_empty(self) -> bool:
        """Whether nothing at all is allowed."""
        levels = (self.level(block) for block in ("plugin", "node", "agent", "operator"))
        return self.kind != "management" and not self.has("*") and not any(x not in ("", "deny") for x in levels)


def _fits(pattern: str, name: str) -> bool:
    return "*" in pattern and fnmatch.fnmatchcase(name, pattern)


# -- verdicts --------------------------------------------------------------------------------------------------------

Verdict = str  # "yes", "no" (403), "hidden" (404 or "nonexistent namespace")
Judgement = Callable[[Who, str], Any]

_LIST = ("csi-list-volume", "csi-read-volume", "csi-mount-volume", "list-jobs")
_READ = ("csi-read-volume", "csi-mount-volume", "read-job")
_ALLOC = ("csi-mount-volume", "read-job")


def _in_one(who: Who, ns: str, *any_of: str) -> bool:
    """Writes name one namespace."""
    return who.kind == "management" if ns == "*" else who.has(ns, *any_of)


def _body_write(who: Who, ns: str) -> Verdict:
    plugin = who.reads("plugin")
    if who.strict:
        return "yes" if plugin and _in_one(who, ns, "csi-write-volume") else "no"
    if _in_one(who, ns, "csi-write-volume"):
        return "yes"
    if not who.has("*", "csi-write-volume"):
        return "no"
    return "no" if who.has(ns) else "hidden"


def _delete(who: Who, ns: str) -> bool:
    return _in_one(who, ns, "csi-write-volume") and (not who.strict or who.reads("plugin"))


def _detach(who: Who, ns: str) -> bool:
    by_mount = _in_one(who, ns, "csi-mount-volume") and who.reads("plugin")
    return by_mount or (not who.strict and _in_one(who, ns, "csi-write-volume"))


def _own(who: Who, ns: str) -> bool:
    return who.kind != "anonymous" or not who.is_empty()


def _read_record(who: Who, any_of: tuple[str, ...]) -> Verdict:
    """A record of the namespace ``dev``, looked at by an ID that says nothing of it."""
    if not who.has("*", *any_of):
        return "no"
    return "yes" if who.has("dev", *any_of) else "hidden"


def _stop(who: Who, ns: str) -> bool:
    return who.has("dev", "csi-mount-volume", "alloc-lifecycle")


def _search(who: Who, ns: str) -> bool:
    return who.has(ns, "csi-list-volume", "csi-read-volume", "list-jobs", "read-job")


def _events(who: Who, ns: str) -> bool:
    return who.has(ns, *_READ, *_ALLOC) or who.reads("plugin") or who.reads("node")


def _external(who: Who, ns: str) -> bool:
    return who.has(ns, *_LIST) or (not who.strict and who.has(ns, "csi-write-volume"))


def _host_write(who: Who, ns: str) -> bool:
    return who.reads("plugin") or (not who.strict and who.has("*", "csi-write-volume"))


def _always(who: Who, ns: str) -> bool:
    return True


def _management(who: Who, ns: str) -> bool:
    return who.kind == "management"


def _nobody(who: Who, ns: str) -> bool:
    return False


def _node(who: Who, ns: str) -> bool:
    return who.kind == "node"


def _level(*blocks: str) -> Judgement:
    return lambda who, ns: all(who.reads(block) for block in blocks)


def _jobs(who: Who, ns: str) -> bool:
    return who.has(ns, "list-jobs", "read-job")


def _volume(who: Who, ns: str) -> bool:
    return who.has(ns, *_READ)


def _deregister(who: Who, ns: str) -> bool:
    return _in_one(who, ns, "csi-write-volume")


def _node_write(who: Who, ns: str) -> bool:
    return who.writes_nodes()


# Which callers need not even be known: the page is for everybody.
FREE = frozenset(
    (
        "/v1/status/leader",
        "/v1/status/peers",
        "/v1/regions",
        "/v1/agent/health",
        "/v1/acl/bootstrap",
        "/v1/node/:id/join",
    )
)

EXPECTED: dict[tuple[str, str], Judgement] = {
    ("GET", "/v1/volumes"): lambda who, ns: who.has(ns, *_LIST),
    ("PUT", "/v1/volumes"): _body_write,
    ("GET", "/v1/volumes/external"): _external,
    ("GET", "/v1/volumes/orphans"): _level("operator"),
    ("GET", "/v1/volumes/snapshot"): lambda who, ns: who.has(ns, *_LIST),
    ("DELETE", "/v1/volumes/snapshot"): _delete,
    ("PUT", "/v1/volumes/snapshot"): _delete,
    ("PUT", "/v1/volumes/snapshot/:id"): _delete,
    ("GET", "/v1/volume/csi/:id"): _volume,
    ("DELETE", "/v1/volume/csi/:id"): _deregister,
    ("PUT", "/v1/volume/csi/:id"): _body_write,
    ("GET", "/v1/volume/csi/:id/why"): _volume,
    ("PUT", "/v1/volume/csi/:id/create"): _body_write,
    ("DELETE", "/v1/volume/csi/:id/delete"): _delete,
    ("DELETE", "/v1/volume/csi/:id/detach"): _detach,
    ("PUT", "/v1/volume/csi/:id/snapshot"): _delete,
    ("GET", "/v1/plugins"): lambda who, ns: who.lists_plugins(),
    ("GET", "/v1/plugin/csi/:id"): _level("plugin"),
    ("GET", "/v1/plugin/csi/:id/why"): _level("plugin", "operator"),
    ("GET", "/v1/plugin/csi/:id/:part"): _level("plugin"),
    ("GET", "/v1/nodes"): _level("node"),
    ("GET", "/v1/nodes/join-tokens"): _node_write,
    ("PUT", "/v1/nodes/join-tokens"): _node_write,
    ("DELETE", "/v1/nodes/join-token/:id"): _node_write,
    ("GET", "/v1/node/:id"): _level("node"),
    ("GET", "/v1/node/:id/allocations"): _level("node"),
    ("GET", "/v1/node/:id/why"): _level("node", "operator"),
    ("PUT", "/v1/node/:id/drain"): _node_write,
    ("PUT", "/v1/node/:id/eligibility"): _node_write,
    ("PUT", "/v1/node/:id/fence"): _node_write,
    ("PUT", "/v1/node/:id/reset-identity"): _node_write,
    ("PUT", "/v1/node/:id/join"): _always,
    ("PUT", "/v1/node/:id/register"): _node,
    ("PUT", "/v1/node/:id/plugins"): _node,
    ("GET", "/v1/node/:id/steps"): _node,
    ("GET", "/v1/node/:id/claims"): _node,
    ("PUT", "/v1/node/:id/reports"): _node,
    ("GET", "/v1/allocations"): lambda who, ns: who.has(ns, *_ALLOC),
    ("PUT", "/v1/allocations"): lambda who, ns: _in_one(who, ns, "csi-mount-volume"),
    ("GET", "/v1/allocation/:id"): lambda who, ns: _read_record(who, _ALLOC),
    ("GET", "/v1/allocation/:id/why"): lambda who, ns: _read_record(who, _ALLOC),
    ("PUT", "/v1/allocation/:id/stop"): _stop,
    ("GET", "/v1/namespaces"): _own,
    ("PUT", "/v1/namespace"): _management,
    ("GET", "/v1/namespace/:name"): lambda who, ns: who.has(ns),
    ("DELETE", "/v1/namespace/:name"): _management,
    ("PUT", "/v1/namespace/:name"): _management,
    ("PUT", "/v1/search"): _search,
    ("PUT", "/v1/search/fuzzy"): _search,
    ("GET", "/v1/event/stream"): _events,
    ("GET", "/v1/status/leader"): _always,
    ("GET", "/v1/status/peers"): _always,
    ("GET", "/v1/regions"): _always,
    ("GET", "/v1/agent/health"): _always,
    ("GET", "/v1/openapi.json"): lambda who, ns: who.kind != "anonymous",
    ("GET", "/v1/agent/self"): _level("agent"),
    ("GET", "/v1/agent/members"): _level("node"),
    ("GET", "/v1/agent/servers"): _level("agent"),
    ("GET", "/v1/jobs"): _jobs,
    ("GET", "/v1/evaluations"): _jobs,
    ("GET", "/v1/deployments"): _jobs,
    ("GET", "/v1/volumes/claims"): _volume,
    ("DELETE", "/v1/volumes/claims"): _volume,
    ("PUT", "/v1/volumes/claims"): _volume,
    ("DELETE", "/v1/volumes/claim/:id"): _deregister,
    ("PUT", "/v1/volume/host/create"): _host_write,
    ("PUT", "/v1/volume/host/register"): _host_write,
    ("GET", "/v1/volume/host/:id"): _volume,
    ("DELETE", "/v1/volume/host/:id"): _deregister,
    ("GET", "/v1/metrics"): lambda who, ns: who.reads("agent") or who.reads("operator"),
    ("GET", "/v1/operator/raft/configuration"): _level("operator"),
    ("GET", "/v1/operator/scheduler/configuration"): _level("operator"),
    ("GET", "/v1/operator/secrets"): _level("operator"),
    ("PUT", "/v1/operator/secrets/rotate"): _management,
    ("GET", "/v1/operator/calls"): _level("operator"),
    ("GET", "/v1/operator/log"): _level("operator"),
    ("GET", "/v1/operator/settings"): _level("operator"),
    ("PUT", "/v1/system/gc"): _management,
    ("PUT", "/v1/acl/bootstrap"): _always,
    ("GET", "/v1/acl/policies"): _own,
    ("GET", "/v1/acl/policy/self"): _own,
    ("GET", "/v1/acl/policy/:name"): lambda who, ns: who.kind == "management" or "p0" in who.names,
    ("DELETE", "/v1/acl/policy/:name"): _management,
    ("PUT", "/v1/acl/policy/:name"): _management,
    ("GET", "/v1/acl/tokens"): _management,
    ("PUT", "/v1/acl/token"): _management,
    ("GET", "/v1/acl/token/self"): _always,
    ("GET", "/v1/acl/token/:id"): _management,
    ("DELETE", "/v1/acl/token/:id"): _management,
    ("PUT", "/v1/acl/token/:id"): _management,
}


def judge(who: Who, method: str, pattern: str, namespace: str) -> Verdict:
    """What the caller gets: ``yes``, ``no`` or ``hidden``."""
    if pattern in FREE:
        return "yes"
    if who.kind == "bad":
        return "no"
    found = EXPECTED["PUT" if method == "POST" else method, pattern](who, namespace)
    return found if isinstance(found, str) else "yes" if found else "no"
