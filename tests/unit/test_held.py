"""Reads that wait without a task against those that are one: byte for byte, under the same rules, none forgotten."""

from __future__ import annotations

import json

import anyio
import anyio.lowlevel
import msgspec
import pytest
from held_kit import (
    OTHER,
    PAGE,
    READ,
    a_delete,
    a_put,
    begin,
    end,
    holding,
    index_now,
    index_of,
    with_index,
    without_chance,
    write,
)
from many_volumes import NODE, PLUGIN, Kit, Line

from moorage.api.held import strip_waiting
from moorage.engine.waiters import TURN_MAX
from moorage.model.node import Node

pytestmark = pytest.mark.anyio

HEADS = [
    "",
    "Accept-Encoding: gzip\r\n",
    "Accept-Encoding: zstd\r\nX-Request-Id: mine-1\r\n",
    "Accept: application/problem+json\r\n",
    "Content-Length: 0\r\n",
]
# Each is moved by a change of the volume 1, or by what ``move`` does beside it.
TARGETS = [
    READ,
    f"{READ}?pretty",
    f"{READ}?namespace=*",
    PAGE,
    f"{PAGE}&pretty=1",
    f"{PAGE}&filter=ID%3D%3D%22vol-000001%22",
    "/v1/volumes?type=csi&prefix=vol-00000&namespace=*",
    "/v1/volume/csi/vol-000900",
    "/v1/plugins?type=csi",
    "/v1/plugin/csi/hostpath",
    "/v1/nodes",
    f"/v1/node/{NODE}/allocations",
    "/v1/allocations",
    "/v1/namespaces",
]


async def put_json(kit: Kit, target: str, body: object) -> None:
    data = json.dumps(body)
    answer = await Line(kit).ask(target, method="PUT", head=f"Content-Length: {len(data)}\r\n\r\n{data}")
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:400]


async def move(kit: Kit, target: str) -> None:
    """Change what the target shows."""
    if "plugin" in target:
        sick = msgspec.structs.replace(kit.driver.instance(NODE), healthy=False)
        await kit.service.nodes.report_plugins(NODE, {PLUGIN: sick})
    elif target == "/v1/nodes":
        await kit.service.nodes.register(Node(id=NODE, name="n1", boot_id="b1", version="9"))
    elif "allocations" in target:
        # It begins and stays so: one change, whichever turn of the loop an answer is made in.
        kit.is_calling = kit.is_mounting = False
        use = {"Name": "x", "Volumes": [{"Name": "d", "Source": "vol-000002"}]}
        await put_json(kit, "/v1/allocations", {"Allocation": use})
    elif "namespaces" in target:
        await put_json(kit, "/v1/namespace", {"Name": "ops"})
    else:
        await write(kit, a_put(kit, 1, name="new"), a_put(kit, 900, name="new"))


# -- the same as a task ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("is_late", [False, True])
async def test_both_ways_send_the_same_bytes(target: str, *, is_late: bool) -> None:
    async with holding() as kit:
        held = kit.app.held
        # One that is not there answers 404, which has no index.
        first = await Line(kit, is_quick=False).ask(target)
        index = max(1, index_of(first)) if first.startswith(b"HTTP/1.1 200") else kit.service.reads.volumes_index
        pairs = [(Line(kit, is_quick=False), Line(kit)) for _ in HEADS]
        for (plain, line), head in zip(pairs, HEADS, strict=True):
            for one in (plain, line):
                begin(one, with_index(target, index, "400ms" if is_late else "20s"), head)
                assert one.wire.writes == []
        await anyio.wait_all_tasks_blocked()
        assert len(kit.service.reads.waiters) == len(HEADS)
        assert kit.app.door.waiters == 2 * len(HEADS)
        if not is_late:
            await move(kit, target)
        for (plain, line), head in zip(pairs, HEADS, strict=True):
            # They were answered in the turns after the first change that concerned them.
            expected, got = without_chance(await end(plain)), without_chance(await end(line))
            status = 404 if is_late and "000900" in target else 200
            assert expected.startswith(b"HTTP/1.1 %d " % status)
            assert b"server-timing: wait;dur=, total;dur=" in got
            assert got == expected, head
        assert len(kit.service.reads.waiters) == kit.app.door.waiters == 0
        assert held.answered + held.passed == len(HEADS)
        assert held.passed == (0 if status == 200 else len(HEADS))
        samples = list(kit.service.meters.read())
        counts = [s.value for s in samples if s.name == "moorage_http_requests_total" and s.labels[0] == "GET"]
        assert sum(counts) == 1 + 2 * len(HEADS)
        # One that waited on purpose says nothing about how long answers take.
        writes = sum(s.value for s in samples if s.name == "moorage_http_requests_total" and s.labels[0] != "GET")
        assert sum(s.value.count for s in samples if s.name == "moorage_http_request_seconds") == 1 + writes


