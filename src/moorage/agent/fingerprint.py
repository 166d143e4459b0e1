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
from anyio.abc import TaskGroup, TaskStatus

from moorage.agent.journal import write_whole
from moorage.agent.link import Link
from moorage.agent.ports import AgentSettings, Chance, Clock, Driver, DriverSpec, Role
from moorage.agent.steps import Steps
from moorage.client.api import AgentPages, retry_delay_s
from moorage.errors import MoorageError, NotFound, Rejected, Unavailable
from moorage.model.assignment import PluginReport
from moorage.model.ids import NodeId, PluginId
from moorage.model.plugin import Instance, NodeInfo

log = structlog.get_logger()
replace = msgspec.structs.replace
DESCRIPTION_CHARS_MAX = 500


class Fingerprints:
    """The instances of one node's drivers. ``on_change`` is told a plugin's ID when it became able or unable,
    ``on_sick`` when it became unable, before anybody else."""

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
        self._drivers = dict(drivers)
        self._specs = dict(specs)
        self._node_id = node_id
        self._file = file
        self._clock = clock
        self._settings = settings
        self._instances: dict[PluginId, Instance] = {}
        self._unasked = set(drivers)
        self._known: dict[PluginId, Instance] = {}
        self._scopes: dict[PluginId, anyio.CancelScope] = {}
        self._group: TaskGroup | None = None
        self._changed = anyio.Event()
        self.on_change: Callable[[PluginId], None] = lambda plugin_id: None
        self.on_sick: Callable[[PluginId], None] = lambda plugin_id: None

    def find_node_info(self, plugin_id: PluginId) -> NodeInfo | None:
        """What the driver's node service can do; None while that is not known."""
        instance = self._instances.get(plugin_id)
        return instance.node if instance else None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Probe all drivers, for ever. Started once what was known of them is read."""
        self._known = await anyio.to_thread.run_sync(_load, self._file)
        for plugin_id in self._drivers:
            self._instances[plugin_id] = self._not_asked(plugin_id)
        task_status.started()
        async with anyio.create_task_group() as group:
            self._group = group
            for plugin_id in self._drivers:
                self._start(group, plugin_id)
            group.start_soon(self._keep, name="instances on disk")

    def add(self, plugin_id: PluginId, spec: DriverSpec, driver: Driver) -> None:
        """Probe one more driver from now on; ``run`` is running."""
        assert self._group is not None
        self._drivers[plugin_id], self._specs[plugin_id] = driver, spec
        self._instances[plugin_id] = self._not_asked(plugin_id)
        self._unasked.add(plugin_id)
        self._start(self._group, plugin_id)

    def remove(self, plugin_id: PluginId) -> None:
        """Probe it no more, and forget its instance; what it could do is kept for its return."""
        self._scopes.pop(plugin_id).cancel()
        self._known[plugin_id] = self._instances.pop(plugin_id)
        del self._drivers[plugin_id], self._specs[plugin_id]
        self._unasked.discard(plugin_id)
        self.on_sick(plugin_id)
        self.on_change(plugin_id)
        self.tell_again()

    def tell_again(self) -> None:
        """Make a report soon: there is something that the server does not know."""
        self._changed.set()
        self._changed = anyio.Event()

    def _not_asked(self, plugin_id: PluginId) -> Instance:
        last = self._known.get(plugin_id) or Instance(node_id=self._node_id, healthy=False)
        return replace(last, node_id=self._node_id, healthy=False, health_description="not asked yet")

    def _start(self, group: TaskGroup, plugin_id: PluginId) -> None:
        scope = self._scopes[plugin_id] = anyio.CancelScope()

        async def watch() -> None:
            with scope:
                await self._watch(plugin_id)

        group.start_soon(watch, name=f"probe of {plugin_id}")

    async def _watch(self, plugin_id: PluginId) -> None:
        settings, socket = self._settings, self._specs[plugin_id].socket
        while True:
            inode = _inode_of(socket)
            is_well = await self._probe(plugin_id)
            pause_s = settings.probe_old_s if is_well else settings.probe_young_s
            for look_s in _split(pause_s, settings.socket_look_s):
                await anyio.sleep(look_s)
                # A changed inode is a restarted driver, a broken connection a dead one, also where its socket file
                # is still there: ask at once.
                if _inode_of(socket) != inode or (is_well and not self._drivers[plugin_id].is_connected()):
                    break

    async def _probe(self, plugin_id: PluginId) -> bool:
        timeout_s, last = self._settings.probe_timeout_s, self._instances[plugin_id]
        text = f"no answer within {timeout_s:g} s"
        now: Instance | None = None
        with anyio.move_on_after(timeout_s + 1.0):
            try:
                facts = await self._drivers[plugin_id].probe(timeout_s=timeout_s)
                if facts.is_ready:
                    told = facts.to_instance(self._node_id, now_ns=self._clock())
                    now = _cast(told, self._specs[plugin_id].role)
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
            if last.healthy and not now.healthy:
                self.on_sick(plugin_id)
            if now.healthy != last.healthy or (is_first and not now.healthy):
                event = "driver.healthy" if now.healthy else "driver.unhealthy"
                log.info(event, plugin=plugin_id, provider=now.provider, description=now.health_description)
            if now.healthy != last.healthy or now.node != last.node:
                self.on_change(plugin_id)
        elif not is_first:
            return
        self.tell_again()

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

    async def report(self, client: AgentPages, link: Link, steps: Steps, *, random: Chance) -> None:
        """Tell the server all instances and what is being called: when every driver was asked once, on each change,
        when a sick driver's call has ended, when the server is back, and now and then without any reason."""
        with anyio.move_on_after(self._settings.first_probe_s):
            while self._unasked:
                await self._changed.wait()
        failures, repeat_s = 0, self._settings.plugins_repeat_s
        while True:
            changed, epoch = self._changed, link.epoch
            telling = steps.begin_telling(p for p, instance in self._instances.items() if instance.healthy)
            report = PluginReport(instances=dict(self._instances), calling=steps.list_calling(), after=telling.after)
            try:
                answer = await client.report_plugins(self._node_id, report)
            except (Unavailable, Rejected) as e:
                failures += 1
                if isinstance(e, NotFound) or failures == 1:
                    link.note_fault(e)
                await anyio.sleep(retry_delay_s(failures, random()))
                continue
            if not steps.note_told(telling, answer):
                # The first time after a start, or after an answer that was lost: now it is known which one is next.
                failures += 1
                await anyio.sleep(retry_delay_s(failures - 1, random()) if failures > 1 else 0.0)
                continue
            failures = 0
            async with anyio.create_task_group() as group:
                group.start_soon(_first, lambda: anyio.sleep(repeat_s), group.cancel_scope.cancel)
                group.start_soon(_first, changed.wait, group.cancel_scope.cancel)
                group.start_soon(_first, lambda epoch=epoch: link.wait_epoch(epoch), group.cancel_scope.cancel)


def _cast(told: Instance, role: Role) -> Instance:
    """The instance in its role; sick where it does not serve what the role takes."""
    controller = None if role == "node" else told.controller
    node = None if role == "controller" else told.node
    missing = [
        name
        for name, served, roles in (
            ("controller", controller, ("controller", "monolith")),
            ("node", node, ("node", "monolith")),
        )
        if served is None and role in roles
    ]
    cast = replace(told, controller=controller, node=node)
    if missing:
        text = f"its role is {role}, yet it does not serve the {' and the '.join(missing)} service"
        return replace(cast, healthy=False, health_description=text)
    return cast


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
