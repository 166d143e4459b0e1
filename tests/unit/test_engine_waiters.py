"""The register of those that wait without a task, and its wheel of deadlines."""

from __future__ import annotations

from math import inf

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.engine.waiters import FINISHED_MAX, TURN_MAX, TURN_MIN, Waiter, Waiters, Why
from moorage.engine.wheel import Wheel
from moorage.model.ids import Revision
from moorage.state.feed import Change


class Named(Waiter):
    """One with a name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def change(key: str, revision: int) -> Change:
    return Change(key, Revision(revision), None, None)


class Room:
    """A register and what came of those that entered."""

    def __init__(self) -> None:
        self.waiters = Waiters()
        self.noted: list[tuple[str, Why | None]] = []
        # How many were answered at each finishing since the one before.
        self.finished: list[int] = []

    def enter(self, name: str, *topics: str, above: int = 5, least_s: float = 10.0, most_s: float = 11.0) -> Named:
        waiter = Named(name)
        self.waiters.enter(waiter, topics, above=above, least_s=least_s, most_s=most_s)
        return waiter

    def answer(self, waiters: list[Waiter]) -> None:
        assert 0 < len(waiters) <= TURN_MAX
        for waiter in waiters:
            assert isinstance(waiter, Named)
            self.noted.append((waiter.name, waiter.why))

    def finish(self) -> None:
        self.finished.append(len(self.noted) - sum(self.finished))

    def turn(self, now_s: float) -> None:
        self.waiters.turn(now_s, self)


# -- the register ----------------------------------------------------------------------------------------------------


def test_a_change_calls_those_of_its_key_and_of_its_table() -> None:
    room = Room()
    room.enter("a", "volumes/x/a")
    room.enter("b", "volumes/x/b", "claims/1")
    room.enter("all", "volumes/", "claims/")
    room.waiters.note(change("volumes/x/a", 6))
    room.turn(0.0)
    assert room.noted == [("a", "changed"), ("all", "changed")]
    room.waiters.note(change("claims/1", 7))
    room.turn(0.0)
    assert room.noted[2:] == [("b", "changed")]
    assert len(room.waiters) == 0


def test_who_waits_for_a_later_revision_goes_on() -> None:
    room = Room()
    room.enter("a", "volumes/x/a", above=6)
    room.waiters.note(change("volumes/x/a", 6))
    room.turn(0.0)
    assert room.noted == []
    room.waiters.note(change("volumes/x/a", 7))
    room.waiters.note(change("volumes/x/a", 8))
    room.turn(0.0)
    assert room.noted == [("a", "changed")]


def test_who_left_is_not_answered() -> None:
    room = Room()
    early, called = room.enter("a", "k/a"), room.enter("b", "k/a")
    room.waiters.leave(early)
    room.waiters.leave(early)
    room.waiters.note(change("k/a", 9))
    room.waiters.leave(called)
    room.turn(20.0)
    assert room.noted == []
    assert len(room.waiters) == 0


def test_time_is_up() -> None:
    room = Room()
    room.enter("a", "k/a", least_s=10.0, most_s=10.0)
    room.enter("b", least_s=9.0, most_s=9.02)
    room.turn(8.99)
    assert room.noted == []
    room.turn(9.0)
    room.turn(10.0)
    assert room.noted == [("b", "late"), ("a", "late")]
    # Nothing is kept of them.
    assert (len(room.waiters), room.waiters.ticks) == (0, 0)


def test_a_stop_calls_all_once() -> None:
    room = Room()
    room.enter("a", "k/a", "k/b")
    room.enter("b")
    room.enter("c", "k/a", above=100)
    room.waiters.note(change("k/b", 9))
    room.waiters.stop()
    room.turn(0.0)
    assert sorted(room.noted) == [("a", "changed"), ("b", "stopping"), ("c", "stopping")]


def test_a_turn_answers_only_so_many_and_the_first_ones_fewer() -> None:
    """Whoever wrote the change is answered between the turns: it must not wait for a long one."""
    room = Room()
    for revision in (9, 10):
        for number in range(400):
            room.enter(f"{revision} {number}", "k/", above=revision - 1)
        room.waiters.note(change("k/a", revision))
        answered = []
        while room.waiters.called:
            before = len(room.noted)
            room.turn(0.0)
            answered.append(len(room.noted) - before)
        assert answered == [TURN_MIN, 16, 32, 64, TURN_MAX, TURN_MAX, 24]
        assert [name for name, _ in room.noted[-400:]] == [f"{revision} {number}" for number in range(400)]
        # What nobody waits for comes after the last one's answer.
        assert (room.finished.pop(), room.finished, len(room.waiters)) == (400, [], 0)
        room.noted.clear()


def test_who_is_answered_and_not_finished_is_called_no_more() -> None:
    room = Room()
    for number in range(2 * TURN_MIN):
        room.enter(f"{number}", "k/", least_s=1.0, most_s=1.0)
    room.waiters.note(change("k/a", 9))
    room.turn(0.0)
    assert (len(room.noted), room.finished) == (TURN_MIN, [])
    room.waiters.note(change("k/a", 10))
    room.turn(2.0)
    room.waiters.stop()
    assert room.finished == [2 * TURN_MIN]
    assert room.noted == [(f"{number}", "changed") for number in range(2 * TURN_MIN)]
    assert (len(room.waiters), room.waiters.called) == (0, 0)


def test_what_is_finished_together_is_bounded() -> None:
    """Also where there is always one more to be answered."""
    room = Room()
    for number in range(3 * FINISHED_MAX):
        room.enter(f"{number}", "k/")
    room.waiters.note(change("k/a", 9))
    while room.waiters.called:
        room.turn(0.0)
    assert max(room.finished) < FINISHED_MAX + TURN_MAX
    assert sum(room.finished) == len(room.noted) == 3 * FINISHED_MAX


@pytest.mark.anyio
async def test_the_task_sleeps_until_there_is_something_to_do() -> None:
    room = Room()
    waiters = room.waiters
    async with anyio.create_task_group() as group:
        group.start_soon(waiters.run, room)
        await anyio.wait_all_tasks_blocked()
        assert waiters.is_running
        turns = waiters.turns
        now_s = anyio.current_time()
        room.enter("late", "k/a", least_s=now_s + 60, most_s=now_s + 61)
        room.enter("soon", "k/b", least_s=now_s + 0.2, most_s=now_s + 0.2)
        await anyio.sleep(0.1)
        # Each has come earlier than the task would have woken, which costs a turn each.
        assert waiters.turns <= turns + 2
        assert room.noted == []
        await anyio.sleep(0.25)
        assert room.noted == [("soon", "late")]
        turns = waiters.turns
        await anyio.sleep(0.2)
        assert waiters.turns == turns
        waiters.note(change("k/a", 9))
        await anyio.wait_all_tasks_blocked()
        assert room.noted == [("soon", "late"), ("late", "changed")]
        group.cancel_scope.cancel()
    assert not waiters.is_running


# -- the wheel -------------------------------------------------------------------------------------------------------

MOMENTS = st.floats(0.0, 400.0)


@given(st.lists(st.tuples(MOMENTS, st.floats(0.0, 20.0), st.booleans()), max_size=40), st.lists(MOMENTS, max_size=20))
def test_nothing_is_due_too_early_or_too_late(waits: list[tuple[float, float, bool]], looks: list[float]) -> None:
    wheel: Wheel[int] = Wheel(0.05)
    kept: dict[int, tuple[float, float]] = {}
    for number, (least_s, jitter_s, is_leaving) in enumerate(waits):
        tick = wheel.enter(number, least_s=least_s, most_s=least_s + jitter_s)
        if is_leaving:
            wheel.leave(number, tick)
            wheel.leave(number, tick)
        else:
            kept[number] = (least_s, max(least_s + jitter_s, least_s + 0.05))
    for now_s in sorted(looks):
        next_s = wheel.find_next_s()
        due = wheel.pop_due(now_s)
        assert (next_s <= now_s) is bool(due)
        for number in due:
            least_s, _ = kept.pop(number)
            assert now_s >= least_s - 1e-9
        assert all(most_s >= now_s - 1e-9 for _, most_s in kept.values())
    assert sorted(wheel.pop_due(inf)) == sorted(kept)
    assert len(wheel) == 0
    assert wheel.find_next_s() == inf
