"""A controller step begins only while the node's lease runs, only if the server's run that listed it still does, and
only while the server knows the driver as well."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from msgspec import structs

from moorage.agent.budget import Budget
from moorage.agent.link import Link
from moorage.agent.ports import AgentSettings
from moorage.agent.reporter import Reporter
from moorage.agent.steps import StepGate, Steps
from moorage.agent.worker import StepWorkers
from moorage.client.api import Client
from moorage.model import steps
from moorage.model.assignment import PluginsReported, Report, StepAssignment, StepAssignments, StepReport
from moorage.model.ids import NodeId, PluginId, Revision

pytestmark = pytest.mark.anyio
NAS = PluginId("nas")


class Server(Client):
    """Answers each query for steps when it is told to, and notes what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.page = StepAssignments(index=9, steps=(), epoch=5)
        self.news = anyio.Event()

    async def wait_steps(self, node_id: NodeId, index: int, wait_s: float, epoch: int = 0) -> StepAssignments:
        """See ``Client``."""
        self.asked.append((index, epoch))
        if index == self.page.index:
            await self.news.wait()
        return self.page

    def tell(self, *listed: StepAssignment, epoch: int = 5) -> None:
        """Answer with a whole list."""
        self.page = StepAssignments(index=self.page.index + 1, steps=listed, epoch=epoch)
        self.news.set()
        self.news = anyio.Event()

    async def report(self, reports: tuple[Report, ...]) -> None:  # type: ignore[override]
        """See ``Reporter``."""
        await anyio.lowlevel.checkpoint()


