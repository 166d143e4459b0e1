"""Budgets of work: how often something is made, copied or looked at for one request. They hold on any machine.

A budget that fails is a regression of speed: find what does more, and do less; it is not raised to let a change in.
"""

from __future__ import annotations

import gc
import logging
import tracemalloc
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import quote

import anyio
import msgspec
import pytest
import structlog
from counting import count_calls
from many_volumes import NODE, PLUGIN, Kit, Line, a_volume, many_volumes, put_volumes

from moorage.api.http import Request
from moorage.api.params import find_query
from moorage.engine.segments import ROWS_MAX
from moorage.state import keys
from moorage.state.store import Put

pytestmark = pytest.mark.anyio

COUNT = 3000


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The log as servers have it: lines below ``info`` cost a call and no more."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    yield
    structlog.reset_defaults()


LIST = "/v1/volumes?type=csi"
READ = "/v1/volume/csi/vol-000042"


async def change(kit: Kit, number: int, **members: Any) -> None:
    """Write a volume's record."""
    volume = msgspec.structs.replace(a_volume(number), **members)
    key = keys.volume_key(volume.namespace, volume.id)
    result = await kit.store.transact((), [Put(key, kit.repo.feed.records.encode(key, volume))])
    await kit.repo.feed.reach(result.revision)


async def answer(kit: Kit, target: str) -> Any:
    """The app's answer, which must be a 200."""
    path, _, query = target.partition("?")
    parts = tuple(path.split("/")[1:])
    found = await kit.app.answer(Request(method="GET", path=path, parts=parts, query=find_query(query.encode())))
    assert found.status == 200
    return found


