"""What the agent takes from outside: drivers, the host's mounts, time and chance, and its settings.

Never: I/O. The real ones are ``csi.client.DriverClient`` and ``agent.host_mounts.HostMounter``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol

import msgspec

from moorage.model.ids import NodeId, PluginId
from moorage.model.plugin import Instance
from moorage.model.steps import Outcome, Step


class DriverFacts(Protocol):
    """What a driver said about itself."""

    @property
    def is_ready(self) -> bool:
        """Whether it works; if not, only its name is told and known capabilities stay."""
        ...

    @property
    def health_description(self) -> str:
        """A sentence about its health."""
        ...

    def to_instance(self, node_id: NodeId, *, now_ns: int, alloc_id: str = "") -> Instance:
        """The facts as an instance's record."""
        ...


class Driver(Protocol):
    """A driver behind its socket."""

    async def open(self) -> None:
        """Get ready to call; the socket need not be there yet."""
        ...

    async def close(self) -> None:
        """End it."""
        ...

    def is_connected(self) -> bool:
        """Whether the connection of the last call still stands; a driver that died breaks it, whatever it left."""
        ...

    async def probe(self, *, timeout_s: float) -> DriverFacts:
        """Ask what it is. Raises DriverFault."""
        ...

    async def run(self, step: Step, *, timeout_s: float) -> Outcome:
        """Carry out a step; whatever goes wrong at the driver is a Failed outcome."""
        ...


class Mounter(Protocol):
    """The host's mounts. Every method blocks; OSError carries the kernel's errno."""

    def find_mounted(self, paths: Iterable[str]) -> frozenset[str]:
        """Those of ``paths`` at which something is mounted now, by one look at the mount table."""
        ...

    def is_same(self, one: str, other: str) -> bool:
        """Whether both paths show the same file or directory; False where one cannot be looked at."""
        ...

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """Show ``source`` at the existing ``target``."""
        ...

    def unmount(self, path: str) -> None:
        """Take away the uppermost mount at ``path``."""
        ...


Role = Literal["detected", "controller", "node", "monolith"]


class CallLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Calls at a time of one driver. None: as the agent's settings have it."""

    controller_calls_max: int | None = None
    node_calls_max: int | None = None
    slow_calls_max: int | None = None


class DriverSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A driver that this node has: the path of its socket, and what it is to serve.

    ``role``: detected: whatever it answers to; controller, node: only that, whatever else it answers to; monolith:
    both, and it is sick without one of them. ``limits``: its own, where they differ from the agent's.
    """

    socket: str
    role: Role = "detected"
    limits: CallLimits = CallLimits()


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Deadlines, paces and limits of an agent; seconds unless said otherwise.

    probe_young_s, probe_old_s: pause between probes until the first success (and after a failure), and afterwards.
    probe_timeout_s: how long a driver may take to say what it is.
    socket_look_s: how often a driver's socket and connection are looked at, to see its end or a restart.
    wait_s: how long one standing query waits for news; whole_list_s: how long its answers may name only what is new
    until the whole list is asked for again.
    controller_calls_max, node_calls_max: driver calls at a time, per plugin.
    slow_calls_max, slow_after_s: calls that have gone on for so long count among these, not among those above.
    rescan_s: how often mounts are looked at without any news.
    look_timeout_s: how long a look at a volume's paths, or a change to them, may take.
    retry_cap_s: the longest pause before a failed node step is tried again.
    reports_kept_max, reports_batch: reports that may wait for the server, and how many go in one request.
    clean_first_s: how long the start waits for mounts to go whose claims are gone.
    plugins_repeat_s: the pause until the plugin report is told again though nothing has changed.
    first_probe_s: how long the first plugin report waits for every driver's first answer.
    node_call_s: deadline of a driver call for a use that the server does not know any more.
    mount_probe_s, mount_hang_s: pause between looks for broken mounts; how long a good one may take to answer.
    holders_s: how long a look for those who use a path may take.
    plugin_dirs: directories in which each driver's socket is found; plugins_look_s: how often they are looked at;
    plugin_gone_s: for how long a socket file may be missing until its plugin is forgotten.
    is_self_fencing: stop the writers and unmount everything when the lease cannot be renewed; fence_look_s: how often
    the lease is looked at for it.
    secret_dirs, secret_env, secret_credentials: what secrets may refer to on this host; secret_read_s: how long reading
    them may take.
    """

    probe_young_s: float = 1.0
    probe_old_s: float = 10.0
    probe_timeout_s: float = 5.0
    socket_look_s: float = 0.25
    wait_s: float = 60.0
    whole_list_s: float = 60.0
    controller_calls_max: int = 32
    node_calls_max: int = 32
    slow_calls_max: int = 256
    slow_after_s: float = 5.0
    rescan_s: float = 30.0
    look_timeout_s: float = 30.0
    retry_cap_s: float = 30.0
    reports_kept_max: int = 1024
    reports_batch: int = 64
    clean_first_s: float = 5.0
    plugins_repeat_s: float = 10.0
    first_probe_s: float = 1.0
    node_call_s: float = 120.0
    mount_probe_s: float = 1.0
    mount_hang_s: float = 2.5
    holders_s: float = 5.0
    plugin_dirs: tuple[str, ...] = ()
    plugins_look_s: float = 0.5
    plugin_gone_s: float = 30.0
    is_self_fencing: bool = False
    fence_look_s: float = 0.2
    secret_dirs: tuple[str, ...] = ()
    secret_env: tuple[str, ...] = ()
    secret_credentials: tuple[str, ...] = ()
    secret_read_s: float = 5.0


Clock = Callable[[], int]
"""The time of day: nanoseconds since the epoch."""

Chance = Callable[[], float]
"""A number in [0, 1)."""

Ticks = Callable[[], float]
"""Seconds of a clock that nobody sets, and that goes on while the host sleeps."""

Connect = Callable[[PluginId, DriverSpec], Driver]
"""Makes the driver behind a socket."""
