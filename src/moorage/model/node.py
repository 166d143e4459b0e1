"""Nodes: hosts with an agent.

Never: I/O, clock.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from moorage.model.ids import NodeId, PluginId

NodeStatus = Literal["initializing", "ready", "down"]
# active: takes uses; closed: takes no new ones; draining: takes no new ones and releases the running ones.
NodeWanted = Literal["active", "closed", "draining"]
# What shows that a lost node can no longer write to a volume; ``grace`` serves readers only.
#   reboot      the node came back with another boot ID, and its agent had begun no mount since that boot
#   self_fence  the agent had promised to stop its writers and unmount before the grace is over
#   hook        a program of the operator's (power switch, hypervisor) said so with exit code 0
#   operator    somebody said so, with a reason
#   timeout     nobody said so; the setting ``takeover = "timeout"`` accepts the risk
FenceKind = Literal["reboot", "self_fence", "hook", "operator", "timeout", "grace"]


class Fence(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence that a node holds nothing any more, kept with who gave it and why."""

    kind: FenceKind
    reason: str = ""
    by: str = ""
    at_ns: int = 0


class HookTries(msgspec.Struct, frozen=True, kw_only=True):
    """How a lost node fares with the fence hook. Kept in a server's memory only.

    ``exit_code`` None: it was not started, or did not end in time; ``text`` says what came of the last try.
    Units: ns since the epoch, 0 for never.
    """

    lost_at_ns: int
    attempts: int = 0
    is_running: bool = False
    began_at_ns: int = 0
    exit_code: int | None = None
    text: str = ""
    next_try_ns: int = 0


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node's record. ``boot_id`` changes with every boot of the host; ``address`` is host or host:port."""

    id: NodeId
    name: str
    boot_id: str = ""
    address: str = ""
    datacenter: str = "dc1"
    node_pool: str = "default"
    node_class: str = ""
    status: NodeStatus = "initializing"
    attributes: dict[str, str] = msgspec.field(default_factory=dict)
    meta: dict[str, str] = msgspec.field(default_factory=dict)
    cpu_mhz: int = 0
    memory_mb: int = 0
    disk_mb: int = 0
    version: str = ""
    wanted: NodeWanted = "active"
    # The drain in hand, or the last one: when it began, and when nothing was left (0: not yet).
    drain_began_at_ns: int = 0
    drain_ended_at_ns: int = 0
    is_self_fencing: bool = False
    # Set while the node is down: since when, and the evidence that it holds nothing (None: it may still write).
    lost_at_ns: int = 0
    fence: Fence | None = None
    # When claims were last taken from the node: with each of them the record gets a new revision.
    freed_at_ns: int = 0
    created_at_ns: int = 0
    status_updated_at_ns: int = 0


class Turnstile(msgspec.Struct, frozen=True, kw_only=True):
    """Lets claims of a plugin whose driver takes a limited number of volumes onto a node one after another: each that
    brings another disk there writes it, so that the loser of two counts again. It stays when the claims are gone."""

    node_id: NodeId
    plugin_id: PluginId
