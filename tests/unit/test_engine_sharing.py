"""One call for all who ask the same: never an answer from before the question, and nobody is left behind."""

from __future__ import annotations

import anyio
import pytest

from moorage.engine.sharing import Sharing
from moorage.errors import MoorageError, Unavailable

pytestmark = pytest.mark.anyio


class Driver:
    """Answers with the number of the call when it is let go."""

    def __init__(self) -> None:
        self.calls = 0
        self.go: list[anyio.Event] = [anyio.Event() for _ in range(9)]
        self.failing: set[int] = set()

    async def call(self) -> int:
        number = self.calls
        self.calls += 1
        await self.go[number].wait()
        if number in self.failing:
            raise Unavailable(f"no {number}", code="x", retry_after_s=1.0)
        return number


async def test_those_who_come_during_a_call_share_the_next_one() -> None:
    sharing: Sharing[int] = Sharing()
    driver = Driver()
    answers: list[tuple[str, int]] = []

    async def ask(name: str) -> None:
        answers.append((name, await sharing.ask("q", driver.call)))

    async with anyio.create_task_group() as group:
        group.start_soon(ask, "first")
        await anyio.wait_all_tasks_blocked()
        for _ in range(5):
            group.start_soon(ask, "during")
        group.start_soon(sharing.ask, "other", driver.call)
        await anyio.wait_all_tasks_blocked()
        assert driver.calls == 2
        driver.go[1].set()
        driver.go[0].set()
        await anyio.wait_all_tasks_blocked()
        assert answers == [("first", 0)]
        assert driver.calls == 3
        group.start_soon(ask, "late")
        driver.go[2].set()
        driver.go[3].set()
    assert sorted(answers) == [("during", 2)] * 5 + [("first", 0), ("late", 3)]
    assert len(sharing) == 0


async def test_a_failure_is_everybodys_of_its_round() -> None:
    sharing: Sharing[int] = Sharing()
    driver = Driver()
    driver.failing = {1}
    told: list[str] = []

    async def ask() -> None:
        try:
            await sharing.ask("q", driver.call)
        except MoorageError as error:
            told.append(error.message)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
        driver.go[0].set()
        driver.go[1].set()
    assert told == ["no 1", "no 1"]
    assert len(sharing) == 0


async def test_one_that_leaves_in_the_middle_of_its_call_leaves_it_to_the_next() -> None:
    sharing: Sharing[int] = Sharing()
    driver = Driver()
    answers: list[int] = []

    async def ask() -> None:
        answers.append(await sharing.ask("q", driver.call))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        leader = anyio.CancelScope()

        async def leave() -> None:
            with leader:
                await ask()

        group.start_soon(leave)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        driver.go[0].set()
        await anyio.wait_all_tasks_blocked()
        assert driver.calls == 2
        leader.cancel()
        driver.go[2].set()
    assert answers == [0, 2]
    assert len(sharing) == 0