async def test_a_read_whose_index_is_old_is_answered_at_once() -> None:
    async with holding() as kit:
        plain, line = Line(kit, is_quick=False), Line(kit)
        for target in (READ, PAGE, "/v1/plugins?type=csi"):
            index = await index_now(kit, target)
            for asked in (with_index(target, 1), with_index(target, index - 1)):
                expected = without_chance(await plain.ask(asked))
                begin(line, asked)
                assert without_chance(b"".join(line.wire.writes)) == expected
        assert kit.app.held.answered == 6
        assert kit.app.door.waiters == len(kit.service.reads.waiters) == 0


@pytest.mark.parametrize(
    "target",
    [
        with_index(READ, 0),
        f"{READ}?index=",
        f"{READ}?index=x",
        f"{READ}?index=00",
        with_index(READ, 10**21),
        with_index(READ, 9, "soon"),
        with_index(f"{READ}?region=mars", 9),
        f"{READ}?%69ndex=1&x=index=",
        with_index("/v1//volumes?type=csi", 9),
        with_index("/v1/volumes/external?plugin_id=none", 9),
        with_index("/v1/nowhere", 9),
        with_index(f"{PAGE}&filter=%28", 9),
    ],
)
async def test_what_is_not_plain_goes_the_long_way(target: str) -> None:
    async with holding() as kit:
        plain, line = Line(kit, is_quick=False), Line(kit)
        expected, got = without_chance(await plain.ask(target)), without_chance(await line.ask(target))
        assert got == expected
        assert kit.app.held.answered == len(kit.service.reads.waiters) == 0


@pytest.mark.parametrize(
    "head",
    [
        "Origin: https://ui.example\r\n",
        "Connection: close\r\n",
        "Content-Length: 2\r\n\r\nxx",
    ],
)
async def test_unusual_requests_are_not_held(head: str) -> None:
    async with holding() as kit:
        line = Line(kit)
        begin(line, with_index(READ, await index_now(kit, READ)), head)
        await anyio.wait_all_tasks_blocked()
        assert kit.app.door.waiters == 1
        assert len(kit.service.reads.waiters) == 0
        await write(kit, a_put(kit, 1, name="new"))
        assert b'"Name":"new"' in await end(line)


def test_a_target_without_its_waiting() -> None:
    assert strip_waiting(b"/v1/a?index=5&wait=3s") == b"/v1/a"
    assert strip_waiting(b"/v1/a?x=1&index=5&index=6&y=%25") == b"/v1/a?x=1&y=%25"
    assert strip_waiting(b"/v1/a?indexes=5&index=1") == b"/v1/a?indexes=5"
    assert strip_waiting(b"/v1/a?%69ndex=5&index=1") is None
    assert strip_waiting(b"/v1/a?in+dex=5&index=1") is None


# -- who is woken ----------------------------------------------------------------------------------------------------


async def test_a_change_wakes_only_those_that_wait_for_it() -> None:
    async with holding() as kit:
        waiters = kit.service.reads.waiters
        index = await index_now(kit, READ)
        one, other, ahead = Line(kit), Line(kit), Line(kit)
        begin(one, with_index(READ, index))
        begin(other, with_index(OTHER, index))
        begin(ahead, with_index(READ, index + 100))
        await write(kit, a_put(kit, 3, name="new"))
        await anyio.wait_all_tasks_blocked()
        assert waiters.looked == 0
        assert len(waiters) == 3
        await write(kit, a_put(kit, 1, name="new"))
        assert b'"Name":"new"' in await end(one)
        assert len(waiters) == 2
        assert other.wire.writes == ahead.wire.writes == []
        await write(kit, a_delete(2))
        got = await end(other)
        assert got.startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert b"wait;dur=" in got
        assert kit.app.held.passed == 1


async def test_a_volume_that_comes_is_seen_by_who_waits_for_it() -> None:
    async with holding() as kit:
        line = Line(kit)
        begin(line, with_index("/v1/volume/csi/vol-000700", kit.service.reads.volumes_index))
        await write(kit, a_put(kit, 700))
        assert b'"ID":"vol-000700"' in await end(line)


async def test_a_burst_is_answered_in_slices_and_late_ones_see_later_changes() -> None:
    async with holding() as kit:
        index, count = await index_now(kit, READ), TURN_MAX * 3
        lines = [Line(kit) for _ in range(count)]
        for line in lines:
            begin(line, with_index(READ, index))
        turns = kit.service.reads.waiters.turns
        await write(kit, a_put(kit, 1, name="first"))
        while not lines[0].wire.writes:
            await anyio.lowlevel.checkpoint()
        assert sum(bool(line.wire.writes) for line in lines) <= TURN_MAX * 2
        await write(kit, a_put(kit, 1, name="second"))
        bodies = [await end(line) for line in lines]
        assert all(b"HTTP/1.1 200 OK" in body for body in bodies)
        assert b'"Name":"first"' in bodies[0]
        assert b'"Name":"second"' in bodies[-1]
        assert kit.service.reads.waiters.turns - turns >= 3
        assert kit.app.held.made <= 4
