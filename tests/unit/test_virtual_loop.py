"""The virtual loop: time is a number, order comes from the seed, nothing blocks."""

from __future__ import annotations

import threading
import time

import anyio
import anyio.to_thread
import pytest

from moorage.testing import virtual_loop

DAY_S = 86_400.0


async def interleave() -> tuple[list[int], float]:
    begun_s, seen = anyio.current_time(), list[int]()

    async def work(number: int) -> None:
        for _ in range(4):
            await anyio.sleep(DAY_S)
            seen.append(number)

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(work, number)
    return seen, anyio.current_time() - begun_s


def test_days_pass_in_no_time() -> None:
    begun_s = time.monotonic()
    _, took_s = virtual_loop.run(interleave, seed=1)
    assert took_s == pytest.approx(4 * DAY_S)
    assert time.monotonic() - begun_s < 5.0


def test_one_seed_is_one_order() -> None:
    assert virtual_loop.run(interleave, seed=7) == virtual_loop.run(interleave, seed=7)


def test_seeds_differ_in_the_order_of_ready_tasks() -> None:
    orders = {tuple(virtual_loop.run(interleave, seed=seed)[0]) for seed in range(8)}
    assert len(orders) > 4


def test_a_task_keeps_its_own_order() -> None:
    async def main() -> list[int]:
        seen: list[int] = []
        event = anyio.Event()

        async def wait() -> None:
            await event.wait()
            seen.append(2)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.sleep(1)
            seen.append(1)
            event.set()
        return seen

    for seed in range(20):
        assert virtual_loop.run(main, seed=seed) == [1, 2]


def test_blocking_work_runs_in_the_loop_and_in_no_thread() -> None:
    async def main() -> int:
        return await anyio.to_thread.run_sync(threading.get_ident)

    assert virtual_loop.run(main, seed=1) == threading.get_ident()


def test_blocking_work_that_raises_raises_here() -> None:
    def fail() -> None:
        raise OSError(5, "no")

    async def main() -> None:
        await anyio.to_thread.run_sync(fail)

    with pytest.raises(OSError, match="no"):
        virtual_loop.run(main, seed=1)


def test_waiting_for_nothing_is_told() -> None:
    async def main() -> None:
        await anyio.Event().wait()

    with pytest.raises(virtual_loop.NothingLeft):
        virtual_loop.run(main, seed=1)


def test_after_a_run_the_real_backend_is_back() -> None:
    virtual_loop.run(interleave, seed=1)

    async def main() -> int:
        return await anyio.to_thread.run_sync(threading.get_ident)

    assert anyio.run(main) != threading.get_ident()


def test_timeouts_end_at_their_time() -> None:
    async def main() -> float:
        begun_s = anyio.current_time()
        with anyio.move_on_after(DAY_S):
            await anyio.sleep_forever()
        return anyio.current_time() - begun_s

    assert virtual_loop.run(main, seed=1) == pytest.approx(DAY_S)
