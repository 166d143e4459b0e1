"""Drivers found by their sockets, and the roles they are given."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from agent_kit import FAST, NAS, World

from moorage.agent.ports import Driver, DriverSpec, Role
from moorage.agent.sockets import find_sockets
from moorage.model.ids import PluginId
from moorage.model.plugin import Instance
from moorage.testing.agent_world import ScriptedDriver, ScriptedFacts

pytestmark = pytest.mark.anyio
replace = msgspec.structs.replace
HAND = PluginId("hand")


def make_socket(path: Path) -> None:
    """A socket file that a dead driver left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(socket.socket(socket.AF_UNIX)) as made:
        made.bind(str(path))


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    (tmp_path / "plugins").mkdir()
    made.settings = replace(FAST, plugin_dirs=(str(tmp_path / "plugins"),), plugin_gone_s=0.2)
    return made


def test_sockets_name_their_plugins(tmp_path: Path) -> None:
    for name in ("a.sock", "b/csi.sock", "b/other.sock", "c/driver.sock", "d/1.sock", "d/2.sock", "e/x.socket"):
        make_socket(tmp_path / "one" / name)
    make_socket(tmp_path / "two" / "a.sock")
    make_socket(tmp_path / "two" / "f" / "csi.sock")
    (tmp_path / "two" / "g.sock").touch()
    (tmp_path / "two" / ".hidden.sock").touch()
    found = find_sockets([str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path / "none")])
    assert found == {
        "a": str(tmp_path / "one/a.sock"),
        "b": str(tmp_path / "one/b/csi.sock"),
        "c": str(tmp_path / "one/c/driver.sock"),
        "f": str(tmp_path / "two/f/csi.sock"),
    }


async def test_a_driver_appears_serves_falls_sick_and_is_forgotten(world: World, tmp_path: Path) -> None:
    hand = world.drivers[HAND] = ScriptedDriver(world.mounter, str(world.data_dir))
    del world.drivers[HAND]
    path = tmp_path / "plugins" / "hand" / "csi.sock"
    async with world.agent():
        await world.until(lambda: NAS in world.pages.instances)
        assert HAND not in world.pages.instances
        world.drivers[HAND] = hand
        make_socket(path)
        await world.until(lambda: HAND in world.pages.instances and world.pages.instances[HAND].healthy)
        mounted = await world.mount(plugin_id=HAND)
        hand.is_sick = True
        path.unlink()
        await world.until(lambda: not world.pages.instances[HAND].healthy)
        asked = hand.probes
        await world.until(lambda: hand.probes > asked + 20)
        assert HAND in world.pages.instances, "forgotten while something of it is mounted"
        assert world.mounter.find_mounted([mounted])
        hand.is_sick = False
        await world.release()
        hand.is_sick = True
        await world.until(lambda: HAND not in world.pages.instances)
        assert NAS in world.pages.instances
        hand.is_sick = False
        make_socket(path)
        await world.until(lambda: HAND in world.pages.instances and world.pages.instances[HAND].healthy)


async def test_one_that_comes_back_in_time_is_never_forgotten(world: World, tmp_path: Path) -> None:
    world.settings = replace(world.settings, plugin_gone_s=600.0)
    hand = world.drivers[HAND] = ScriptedDriver(world.mounter, str(world.data_dir))
    path = tmp_path / "plugins" / "hand.sock"
    make_socket(path)
    del world.drivers[HAND]
    opened: list[Driver] = []
    world.drivers = _Counting(world.drivers, hand, opened)
    async with world.agent():
        await world.until(lambda: HAND in world.pages.instances and world.pages.instances[HAND].healthy)
        path.unlink()
        asked = hand.probes
        await world.until(lambda: hand.probes > asked + 5)
        make_socket(path)
        asked = hand.probes
        await world.until(lambda: hand.probes > asked + 5)
        assert world.pages.instances[HAND].healthy
    assert opened == [hand]


class _Counting(dict[PluginId, Driver]):
    """Drivers that settings name, and one that they do not."""

    def __init__(self, named: dict[PluginId, Driver], found: Driver, opened: list[Driver]) -> None:
        super().__init__(named)
        self._found = found
        self._opened = opened

    def __missing__(self, plugin_id: PluginId) -> Driver:
        self._opened.append(self._found)
        return self._found


async def test_what_settings_name_wins_over_what_is_found(world: World, tmp_path: Path) -> None:
    make_socket(tmp_path / "plugins" / f"{NAS}.sock")
    async with world.agent():
        await world.until(lambda: NAS in world.pages.instances and world.pages.instances[NAS].healthy)
        os.unlink(tmp_path / "plugins" / f"{NAS}.sock")
        asked = world.driver.probes
        await world.until(lambda: world.driver.probes > asked + 20)
        assert world.pages.instances[NAS].healthy


@pytest.mark.parametrize(
    ("role", "serves_node", "controller", "node", "healthy"),
    [
        ("detected", True, True, True, True),
        ("detected", False, True, False, True),
        ("controller", True, True, False, True),
        ("node", True, False, True, True),
        ("node", False, False, False, False),
        ("monolith", True, True, True, True),
        ("monolith", False, True, False, False),
    ],
)
async def test_roles(world: World, role: Role, serves_node: bool, controller: bool, node: bool, healthy: bool) -> None:
    class Facts(ScriptedFacts, frozen=True, kw_only=True):
        def to_instance(self, *args: object, **more: object) -> Instance:
            told = super().to_instance(*args, **more)  # type: ignore[arg-type]
            return told if serves_node else replace(told, node=None)

    world.driver.facts = Facts()
    world.specs[NAS] = DriverSpec(socket="/nowhere.sock", role=role)
    async with world.agent():
        await world.until(lambda: NAS in world.pages.instances and world.driver.probes > 1)
        instance = world.pages.instances[NAS]
    assert (instance.controller is not None, instance.node is not None, instance.healthy) == (controller, node, healthy)
    assert healthy or "does not serve the node service" in instance.health_description
