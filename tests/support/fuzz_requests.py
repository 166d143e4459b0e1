"""Requests made up from the route table: mostly sensible, often nearly so, sometimes anything.

One seed gives one sequence. Names come from small pools, so that requests meet each other's volumes and allocations.
What an agent may say is believed by design: bodies of the agents' pages are sensible for nodes that nobody has, and
nonsense for the real one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import quote

from moorage.api.openapi import find_operation
from moorage.api.openapi_parts import Operation
from moorage.api.routes import ROUTES

VOLUMES = tuple(f"v{n}" for n in range(6))
ALLOCATIONS = tuple(f"00000000-0000-4000-8000-00000000000{n}" for n in range(6))
GHOST = "99999999-9999-4999-8999-999999999999"
NAMESPACES = ("default", "default", "default", "other", "*", "")
MODES = (
    "single-node-writer",
    "single-node-writer",
    "single-node-reader-only",
    "single-node-single-writer",
    "single-node-multi-writer",
    "multi-node-reader-only",
    "multi-node-single-writer",
    "multi-node-multi-writer",
)
FILTERS = (
    'ID == "v1"',
    "Schedulable == true",
    'ID matches "^v[12]$"',
    "CurrentWriters > 0",
    'Secrets.key == "s"',
    'PluginID == "hostpath" and (Namespace != "x" or ID is empty)',
    "((((",
    'any RequestedCapabilities as c { c.AccessMode == "x" }',
    'ID matches "(a+)+$"',
)
JUNK_TEXTS = (
    "",
    "\x00",
    "é\u2028",
    "a b",
    "../..",
    "%",
    "{}",
    "null",
    "-1",
    "1e9",
    "x" * 300,
    "\U0001f600",
    "'\"<&>",
    "1",
)
JUNK_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    2**64,
    10**30,
    1.5,
    "",
    "x",
    [],
    [None],
    {},
    {"a": None},
    [[1]],
)
METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "OPTIONS", "get", "")
# These come more often.
_BUSY = ("/v1/volume", "/v1/allocation")
# A page that takes seconds by design: it looks at a driver twice.
_SLOW = ("/v1/volumes/orphans",)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A request. ``target`` is the path, percent-encoded; ``query`` has no question mark."""

    method: str
    target: str
    query: str
    headers: dict[str, str]
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.target}?{self.query} {self.headers} {self.body[:2000]!r}"


