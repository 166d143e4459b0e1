"""Whose turn a driver call is: shared fairly, and not eaten up by calls that hang. Orders are counted, not times; where
time matters it is virtual."""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest

from moorage.agent.budget import HANGING_MAX, Budget
from moorage.model import steps
from moorage.model.steps import Direction, direction_of
from moorage.testing import virtual_loop

SLOW_AFTER_S = 10.0


class Bench:
    """Calls that end when they are told to. ``begun``: their subjects, in order."""

    def __init__(self, group: anyio.abc.TaskGroup, budget: Budget) -> None:
        self.budget = budget
        self.begun: list[str] = []
        self.running: set[str] = set()
        self._group = group
        self._ends: dict[str, anyio.Event] = {}
        self._scopes: dict[str, anyio.CancelScope] = {}
        self._unanswered: set[str] = set()

    async def ask(self, *subjects: str, direction: Direction = "take") -> None:
        """Each subject wants a call; those that get a slot have begun when this returns."""
        for subject in subjects:
            self._ends[subject] = anyio.Event()
            self._group.start_soon(self._call, subject, direction)
            await self._settle()

    async def end(self, *subjects: str, is_answered: bool = True) -> None:
        for subject in subjects:
            if not is_answered:
                self._unanswered.add(subject)
            self._ends[subject].set()
            await self._settle()

    async def cancel(self, subject: str) -> None:
        self._scopes[subject].cancel()
        await self._settle()

    async def _settle(self) -> None:
        await anyio.sleep(0.001)

    async def _call(self, subject: str, direction: Direction) -> None:
        with anyio.CancelScope() as self._scopes[subject]:
            async with self.budget.slot(direction, subject) as ticket:
                self.begun.append(subject)
                self.running.add(subject)
                try:
                    await self._ends[subject].wait()
                finally:
                    self.running.discard(subject)
                ticket.no_answer = subject in self._unanswered
                self._unanswered.discard(subject)


@asynccontextmanager
async def bench(calls_max: int, *, slow_max: int = 0) -> AsyncIterator[Bench]:
    async with anyio.create_task_group() as group:
        yield Bench(group, Budget(calls_max, slow_max=slow_max, slow_after_s=SLOW_AFTER_S))
        group.cancel_scope.cancel()


def run(test: typing.Callable[[], typing.Awaitable[None]]) -> None:
    """Run a test in virtual time."""
    virtual_loop.run(test, seed=1)


def test_every_step_has_a_direction() -> None:
    kinds = typing.get_args(steps.ControllerStep) + typing.get_args(steps.NodeStep)
    made = [kind(**{f.name: "" for f in msgspec.structs.fields(kind) if f.required}) for kind in kinds]
    found = {type(step).__name__: direction_of(step) for step in made}
    giving = {"DeleteVolume", "DetachVolume", "DeleteSnapshot", "UnpublishVolume", "UnstageVolume"}
    asking = {"ValidateVolume", "ListVolumes", "ListSnapshots", "GetCapacity", "GetVolumeStats"}
    assert {k for k, d in found.items() if d == "give"} == giving
    assert {k for k, d in found.items() if d == "ask"} == asking
    assert "AttachVolume" in found


def test_no_more_calls_than_slots_and_the_longest_waiting_first() -> None:
    async def test() -> None:
        async with bench(2) as b:
            await b.ask("a", "b", "c", "d", "e")
            assert b.begun == ["a", "b"]
            await b.end("b", "a", "c")
            assert b.begun == ["a", "b", "c", "d", "e"]
            assert b.running == {"d", "e"}

    run(test)


@pytest.mark.parametrize(("crowd", "few"), [("take", "give"), ("give", "take"), ("take", "ask")])
def test_no_direction_starves_another(crowd: Direction, few: Direction) -> None:
    async def test() -> None:
        async with bench(1) as b:
            await b.ask("run")
            await b.ask(*(f"crowd{n}" for n in range(10)), direction=crowd)
            await b.ask("few0", "few1", direction=few)
            for _ in range(4):
                await b.end(b.begun[-1])
            assert b.begun == ["run", "crowd0", "few0", "crowd1", "few1"]
            await b.end("few1")
            assert b.begun[-1] == "crowd2"

    run(test)


def test_a_volume_that_asks_again_stands_behind_those_that_wait() -> None:
    async def test() -> None:
        async with bench(1) as b:
            await b.ask("a", "b", "c")
            await b.end("a")
            await b.ask("a")
            await b.end("b", "c")
            assert b.begun == ["a", "b", "c", "a"]

    run(test)


