"""Find out what each driver is and whether it works, and tell the server when that changes.

Each driver has a task of its own, so that a hung one delays nobody. A sick driver keeps its last known capabilities,
which are on disk too, so that a restart of the agent does not lose them.
Source: contract csi-engine A.5, §I rules 7 and 18.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog
from anyio.abc import TaskStatus

from moorage.agent.journal import write_whole
from moorage.agent.link import Link
from moorage.agent.ports import AgentSettings, Chance, Clock, Driver, DriverSpec
from moorage.client.api import Client, retry_delay_s
from moorage.errors import MoorageError, NotFound, Rejected, Unavailable
from moorage.model.ids import NodeId, PluginId
from moorage.model.plugin import Instance, NodeInfo

log = structlog.get_logger()
replace = msgspec.structs.replace
DESCRIPTION_CHARS_MAX = 500


class Fingerprints:
    """The instances of one node's drivers. ``on_change`` is told a plugin's ID when it became able or unable."""

    def __init__(
        self,
        drivers: Mapping[PluginId, Driver],
        specs: Mapping[PluginId, DriverSpec],
        *,
        node_id: NodeId,
        file: Path,
        clock: Clock,
        settings: AgentSettings,
    ) -> None:
        self._drivers = drivers
        self._specs = specs
        self._node_id = node_id
        self._file = file
        self._clock = clock
        self._settings = settings
        self._instances: dict[PluginId, Instance] = {}
        self._unasked = set(drivers)
        self._changed = anyio.Event()
        self.on_change: Callable[[PluginId], None] = lambda plugin_id: None

    def find_node_info(self, plugin_id: PluginId) -> NodeInfo | None:
        """What the driver's node service can do; None while that is not known."""
        instance = self._instances.get(plugin_id)
        return instance.node if instance else None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Probe all drivers, for ever. Started once what was known of them is read."""
        known = await anyio.to_thread.run_sync(_load, self._file)
        for plugin_id in self._drivers:
            last = known.get(plugin_id) or Instance(node_id=self._node_id, healthy=False)
            sick = replace(last, node_id=self._node_id, healthy=False, health_description="not asked yet")
            self._instances[plugin_id] = sick
        task_status.started()
        async with anyio.create_task_group() as group:
            for plugin_id in self._drivers:
                group.start_soon(self._watch, plugin_id, name=f"probe of {plugin_id}")
            group.start_soon(self._keep, name="instances on disk")

    async def _watch(self, plugin_id: PluginId) -> None:
        settings, socket = self._settings, self._specs[plugin_id].socket
        while True:
            inode = _inode_of(socket)
            is_well = await self._probe(plugin_id)
            pause_s = settings.probe_old_s if is_well else settings.probe_young_s
            for look_s in _split(pause_s, settings.socket_look_s):
                await anyio.sleep(look_s)
                # A changed inode is a restarted driver: ask it at once.
                if _inode_of(socket) != inode:
                    break

    async def _probe(self, plugin_id: PluginId) -> bool:
        timeout_s, last = self._settings.probe_timeout_s, self._instances[plugin_id]
        text = f"no answer within {timeout_s:g} s"
        now: Instance | None = None
        with anyio.move_on_after(timeout_s + 1.0):
            try:
                facts = await self._drivers[plugin_id].probe(timeout_s=timeout_s)
                if facts.is_ready:
                    now = facts.to_instance(self._node_id, now_ns=self._clock())
                else:
                    text = facts.health_description
            except MoorageError as e:
                text = e.message
        if now is None:
            text = (text or "the driver does not answer")[:DESCRIPTION_CHARS_MAX]
            now = replace(last, healthy=False, health_description=text, updated_at_ns=self._clock())
        self._note(plugin_id, last, now)
        return now.healthy

    def _note(self, plugin_id: PluginId, last: Instance, now: Instance) -> None:
        is_first = plugin_id in self._unasked
        self._unasked.discard(plugin_id)
        if replace(now, updated_at_ns=last.updated_at_ns) != last:
            self._instances[plugin_id] = now
            if now.healthy != last.healthy or (is_first and not now.healthy):
                event = "driver.healthy" if now.healthy else "driver.unhealthy"
                log.info(event, plugin=plugin_id, provider=now.provider, description=now.health_description)
            if now.healthy != last.healthy or now.node != last.node:
                self.on_change(plugin_id)
        elif not is_first:
            return
        self._changed.set()
        self._changed = anyio.Event()

    async def _keep(self) -> None:
        """Known capabilities on disk, for the next start."""
        kept: dict[PluginId, Instance] = {}
        while True:
            changed = self._changed
            able = {p: i for p, i in self._instances.items() if i.controller is not None or i.node is not None}
            if {p: replace(i, healthy=False, health_description="", updated_at_ns=0) for p, i in able.items()} != kept:
                kept = {p: replace(i, healthy=False, health_description="", updated_at_ns=0) for p, i in able.items()}
                content = msgspec.json.encode(kept)
                try:
                    await anyio.to_thread.run_sync(write_whole, str(self._file), content)
                except OSError as e:
                    log.warning("instances.not_kept", error=str(e))
            await changed.wait()

    async def report(self, client: Client, link: Link, *, random: Chance) -> None:
        """Tell the server all instances: when every driver was asked once, on each change, and when it is back."""
        with anyio.move_on_after(self._settings.first_probe_s):
            while self._unasked:
                await self._changed.wait()
        failures = 0
        while True:
            changed, epoch = self._changed, link.epoch
            try:
                await client.report_plugins(self._node_id, dict(self._instances))
                failures = 0
            except (Unavailable, Rejected) as e:
                failures += 1
                if isinstance(e, NotFound) or failures == 1:
                    link.note_fault(e)
                await anyio.sleep(retry_delay_s(failures, random()))
                continue
            async with anyio.create_task_group() as group:
                group.start_soon(_first, changed.wait, group.cancel_scope.cancel)
                group.start_soon(_first, lambda epoch=epoch: link.wait_epoch(epoch), group.cancel_scope.cancel)


async def _first(wait: Callable[[], Awaitable[object]], then: Callable[[], None]) -> None:
    await wait()
    then()


def _split(pause_s: float, part_s: float) -> list[float]:
    """A pause in equal parts that are no longer than ``part_s``."""
    parts = max(1, math.ceil(pause_s / part_s))
    return [pause_s / parts] * parts


def _inode_of(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _load(file: Path) -> dict[PluginId, Instance]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[PluginId, Instance])
    except (OSError, msgspec.DecodeError):
        return {}
