"""An agent that is told only what is new does what one does that is told all."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec
import pytest
from agent_kit import NAS, A, B, World

from moorage.agent import worker as module
from moorage.agent.ports import AgentSettings, Driver
from moorage.agent.reporter import Reporter
from moorage.agent.worker import StepWorkers
from moorage.client.transport import Answer
from moorage.model import steps
from moorage.model.assignment import ClaimAssignments, Report, StepAssignment, StepAssignments
from moorage.model.ids import ClaimId, PluginId, Revision
from moorage.testing.agent_world import Pages

pytestmark = pytest.mark.anyio


class NewsPages(Pages):
    """Pages that tell of claims only what is new, once the agent has a list."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[ClaimId, Revision] = {}
        self.deltas = 0

    async def handle(self, method: str, path: str, query: object, body: bytes | None) -> Answer:
        answer = await super().handle(method, path, query, body)  # type: ignore[arg-type]
        if not path.endswith("/claims") or answer.status != 200:
            return answer
        page = msgspec.json.decode(answer.body, type=ClaimAssignments)
        before, self.told = self.told, {c.claim.id: c.revision for c in page.claims}
        page = msgspec.structs.replace(page, epoch=7)
        if query.get("epoch") == "7":  # type: ignore[attr-defined]
            self.deltas += 1
            page = msgspec.structs.replace(
                page,
                is_delta=True,
                claims=tuple(c for c in page.claims if before.get(c.claim.id) != c.revision),
                gone=tuple(claim_id for claim_id in before if claim_id not in self.told),
            )
        return Answer(200, {}, msgspec.json.encode(page))


async def test_claims_come_and_go_by_news_alone(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.pages = pages = NewsPages()  # type: ignore[assignment]
    async with world.agent():
        first = await world.mount(A)
        second = await world.mount(B)
        assert world.driver.names().count("Stage") == 1, "one disk"
        await world.release(A)
        assert not world.mounter.find_mounted([first])
        assert world.mounter.find_mounted([second])
        await world.release(B)
        await world.until(lambda: not world.journal())
        assert not any(world.mounter.mounts.values())
        again = await world.mount(A)
        assert world.mounter.find_mounted([again])
    assert pages.deltas > 3


class _Slow:
    """A driver whose calls end when they are let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go = anyio.Event()

    async def run(self, step: steps.DetachVolume, *, timeout_s: float) -> steps.Outcome:
        self.begun.append(step.external_id)
        await self.go.wait()
        return steps.Done()


class _Sink:
    async def report(self, reports: tuple[Report, ...]) -> None:
        await anyio.lowlevel.checkpoint()


class _Open:
    is_open = True

    async def wait_open(self) -> None:
        await anyio.lowlevel.checkpoint()

    def is_told(self, plugin_id: PluginId) -> bool:
        return True

    def note_end(self, plugin_id: PluginId) -> None:
        pass


def a_step(name: str, revision: int = 1, serial: str = "") -> StepAssignment:
    step = steps.DetachVolume(external_id=name, external_node_id="n")
    return StepAssignment(
        key=f"k/{name}", revision=Revision(revision), plugin_id=NAS, serial_key=serial or name, step=step, timeout_s=9
    )


def page(*found: StepAssignment, gone: tuple[str, ...] = (), is_delta: bool = True) -> StepAssignments:
    return StepAssignments(index=1, steps=found, is_delta=is_delta, gone=gone)


async def test_news_of_steps_leave_the_others_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE_MAX", 3)
    driver = _Slow()
    reporter = Reporter(_Sink(), AgentSettings(), random=lambda: 0.0)
    async with anyio.create_task_group() as group:
        group.start_soon(reporter.run)
        drivers: dict[object, Driver] = {NAS: driver}  # type: ignore[dict-item]
        workers = StepWorkers(group, drivers, reporter, clock=lambda: 1, budgets={}, gate=_Open())  # type: ignore[arg-type]
        workers.take(page(a_step("a", serial="x"), a_step("b", serial="x"), is_delta=False))
        await anyio.wait_all_tasks_blocked()
        assert driver.begun == ["a"]
        # b waits behind a and stays wanted, though the news do not name it; c is new; d and e find no room.
        workers.take(page(a_step("c"), a_step("d"), a_step("e")))
        workers.take(page(gone=("k/d",)))
        await anyio.wait_all_tasks_blocked()
        assert driver.begun == ["a", "c"]
        driver.go.set()
        await anyio.wait_all_tasks_blocked()
        assert driver.begun == ["a", "c", "b", "e"] or driver.begun == ["a", "c", "e", "b"]
        group.cancel_scope.cancel()
