"""The agent's threads and lanes: how many there are, what a hang costs, and where a dropped work stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import anyio
import pytest

from moorage.agent.lane import ASKS, STEP, Lane, Work
from moorage.agent.threads import BUSY_MAX, USUAL, ThreadHops
from moorage.errors import DeadlineExceeded

pytestmark = pytest.mark.anyio


async def soon(is_so: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not is_so():
            await anyio.sleep(0.005)


async def test_few_threads_do_many_works() -> None:
    hops, done = ThreadHops(), list[int]()

    async def one(number: int) -> None:
        lane = Lane(timeout_s=5, hops=hops)
        for _ in range(10):
            await lane.run(lambda: done.append(number))

    async with anyio.create_task_group() as group:
        for number in range(30):
            group.start_soon(one, number)
    assert sorted(done) == [n for n in range(30) for _ in range(10)]
    assert hops.hops == 300
    assert hops.threads <= BUSY_MAX
    hops.close()
    await soon(lambda: hops.threads == 0)


async def test_a_work_wakes_one_thread() -> None:
    class Counting(ThreadHops):
        parks = 0

        def _park(self, lock: threading.Lock) -> bool:
            self.parks += 1
            return super()._park(lock)

    hops = Counting()
    lane, gate = Lane(timeout_s=5, hops=hops), threading.Event()
    async with anyio.create_task_group() as group:
        for _ in range(USUAL):
            group.start_soon(Lane(timeout_s=5, hops=hops).run, lambda: gate.wait(5))
        await soon(lambda: hops.threads == USUAL)
        gate.set()
    await soon(lambda: hops.parks == USUAL)
    for number in range(50):
        await lane.run(lambda: None)
        await soon(lambda number=number: hops.parks > USUAL + number)  # type: ignore[misc]
    assert hops.parks == USUAL + 50
    hops.close()
    await soon(lambda: hops.threads == 0)


async def test_a_thread_that_hangs_when_all_are_to_leave_leaves_when_it_comes_back() -> None:
    hops, gate = ThreadHops(), threading.Event()
    with pytest.raises(DeadlineExceeded):
        await Lane(timeout_s=0.05, hops=hops).run(lambda: gate.wait(10))
    await Lane(timeout_s=5, hops=hops).run(lambda: None)
    hops.close()
    await soon(lambda: hops.threads == 1)
    gate.set()
    await soon(lambda: hops.threads == 0)


async def test_no_work_is_left_behind() -> None:
    """Works that come just as threads go to rest, or leave."""
    hops = ThreadHops()

    async def one(number: int) -> None:
        lane = Lane(timeout_s=5, hops=hops)
        for n in range(200):
            await lane.run(partial(time.sleep, 0.0002 * ((number + n) % 3)))
            if n % 7 == number % 7:
                await anyio.sleep(0.001)

    async with anyio.create_task_group() as group:
        for number in range(6):
            group.start_soon(one, number)
    assert hops.hops == 1200
    hops.close()
    await soon(lambda: hops.threads == 0)


async def test_more_work_than_can_be_done_takes_no_more_threads_than_some() -> None:
    hops, most = ThreadHops(), 0

    async def one() -> None:
        nonlocal most
        for _ in range(4):
            await Lane(timeout_s=30, hops=hops).run(lambda: time.sleep(0.005))
            most = max(most, hops.threads)

    async with anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(one)
    assert USUAL < most <= BUSY_MAX + USUAL
    hops.close()


async def test_works_that_hang_cost_a_thread_each_and_delay_nobody() -> None:
    hops, gate = ThreadHops(), threading.Event()
    hung = USUAL * 6

    async def hang() -> None:
        await Lane(timeout_s=10, hops=hops).run(lambda: gate.wait(10))

    async with anyio.create_task_group() as group:
        for _ in range(hung):
            group.start_soon(hang)
        await soon(lambda: hops.threads >= hung)
        lane, slowest_s = Lane(timeout_s=5, hops=hops), 0.0
        for _ in range(20):
            began_s = time.monotonic()
            await lane.run(lambda: None)
            slowest_s = max(slowest_s, time.monotonic() - began_s)
        assert slowest_s < 0.5
        gate.set()
    await soon(lambda: hops.threads <= USUAL)
    hops.close()


async def test_a_question_that_hangs_is_given_up_and_the_lane_is_free() -> None:
    lane, gate, done = Lane(timeout_s=10), threading.Event(), list[str]()

    def work() -> Work[str]:
        done.append("first")
        yield ASKS
        gate.wait(10)
        yield STEP
        done.append("never")
        return "never"

    assert await lane.work(work(), patience_s=0.05) is None
    assert lane.is_free
    assert await lane.run(lambda: 7) == 7
    gate.set()
    await anyio.sleep(0.1)
    assert done == ["first"]


async def test_a_step_that_is_no_question_is_waited_for() -> None:
    lane = Lane(timeout_s=10)

    def work() -> Work[str]:
        yield ASKS
        yield STEP
        time.sleep(0.2)
        return "done"

    assert await lane.work(work(), patience_s=0.05) == "done"


async def test_a_work_that_hangs_goes_no_further_and_keeps_its_lane_until_then() -> None:
    lane, gate, done = Lane(timeout_s=0.05), threading.Event(), list[str]()

    def work() -> Work[str]:
        yield STEP
        gate.wait(10)
        done.append("this step was under way")
        yield STEP
        done.append("never")
        return "never"

    with pytest.raises(DeadlineExceeded, match=r"hangs for 0\.05 s"):
        await lane.work(work())
    with pytest.raises(DeadlineExceeded, match="still hangs"):
        await lane.work(work())
    gate.set()
    await soon(lambda: lane.is_free)
    assert done == ["this step was under way"]


async def test_a_work_that_was_dropped_before_it_began_is_never_done() -> None:
    hops, gate, done = ThreadHops(usual=1, threads_max=1), threading.Event(), list[int]()
    lane = Lane(timeout_s=0.05, hops=hops)
    async with anyio.create_task_group() as group:
        group.start_soon(Lane(timeout_s=10, hops=hops).run, lambda: gate.wait(10))
        await anyio.sleep(0.02)
        with pytest.raises(DeadlineExceeded):
            await lane.run(lambda: done.append(1))
        assert lane.is_free
        gate.set()
    await lane.run(lambda: done.append(2))
    assert done == [2]


async def test_what_a_work_raises_is_raised_where_it_is_waited_for() -> None:
    lane = Lane(timeout_s=5)

    def work() -> Work[str]:
        yield STEP
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        await lane.work(work())
    assert lane.is_free
