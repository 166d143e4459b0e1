"""Budgets of a use on its host: trips to threads, looks, journal entries, driver calls. They hold on any machine.

A trip is two switches between threads that fight for the interpreter, a look is a system call for each path, an entry
is a file that reaches the disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agent_kit import World

from moorage.agent.journal import Journal
from moorage.agent.ports import AgentSettings
from moorage.agent.threads import ThreadHops

pytestmark = pytest.mark.anyio


class Spent(msgspec.Struct, frozen=True):
    """What was done so far."""

    trips: int
    looks: int
    entries: int
    calls: int


class Counting:
    """Counts what an agent does."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self._world = world
        self._looks = self._entries = 0
        self.hops = world.hops = ThreadHops()
        # No look of its own accord: neither at what is mounted nor for what has broken.
        world.settings = AgentSettings(mount_probe_s=1000.0, rescan_s=1000.0, first_probe_s=0.2, probe_young_s=0.02)
        find, put = world.mounter.find_mounted, Journal.write_soon

        def find_mounted(paths: Iterable[str]) -> frozenset[str]:
            self._looks += 1
            return find(paths)

        def write_soon(journal: Journal, entry: Any) -> None:
            self._entries += 1
            put(journal, entry)

        monkeypatch.setattr(world.mounter, "find_mounted", find_mounted)
        monkeypatch.setattr(Journal, "write_soon", write_soon)

    def count(self) -> Spent:
        return Spent(self.hops.hops, self._looks, self._entries, len(self._world.driver.calls))


@pytest.mark.parametrize("has_target", [False, True])
async def test_what_a_use_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_target: bool) -> None:
    world = World(tmp_path)
    counting = Counting(world, monkeypatch)
    async with world.agent():
        before = counting.count()
        await world.mount(target=str(world.target) if has_target else "")
        up = counting.count()
        await world.release()
        await world.until(lambda: not world.journal())
        down = counting.count()
    started = msgspec.structs.astuple(up), msgspec.structs.astuple(before)
    stopped = msgspec.structs.astuple(down), msgspec.structs.astuple(up)
    start, stop = (Spent(*(a - b for a, b in zip(*pair, strict=True))) for pair in (started, stopped))
    # The scripted driver looks at the table too, once a call.
    more = 1 if has_target else 0
    assert start.calls == stop.calls == 2
    assert start.trips <= 3
    assert start.looks <= 8 + more
    assert start.entries <= 4 + 2 * more
    # Who uses the paths is asked before each that is taken away, in two trips.
    assert stop.trips <= 4 + 2 * 2 + 3 * more
    assert stop.looks <= 10 + 3 * more
    assert stop.entries <= 1 + more
