"""What answers about plugins look like. Source: contract volumes-api §3.9, §3.10."""

from __future__ import annotations

from moorage.api.answers import Json, topology_of
from moorage.model.plugin import ControllerInfo, Instance, NodeInfo, Plugin
from moorage.model.times import format_time
from moorage.rules.plugins import measure_health


def plugin_stub(plugin: Plugin, created: int, modified: int) -> Json:
    """A plugin as lists show it (§3.9)."""
    health = measure_health(plugin)
    return {
        "ControllerRequired": health.is_controller_required,
        "ControllersExpected": health.controllers_expected,
        "ControllersHealthy": health.controllers_healthy,
        "CreateIndex": created,
        "ID": plugin.id,
        "ModifyIndex": modified,
        "NodesExpected": health.nodes_expected,
        "NodesHealthy": health.nodes_healthy,
        "Provider": health.provider,
    }


def plugin_whole(plugin: Plugin, created: int, modified: int) -> Json:
    """A plugin whole (§3.10)."""
    instances = plugin.instances.items()
    return plugin_stub(plugin, created, modified) | {
        "Allocations": [],
        "ControllerJobs": {},
        "Controllers": {
            node_id: _instance(plugin, i) | {"ControllerInfo": controller_info(i.controller)}
            for node_id, i in instances
            if i.controller is not None
        },
        "CreateTime": plugin.created_at_ns,
        "ModifyTime": plugin.modified_at_ns,
        "NodeJobs": {},
        "Nodes": {
            node_id: _instance(plugin, i) | {"NodeInfo": node_info(i.node)}
            for node_id, i in instances
            if i.node is not None
        },
        "Version": measure_health(plugin).provider_version,
    }


def _instance(plugin: Plugin, instance: Instance) -> Json:
    return {
        "AllocID": instance.alloc_id,
        "HealthDescription": instance.health_description,
        "Healthy": instance.healthy,
        "PluginID": plugin.id,
        "Provider": instance.provider,
        "ProviderVersion": instance.provider_version,
        "RequiresControllerPlugin": instance.requires_controller,
        "RequiresTopologies": instance.requires_topologies,
        "UpdateTime": format_time(instance.updated_at_ns),
    }


def plugin_on_node(plugin: Plugin, instance: Instance, *, is_controller: bool) -> Json:
    """A plugin's instance as a node's page shows it."""
    if is_controller and instance.controller is not None:
        return _instance(plugin, instance) | {"ControllerInfo": controller_info(instance.controller)}
    assert instance.node is not None
    return _instance(plugin, instance) | {"NodeInfo": node_info(instance.node)}


def controller_info(info: ControllerInfo) -> Json:
    """What a controller can do, in the recorded members."""
    return {
        "SupportsAttachDetach": info.supports_attach_detach,
        "SupportsClone": info.supports_clone,
        "SupportsCondition": info.supports_condition,
        "SupportsCreateDelete": info.supports_create_delete,
        "SupportsCreateDeleteSnapshot": info.supports_create_delete_snapshot,
        "SupportsExpand": info.supports_expand,
        "SupportsGet": info.supports_get,
        "SupportsGetCapacity": info.supports_get_capacity,
        "SupportsListSnapshots": info.supports_list_snapshots,
        "SupportsListVolumes": info.supports_list_volumes,
        "SupportsListVolumesAttachedNodes": info.supports_list_volumes_attached_nodes,
        "SupportsReadOnlyAttach": info.supports_read_only_attach,
    }


def node_info(info: NodeInfo) -> Json:
    """What a node service can do, in the recorded members."""
    topology = info.accessible_topology
    return {
        "AccessibleTopology": topology_of(topology) if topology is not None else None,
        "ID": info.external_id,
        "MaxVolumes": info.max_volumes,
        "RequiresNodeStageVolume": info.requires_stage,
        "SupportsCondition": info.supports_condition,
        "SupportsExpand": info.supports_expand,
        "SupportsStats": info.supports_stats,
    }