def test_a_call_that_hangs_gives_its_slot_back_and_others_go_on() -> None:
    async def test() -> None:
        async with bench(2, slow_max=2) as b:
            await b.ask("hung1", "hung2", "good1", "good2", "good3")
            assert b.begun == ["hung1", "hung2"]
            await anyio.sleep(SLOW_AFTER_S)
            assert b.begun == ["hung1", "hung2", "good1", "good2"]
            assert len(b.running) == 4
            await b.end("good1")
            assert b.begun[-1] == "good3"
            # The slow ones end: their slots are the slow ones, not those of the others.
            await b.end("hung1", "hung2")
            await b.ask("good4")
            assert b.running == {"good2", "good3"}

    run(test)


def test_without_slow_slots_the_limit_is_hard() -> None:
    async def test() -> None:
        async with bench(1) as b:
            await b.ask("hung", "good")
            await anyio.sleep(10 * SLOW_AFTER_S)
            await b.end("hung", is_answered=False)
            await b.ask("hung", "other")
            assert b.begun == ["hung", "good"]
            await b.end("good")
            assert b.begun == ["hung", "good", "hung"]

    run(test)


def test_volumes_that_hang_again_and_again_share_the_slow_slots() -> None:
    async def test() -> None:
        async with bench(2, slow_max=1) as b:
            hung = [f"hung{n}" for n in range(5)]
            for name in hung:
                await b.ask(name)
                await b.end(name, is_answered=False)
            b.begun.clear()
            await b.ask(*hung)
            assert b.begun == ["hung0"]
            await b.ask("good1", "good2")
            assert b.begun == ["hung0", "good1", "good2"]
            await b.end("hung0", is_answered=False)
            assert b.begun == ["hung0", "good1", "good2", "hung1"]
            # One that answers is as the others again.
            await b.end("hung1", "good1")
            await b.ask("hung1")
            assert b.begun[-2:] == ["hung2", "hung1"]
            assert b.running == {"hung2", "hung1", "good2"}

    run(test)


def test_the_watch_for_slow_calls_is_taken_over_when_its_keeper_leaves() -> None:
    async def test() -> None:
        async with bench(1, slow_max=1) as b:
            await b.ask("hung", "leaves", "stays")
            await anyio.sleep(SLOW_AFTER_S / 2)
            await b.cancel("leaves")
            await anyio.sleep(SLOW_AFTER_S / 2)
            assert b.begun == ["hung", "stays"]

    run(test)


def test_the_watch_goes_on_while_the_first_who_waits_is_one_that_hung_before() -> None:
    async def test() -> None:
        async with bench(1, slow_max=2) as b:
            for name in ("x", "y", "z"):
                await b.ask(name)
                await b.end(name, is_answered=False)
            b.begun.clear()
            await b.ask("x", "y", "z", "hung", "good")
            assert b.begun == ["x", "y", "hung"]
            await b.end("x")  # z gets the slow slot, and nothing is left for the one that hangs
            await anyio.sleep(SLOW_AFTER_S)
            assert b.begun == ["x", "y", "hung", "z"]
            await b.end("y")
            assert b.begun == ["x", "y", "hung", "z", "good"]

    run(test)


def test_who_leaves_gives_back_what_it_got() -> None:
    async def test() -> None:
        async with bench(1) as b:
            await b.ask("a", "b", "c")
            await b.cancel("b")
            await b.cancel("a")
            assert b.running == {"c"}
            await b.ask("d")
            await b.cancel("d")
            await b.end("c")
            await b.ask("e")
            assert b.running == {"e"}

    run(test)


def test_who_is_cancelled_in_the_turn_in_which_it_gets_a_slot_gives_it_back() -> None:
    async def test() -> None:
        async with bench(1) as b:
            await b.ask("a", "b")
            b._ends["a"].set()
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            b._scopes["b"].cancel()
            await anyio.sleep(0.01)
            await b.ask("c")
            assert b.running == {"c"}

    run(test)


def test_what_is_remembered_has_a_bound() -> None:
    async def test() -> None:
        async with anyio.create_task_group():
            budget = Budget(1, slow_max=1, slow_after_s=SLOW_AFTER_S)
            for number in range(HANGING_MAX + 10):
                async with budget.slot("take", f"v{number}") as ticket:
                    ticket.no_answer = True
            assert len(budget._hanging) == HANGING_MAX

    run(test)
