"""The drivers of one node: those that settings name, and those that come and go in the plugin directories.

A driver in a plugin directory is taken up when its socket file appears. When the file is gone the driver is sick at
once, because nothing answers; it is forgotten when the file has been gone for ``plugin_gone_s`` and nothing of the
plugin is mounted here: without its driver no mount of it could be released. One that settings name is never forgotten.
Never: calls a driver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio
import anyio.to_thread
import structlog

from moorage.agent.budget import Budget
from moorage.agent.fingerprint import Fingerprints
from moorage.agent.ports import AgentSettings, CallLimits, Connect, Driver, DriverSpec
from moorage.agent.secret_reading import ReadingDriver, SecretReader
from moorage.agent.sockets import find_sockets
from moorage.model.ids import PluginId

log = structlog.get_logger()
CLOSE_TIMEOUT_S = 3.0


class Plugins:
    """The open drivers by plugin ID, with the budgets of both services; all change while the agent runs."""

    def __init__(self, connect: Connect, specs: Mapping[PluginId, DriverSpec], settings: AgentSettings) -> None:
        self.drivers: dict[PluginId, Driver] = {}
        self.node_budgets: dict[PluginId, Budget] = {}
        self.controller_budgets: dict[PluginId, Budget] = {}
        self.specs = dict(specs)
        self._connect = connect
        self._named = frozenset(specs)
        self._settings = settings
        self._reader = SecretReader(settings)
        self._missing: dict[PluginId, float] = {}

    async def open(self) -> None:
        """Open the drivers that settings name, and those that are found now."""
        found = await anyio.to_thread.run_sync(find_sockets, self._settings.plugin_dirs)
        self.specs = {**{p: DriverSpec(socket=path) for p, path in found.items()}, **self.specs}
        for plugin_id, spec in self.specs.items():
            await self._open(plugin_id, spec)

    async def close(self) -> None:
        """Close them all."""
        for driver in self.drivers.values():
            await driver.close()

    async def run(self, fingerprints: Fingerprints, is_used: Callable[[PluginId], bool]) -> None:
        """Follow the plugin directories, until cancelled."""
        while self._settings.plugin_dirs:
            await anyio.sleep(self._settings.plugins_look_s)
            found = await anyio.to_thread.run_sync(find_sockets, self._settings.plugin_dirs)
            for plugin_id, socket in found.items():
                self._missing.pop(plugin_id, None)
                known = self.specs.get(plugin_id)
                if plugin_id in self._named or (known is not None and known.socket == socket):
                    continue
                if known is not None:
                    await self._drop(plugin_id, fingerprints)
                spec = DriverSpec(socket=socket)
                fingerprints.add(plugin_id, spec, await self._open(plugin_id, spec))
                log.info("plugin.found", plugin=plugin_id, socket=socket)
            for plugin_id in [p for p in self.specs if p not in self._named and p not in found]:
                since_s = self._missing.setdefault(plugin_id, anyio.current_time())
                is_over = anyio.current_time() - since_s > self._settings.plugin_gone_s
                if is_over and not is_used(plugin_id):
                    await self._drop(plugin_id, fingerprints)
                    log.info("plugin.gone", plugin=plugin_id)

    async def _open(self, plugin_id: PluginId, spec: DriverSpec) -> Driver:
        driver = ReadingDriver(self._connect(plugin_id, spec), self._reader)
        await driver.open()
        self.specs[plugin_id] = spec
        self.drivers[plugin_id] = driver
        own, common = spec.limits, self._settings
        self.node_budgets[plugin_id] = self._make_budget(own, own.node_calls_max or common.node_calls_max)
        calls_max = own.controller_calls_max or common.controller_calls_max
        self.controller_budgets[plugin_id] = self._make_budget(own, calls_max)
        return driver

    def _make_budget(self, own: CallLimits, calls_max: int) -> Budget:
        slow_max = self._settings.slow_calls_max if own.slow_calls_max is None else own.slow_calls_max
        return Budget(calls_max, slow_max=slow_max, slow_after_s=self._settings.slow_after_s)

    async def _drop(self, plugin_id: PluginId, fingerprints: Fingerprints) -> None:
        fingerprints.remove(plugin_id)
        self._missing.pop(plugin_id, None)
        del self.specs[plugin_id], self.node_budgets[plugin_id], self.controller_budgets[plugin_id]
        driver = self.drivers.pop(plugin_id)
        with anyio.move_on_after(CLOSE_TIMEOUT_S):
            await driver.close()
