"""What the engine takes from outside: the clock, ids, randomness, and its settings."""

from __future__ import annotations

from typing import Protocol

import msgspec

from moorage.model.ids import NodeId
from moorage.model.node import Node
from moorage.rules.filter import FilterLimits
from moorage.rules.nodes import FencingSettings


class Clock(Protocol):
    """The time of day."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds of a clock that nobody sets; for pauses and silences."""
        ...


class Chance(Protocol):
    """Ids and jitter."""

    def new_id(self) -> str:
        """A fresh UUID as text."""
        ...

    def jitter(self) -> float:
        """A number in [0, 1)."""
        ...


class HookAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a fence hook said. ``text``: how the node was cut off, or why not; ``exit_code`` None: it did not end."""

    is_fenced: bool
    text: str
    exit_code: int | None = None


class FenceHook(Protocol):
    """A program of the operator's that cuts a lost node off: a power switch, a hypervisor."""

    async def fence(self, node: Node) -> HookAnswer:
        """Cut the node off. Never raises; has a deadline; may be asked again for a node that is cut off already."""
        ...


class NodeIdentities(Protocol):
    """Which node a secret belongs to."""

    def find_node(self, secret: str) -> NodeId | None:
        """The node whose own secret this is, or None. Answers from memory, in time that tells nothing."""
        ...


class ResetIndex(Protocol):
    """How an operator allows a second bootstrap: by naming the index of the first."""

    async def read_index(self) -> int | None:
        """The index that the operator has named, or None. Never raises."""
        ...


class NoReset:
    """There is no second bootstrap."""

    async def read_index(self) -> int | None:
        """None."""
        return None


class AclSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Access control. ``strict``: writes also need to read the plugin, as recorded servers demand."""

    enabled: bool = False
    strict: bool = False


class IdentitySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What nodes must show. is_join_needed: a new one needs a join token or a certificate; else it is taken on first
    use. is_certificate_needed: agents' pages want a client certificate that names the node."""

    is_join_needed: bool = False
    is_certificate_needed: bool = False


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Deadlines and limits of the engine, in seconds unless said otherwise.

    request_s: how long a handler waits for a result before it answers that work goes on.
    controller_call_s, snapshot_call_s, list_call_s: deadlines of single driver calls.
    node_call_s: deadline of one call to a node service.
    operation_kept_s: how long an operation's record is kept for its caller.
    allocation_kept_s: how long an ended allocation is shown.
    fencing: leases of nodes, and what frees the claims of a lost one.
    acl: access control.
    identity: what nodes must show.
    filters: how much a list's filter may be.
    """

    request_s: float = 120.0
    controller_call_s: float = 120.0
    snapshot_call_s: float = 300.0
    list_call_s: float = 60.0
    node_call_s: float = 120.0
    operation_kept_s: float = 600.0
    allocation_kept_s: float = 3600.0
    fencing: FencingSettings = FencingSettings()
    acl: AclSettings = AclSettings()
    identity: IdentitySettings = IdentitySettings()
    filters: FilterLimits = FilterLimits()
