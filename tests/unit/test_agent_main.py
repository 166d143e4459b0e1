"""The whole agent against a server in this process, a scripted driver, and mounts in memory."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from moorage.agent import main
from moorage.agent.main import Surroundings
from moorage.agent.ports import AgentSettings, Driver, DriverSpec
from moorage.client.api import Client
from moorage.client.transport import CallTransport
from moorage.errors import BadRequest
from moorage.model import steps
from moorage.model.assignment import MountedReport, StepAssignment, StepReport, UnmountedReport
from moorage.model.claim import Attached, Claim
from moorage.model.ids import AllocationId, ClaimId, NamespaceName, NodeId, PluginId, Revision, VolumeId
from moorage.model.node import Node
from moorage.testing.agent_world import MemoryMounter, Pages, ScriptedDriver, ScriptedFacts

pytestmark = pytest.mark.anyio
replace = msgspec.structs.replace

NAS = PluginId("nas")
A, B = ClaimId("a"), ClaimId("b")
NODE = Node(id=NodeId("3c1b7a52-0000-4000-8000-000000000001"), name="one", boot_id="boot-1")
FAST = AgentSettings(
    probe_young_s=0.02, probe_old_s=0.05, probe_timeout_s=0.2, retry_cap_s=0.05, rescan_s=0.1, first_probe_s=0.2
)


class World:
    """What outlives an agent: the server, the driver, the mounts, the state directory."""

    def __init__(self, path: Path) -> None:
        self.pages = Pages()
        self.mounter = MemoryMounter()
        self.state_dir = path / "state"
        self.data_dir = path / "data"
        self.target = path / "srv" / "data"
        for name in ("ext-1", "ext-2"):
            (self.data_dir / name).mkdir(parents=True)
        self.driver = ScriptedDriver(self.mounter, str(self.data_dir))
        self.drivers: dict[PluginId, Driver] = {NAS: self.driver}
        self.node = NODE
        self.settings = FAST

    @asynccontextmanager
    async def agent(self, *, is_awaited: bool = True) -> AsyncIterator[None]:
        """An agent that runs for a while and then is stopped."""
        around = Surroundings(
            connect=lambda plugin_id, spec: self.drivers[plugin_id],
            mounter=self.mounter,
            clock=lambda: 42,
            random=lambda: 0.0,
        )
        specs = {plugin_id: DriverSpec(socket=f"/nowhere/{plugin_id}.sock") for plugin_id in self.drivers}

        async def run(*, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
            await main.run(
                Client(CallTransport(self.pages.handle)),
                specs,
                state_dir=self.state_dir,
                node=self.node,
                settings=self.settings,
                around=around,
                task_status=task_status,
            )

        async with anyio.create_task_group() as group:
            if is_awaited:
                assert await group.start(run) == self.node.id
            else:
                group.start_soon(run)
            yield
            group.cancel_scope.cancel()

    async def until(self, is_so: Callable[[], object]) -> None:
        await self.pages.until(is_so)

    async def ask_again(self) -> None:
        """Let the agent have the page of steps once more."""
        asked = self.pages.requests.count("GET steps")
        self.pages.change()
        await self.until(lambda: self.pages.requests.count("GET steps") > asked)

    def claim(self, claim_id: ClaimId = A, **more: Any) -> Claim:
        return Claim(
            **{
                "id": claim_id,
                "allocation_id": AllocationId("alloc"),
                "name": "data",
                "namespace": NamespaceName("default"),
                "volume_id": VolumeId("vol"),
                "plugin_id": NAS,
                "external_id": "ext-1",
                "external_node_id": "n",
                "node_id": self.node.id,
                "read_only": False,
                "access_mode": "single-node-multi-writer",
                "attachment_mode": "file-system",
                "state": Attached(publish_context={"lun": "7"}),
                **more,
            }
        )

    def journal(self) -> list[str]:
        return sorted(p.name for p in (self.state_dir / "u").iterdir())

    async def mount(self, claim_id: ClaimId = A, **more: Any) -> str:
        self.pages.put_claim(self.claim(claim_id, **more))
        await self.until(lambda: self.pages.path_of(claim_id))
        return self.pages.path_of(claim_id)

    async def release(self, claim_id: ClaimId = A) -> None:
        self.pages.release(claim_id)
        await self.until(lambda: claim_id not in self.pages.claims)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def create(key: str = "volume/default/a", revision: int = 1, **more: Any) -> StepAssignment:
    step = steps.CreateVolume(name=more.pop("name", "fresh"), capabilities=(), required_bytes=7)
    more = {"serial_key": key, "timeout_s": 5.0, "plugin_id": NAS, **more}
    return StepAssignment(key=key, revision=Revision(revision), step=step, **more)


def files_below(path: Path) -> list[Path]:
    return [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]


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


async def test_plugins_are_told_only_when_something_changed(world: World) -> None:
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


# -- mounts ----------------------------------------------------------------------------------------------------------


async def test_mount_and_release(world: World) -> None:
    async with world.agent():
        path = await world.mount()
        assert world.mounter.origin(path) == str(world.data_dir / "ext-1")
        assert world.driver.names() == ["Stage", "Publish"]
        stage = world.driver.calls[0]
        assert isinstance(stage, steps.StageVolume)
        assert stage.publish_context == {"lun": "7"}
        assert len(path) < 128
        await world.release()
        assert world.driver.names() == ["Stage", "Publish", "Unpublish", "Unstage"]
        assert not any(world.mounter.mounts.values())
        await world.until(lambda: not world.journal())
        assert list((world.state_dir / "p").iterdir()) == []
        assert list((world.state_dir / "s").iterdir()) == []


async def test_two_claims_of_one_volume_share_a_staging(world: World) -> None:
    async with world.agent():
        await world.mount(A)
        await world.mount(B, read_only=True)
        assert world.driver.names().count("Stage") == 1
        await world.release(A)
        assert "Unstage" not in world.driver.names()
        assert world.mounter.find_mounted([world.pages.path_of(B)])
        await world.release(B)
        assert world.driver.names()[-1] == "Unstage"


async def test_a_driver_that_does_not_stage(world: World) -> None:
    world.driver.facts = ScriptedFacts(requires_stage=False)
    async with world.agent():
        await world.mount()
        await world.release()
    assert world.driver.names() == ["Publish", "Unpublish"]


async def test_a_target_is_bound_and_taken_away_again(world: World) -> None:
    async with world.agent():
        path = await world.mount(target=str(world.target), read_only=True)
        assert path == str(world.target)
        assert world.mounter.mounts[path] == [(str(world.data_dir / "ext-1"), True)]
        await world.release()
        assert not world.target.parent.exists()


async def test_a_target_that_was_there_stays(world: World) -> None:
    world.target.mkdir(parents=True)
    async with world.agent():
        await world.mount(target=str(world.target))
        await world.release()
        assert world.target.is_dir()


async def test_a_published_link_becomes_a_link_at_the_target(world: World) -> None:
    world.driver.publishes_links = True
    world.driver.facts = ScriptedFacts(requires_stage=False)
    world.target.mkdir(parents=True)
    async with world.agent():
        await world.mount(target=str(world.target))
        assert world.target.is_symlink()
        assert world.target.resolve() == world.data_dir / "ext-1"
        await world.release()
        assert world.target.is_dir()
        assert not world.target.is_symlink()


async def test_a_target_with_data_is_refused_and_nothing_is_left(world: World) -> None:
    world.target.mkdir(parents=True)
    (world.target / "precious").write_text("x")
    async with world.agent():
        world.pages.put_claim(world.claim(target=str(world.target)))
        await world.until(lambda: A not in world.pages.claims)
        fault = world.pages.faults()[0]
        assert fault.final
        assert "not empty" in fault.message
        assert world.driver.calls == []
        assert (world.target / "precious").read_text() == "x"


async def test_a_relative_target_is_refused(world: World) -> None:
    async with world.agent():
        world.pages.put_claim(world.claim(target="srv/data"))
        await world.until(lambda: A not in world.pages.claims)
    assert "'srv/data'" in world.pages.faults()[0].message


async def test_a_failing_driver_is_tried_again_and_each_failure_told(world: World) -> None:
    world.driver.fail(steps.StageVolume, message="array is busy", times=2)
    async with world.agent():
        await world.mount()
    assert [f.message for f in world.pages.faults()] == ["array is busy"] * 2
    assert world.pages.faults()[0].at_ns == 42
    assert world.driver.names() == ["Stage", "Stage", "Stage", "Publish"]


async def test_a_bind_that_fails_half_way_is_undone_at_release(world: World) -> None:
    bind = world.mounter.bind
    refusals = [OSError(errno.ENOMEM, "no memory")]

    def failing(source: str, target: str, *, read_only: bool) -> None:
        if target == str(world.target) and refusals:
            raise refusals.pop()
        bind(source, target, read_only=read_only)

    world.mounter.bind = failing  # type: ignore[method-assign]
    async with world.agent():
        await world.mount(target=str(world.target))
        assert [f.status for f in world.pages.faults()] == ["ENOMEM"]
        await world.release()
        assert not world.target.parent.exists()


async def test_a_final_failure_ends_the_claim(world: World) -> None:
    world.driver.fail(steps.PublishVolume, final=True)
    async with world.agent():
        world.pages.put_claim(world.claim())
        await world.until(lambda: A not in world.pages.claims)
    assert world.driver.names() == ["Stage", "Publish", "Unpublish", "Unstage"]
    assert world.pages.faults()[0].final


async def test_a_failing_volume_does_not_hold_up_another(world: World) -> None:
    world.driver.gates[steps.StageVolume] = anyio.Event()
    async with world.agent():
        world.pages.put_claim(world.claim(A))
        await world.until(lambda: world.driver.calls)
        del world.driver.gates[steps.StageVolume]
        await world.mount(B, external_id="ext-2", volume_id=VolumeId("other"))
        assert not world.pages.path_of(A)


async def test_a_busy_release_is_told_and_ends_when_it_can(world: World) -> None:
    async with world.agent():
        await world.mount(target=str(world.target))
        world.mounter.busy.add(str(world.target))
        world.pages.release(A)
        await world.until(world.pages.faults)
        fault = world.pages.faults()[0]
        assert fault.status == "EBUSY"
        assert str(world.target) in fault.message
        assert not fault.final
        assert "Unpublish" not in world.driver.names()
        world.mounter.busy.clear()
        await world.until(lambda: A not in world.pages.claims)


async def test_a_driver_that_lies_about_publishing_is_caught(world: World) -> None:
    world.driver._publish = lambda step: None  # type: ignore[method-assign]
    async with world.agent():
        world.pages.put_claim(world.claim())
        await world.until(world.pages.faults)
    assert "nothing is there" in world.pages.faults()[0].message
    assert not world.pages.path_of(A)


async def test_a_filesystem_grows_after_it_is_mounted(world: World) -> None:
    async with world.agent():
        world.pages.put_claim(world.claim(), grow_to_bytes=100)
        await world.until(
            lambda: any(isinstance(r, MountedReport) and r.grown_bytes == 100 for r in world.pages.reports)
        )
    assert world.driver.names() == ["Stage", "Publish", "ExpandNode"]


async def test_growth_that_is_refused_does_not_cost_the_mount(world: World) -> None:
    world.driver.fail(steps.ExpandNodeVolume, final=True)
    async with world.agent():
        world.pages.put_claim(world.claim(), grow_to_bytes=100)
        await world.until(lambda: world.driver.names().count("ExpandNode") == 2)
    assert not world.pages.faults()[0].final
    assert world.pages.claims[A].claim.wanted == "held"


async def test_nothing_is_touched_while_the_server_is_away(world: World) -> None:
    async with world.agent():
        path = await world.mount()
        world.pages.is_down = True
        world.pages.change()
        asked = len(world.pages.requests)
        await world.until(lambda: len(world.pages.requests) > asked + 5)
        assert world.mounter.find_mounted([path])
        world.pages.is_down = False
        await world.mount(B)


async def test_a_mount_that_vanished_is_made_again(world: World) -> None:
    async with world.agent():
        path = await world.mount()
        world.mounter.unmount(path)
        await world.until(lambda: world.mounter.find_mounted([path]))
    reports = [r for r in world.pages.reports if isinstance(r, MountedReport)]
    assert len(reports) == 1


# -- restarts --------------------------------------------------------------------------------------------------------


async def test_a_restart_disturbs_no_mount(world: World) -> None:
    async with world.agent():
        await world.mount(target=str(world.target))
    calls, reports = len(world.driver.calls), len(world.pages.reports)
    async with world.agent():
        await world.mount(B)
        assert world.driver.names()[calls:] == ["Publish"]
        assert len(world.pages.reports) == reports + 1
        await world.release(A)
        assert not world.target.exists()


@pytest.mark.parametrize("step", [steps.StageVolume, steps.PublishVolume])
async def test_killed_in_a_driver_call_it_goes_on(world: World, step: type) -> None:
    world.driver.gates[step] = anyio.Event()
    async with world.agent():
        world.pages.put_claim(world.claim(target=str(world.target)))
        await world.until(lambda: any(isinstance(c, step) for c in world.driver.calls))
    world.driver.gates.clear()
    async with world.agent():
        await world.until(lambda: world.pages.path_of(A))
        await world.release()
        assert not any(world.mounter.mounts.values())


@pytest.mark.parametrize("step", [steps.UnpublishVolume, steps.UnstageVolume])
async def test_killed_in_a_release_it_goes_on(world: World, step: type) -> None:
    async with world.agent():
        await world.mount()
        world.driver.gates[step] = anyio.Event()
        world.pages.release(A)
        await world.until(lambda: any(isinstance(c, step) for c in world.driver.calls))
    world.driver.gates.clear()
    async with world.agent():
        await world.until(lambda: A not in world.pages.claims)
        await world.until(lambda: not world.journal())
    assert not any(world.mounter.mounts.values())
    assert sum(isinstance(r, UnmountedReport) for r in world.pages.reports) == 1


async def test_after_a_reboot_everything_is_mounted_again_and_not_told_again(world: World) -> None:
    async with world.agent():
        path = await world.mount(target=str(world.target))
    world.mounter.reboot()
    world.node = replace(NODE, boot_id="boot-2")
    reports = len(world.pages.reports)
    async with world.agent():
        await world.until(lambda: world.mounter.find_mounted([path]))
        assert world.driver.names() == ["Stage", "Publish"] * 2
        await world.release()
    assert [type(r) for r in world.pages.reports[reports:]] == [UnmountedReport]
    assert not world.target.exists()


async def test_orphans_are_cleaned_before_the_node_registers(world: World) -> None:
    async with world.agent():
        await world.mount(target=str(world.target))
    world.pages.claims.clear()
    world.driver.gates[steps.UnpublishVolume] = anyio.Event()
    registered = world.pages.requests.count("PUT register")
    async with world.agent(is_awaited=False):
        await world.until(lambda: world.driver.names()[-1] == "Unpublish")
        assert world.pages.requests.count("PUT register") == registered
        world.driver.gates.pop(steps.UnpublishVolume).set()
        await world.until(lambda: world.pages.requests.count("PUT register") > registered)
        assert world.driver.names()[-1] == "Unstage"
        assert not any(world.mounter.mounts.values())
        assert not world.target.exists()
        assert world.journal() == []


async def test_an_orphan_that_cannot_go_does_not_keep_the_node_away_for_ever(world: World) -> None:
    async with world.agent():
        path = await world.mount()
    world.pages.claims.clear()
    world.mounter.busy.add(path)
    world.settings = replace(FAST, clean_first_s=0.1)
    async with world.agent():
        assert world.mounter.find_mounted([path])
        world.mounter.busy.clear()
        await world.until(lambda: not world.mounter.find_mounted([path]))


async def test_a_lost_journal_does_not_lose_the_mount(world: World) -> None:
    async with world.agent():
        path = await world.mount()
    for file in (world.state_dir / "u").iterdir():
        file.unlink()
    async with world.agent():
        await world.until(lambda: len(world.journal()) == 2)
        assert world.mounter.find_mounted([path])
        await world.release()
    assert not any(world.mounter.mounts.values())


async def test_a_journal_entry_that_cannot_be_read_is_put_aside(world: World) -> None:
    (world.state_dir / "u").mkdir(parents=True)
    (world.state_dir / "u" / "torn.json").write_text("{")
    async with world.agent():
        await world.mount()
    assert "torn.unreadable" in world.journal()


async def test_the_journal_holds_no_secret(world: World) -> None:
    secrets = msgspec.convert({"values": {"key": "hunter2"}}, type=type(create().step.secrets))  # type: ignore[union-attr]
    async with world.agent():
        world.pages.put_claim(world.claim(), secrets=secrets)
        await world.until(lambda: world.pages.path_of(A))
        stage = world.driver.calls[0]
        assert isinstance(stage, steps.StageVolume)
        assert stage.secrets.values == {"key": "hunter2"}
    assert not [p for p in files_below(world.state_dir) if "hunter2" in p.read_text()]


async def test_a_state_directory_that_is_too_long_is_refused_at_start(world: World) -> None:
    world.state_dir = world.state_dir / ("x" * 120)
    with pytest.raises(ExceptionGroup) as caught:
        async with world.agent():
            pass
    assert caught.group_contains(BadRequest, match="too long")
