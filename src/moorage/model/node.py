"""Nodes: hosts with an agent.

Never: I/O, clock.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from moorage.model.ids import NodeId

NodeStatus = Literal["initializing", "ready", "down"]


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
    created_at_ns: int = 0
    status_updated_at_ns: int = 0
