"""Simulated hosts: a mount table, a state directory, and the real agent on top, which may be killed at any await.

The mount table and what runs at the driver's node service end with a boot; the journal stays.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec

from moorage.agent import main as agent
from moorage.agent.ports import AgentSettings, Driver, DriverSpec
from moorage.model.ids import NodeId, PluginId
from moorage.model.node import Node
from moorage.rules.mount_records import Layout
from moorage.testing.sim_driver import Facts, SimDriver
from moorage.testing.sim_network import SimClient
from moorage.testing.sim_schedule import PLUGIN
from moorage.testing.virtual_loop import VirtualHops

if TYPE_CHECKING:
    from moorage.testing.sim_world import World

SETTINGS = AgentSettings(
    probe_old_s=10.0, probe_timeout_s=2.0, socket_look_s=10.0, wait_s=15.0, rescan_s=20.0, look_timeout_s=10.0,
    retry_cap_s=8.0, node_call_s=4.0, plugins_repeat_s=5.0,
)  # fmt: skip


# Nobody holds a path here: this machine's own processes, and its mounts, are no part of a run.
NO_PROCESSES = Path("/nonexistent")


class Mount(msgspec.Struct, frozen=True):
    """Something mounted at a path since ``at_s``."""

    origin: str
    read_only: bool
    at_s: float


class SimMounts:
    """A host's mount table over real (empty) directories; the agent's ``Mounter``, and the driver's."""

    def __init__(self) -> None:
        self.table: dict[str, list[Mount]] = {}

    # -- for the agent -----------------------------------------------------------------------------------------------

    def find_mounted(self, paths: Iterable[str]) -> frozenset[str]:
        """Those of ``paths`` that are mounted."""
        return frozenset(p for p in paths if self.table.get(p))

    def is_same(self, one: str, other: str) -> bool:
        """Whether both paths show the same."""
        return (self.origin(one) or one) == (self.origin(other) or other)

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """Show at ``target`` what ``source`` shows."""
        os.stat(source)
        os.stat(target)
        self.mount(target, self.origin(source) or source, read_only=read_only)

    def unmount(self, path: str) -> None:
        """Take away the uppermost mount."""
        self.table[path].pop()
        if not self.table[path]:
            del self.table[path]

    # -- for the driver ----------------------------------------------------------------------------------------------

    def mount(self, path: str, origin: str, *, read_only: bool) -> None:
        """Show ``origin`` at ``path``."""
        os.makedirs(path, exist_ok=True)
        self.table.setdefault(path, []).append(Mount(origin, read_only, anyio.current_time()))

    def unmount_all(self, path: str) -> None:
        """Nothing is mounted at ``path`` any more."""
        self.table.pop(path, None)
        with contextlib.suppress(OSError):
            os.rmdir(path)

    def origin(self, path: str) -> str:
        """What is mounted at ``path``, or empty."""
        found = self.table.get(path)
        return found[-1].origin if found else ""

    def find_origin(self, origin: str) -> list[str]:
        """The paths that show ``origin``."""
        return sorted(p for p, mounts in self.table.items() if any(m.origin == origin for m in mounts))


class Host:
    """One machine. ``boot`` counts its boots, ``owner`` the processes of its agent."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self.name = f"n{number}"
        self.node_id = NodeId(f"node-{number}")
        self.external_id = f"x{number}"
        self.state_dir = Path(world.root, self.name)
        self.layout = Layout(str(self.state_dir))
        self.mounts = SimMounts()
        self.boot = 1
        self.is_driver_down = False
        self.is_cut = False
        self.is_running = False
        self.lie = world.lie
        self._scope: anyio.CancelScope | None = None
        self._pause_s = 0.0
        self._is_rebooting = False

    @property
    def target_dir(self) -> str:
        """Where consumers want their volumes."""
        return f"{self._world.root}/t{self.name}"

    async def run(self) -> None:
        """Keep an agent running; a killed one comes back after its pause."""
        while True:
            self._pause_s = 0.0
            with anyio.CancelScope() as scope:
                self._scope = scope
                self.is_running = True
                try:
                    await self._run_agent()
                except Exception as error:  # noqa: BLE001 - whatever ends an agent is a finding
                    # What a process says while it is killed, nobody hears.
                    if not scope.cancel_called:
                        self._world.violate_crash(self.name, error)
                        self._pause_s = 1.0
                finally:
                    self.is_running = False
            self._scope = None
            await anyio.sleep(self._pause_s)
            self._is_rebooting = False
            self._world.history.note(self.name, f"starts, boot {self.boot}")

    async def _run_agent(self) -> None:
        self._world.owners += 1
        owner, boot, world = self._world.owners, f"b{self.boot}", self._world
        facts = Facts(
            external_id=self.external_id, is_staging=world.schedule.is_staging, is_attaching=world.schedule.is_attaching
        )

        def connect(plugin_id: PluginId, spec: DriverSpec) -> Driver:
            return SimDriver(world.calls, self, facts, owner=owner)

        around = agent.Surroundings(
            connect=connect,
            mounter=self.mounts,
            clock=world.clock.now_ns,
            random=random.Random(f"agent/{world.seed}/{owner}").random,
            ticks=anyio.current_time,
            hops=VirtualHops(),
            proc=NO_PROCESSES,
        )
        await agent.run(
            SimClient(world.network, self),
            {PluginId(PLUGIN): DriverSpec(socket=f"{world.root}/no.sock")},
            state_dir=self.state_dir,
            node=Node(id=self.node_id, name=self.name, boot_id=boot, is_self_fencing=world.schedule.is_self_fencing),
            settings=SETTINGS,
            around=around,
        )

    # -- trouble -----------------------------------------------------------------------------------------------------

    def kill(self, why: str, *, pause_s: float = 1.0) -> None:
        """Kill the agent; it comes back after the pause. What runs at the driver goes on."""
        if self._scope is not None and self.is_running and not self._is_rebooting:
            self._world.history.note(self.name, f"agent killed {why}, back in {pause_s:.1f} s")
            self._pause_s = pause_s
            self._scope.cancel()

    def power_off(self, why: str, *, pause_s: float) -> None:
        """The host goes: its agent, its mounts, its driver. It boots after the pause."""
        self._world.history.note(self.name, f"power off {why}, back in {pause_s:.1f} s")
        self.boot += 1
        self.mounts.table.clear()
        self._world.calls.cut(lambda c: c.host is self, is_void=lambda c: c.is_node_step or self._world.calls.flip())
        self.kill(why, pause_s=pause_s)
        self._pause_s = max(self._pause_s, pause_s)
        self._is_rebooting = True

    async def restart_driver(self, pause_s: float) -> None:
        """The driver's process ends and comes back; what it was at may go on at the backend."""
        self._world.history.note(self.name, f"driver restarts, back in {pause_s:.1f} s")
        self.is_driver_down = True
        self._world.calls.cut(lambda c: c.host is self, is_void=lambda c: self._world.calls.flip())
        await anyio.sleep(pause_s)
        self.is_driver_down = False
