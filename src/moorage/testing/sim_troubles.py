"""What goes wrong by itself in a simulated run: kills, reboots, partitions, restarts of drivers."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from moorage.testing.sim_schedule import NEVER_S

if TYPE_CHECKING:
    from moorage.testing.sim_hosts import Host
    from moorage.testing.sim_world import World


class Troubles:
    """Makes trouble while ``run`` runs, and none after ``stop``."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = random.Random(f"troubles/{world.seed}")
        self._scope = anyio.CancelScope()

    async def run(self) -> None:
        """Make trouble until it is stopped."""
        schedule = self._world.schedule
        with self._scope:
            async with anyio.create_task_group() as group:
                group.start_soon(self._repeat, schedule.crashes.server_every_s, self._kill_server)
                group.start_soon(self._repeat, schedule.crashes.agent_every_s, self._kill_agent)
                group.start_soon(self._repeat, schedule.network.partition_every_s, self._partition)
                group.start_soon(self._repeat, schedule.driver.restart_every_s, self._restart_driver)

    async def stop(self) -> None:
        """Everything is healed: no more trouble, and every cut is mended."""
        self._scope.cancel()
        await anyio.lowlevel.checkpoint()
        for host in self._world.hosts:
            host.is_cut = False
            host.is_driver_down = False

    async def _repeat(self, every_s: float, act: Callable[[], Awaitable[None]]) -> None:
        while every_s < NEVER_S:
            await anyio.sleep(self._random.uniform(0.2, 1.8) * every_s)
            await act()

    def _pick(self) -> Host:
        return self._random.choice(self._world.hosts)

    async def _kill_server(self) -> None:
        await self._stumble()
        self._world.server.kill(
            "by chance", pause_s=self._random.uniform(0.0, 2 * self._world.schedule.crashes.server_pause_s)
        )

    async def _kill_agent(self) -> None:
        host, crashes = self._pick(), self._world.schedule.crashes
        pause_s = self._random.uniform(0.0, 2 * crashes.agent_pause_s)
        if self._random.random() < crashes.long_away:
            pause_s = crashes.long_away_s
        await self._stumble()
        if self._random.random() < crashes.reboot_share:
            host.power_off("by chance", pause_s=pause_s)
        else:
            host.kill("by chance", pause_s=pause_s)

    async def _stumble(self) -> None:
        """Some turns of the loop, so that a kill does not only hit moments at which everybody sleeps."""
        for _ in range(self._random.choice((0, 0, 3, 7))):
            await anyio.lowlevel.checkpoint()

    async def _partition(self) -> None:
        cut = [self._pick()] if self._random.random() < 0.8 else list(self._world.hosts)
        names = ", ".join(h.name for h in cut)
        self._world.history.note("network", f"cut: {names}")
        for host in cut:
            host.is_cut = True
        await anyio.sleep(self._random.uniform(0.3, 1.7) * self._world.schedule.network.partition_s)
        for host in cut:
            host.is_cut = False
        self._world.history.note("network", f"mended: {names}")

    async def _restart_driver(self) -> None:
        await self._pick().restart_driver(self._random.uniform(0.2, 1.8) * self._world.schedule.driver.restart_s)
