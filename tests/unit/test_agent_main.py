"""The whole agent: registration, drivers, controller steps. Server and driver are scripted, mounts in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from agent_kit import FAST, NAS, NODE, World

from moorage.model import steps
from moorage.model.assignment import StepAssignment, StepReport
from moorage.model.ids import PluginId, Revision
from moorage.testing.agent_world import ScriptedDriver, ScriptedFacts

pytestmark = pytest.mark.anyio
replace = msgspec.structs.replace


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def create(key: str = "volume/default/a", revision: int = 1, **more: Any) -> StepAssignment:
    step = steps.CreateVolume(name=more.pop("name", "fresh"), capabilities=(), required_bytes=7)
    more = {"serial_key": key, "timeout_s": 5.0, "plugin_id": NAS, **more}
    return StepAssignment(key=key, revision=Revision(revision), step=step, **more)


# -- registration and drivers ----------------------------------------------------------------------------------------


async def test_it_registers_and_tells_its_drivers(world: World) -> None:
    async with world.agent():
        assert world.pages.nodes[NODE.id] == NODE
        await world.until(lambda: world.pages.instances)
        instance = world.pages.instances[NAS]
        assert instance.healthy
        assert instance.node is not None
        assert instance.node_id == NODE.id
        assert instance.updated_at_ns == 42


async def test_the_lease_is_renewed(world: World) -> None:
    world.pages.lease_s = 0.06
    async with world.agent():
        await world.until(lambda: world.pages.requests.count("PUT register") >= 4)


async def test_plugins_are_told_again_so_that_an_overtaken_report_does_not_stand(world: World) -> None:
    world.settings = replace(FAST, plugins_repeat_s=0.05)
    async with world.agent():
        await world.until(lambda: world.pages.instances)
        assert world.pages.instances[NAS].healthy
        # An older report arrives after the newer one.
        world.pages.instances = {NAS: replace(world.pages.instances[NAS], healthy=False)}
        await world.until(lambda: world.pages.instances[NAS].healthy)


async def test_plugins_are_told_at_once_when_something_changed(world: World) -> None:
    async with world.agent():
        await world.until(lambda: world.driver.probes >= 4)
        assert world.pages.requests.count("PUT plugins") == 1
        known = world.pages.instances[NAS]
        world.driver.is_sick = True
        await world.until(lambda: not world.pages.instances[NAS].healthy)
        sick = world.pages.instances[NAS]
        assert sick.health_description == "connection refused"
        assert sick.node == known.node
        assert sick.controller == known.controller
        world.driver.is_sick = False
        await world.until(lambda: world.pages.instances[NAS].healthy)


async def test_capabilities_outlive_a_restart_with_a_dead_driver(world: World) -> None:
    async with world.agent():
        await world.until(lambda: NAS in world.pages.instances and (world.state_dir / "instances.json").exists())
    world.driver.is_sick = True
    world.pages.instances = {}
    async with world.agent():
        await world.until(lambda: world.pages.instances)
        assert world.pages.instances[NAS].node is not None
        assert not world.pages.instances[NAS].healthy


async def test_a_hung_driver_delays_no_other(world: World) -> None:
    hung = ScriptedDriver(world.mounter, str(world.data_dir))
    hung.gates[ScriptedFacts] = anyio.Event()
    world.drivers[PluginId("hung")] = hung
    world.settings = replace(FAST, probe_timeout_s=30.0, first_probe_s=0.05)
    async with world.agent():
        await world.until(lambda: world.driver.probes >= 3)
        await world.until(lambda: world.pages.instances)
        assert world.pages.instances[NAS].healthy
        assert not world.pages.instances[PluginId("hung")].healthy


async def test_a_server_that_forgot_everything_is_told_again(world: World) -> None:
    async with world.agent():
        await world.until(lambda: world.pages.instances)
        path = await world.mount()
        world.pages.nodes.clear()
        world.pages.instances = {}
        world.pages.change()
        await world.until(lambda: world.pages.nodes and world.pages.instances)
        assert world.mounter.find_mounted([path])


# -- controller steps ------------------------------------------------------------------------------------------------


async def test_a_step_is_carried_out_and_reported(world: World) -> None:
    async with world.agent():
        world.pages.hand_out(create())
        await world.until(lambda: world.pages.reports)
    report = world.pages.reports[0]
    assert isinstance(report, StepReport)
    assert report.outcome == steps.Created(external_id="fresh", capacity_bytes=7)
    assert world.driver.names() == ["Create"]


async def test_a_failure_has_its_time(world: World) -> None:
    world.driver.fail(steps.CreateVolume, final=True)
    async with world.agent():
        world.pages.hand_out(create())
        await world.until(lambda: world.pages.reports)
    report = world.pages.reports[0]
    assert isinstance(report, StepReport)
    assert isinstance(report.outcome, steps.Failed)
    assert report.outcome.fault.at_ns == 42
    assert report.outcome.fault.final


async def test_an_unknown_plugin_is_a_failure_that_may_end(world: World) -> None:
    async with world.agent():
        world.pages.hand_out(create(plugin_id=PluginId("other")))
        await world.until(lambda: world.pages.reports)
    report = world.pages.reports[0]
    assert isinstance(report, StepReport)
    assert isinstance(report.outcome, steps.Failed)
    assert not report.outcome.fault.final


async def test_a_step_in_hand_is_not_started_twice(world: World) -> None:
    gate = world.driver.gates[steps.CreateVolume] = anyio.Event()
    async with world.agent():
        world.pages.hand_out(create())
        await world.until(lambda: world.driver.calls)
        for _ in range(3):
            await world.ask_again()
        gate.set()
        await world.until(lambda: world.pages.reports)
        world.pages.hand_out(create())  # a page from before the report
        world.pages.hand_out(create(key="volume/default/b", name="other"))
        await world.until(lambda: len(world.pages.reports) == 2)
    assert [c.name for c in world.driver.calls if isinstance(c, steps.CreateVolume)] == ["fresh", "other"]


async def test_one_serial_key_runs_in_order_and_others_beside_it(world: World) -> None:
    gate = world.driver.gates[steps.CreateVolume] = anyio.Event()
    async with world.agent():
        for number in range(3):
            key = f"operation/{number}"
            world.pages.hand_out(create(key=key, name=f"same-{number}", serial_key="volume/default/a"))
        world.pages.hand_out(create(key="operation/x", name="free", serial_key=""))
        await world.until(lambda: len(world.driver.calls) == 2)
        gate.set()
        await world.until(lambda: not world.pages.steps)
    names = [c.name for c in world.driver.calls if isinstance(c, steps.CreateVolume)]
    assert [n for n in names if n.startswith("same")] == ["same-0", "same-1", "same-2"]
    assert world.driver.running_max == 2


async def test_calls_per_plugin_are_bounded(world: World) -> None:
    world.settings = replace(FAST, controller_calls_max=3)
    gate = world.driver.gates[steps.CreateVolume] = anyio.Event()
    async with world.agent():
        for number in range(8):
            world.pages.hand_out(create(key=f"volume/default/{number}", name=f"v{number}"))
        await world.until(lambda: len(world.driver.calls) == 3)
        gate.set()
        await world.until(lambda: not world.pages.steps)
    assert world.driver.running_max == 3


async def test_a_step_withdrawn_while_it_waits_is_not_made(world: World) -> None:
    gate = world.driver.gates[steps.CreateVolume] = anyio.Event()
    async with world.agent():
        world.pages.hand_out(create(key="operation/1", name="first", serial_key="s"))
        world.pages.hand_out(create(key="operation/2", name="second", serial_key="s"))
        await world.until(lambda: world.driver.calls)
        del world.pages.steps["operation/2"]
        await world.ask_again()
        gate.set()
        await world.until(lambda: not world.pages.steps)
    assert len(world.driver.calls) == 1


async def test_a_lost_server_loses_no_report(world: World) -> None:
    gate = world.driver.gates[steps.CreateVolume] = anyio.Event()
    async with world.agent():
        world.pages.hand_out(create())
        await world.until(lambda: world.driver.calls)
        world.pages.is_down = True
        gate.set()
        await world.until(lambda: world.pages.requests.count("PUT reports") >= 2)
        assert not world.pages.reports
        world.pages.is_down = False
        await world.until(lambda: world.pages.reports)
        told = world.pages.requests.count("PUT plugins")
        await world.until(lambda: world.pages.requests.count("PUT plugins") > told or world.pages.instances)
    assert world.driver.names() == ["Create"]
