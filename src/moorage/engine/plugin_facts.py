"""What the engine asks of a plugin with every claim, measured once a change of the plugin's record.

A plugin has as many instances as there are nodes: looked at for each claim, they would cost nodes × claims.
"""

from __future__ import annotations

from moorage.model.ids import NodeId, PluginId
from moorage.model.plugin import ControllerInfo, Plugin
from moorage.rules.plugins import Health, find_controller_info, list_controllers, measure_health
from moorage.state.view import View


class Facts:
    """One plugin's record, measured.

    ``controllers``: nodes that can make its calls, in their order; ``makers``: these and the sick ones, which may be at
    one still; ``is_heard``: all of them have told what they are calling (see ``engine.callers``); ``is_waited``: a call
    had to wait because they have not; ``basis``: what else of the plugin the steps of its records rest on; None: there
    is no such plugin.
    """

    __slots__ = ("basis", "controllers", "health", "info", "is_heard", "is_waited", "makers", "plugin")

    def __init__(self, plugin: Plugin | None) -> None:
        self.plugin = plugin
        self.health: Health = measure_health(plugin)
        self.info: ControllerInfo | None = find_controller_info(plugin)
        # A dict, so that asking for one of many is as cheap as taking the first.
        self.controllers: dict[NodeId, None] = dict.fromkeys(list_controllers(plugin))
        instances = plugin.instances.values() if plugin is not None else ()
        self.makers: tuple[NodeId, ...] = tuple(i.node_id for i in instances if i.controller is not None)
        self.is_heard = self.is_waited = False
        self.basis = (self.health.is_controller_required, self.info) if plugin is not None else None


class PluginFacts:
    """The facts of all plugins of a view."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._known: dict[PluginId, Facts] = {}

    def find(self, plugin_id: PluginId) -> Facts:
        """The facts of the plugin's record as it is now; those of none where there is none."""
        record = self._view.find_plugin(plugin_id)
        plugin = record.value if record is not None else None
        known = self._known.get(plugin_id)
        if plugin is None:
            self._known.pop(plugin_id, None)
            return NOTHING
        if known is None or known.plugin is not plugin:
            known = self._known[plugin_id] = Facts(plugin)
        return known


NOTHING = Facts(None)
