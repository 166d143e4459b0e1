"""Plugins: fold node reports into records, count health, choose who makes a controller call. Pure.

Counts are computed from instances each time, never kept, so that they cannot drift.
Source: contract csi-engine §A.4, §I.7, §I.19.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from zlib import crc32

import msgspec

from moorage.model.ids import NodeId, PluginId
from moorage.model.plugin import ControllerInfo, Instance, Plugin

# An odd number without a pattern, near 2**32 divided by the golden ratio.
_SPREAD = 0x9E3779B1


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Instances of a plugin by role: how many should be there, how many are healthy."""

    controllers_healthy: int = 0
    controllers_expected: int = 0
    nodes_healthy: int = 0
    nodes_expected: int = 0
    is_controller_required: bool = False
    provider: str = ""
    provider_version: str = ""

    @property
    def is_schedulable(self) -> bool:
        """A claim could be served: a healthy node instance and, where it must be used, a healthy controller."""
        return self.nodes_healthy > 0 and (self.controllers_healthy > 0 or not self.is_controller_required)


NO_HEALTH = Health()
# Plugins whose last count is kept.
MEASURED_MAX = 256
_measured: dict[PluginId, tuple[Plugin, Health]] = {}


def measure_health(plugin: Plugin | None) -> Health:
    """Count a plugin's instances; all zero when there is no such plugin.

    Every write asks several times about a record that rarely changes: what was counted last is kept by plugin ID, for
    the very same struct.
    """
    if plugin is None:
        return NO_HEALTH
    kept = _measured.get(plugin.id)
    if kept is not None and kept[0] is plugin:
        return kept[1]
    found = _count_instances(plugin)
    if len(_measured) >= MEASURED_MAX:
        _measured.clear()
    _measured[plugin.id] = (plugin, found)
    return found


def _count_instances(plugin: Plugin) -> Health:
    instances = plugin.instances.values()
    controllers = [i for i in instances if i.controller is not None]
    nodes = [i for i in instances if i.node is not None]
    newest = max(instances, key=lambda i: i.updated_at_ns, default=None)
    return Health(
        controllers_healthy=sum(i.healthy for i in controllers),
        controllers_expected=len(controllers),
        nodes_healthy=sum(i.healthy for i in nodes),
        nodes_expected=len(nodes),
        is_controller_required=is_controller_required(plugin),
        provider=newest.provider if newest else "",
        provider_version=newest.provider_version if newest else "",
    )


def is_controller_required(plugin: Plugin) -> bool:
    """Whether the driver has a controller service that must be used: any instance of it may say so."""
    return any(i.requires_controller for i in plugin.instances.values())


def find_controller_info(plugin: Plugin | None) -> ControllerInfo | None:
    """What the plugin's controller can do, from a healthy instance first; None while no instance ever told.

    Capabilities are sticky: a sick instance keeps its last known ones (contract csi-engine F2).
    """
    if plugin is None:
        return None
    told = [i for i in plugin.instances.values() if i.controller is not None]
    told.sort(key=lambda i: (not i.healthy, i.node_id))
    return told[0].controller if told else None


def choose_controller(healthy: Collection[NodeId], serial: str, *, busy: NodeId | None = None) -> NodeId | None:
    """The node whose instance makes a plugin's controller call, of those that can; None when none can.

    It is ``busy``, which had the last call of the serial key, as long as that one is healthy: it may still be at a call
    that nobody wants any more, and two controllers would work on one volume at once. Else the one that ranks highest
    for the key: each controller gets its share of the keys, one that goes or comes moves its own share only, and a
    server that was just started chooses as the one before it did, while the same controllers are healthy.
    A call without a key is for the first one in their order: the pages of a driver's list may be known to the
    controller alone that began it.
    """
    if busy in healthy:
        return busy
    if len(healthy) < 2 or not serial:
        return next(iter(healthy), None)
    seed = crc32(serial.encode())
    # The product spreads what differs in a few bits only, or else one of three would get half of all.
    return max(healthy, key=lambda node_id: crc32(node_id.encode(), seed) * _SPREAD & 0xFFFFFFFF)


def list_controllers(plugin: Plugin | None) -> tuple[NodeId, ...]:
    """The nodes whose instance can make the plugin's controller calls now, by node ID."""
    if plugin is None:
        return ()
    return tuple(sorted(i.node_id for i in plugin.instances.values() if i.controller is not None and i.healthy))


def fold_report(
    plugins: Mapping[PluginId, Plugin], node_id: NodeId, report: Mapping[PluginId, Instance], *, now_ns: int
) -> dict[PluginId, Plugin | None]:
    """Put a node's report into the plugins' records.

    Returns only what changes: the new record, or None where the last instance left and the plugin goes.
    An instance that is reported sick keeps the capabilities known before; one that was never seen healthy does not
    make a plugin by itself, but is kept so that an operator sees why it is sick.
    """
    changed: dict[PluginId, Plugin | None] = {}
    for plugin_id, instance in report.items():
        old = plugins.get(plugin_id)
        known = old.instances.get(node_id) if old else None
        instance = _keep_known(instance, known)
        if old and known and _is_same(known, instance):
            continue
        base = old or Plugin(id=plugin_id, created_at_ns=now_ns)
        changed[plugin_id] = msgspec.structs.replace(
            base,
            instances={**base.instances, node_id: msgspec.structs.replace(instance, updated_at_ns=now_ns)},
            modified_at_ns=now_ns,
        )
    for plugin_id, old in plugins.items():
        if node_id in old.instances and plugin_id not in report:
            rest = {k: v for k, v in old.instances.items() if k != node_id}
            changed[plugin_id] = msgspec.structs.replace(old, instances=rest, modified_at_ns=now_ns) if rest else None
    return changed


def _keep_known(instance: Instance, known: Instance | None) -> Instance:
    if known is None or instance.healthy:
        return instance
    return msgspec.structs.replace(
        instance,
        controller=instance.controller or known.controller,
        node=instance.node or known.node,
        provider=instance.provider or known.provider,
        provider_version=instance.provider_version or known.provider_version,
        requires_controller=instance.requires_controller or known.requires_controller,
        requires_topologies=instance.requires_topologies or known.requires_topologies,
    )


def _is_same(known: Instance, instance: Instance) -> bool:
    return msgspec.structs.replace(instance, updated_at_ns=known.updated_at_ns) == known
