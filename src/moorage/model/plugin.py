"""Plugins: a CSI driver as the cluster sees it, made of what each node reports about its instance.

Never: I/O, clock.
"""

from __future__ import annotations

import msgspec

from moorage.model.ids import NodeId, PluginId
from moorage.model.volume import Topology

MAX_VOLUMES_UNLIMITED = 9223372036854775807


class ControllerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver's controller service can do. Source: CSI ControllerServiceCapability."""

    supports_create_delete: bool = False
    supports_attach_detach: bool = False
    supports_list_volumes: bool = False
    supports_get_capacity: bool = False
    supports_create_delete_snapshot: bool = False
    supports_list_snapshots: bool = False
    supports_clone: bool = False
    supports_read_only_attach: bool = False
    supports_expand: bool = False
    supports_list_volumes_attached_nodes: bool = False
    supports_condition: bool = False
    supports_get: bool = False
    supports_modify: bool = False


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver's node service can do and how it names this node (``external_id``)."""

    external_id: str = ""
    max_volumes: int = MAX_VOLUMES_UNLIMITED
    accessible_topology: Topology | None = None
    requires_stage: bool = False
    supports_stats: bool = False
    supports_expand: bool = False
    supports_condition: bool = False
    supports_mount_group: bool = False


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A driver process on one node, as its agent reported it last.

    Health and capability are separate facts: a sick or absent driver keeps its last known capabilities.
    ``controller`` / ``node`` are None where that service is not served by this process.
    """

    node_id: NodeId
    healthy: bool
    health_description: str = ""
    provider: str = ""
    provider_version: str = ""
    requires_controller: bool = False
    requires_topologies: bool = False
    expands_online: bool = False
    expands_offline: bool = False
    controller: ControllerInfo | None = None
    node: NodeInfo | None = None
    updated_at_ns: int = 0
    alloc_id: str = ""


class Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin's record: its instances by node ID."""

    id: PluginId
    instances: dict[NodeId, Instance] = msgspec.field(default_factory=dict)
    created_at_ns: int = 0
    modified_at_ns: int = 0