async def test_a_list_after_one_change_makes_one_stub_and_one_segment() -> None:
    async with many_volumes(COUNT) as kit:
        await answer(kit, LIST)
        shelf = kit.service.shelf
        assert shelf.made_stubs == COUNT
        assert shelf.made_pieces == -(-COUNT // ROWS_MAX)
        for number in (5, 2900):
            before = (shelf.made_stubs, shelf.made_pieces)
            await change(kit, number, name="new")
            await answer(kit, LIST)
            assert (shelf.made_stubs, shelf.made_pieces) == (before[0] + 1, before[1] + 1)
            await answer(kit, LIST)
            assert (shelf.made_stubs, shelf.made_pieces) == (before[0] + 1, before[1] + 1)


async def test_a_change_of_the_plugin_makes_no_stub() -> None:
    async with many_volumes(COUNT) as kit:
        await answer(kit, LIST)
        await answer(kit, READ)
        shelf = kit.service.shelf
        made = shelf.made_stubs
        sick = msgspec.structs.replace(kit.driver.instance(NODE), healthy=False)
        await kit.service.nodes.report_plugins(NODE, {PLUGIN: sick})
        assert b'"Schedulable":false' in (await answer(kit, LIST)).whole()
        assert shelf.made_stubs == made


async def test_a_compressed_list_after_one_change_deflates_one_segment() -> None:
    async with many_volumes(COUNT) as kit:
        line, compressor = Line(kit), kit.app.door.compressor
        await line.ask(LIST, head="Accept-Encoding: gzip\r\n")
        deflated = compressor.deflated
        await change(kit, 5, name="new")
        await line.ask(LIST, head="Accept-Encoding: gzip\r\n")
        assert compressor.deflated == deflated + 1
        assert compressor.threaded == 0


async def test_a_long_list_is_sent_as_it_is_kept() -> None:
    """No byte of it is copied on the way, and no piece is longer than a slow reader may keep in memory."""
    async with many_volumes(COUNT) as kit:
        first, second = await answer(kit, LIST), await answer(kit, LIST)
        assert len(first.whole()) > 1 << 20
        assert [id(p.data) for p in first.pieces] == [id(p.data) for p in second.pieces]
        assert max(len(p.data) for p in first.pieces) <= 256 << 10
        line = Line(kit)
        sent = line.wire.writes
        await line.ask(LIST)
        assert max(map(len, sent)) <= 256 << 10


async def test_a_read_that_comes_again_costs_few_calls() -> None:
    async with many_volumes(COUNT) as kit:
        line = Line(kit)
        await line.ask(READ)
        data = f"GET {READ} HTTP/1.1\r\nHost: x\r\nUser-Agent: y\r\n\r\n".encode()
        calls = count_calls(lambda: line.protocol.data_received(data))
        assert calls["JsonSpelling.whole"] == calls["Encoder.encode"] == 0
        assert calls["RequestResponseCycle.__init__"] == calls["App.answer_now"] == 0
        assert sum(calls.values()) <= 110, calls.most_common(40)


async def test_a_first_read_makes_its_volume_once_and_no_task() -> None:
    async with many_volumes(COUNT) as kit:
        line = Line(kit)
        data = f"GET {READ} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        calls = count_calls(lambda: line.protocol.data_received(data))
        assert calls["JsonSpelling.whole"] == calls["App.answer_now"] == 1
        assert calls["RequestResponseCycle.__init__"] == 0
        await change(kit, 43, name="new")
        calls = count_calls(lambda: line.protocol.data_received(data))
        assert calls["JsonSpelling.whole"] == 0
        assert calls["App.answer_now"] == 1
        assert sum(calls.values()) <= 330, calls.most_common(40)


@pytest.mark.parametrize("more", ["", f"&next_token=default.vol-{COUNT // 2:06d}", "&prefix=vol-0029", "&reverse=true"])
async def test_a_page_costs_alike_wherever_it_begins(more: str) -> None:
    async with many_volumes(COUNT) as kit:
        await answer(kit, LIST)
        line = Line(kit)
        data = f"GET {LIST}&per_page=10{more} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        calls = count_calls(lambda: line.protocol.data_received(data))
        assert b"HTTP/1.1 200" in line.wire.writes[-1]
        assert calls["JsonSpelling.cut"] == 0
        assert sum(calls.values()) <= 430, calls.most_common(40)


async def test_a_filter_reads_records_and_stops_when_the_page_is_full() -> None:
    async with many_volumes(COUNT) as kit:
        await answer(kit, LIST)
        line = Line(kit)
        text = quote('Name contains "vol-00000" and Capacity != 5')
        await line.ask(f"{LIST}&filter={text}")
        for per_page, shown in ((5, 5), (0, 10)):
            target = f"{LIST}&per_page={per_page}&filter={text}&x=1"
            data = f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            calls = count_calls(partial(line.protocol.data_received, data))
            assert line.wire.writes[-1].count(b'"ID"') == shown
            # The loop is one call a segment and one a volume that is shown; none for a volume that is only looked at.
            assert calls["_Listing._datum"] == calls["join_volume"] == calls["_Parser.parse"] == 0
            assert calls["select"] <= COUNT // ROWS_MAX + 1 + shown + 1
            assert sum(calls.values()) <= 500, calls.most_common(40)


async def test_a_filter_that_names_a_volume_looks_at_no_other() -> None:
    async with many_volumes(COUNT) as kit:
        await answer(kit, LIST)
        line = Line(kit)
        seen: list[int] = []
        for number in (1, 2, 3):
            text = quote(f'Capacity != 5 and Name == "vol-00000{number}"')
            data = f"GET {LIST}&per_page=10&filter={text} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            calls = count_calls(partial(line.protocol.data_received, data))
            assert line.wire.writes[-1].count(b'"ID"') == 1
            seen.append(sum(calls.values()))
        # The first one reads the names, once; a record is looked at where its name is the one.
        assert seen[1] == seen[2] <= 840, seen
        await change(kit, 2, name="other")
        found = await answer(kit, f"{LIST}&filter={quote('Name == other')}")
        assert b'"ID":"vol-000002"' in found.whole()
        found = await answer(kit, f"{LIST}&filter={quote('Name == `vol-000002`')}")
        assert found.whole() == b"[]"


async def test_a_filter_looks_no_further_than_the_page() -> None:
    async with many_volumes(COUNT) as kit:
        looked = 0
        find = kit.service.reads.join

        def join(*args: Any, **named: Any) -> Any:
            nonlocal looked
            looked += 1
            return find(*args, **named)

        kit.service.reads.join = join  # type: ignore[method-assign]
        text = quote("NodesHealthy == 1")
        await answer(kit, f"{LIST}&per_page=10&filter={text}")
        # Ten that are shown, the next one for its token, and each of the ten once more for its stub.
        assert looked <= 11 + 10


async def test_many_waiters_share_one_page() -> None:
    async with many_volumes(300) as kit:
        shelf = kit.service.shelf
        index = (await answer(kit, f"{LIST}&per_page=50")).headers["X-Nomad-Index"]
        made, hits = shelf.made_stubs, shelf.kept.hits
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(answer, kit, f"{LIST}&per_page=50&index={index}&wait=10s")
            await anyio.wait_all_tasks_blocked()
            await change(kit, 5, name="new")
        assert shelf.made_stubs == made + 1
        assert shelf.kept.hits == hits + 99


async def test_memory_of_a_volume() -> None:
    async with many_volumes(10) as kit:
        await answer(kit, LIST)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await put_volumes(kit, map(a_volume, range(100, 100 + COUNT)))
            await answer(kit, LIST)
            # The store in memory of this test keeps each record too; the ring of events some of them.
            gc.collect()
            per_volume = (tracemalloc.get_traced_memory()[0] - before) / COUNT
        finally:
            tracemalloc.stop()
        assert per_volume <= 9000, per_volume
