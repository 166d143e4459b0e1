"""What a caller may do: the rules of its policies merged, and the decisions asked of them. Pure.

Namespace       the exact rule decides; without one, of the globs that match, the most specific: the one with the
                smallest (characters that ``*`` stands for + number of ``*``). Several as specific as each other add up.
Several policies add up; ``deny`` for a name wipes what others give it there.
Levels          deny > write > read > list, over all policies. Write includes read, read includes list.

Source: contract volumes-api §6.1 to §6.4; golden acl.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

import msgspec

from moorage.errors import Forbidden
from moorage.model.acl import Caller
from moorage.model.ids import ALL_NAMESPACES
from moorage.model.policy import NamespaceRule, PolicyRules
from moorage.rules.policies import DENY

# Any one of these, by what is asked for. Source: §6.4, and §6.6 where the documented page asks for less.
LIST = frozenset({"csi-list-volume", "csi-read-volume", "csi-mount-volume", "list-jobs"})
READ = frozenset({"csi-read-volume", "csi-mount-volume", "read-job"})
WRITE = frozenset({"csi-write-volume"})
MOUNT = frozenset({"csi-mount-volume"})
LIST_EXTERNAL = LIST | WRITE
DETACH = MOUNT | WRITE
SEARCH_VOLUMES = frozenset({"csi-list-volume", "csi-read-volume", "list-jobs", "read-job"})
READ_ALLOCATION = frozenset({"csi-mount-volume", "read-job"})
STOP_ALLOCATION = frozenset({"csi-mount-volume", "alloc-lifecycle"})
LIST_JOBS = frozenset({"list-jobs", "read-job"})
ANYTHING: frozenset[str] = frozenset()

_LEVELS = {"": 0, "list": 1, "read": 2, "write": 3, DENY: 4}
_NOTHING: frozenset[str] = frozenset()


class Acl:
    """Merged rules. Made once for a set of policies; asked for every request."""

    __slots__ = ("_exact", "_globs", "agent", "is_management", "node", "operator", "plugin")

    def __init__(self, policies: Iterable[PolicyRules] = (), *, is_management: bool = False) -> None:
        found = tuple(policies)
        self.is_management = is_management
        self.plugin = _highest(p.plugin for p in found)
        self.node = _highest(p.node for p in found)
        self.agent = _highest(p.agent for p in found)
        self.operator = _highest(p.operator for p in found)
        merged = _unite(rule for p in found for rule in p.namespaces)
        self._exact = {name: held for name, held in merged.items() if "*" not in name}
        self._globs = [(_compile(name), name, held) for name, held in sorted(merged.items()) if "*" in name]

    @property
    def is_empty(self) -> bool:
        """Whether it allows nothing at all."""
        levels = {self.plugin, self.node, self.agent, self.operator} - {"", DENY}
        held = any(self._exact.values()) or any(held for _, _, held in self._globs)
        return not (self.is_management or levels or held)

    def find_capabilities(self, namespace: str) -> frozenset[str]:
        """What is held in one namespace, by name. A management token's capabilities are not listed."""
        exact = self._exact.get(namespace)
        if exact is not None:
            return exact
        matching = [(measure_glob(name, namespace), held) for pattern, name, held in self._globs if pattern(namespace)]
        if not matching:
            return _NOTHING
        least = min(distance for distance, _ in matching)
        nearest = [held for distance, held in matching if distance == least]
        # A denial leaves a name with nothing; among equals it wins.
        return frozenset().union(*nearest) if all(nearest) else _NOTHING

    def may(self, namespace: str, any_of: Collection[str]) -> bool:
        """Whether one of the capabilities is held in the namespace; ``*``: in any. ``ANYTHING``: whether any is."""
        if self.is_management:
            return True
        if namespace == ALL_NAMESPACES:
            rules = (*self._exact.values(), *(held for _, _, held in self._globs))
            return any(_holds(held, any_of) for held in rules)
        return _holds(self.find_capabilities(namespace), any_of)


def _holds(held: frozenset[str], any_of: Collection[str]) -> bool:
    return bool(held) if not any_of else not held.isdisjoint(any_of)


def _highest(levels: Iterable[str]) -> str:
    return max(levels, key=_LEVELS.__getitem__, default="")