class Driver:
    """Is at its calls until they may end."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go = anyio.Event()

    async def run(self, step: steps.Step, *, timeout_s: float) -> steps.Outcome:
        """See ``Driver``."""
        assert isinstance(step, steps.DetachVolume)
        self.begun.append(step.external_id)
        await self.go.wait()
        return steps.Done()


class Agent:
    """The parts of an agent that make controller calls; ``now_s`` is its clock."""

    workers: StepWorkers
    budgets: dict[PluginId, Budget]

    def __init__(self) -> None:
        self.now_s = 100.0
        self.server, self.driver = Server(), Driver()
        gate = StepGate(lambda: self.now_s)
        gate.note_well([NAS])
        settings = AgentSettings(wait_s=60.0)
        self.link = Link()
        self.steps = Steps(self.server, NodeId("n"), self.link, gate=gate, settings=settings, random=lambda: 0.5)
        self.reporter = Reporter(self.server, settings, random=lambda: 0.0)


@asynccontextmanager
async def running(calls_max: int = 8) -> AsyncIterator[Agent]:
    agent = Agent()
    budgets = agent.budgets = {NAS: Budget(calls_max, slow_max=0, slow_after_s=60.0)}
    async with anyio.create_task_group() as group:
        drivers: Any = {NAS: agent.driver, PluginId("other"): agent.driver}
        workers = agent.workers = StepWorkers(
            group, drivers, agent.reporter, clock=lambda: 1, budgets=budgets, gate=agent.steps.gate
        )
        group.start_soon(agent.reporter.run)
        group.start_soon(lambda: agent.steps.run(workers, random=lambda: 0.0))
        agent.steps.note_run(5)
        await anyio.wait_all_tasks_blocked()
        yield agent
        group.cancel_scope.cancel()


def a_step(name: str, serial: str = "") -> StepAssignment:
    step = steps.DetachVolume(external_id=name, external_node_id="n")
    return StepAssignment(
        key=f"k/{name}", revision=Revision(1), plugin_id=NAS, serial_key=serial or name, step=step, timeout_s=9.0
    )


async def test_a_step_waits_for_the_lease_and_begins_by_a_renewal() -> None:
    async with running() as agent:
        agent.steps.gate.renew(90.0, 9.0)
        agent.server.tell(a_step("a"), a_step("b"))
        await anyio.wait_all_tasks_blocked()
        assert agent.driver.begun == []
        assert agent.steps.list_calling() == ()
        # Counted from before it was sent, and to its very end.
        agent.steps.gate.renew(91.0, 9.0)
        await anyio.wait_all_tasks_blocked()
        assert agent.driver.begun == []
        agent.steps.gate.renew(91.5, 9.0)
        await anyio.wait_all_tasks_blocked()
        assert sorted(agent.driver.begun) == ["a", "b"]
        assert agent.steps.list_calling() == ("a", "b")


async def test_a_step_whose_turn_comes_after_the_lease_does_not_begin() -> None:
    async with running(calls_max=1) as agent:
        agent.steps.gate.renew(100.0, 9.0)
        agent.server.tell(a_step("a"), a_step("b"))
        await anyio.wait_all_tasks_blocked()
        assert agent.driver.begun == ["a"]
        agent.now_s = 110.0
        agent.driver.go.set()
        await anyio.wait_all_tasks_blocked()
        assert agent.driver.begun == ["a"]
        assert agent.steps.list_calling() == ()
        agent.steps.gate.renew(109.0, 9.0)
        await anyio.wait_all_tasks_blocked()
        assert agent.driver.begun == ["a", "b"]


async def test_what_was_listed_before_a_loss_does_not_begin_after_it() -> None:
    async with running() as agent:
        agent.steps.gate.renew(90.0, 9.0)
        agent.server.tell(a_step("a"))
        await anyio.wait_all_tasks_blocked()
        agent.steps.gate.close()
        agent.server.page = StepAssignments(index=agent.server.page.index, steps=(a_step("c"),), epoch=5)
        agent.steps.drop()
        agent.steps.gate.renew(100.0, 9.0)
        await anyio.wait_all_tasks_blocked()
        assert agent.driver.begun == ["c"]
        # All of the list was asked for, whatever its version.
        assert agent.server.asked[-2:] == [(0, 0), (agent.server.page.index, 5)]


async def test_another_run_of_the_server_is_told_what_goes_on_and_nothing_else_begins() -> None:
    async with running() as agent:
        agent.steps.gate.renew(100.0, 9.0)
        agent.server.tell(a_step("a"), a_step("b", serial="a"))
        await anyio.wait_all_tasks_blocked()
        agent.server.page = StepAssignments(index=agent.server.page.index, steps=(), epoch=6)
        assert agent.steps.note_run(6)
        assert not agent.steps.note_run(6)
        assert agent.steps.list_calling() == ("a",)
        agent.driver.go.set()
        await anyio.wait_all_tasks_blocked()
        assert agent.driver.begun == ["a"]
        assert agent.steps.list_calling() == ()


async def test_a_list_of_another_run_makes_the_node_register_at_once() -> None:
    async with running() as agent:
        agent.server.tell(epoch=6)
        with anyio.fail_after(5):
            await agent.link.wait_wake(60.0)


def tell(agent: Agent, *well: PluginId, count: int) -> None:
    """A report that the server takes."""
    telling = agent.steps.begin_telling(well)
    assert agent.steps.note_told(telling, PluginsReported(count=count))


async def test_a_sick_drivers_steps_wait_for_a_list_from_after_the_word_that_it_is_well() -> None:
    async with running(calls_max=1) as agent:
        agent.steps.gate.renew(100.0, 9.0)
        agent.server.tell(a_step("a"), a_step("b"))
        await anyio.wait_all_tasks_blocked()
        agent.steps.gate.note_sick(NAS)
        # Its call goes on, is told, and what waited for its turn does not begin; nor does what is listed meanwhile.
        assert agent.steps.list_calling() == ("a",)
        agent.server.tell(a_step("a"), a_step("b"), a_step("c"))
        agent.driver.go.set()
        await anyio.wait_all_tasks_blocked()
        assert agent.driver.begun == ["a"]
        assert agent.steps.list_calling() == ()
        # The server gave b and c to somebody else when it heard of it, and this list is on its way.
        agent.server.page = StepAssignments(index=agent.server.page.index, steps=(a_step("d"),), epoch=5)
        tell(agent, NAS, count=7)
        assert agent.server.asked[-1][0] != 0
        await anyio.wait_all_tasks_blocked()
        assert agent.server.asked[-2][0] == 0
        assert agent.driver.begun == ["a", "d"]


async def test_a_report_that_was_made_before_a_fall_lets_nothing_begin() -> None:
    async with running() as agent:
        agent.steps.gate.renew(100.0, 9.0)
        gate = agent.steps.gate
        gate.note_sick(NAS)
        first = agent.steps.begin_telling([NAS])
        gate.note_sick(NAS)
        assert agent.steps.note_told(first, PluginsReported(count=7))
        assert not gate.is_told(NAS)
        # One that the server does not take says nothing either; the next one comes after what it took last.
        second = agent.steps.begin_telling([NAS])
        assert (first.after, second.after) == (5, 7)
        assert not agent.steps.note_told(second, PluginsReported(count=9, is_taken=False))
        assert not gate.is_told(NAS)
        third = agent.steps.begin_telling([NAS])
        assert third.after == 9
        assert agent.steps.note_told(third, PluginsReported(count=10))
        assert gate.is_told(NAS)


async def test_a_driver_that_recovers_leaves_the_others_lists_alone() -> None:
    async with running() as agent:
        agent.steps.gate.renew(90.0, 9.0)
        other = structs.replace(a_step("o"), plugin_id=PluginId("other"))
        agent.steps.gate.note_well([PluginId("other")])
        agent.server.tell(a_step("a"), other)
        await anyio.wait_all_tasks_blocked()
        agent.steps.gate.note_sick(NAS)
        agent.server.page = StepAssignments(index=agent.server.page.index, steps=(other,), epoch=5)
        tell(agent, NAS, count=7)
        # Both wait for the lease; the other driver's step is still wanted before the new list is there.
        agent.steps.gate.renew(100.0, 9.0)
        assert agent.workers._listed.keys() == {"k/o"}
        await anyio.wait_all_tasks_blocked()
        assert agent.driver.begun == ["o"]


async def test_the_end_of_a_sick_drivers_call_is_told_once_the_server_knows_what_came_of_it() -> None:
    async with running() as agent:
        ends: list[tuple[str, ...]] = []
        agent.steps.gate.on_end = lambda: ends.append(agent.steps.list_calling())
        agent.steps.gate.renew(100.0, 9.0)
        agent.server.tell(a_step("a"))
        await anyio.wait_all_tasks_blocked()
        agent.steps.gate.note_sick(NAS)
        assert ends == []
        agent.driver.go.set()
        await anyio.wait_all_tasks_blocked()
        assert ends == [()]
        # Of a driver that is well nobody waits to hear it.
        tell(agent, NAS, count=7)
        agent.server.tell(a_step("b"))
        await anyio.wait_all_tasks_blocked()
        assert agent.driver.begun == ["a", "b"]
        assert ends == [()]


async def test_a_step_on_no_list_is_made_at_once_and_its_serial_key_is_kept_for_it() -> None:
    async with running() as agent:
        agent.steps.gate.renew(100.0, 9.0)
        told: list[object] = []

        async def ask() -> None:
            told.append(await agent.workers.try_now(a_step("a")))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            assert agent.steps.list_calling() == ("a",)
            # Behind it waits what is listed, and what would be asked at once is not.
            agent.server.tell(a_step("b", serial="a"), a_step("c"))
            await anyio.wait_all_tasks_blocked()
            assert agent.driver.begun == ["a", "c"]
            assert await agent.workers.try_now(a_step("a")) is None
            agent.driver.go.set()
        await anyio.wait_all_tasks_blocked()
        assert agent.driver.begun == ["a", "c", "b"]
        assert [type(one) for one in told] == [StepReport]
        assert agent.steps.list_calling() == ()


async def test_a_step_on_no_list_that_would_have_to_wait_is_not_made() -> None:
    async with running(calls_max=1) as agent:
        agent.driver.go.set()
        assert await agent.workers.try_now(a_step("no lease")) is None
        agent.steps.gate.renew(100.0, 9.0)
        assert await agent.workers.try_now(structs.replace(a_step("x"), serial_key="")) is None
        assert await agent.workers.try_now(structs.replace(a_step("x"), plugin_id=PluginId("none"))) is None
        agent.driver.go = anyio.Event()
        agent.server.tell(a_step("a"), a_step("b"))
        await anyio.wait_all_tasks_blocked()
        # One has the slot, the other waits for it.
        assert await agent.workers.try_now(a_step("c")) is None
        agent.driver.go.set()
        await anyio.wait_all_tasks_blocked()
        agent.steps.gate.note_sick(NAS)
        assert await agent.workers.try_now(a_step("sick")) is None
        tell(agent, NAS, count=1)
        assert await agent.workers.try_now(a_step("well")) is not None
        assert agent.driver.begun == ["a", "b", "well"]


async def test_a_step_on_no_list_whose_caller_leaves_gives_everything_back() -> None:
    async with running(calls_max=1) as agent:
        agent.steps.gate.renew(100.0, 9.0)
        with anyio.move_on_after(0.02):
            await agent.workers.try_now(a_step("a"))
        assert agent.steps.list_calling() == ()
        agent.driver.go.set()
        assert await agent.workers.try_now(a_step("a")) is not None


async def test_a_call_without_an_answer_is_told_as_one_and_its_volume_counts_as_hanging() -> None:
    async with running(calls_max=1) as agent:
        agent.steps.gate.renew(100.0, 9.0)
        told = await agent.workers.try_now(structs.replace(a_step("a"), timeout_s=-2.0))
        assert told is not None
        assert isinstance(told.outcome, steps.Failed)
        assert told.outcome.fault.status == "DEADLINE_EXCEEDED"
        assert "a" in agent.budgets[NAS]._hanging