@dataclass(kw_only=True)
class Maker:
    """Makes requests. ``node_id``: the node that mounts; ``prefix``: before each volume's name."""

    random: Random
    node_id: str
    plugin_id: str = "hostpath"
    prefix: str = ""
    rows: list[tuple[str, str, Operation]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for route in ROUTES:
            for method in route.handlers:
                found = find_operation(route.pattern, method)
                if found is None or found.is_stream or route.pattern in _SLOW:
                    continue
                weight = 8 if route.pattern.startswith(_BUSY) and not found.is_refused else 1
                self.rows += [(route.pattern, method, found)] * weight

    def make(self) -> Made:
        """The next request."""
        random = self.random
        pattern, method, operation = random.choice(self.rows)
        target = "/".join(self._segment(pattern, part) for part in pattern.split("/"))
        if random.random() < 0.04:
            target += random.choice(("/", "/x", "//", "%2F", "%00", "%ff", "/create", "/delete", "/../x"))
        if random.random() < 0.05:
            method = random.choice(METHODS)
        is_agent = operation.is_internal and self.node_id in target
        return Made(
            method=method,
            target=target,
            query=self._query(operation),
            headers=self._headers() | (self._own(target) if operation.is_internal else {}),
            body=self._body(operation, is_nonsense=is_agent),
        )

    def _any_of(self, *choices: str) -> str:
        return self.random.choice(choices)

    # -- path and query ----------------------------------------------------------------------------------------------

    def _segment(self, pattern: str, part: str) -> str:
        if not part.startswith(":"):
            return part
        if self.random.random() < 0.06:
            return quote(self._any_of(*JUNK_TEXTS), safe="")
        word = pattern.split(f"/{part}")[0].rpartition("/")[2]
        is_plugin = pattern.startswith("/v1/plugin/")
        pools: dict[str, Callable[[], str]] = {
            "csi": self._plugin if is_plugin else self._volume,
            "snapshot": self._volume,
            "node": self._node,
            "allocation": lambda: self._any_of(*ALLOCATIONS),
            "namespace": lambda: self._any_of("other", "third", "default"),
        }
        return quote(pools.get(word, lambda: self._any_of("x", GHOST))(), safe="")

    def _volume(self) -> str:
        return self.prefix + self._any_of(*VOLUMES)

    def _plugin(self) -> str:
        return self.plugin_id if self.random.random() < 0.95 else "none"

    def _node(self) -> str:
        return self.node_id if self.random.random() < 0.8 else self._any_of(GHOST, "x")

    def _query(self, operation: Operation) -> str:
        random = self.random
        pairs = []
        for name in operation.parameters:
            if not name.startswith("X-") and random.random() < (
                0.9 if name in ("plugin_id", "node", "snapshot_id") else 0.3
            ):
                pairs.append((name, self._value(name)))
        if random.random() < 0.2:
            # Never without a wait of its own: a read may be held back for minutes.
            pairs += [("index", self._any_of("0", "1", "5", "99999999", "-1", "x", str(2**64))), ("wait", self._wait())]
        if random.random() < 0.1:
            pairs.append((self._any_of(*JUNK_TEXTS), self._any_of(*JUNK_TEXTS)))
        random.shuffle(pairs)
        return "&".join(f"{quote(n)}={quote(v)}" for n, v in pairs)

    def _wait(self) -> str:
        return self._any_of("1ms", "2ms", "1us", "1ms", "1ms", "x", "5")

    def _value(self, name: str) -> str:
        if self.random.random() < 0.06:
            return self._any_of(*JUNK_TEXTS)
        pools: dict[str, Callable[[], str]] = {
            "namespace": lambda: self._any_of(*NAMESPACES),
            "region": lambda: self._any_of("", "global", "global", "mars"),
            "plugin_id": self._plugin,
            "node": self._node,
            "node_id": lambda: self.node_id[: self.random.randrange(37)],
            "type": lambda: self._any_of("csi", "csi", "csi", "host", "x"),
            "prefix": lambda: self._any_of("", "v", "v1", self.node_id[:8]),
            "per_page": lambda: self._any_of("0", "1", "2", "-3", "x"),
            "next_token": lambda: self._any_of("", "default.v2", "default", ".", "other.v1"),
            "filter": lambda: self._any_of(*FILTERS),
            "snapshot_id": lambda: f"snap-{self.random.randrange(1, 6)}@s{self.random.randrange(3)}",
            "force": lambda: self._any_of("true", "false", "1", "x"),
            "index": lambda: self._any_of("0", "x"),
        }
        return pools.get(name, lambda: self._any_of("true", "false", "1", ""))()

    def _headers(self) -> dict[str, str]:
        found = {}
        if self.random.random() < 0.1:
            found["accept"] = "application/problem+json"
        if self.random.random() < 0.1:
            found["x-nomad-csi-secrets"] = self._any_of("k=v,l=m", "x", "=,=", "k=" + "v" * 200)
        if self.random.random() < 0.1:
            found["x-nomad-token"] = self._any_of("x", GHOST, "")
        return found

    def _own(self, target: str) -> dict[str, str]:
        """The token with which an agent uses its pages, once it has joined with it; mostly."""
        node_id = GHOST if GHOST in target else self.node_id
        return {"x-nomad-token": f"moorage-node-{node_id}"} if self.random.random() < 0.9 else {}

    # -- bodies ------------------------------------------------------------------------------------------------------

    def _body(self, operation: Operation, *, is_nonsense: bool) -> bytes:
        random = self.random
        if operation.body is None:
            return b"" if random.random() < 0.95 else random.randbytes(5)
        chance = random.random()
        if chance < 0.03 or (is_nonsense and chance < 0.3):
            return random.randbytes(random.randrange(40))
        if chance < 0.08 or is_nonsense:
            return json.dumps(self._nonsense(3)).encode()
        value = self._sensible(operation.body.__name__)
        for _ in range(random.choice((0, 0, 0, 0, 1, 2))):
            self._spoil(value)
        body = json.dumps(value, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
        if chance > 0.97:
            return body[: random.randrange(len(body))] + random.choice((b"", b"\xff", b"} \xff", b"]" * 80, b"[" * 80))
        return body + (b' trailing "\xff' if chance > 0.95 else b"")

    def _nonsense(self, depth: int) -> Any:
        random = self.random
        if depth == 0 or random.random() < 0.4:
            return copy.deepcopy(random.choice(JUNK_VALUES))
        if random.random() < 0.5:
            return [self._nonsense(depth - 1) for _ in range(random.randrange(4))]
        # Not the agents' own members: an agent that says that it has no driver is believed.
        names = ("Volumes", "volumes", "Allocation", "ID", "Snapshots", "DrainSpec", "", "é", "x")
        return {random.choice(names): self._nonsense(depth - 1) for _ in range(random.randrange(4))}

    def _sensible(self, kind: str) -> dict[str, Any]:
        makers: dict[str, Callable[[], dict[str, Any]]] = {
            "VolumesBody": lambda: {"Volumes": [self._volume_body() for _ in range(self.random.choice((1, 1, 1, 2)))]},
            "SnapshotsBody": lambda: {"Snapshots": [self._snapshot_body()]},
            "StartBody": lambda: {"Allocation": self._allocation_body()},
            "NamespaceBody": lambda: {"Name": self._any_of("other", "third"), "Meta": {"k": "v"}},
            "SearchBody": lambda: {"Prefix": "v", "Text": "v1", "Context": self._any_of("all", "volumes", "x")},
            "EligibilityBody": lambda: {"Eligibility": self._any_of("eligible", "eligible", "ineligible")},
            "DrainBody": lambda: {"MarkEligible": True},
            "FenceBody": lambda: {"Reason": "fuzz"},
            "NodeRegistration": lambda: {"node": {"id": GHOST, "name": "ghost", "boot_id": self._any_of("a", "b")}},
            "NodeJoin": lambda: {"name": "ghost", "join_token": self._any_of("", "x")},
            "JoinTokenBody": lambda: {"TTL": self._any_of("1h", "1ms", "x"), "Uses": 1},
            "PluginReport": lambda: {"instances": {}},
            "Reports": lambda: {"reports": [{"type": "unmounted", "claim_id": "x", "revision": 1}]},
        }
        return makers.get(kind, dict)()

    def _capability(self) -> dict[str, str]:
        return {
            "AccessMode": self._any_of(*MODES),
            "AttachmentMode": self._any_of(*["file-system"] * 4, "block-device"),
        }

    def _volume_body(self) -> dict[str, Any]:
        random = self.random
        name = self._volume()
        found: dict[str, Any] = {
            "ID": name,
            "Name": name,
            "PluginID": self._plugin(),
            "RequestedCapabilities": [self._capability() for _ in range(random.choice((1, 1, 2)))],
        }
        optional: dict[str, Callable[[], Any]] = {
            "Namespace": lambda: self._any_of("default", "other", "none"),
            "ExternalID": lambda: self._any_of("ext-a", "ext-b", f"vol-{random.randrange(1, 9)}"),
            "RequestedCapacityMin": lambda: random.choice((0, 1 << 20, 1 << 21, 1 << 30)),
            "RequestedCapacityMax": lambda: random.choice((0, 1 << 20, 1 << 22)),
            "MountOptions": lambda: {"FSType": "ext4", "MountFlags": random.choice((None, [], ["noatime"]))},
            "Secrets": lambda: {"key": "canary-secret"},
            "Parameters": lambda: {"tier": "fast"},
            "Context": lambda: {"a": "b"},
            "SnapshotID": lambda: "snap-1@s0",
            "CloneID": lambda: "vol-1",
            "RequestedTopologies": lambda: {"Preferred": [{"Segments": {"rack": "r1"}}]},
        }
        chosen = (
            n for n in optional if random.random() < (0.5 if n in ("ExternalID", "RequestedCapacityMin") else 0.1)
        )
        return found | {n: optional[n]() for n in chosen}

    def _snapshot_body(self) -> dict[str, Any]:
        name = f"s{self.random.randrange(3)}"
        return {"SourceVolumeID": self._volume(), "PluginID": self._plugin(), "Name": self.prefix + name}

    def _allocation_body(self) -> dict[str, Any]:
        random = self.random
        volumes = [
            {"Name": f"n{n}", "Source": self._volume(), "ReadOnly": random.random() < 0.4}
            | ({"AccessMode": self._any_of(*MODES)} if random.random() < 0.5 else {})
            for n in range(random.choice((1, 1, 2)))
        ]
        found = {
            "NodeID": self._node(),
            "Volumes": volumes,
            "Tasks": ["t"],
            "Namespace": self._any_of("default", "other"),
        }
        return found | {"ID": self._any_of(*ALLOCATIONS)}

    def _spoil(self, value: Any) -> None:
        """Change one member somewhere below."""
        random = self.random
        while isinstance(value, dict) and value:
            name = random.choice(list(value))
            inner = value[name][0] if isinstance(value[name], list) and value[name] else value[name]
            if isinstance(inner, dict) and inner and random.random() < 0.8:
                value = inner
                continue
            match random.randrange(4):
                case 0:
                    del value[name]
                case 1:
                    value[name] = copy.deepcopy(random.choice((*JUNK_VALUES, *JUNK_TEXTS)))
                case 2:
                    value[name.swapcase()] = value.pop(name)
                case _:
                    value[self._any_of(*JUNK_TEXTS)] = self._nonsense(2)
            return