def _unite(rules: Iterable[NamespaceRule]) -> dict[str, frozenset[str]]:
    """Capabilities by name or pattern; none where one of them is denied."""
    found: dict[str, frozenset[str]] = {}
    for rule in rules:
        found[rule.name] = found.get(rule.name, _NOTHING) | set(rule.capabilities)
    return {name: _NOTHING if DENY in held else held for name, held in found.items()}


def _compile(pattern: str) -> Callable[[str], object]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL).fullmatch


def measure_glob(pattern: str, name: str) -> int:
    """How far a pattern is from a name that it matches; the smaller, the more specific."""
    return len(name) - len(pattern) + pattern.count("*")


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """A caller with what it may do: what a request carries.

    ``is_open``: access control is off, everything is allowed. ``is_strict``: a write also needs to read the plugin, as
    recorded servers demand.
    """

    caller: Caller = Caller()
    acl: Acl = Acl()
    is_open: bool = False
    is_strict: bool = False

    def may(self, namespace: str, any_of: Collection[str]) -> bool:
        """Whether one of the capabilities is held in the namespace; ``*``: in any one."""
        return self.is_open or self.acl.may(namespace, any_of)

    def may_in_one(self, namespace: str, any_of: Collection[str]) -> bool:
        """The same for what concerns one namespace: ``*`` may be anything, so that it takes who may do everything."""
        return self.is_full if namespace == ALL_NAMESPACES else self.may(namespace, any_of)

    def may_write(self, namespace: str, any_of: Collection[str] = WRITE) -> bool:
        """Whether a volume of the namespace may be written."""
        return self.may_in_one(namespace, any_of) and (not self.is_strict or self.may_read_plugins)

    def chooser(self, any_of: Collection[str]) -> Callable[[str], bool]:
        """Whether a namespace is one in which a capability is held, for lists over many: each is decided once."""
        decided: dict[str, bool] = {}

        def choose(namespace: str) -> bool:
            found = decided.get(namespace)
            if found is None:
                found = decided[namespace] = self.may(namespace, any_of)
            return found

        return choose

    @property
    def is_full(self) -> bool:
        """Whether there is nothing that it may not do, but what nodes alone may."""
        return self.is_open or self.acl.is_management

    @property
    def _plugin(self) -> str:
        """Strict: the level ``write`` grants nothing, as recorded; else it includes ``read``."""
        return "" if self.is_strict and self.acl.plugin == "write" else self.acl.plugin

    @property
    def may_list_plugins(self) -> bool:
        """Whether plugins may be listed."""
        return self.is_full or self._has(self._plugin, "list")

    @property
    def may_read_plugins(self) -> bool:
        """Whether plugins may be read."""
        return self.is_full or self._has(self._plugin, "read")

    @property
    def may_read_nodes(self) -> bool:
        """Whether nodes may be listed and read."""
        return self.is_full or self._has(self.acl.node, "read")

    @property
    def may_write_nodes(self) -> bool:
        """Whether nodes may be drained, closed, fenced."""
        return self.is_full or self._has(self.acl.node, "write")

    @property
    def may_read_agent(self) -> bool:
        """Whether the server's own pages may be read."""
        return self.is_full or self._has(self.acl.agent, "read")

    @property
    def may_read_operator(self) -> bool:
        """Whether what concerns the whole cluster may be read, whatever the namespace."""
        return self.is_full or self._has(self.acl.operator, "read")

    @staticmethod
    def _has(level: str, wanted: str) -> bool:
        return level != DENY and _LEVELS[level] >= _LEVELS[wanted]


def may_search(access: Access, context: str, namespace: str) -> bool:
    """Whether a context of a search may be asked for in a namespace; ``*``: in some. Those of things that are not here
    need what the recorded server asks for them."""
    match context:
        case "allocs":
            return access.may(namespace, READ_ALLOCATION)
        case "volumes":
            return access.may(namespace, SEARCH_VOLUMES)
        case "plugins":
            return access.may_list_plugins
        case "nodes" | "node_pools":
            return access.may_read_nodes
        case "namespaces":
            return access.may(ALL_NAMESPACES, ANYTHING)
        case "vars":
            return access.may(namespace, ANYTHING)
        case "host_volumes":
            return access.may(namespace, LIST)
    return access.may(namespace, LIST_JOBS)


OPEN = Access(is_open=True)
NOBODY = Access()


def refuse() -> Forbidden:
    """The refusal that clients know."""
    return Forbidden("Permission denied")


def demand(is_allowed: bool) -> None:
    """Raises Forbidden unless it is allowed."""
    if not is_allowed:
        raise refuse()
