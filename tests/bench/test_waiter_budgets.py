"""Budgets of work for reads that wait: what a waiter holds, and what it costs to wake one.

A budget that fails is a regression of speed: find what does more, and do less; it is not raised to let a change in.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import msgspec
import pytest
import structlog
from counting import count_calls
from many_volumes import Kit, Line, a_volume, many_volumes

from moorage.engine.waiters import TURN_MAX
from moorage.state import keys
from moorage.state.memory import MemoryStore
from moorage.state.store import Put

pytestmark = pytest.mark.anyio

READ = "/v1/volume/csi/vol-000042"
PAGE = "/v1/volumes?type=csi&per_page=50"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The log as servers have it: lines below ``info`` cost a call and no more."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    yield
    structlog.reset_defaults()


@asynccontextmanager
async def holding(count: int) -> AsyncIterator[Kit]:
    """A kit with so many volumes whose reads are held while the block runs."""
    async with many_volumes(count) as kit, anyio.create_task_group() as group:
        group.start_soon(kit.app.held.run)
        await anyio.wait_all_tasks_blocked()
        yield kit
        group.cancel_scope.cancel()


def change(kit: Kit, number: int) -> None:
    """Write a volume's record; who is woken by it is not answered yet."""
    volume = msgspec.structs.replace(a_volume(number), name="new")
    key = keys.volume_key(volume.namespace, volume.id)
    assert isinstance(kit.store, MemoryStore)
    kit.store._apply([Put(key, kit.repo.feed.records.encode(key, volume))])


def hold(kit: Kit, target: str, number: int = 0, *, beside: Line | None = None) -> Line:
    """A connection whose read is held."""
    line = Line(kit, address=f"10.0.0.{number // 1000}", beside=beside)
    index = kit.service.reads.volumes_index
    more = "&" if "?" in target else "?"
    # Some clients say of every request how long its body is.
    head = f"GET {target}{more}index={index}&wait=300s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    line.protocol.data_received(head.encode())
    assert line.protocol.is_answering()
    return line


@pytest.mark.parametrize("target", [READ, PAGE])
async def test_a_woken_waiter_costs_few_calls(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with holding(300) as kit:
        waiters = kit.service.reads.waiters
        first = Line(kit)
        await first.ask(target)
        # More than the short turns at the start answer.
        lines = [hold(kit, target, beside=first) for _ in range(2 * TURN_MAX)]
        change(kit, 42)
        assert waiters.called == len(lines)

        def answer_all() -> None:
            while waiters.called:
                waiters.turn(0.0, kit.app.held)

        with monkeypatch.context() as patch:
            patch.setattr(waiters, "_finish", lambda answering: None)
            calls = count_calls(answer_all)
        assert all(b"200 OK" in line.wire.writes[0] for line in lines)
        assert calls["RequestResponseCycle.__init__"] == calls["new_uuid"] == 0
        assert calls["App.answer_now"] == kit.app.held.made == 1
        assert calls["JsonSpelling.whole"] + calls["JsonSpelling.cut"] == 1
        assert calls["_WireEncoder.encode"] <= 1
        assert sum(calls.values()) <= 14 * len(lines), calls.most_common(40)
        # What nobody waits for, after the last answer.
        after = count_calls(lambda: waiters._finish(kit.app.held))
        assert sum(after.values()) <= 20 * len(lines), after.most_common(40)
        assert len(waiters) == 0
        # A body is one for all, and copied for nobody; a small one is part of what is written.
        assert all(b'"vol-000042"' in line.wire.writes[-1] for line in lines)
        if target == READ:
            assert {len(line.wire.writes) for line in lines} == {1}
        else:
            assert len({id(line.wire.writes[1]) for line in lines}) == 1


async def test_a_change_looks_only_at_its_own_waiters() -> None:
    async with holding(1000) as kit:
        waiters = kit.service.reads.waiters
        lines = [hold(kit, f"/v1/volume/csi/vol-{number:06d}", number) for number in range(1000)]
        change(kit, 42)
        while not lines[42].wire.writes:
            await anyio.lowlevel.checkpoint()
        assert waiters.looked == 1
        assert len(waiters) == 999


async def test_many_waiters_have_one_timer() -> None:
    async with holding(10) as kit:
        loop = asyncio.get_running_loop()
        timers = [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        lines = [hold(kit, "/v1/volume/csi/vol-000001", number) for number in range(1000)]
        await anyio.wait_all_tasks_blocked()
        after = [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        assert len(after) - len(timers) <= 1
        assert len(kit.service.reads.waiters) == len(lines)
        # A wait of five minutes ends within its jitter of 19 s: so many ticks at most.
        assert kit.service.reads.waiters.ticks <= 19 / 0.05 + 1


async def test_memory_of_a_waiter() -> None:
    """With its connection, without the socket's own."""
    async with holding(300) as kit:
        first = hold(kit, READ)
        few = [hold(kit, READ, number, beside=first) for number in range(10)]
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            lines = [hold(kit, READ, number, beside=first) for number in range(1000)]
            gc.collect()
            per_waiter = (tracemalloc.get_traced_memory()[0] - before) / len(lines)
        finally:
            tracemalloc.stop()
        assert len(kit.service.reads.waiters) == 1 + len(few) + len(lines)
        assert per_waiter <= 7000, per_waiter
