"""Reads that wait without a task: their clients, a server that stops, and who may see what."""

from __future__ import annotations

import re

import anyio
import msgspec
import pytest
from acl_kit import running_acl
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
    with_index,
    without_chance,
    write,
)
from many_volumes import Line, a_volume, put_volumes, running_kit

from moorage.api.app import App
from moorage.engine.waiters import TURN_MIN
from moorage.model.audit import AuditEntry
from moorage.model.ids import Revision
from moorage.state import keys
from moorage.state.feed import Change
from moorage.state.memory import MemoryStore

pytestmark = pytest.mark.anyio


# -- clients ---------------------------------------------------------------------------------------------------------


async def test_who_leaves_is_forgotten() -> None:
    async with holding() as kit:
        waiters = kit.service.reads.waiters
        index = await index_now(kit, READ)
        lines = [Line(kit) for _ in range(4)]
        for line in lines:
            begin(line, with_index(READ, index))
        lines[0].protocol.connection_lost(None)
        lines[1].protocol.cut()
        assert len(waiters) == kit.app.door.waiters == 2
        # One that leaves when it was called already, and one whose connection is closing.
        assert isinstance(kit.store, MemoryStore)
        kit.store._apply([a_put(kit, 1, name="new")])
        assert waiters.called == 2
        lines[2].protocol.connection_lost(None)
        lines[3].wire.close()
        await anyio.wait_all_tasks_blocked()
        assert all(line.wire.writes == [] for line in lines)
        assert len(waiters) == kit.app.door.waiters == 0
        assert [s.value for s in kit.service.meters.read() if s.name == "moorage_feed_waiters"] == [2]


async def test_waiters_of_one_address_are_limited() -> None:
    async with holding() as kit:
        index = await index_now(kit, READ)
        most = kit.app.door.limits.waiters_per_client_max
        lines = [Line(kit) for _ in range(most)]
        for line in lines:
            begin(line, with_index(READ, index))
        assert len(kit.service.reads.waiters) == most
        one_more, other = Line(kit), Line(kit, address="10.0.0.1")
        got = await one_more.ask(with_index(READ, index))
        assert got.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert kit.app.door.hits == {"waiters_per_client": 1}
        begin(other, with_index(READ, index))
        assert kit.app.door.waiters == most + 1
        lines[0].protocol.connection_lost(None)
        begin(one_more, with_index(READ, index))
        assert kit.app.door.waiters == most + 1
        assert one_more.wire.writes == []


async def test_requests_behind_a_held_one_are_answered_after_it() -> None:
    async with holding() as kit:
        index = await index_now(kit, READ)
        line = Line(kit)
        begin(line, with_index(READ, index))
        assert len(kit.service.reads.waiters) == 1
        line.protocol.data_received(f"GET {OTHER} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await anyio.wait_all_tasks_blocked()
        # It is a task now, and still waits for its own volume alone.
        assert len(kit.service.reads.waiters) == 0
        assert kit.app.door.waiters == 1
        await write(kit, a_put(kit, 3, name="new"))
        await anyio.wait_all_tasks_blocked()
        assert line.wire.writes == []
        await write(kit, a_put(kit, 1, name="new"))
        with anyio.fail_after(10):
            while b"".join(line.wire.writes).count(b"HTTP/1.1 200") < 2:
                line.wire.moved = anyio.Event()
                await line.wire.moved.wait()
        assert re.findall(rb'"ID":"(vol-\d+)"', b"".join(line.wire.writes)) == [b"vol-000001", b"vol-000002"]
        # And the connection is as any other.
        begin(line, with_index(READ, await index_now(kit, READ)))
        assert len(kit.service.reads.waiters) == 1


async def test_both_in_one_go() -> None:
    async with holding() as kit:
        index = await index_now(kit, READ)
        line = Line(kit)
        targets = (with_index(READ, index, "150ms"), OTHER)
        both = "".join(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n" for target in targets)
        line.protocol.data_received(both.encode())
        with anyio.fail_after(10):
            while b"".join(line.wire.writes).count(b"HTTP/1.1 200") < 2:
                line.wire.moved = anyio.Event()
                await line.wire.moved.wait()
        assert re.findall(rb'"ID":"(vol-\d+)"', b"".join(line.wire.writes)) == [b"vol-000001", b"vol-000002"]


async def test_a_reader_that_takes_nothing_is_not_written_to() -> None:
    async with holding() as kit:
        line = Line(kit)
        begin(line, with_index(READ, await index_now(kit, READ)))
        line.protocol.pause_writing()
        await write(kit, a_put(kit, 1, name="new"))
        await anyio.wait_all_tasks_blocked()
        assert line.wire.writes == []
        line.protocol.resume_writing()
        assert b'"Name":"new"' in await end(line)


async def test_a_connection_that_holds_is_not_idle_and_rests_after_it() -> None:
    async with holding() as kit:
        line = Line(kit)
        await line.ask(READ)
        assert len(line.book.idle) == 1
        begin(line, with_index(READ, await index_now(kit, READ)))
        assert len(line.book.idle) == len(line.book.heads) == 0
        await write(kit, a_put(kit, 1, name="new"))
        await end(line)
        assert len(line.book.idle) == 1
        assert await line.ask(READ)


async def test_an_answer_that_is_taken_in_part_is_looked_at_until_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    async with holding() as kit:
        line, other = Line(kit), Line(kit)
        for one in (line, other):
            begin(one, with_index(READ, await index_now(kit, READ)))
        monkeypatch.setattr(line.wire, "get_write_buffer_size", lambda: 100)
        await write(kit, a_put(kit, 1, name="new"))
        for one in (line, other):
            assert b'"Name":"new"' in await end(one)
            assert one.state.total_requests == 1
            assert one.protocol in one.book.idle
        assert line.protocol in line.book.unsent
        assert len(other.book.unsent) == 0


async def test_what_comes_between_an_answer_and_its_finishing() -> None:
    async with holding() as kit:
        index, waiters = await index_now(kit, READ), kit.service.reads.waiters
        first = Line(kit)
        lines = [first, *(Line(kit, beside=first) for _ in range(TURN_MIN))]
        for line in lines:
            begin(line, with_index(READ, index))
        assert isinstance(kit.store, MemoryStore)
        kit.store._apply([a_put(kit, 1, name="new")])
        waiters.turn(0.0, kit.app.held)
        book, idle = first.book, first.book.idle
        assert [len(line.wire.writes) for line in lines] == [1] * TURN_MIN + [0]
        assert (len(idle), first.state.total_requests) == (0, 0)
        again, waiting, slow, half, gone, ended, *_, last = lines
        begin(again, READ)
        assert b'"Name":"new"' in b"".join(again.wire.writes)
        begin(waiting, with_index(READ, kit.service.reads.volumes_index))
        begin(slow, with_index("/v1/jobs", 1))
        half.protocol.data_received(b"GET /v1/vol")
        gone.protocol.connection_lost(None)
        ended.protocol.shutdown()
        assert ended.wire.is_closed
        waiters.turn(0.0, kit.app.held)
        assert b'"Name":"new"' in b"".join(last.wire.writes)
        assert [line.protocol in idle for line in lines] == [True, *[False] * 5, *[True] * 3]
        assert half.protocol in book.heads
        assert len(book.heads) == 1
        # The one more is that of the connection that has asked again.
        assert first.state.total_requests == len(lines) + 1
        assert len(waiters) == 2
        half.protocol.data_received(f"ume/csi/vol-000001?index={index}&wait=20s HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert half.wire.writes[-1].endswith(b"}")
        await write(kit, a_put(kit, 1, name="newer"))
        assert b'"Name":"newer"' in await end(waiting)
        assert waiting.protocol in idle


@pytest.mark.parametrize("is_dead", [False, True])
async def test_a_held_answer_to_a_socket_that_breaks(monkeypatch: pytest.MonkeyPatch, *, is_dead: bool) -> None:
    async with holding() as kit:
        line = Line(kit)
        begin(line, with_index(READ, await index_now(kit, READ)))
        send = line.wire.write

        def write_and_break(data: bytes) -> None:
            send(data)
            line.wire.close()

        if is_dead:
            line.wire.close()
        else:
            monkeypatch.setattr(line.wire, "write", write_and_break)
        await write(kit, a_put(kit, 1, name="new"))
        await anyio.wait_all_tasks_blocked()
        assert len(line.wire.writes) == (0 if is_dead else 1)
        assert len(line.book.idle) == 0
        line.protocol.connection_lost(None)
        assert (line.book.count, line.book.clients) == (0, 0)


# -- the server ------------------------------------------------------------------------------------------------------


async def test_a_server_that_stops_answers_all_that_wait() -> None:
    async with holding() as kit:
        index = await index_now(kit, READ)
        plain, line, idle, timed = Line(kit, is_quick=False), Line(kit), Line(kit), Line(kit)
        begin(plain, with_index(READ, index))
        begin(line, with_index(READ, index))
        begin(timed, with_index("/v1/jobs", 1))
        await anyio.wait_all_tasks_blocked()
        kit.app.is_stopping.set()
        for one in (line, idle):
            one.protocol.shutdown()
        assert idle.wire.is_closed
        assert not line.wire.is_closed
        expected, got = without_chance(await end(plain)), without_chance(await end(line))
        assert expected.startswith(b"HTTP/1.1 503 ")
        assert got == expected
        assert line.wire.is_closed
        assert (await end(timed)).startswith(b"HTTP/1.1 503 ")
        # Who comes now is not held.
        late = Line(kit)
        assert (await late.ask(with_index(READ, index))).startswith(b"HTTP/1.1 503 ")
        assert len(kit.service.reads.waiters) == kit.app.door.waiters == 0


async def test_an_answer_of_a_server_that_stops_is_the_connection_s_last() -> None:
    async with holding() as kit:
        line = Line(kit)
        begin(line, with_index(READ, await index_now(kit, READ)))
        # Called by a change, and not answered yet.
        volume = keys.volume_key(a_volume(1).namespace, a_volume(1).id)
        kit.service.reads.waiters.note(Change(volume, Revision(10**6), None, None))
        kit.app.is_stopping.set()
        line.protocol.shutdown()
        got = await end(line)
        assert got.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nconnection: close\r\n" in got
        assert line.wire.is_closed


async def test_without_the_task_that_answers_nobody_is_held() -> None:
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(3)))
        line = Line(kit)
        begin(line, with_index(READ, await index_now(kit, READ)))
        await anyio.wait_all_tasks_blocked()
        assert len(kit.service.reads.waiters) == 0
        await write(kit, a_put(kit, 1, name="new"))
        assert b'"Name":"new"' in await end(line)


async def test_a_fault_in_an_answer_concerns_its_own_read_alone() -> None:
    async with holding() as kit:
        line, other = Line(kit), Line(kit)
        begin(line, with_index(READ, await index_now(kit, READ)))
        begin(other, with_index(PAGE, await index_now(kit, PAGE)))
        find = kit.service.shelf.find_whole

        def fail(namespace: str, volume_id: str) -> bytes | None:
            raise ZeroDivisionError

        kit.service.shelf.find_whole = fail  # type: ignore[method-assign]
        await write(kit, a_put(kit, 1, name="new"))
        assert (await end(line)).startswith(b"HTTP/1.1 500 ")
        assert (await end(other)).startswith(b"HTTP/1.1 200 ")
        begin(line, with_index(READ, 1))
        assert (await end(line)).startswith(b"HTTP/1.1 500 ")
        kit.service.shelf.find_whole = find  # type: ignore[method-assign]
        begin(line, with_index(READ, await index_now(kit, READ)))
        await write(kit, a_put(kit, 1, name="newer"))
        assert b'"Name":"newer"' in await end(line)


async def test_a_target_that_only_the_long_way_refuses_is_refused() -> None:
    async with holding() as kit:
        line, other = Line(kit), Line(kit)
        for one in (line, other):
            begin(one, with_index(READ, await index_now(kit, READ)))
        line.protocol.url = b"/v1/ volume"
        await write(kit, a_delete(1))
        assert (await end(line)).startswith(b"HTTP/1.1 400 ")
        assert (await end(other)).startswith(b"HTTP/1.1 404 ")


# -- who may see what ------------------------------------------------------------------------------------------------


async def test_grants_are_those_of_the_answer() -> None:
    async with running_acl() as acl, anyio.create_task_group() as group:
        kit = acl.kit
        await put_volumes(kit, (a_volume(n, namespace=("default", "ops")[n % 2]) for n in range(8)))
        group.start_soon(kit.app.held.run)
        await anyio.wait_all_tasks_blocked()
        await acl.apply("one", 'namespace "default" { policy = "read" }')
        kept, gone, grown = await acl.make_token("one"), await acl.make_token("one"), await acl.make_token("one")
        everything = f"{PAGE}&namespace=*"
        index = kit.service.reads.volumes_index
        waiting: list[tuple[Line, Line]] = []
        secrets = [kept["SecretID"], gone["SecretID"], grown["SecretID"], acl.management]
        for secret in secrets:
            pair = (Line(kit, is_quick=False), Line(kit))
            for line in pair:
                begin(line, with_index(everything, index), f"X-Nomad-Token: {secret}\r\n")
            waiting.append(pair)
        for secret in ("nobody", ""):
            line = Line(kit)
            begin(line, with_index(everything, index), f"X-Nomad-Token: {secret}\r\n" if secret else "")
            assert (await end(line)).startswith(b"HTTP/1.1 403 ")
        await anyio.wait_all_tasks_blocked()
        assert len(kit.service.reads.waiters) == len(secrets)
        await acl.read("DELETE", f"/v1/acl/token/{gone['AccessorID']}")
        await acl.apply("two", 'namespace "*" { policy = "read" }')
        sent = {"AccessorID": grown["AccessorID"], "Name": "t", "Type": "client", "Policies": ["two"]}
        await acl.read("PUT", f"/v1/acl/token/{grown['AccessorID']}", sent)
        assert all(line.wire.writes == [] for pair in waiting for line in pair)
        await write(kit, a_put(kit, 2, name="new"))
        shown = []
        for plain, line in waiting:
            expected, got = without_chance(await end(plain)), without_chance(await end(line))
            assert got == expected
            shown.append(set(re.findall(rb'"Namespace":"(\w+)"', got)))
        assert shown == [{b"default"}, set(), {b"default", b"ops"}, {b"default", b"ops"}]
        assert kit.app.held.passed == 1
        group.cancel_scope.cancel()


class Kept:
    """An audit log in memory."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []

    async def note(self, entry: AuditEntry) -> None:
        self.entries.append(entry)

    def note_now(self, entry: AuditEntry) -> None:
        self.entries.append(entry)


async def test_a_refusal_after_waiting_is_noted_alike_both_ways() -> None:
    async with running_acl() as acl, anyio.create_task_group() as group:
        kit, kept = acl.kit, Kept()
        await put_volumes(kit, map(a_volume, range(3)))
        kit.app = App(kit.service, audit=kept)
        group.start_soon(kit.app.held.run)
        await anyio.wait_all_tasks_blocked()
        await acl.apply("one", 'namespace "default" { policy = "read" }')
        token = await acl.make_token("one")
        lines = [Line(kit, is_quick=False), Line(kit)]
        for line in lines:
            target = with_index(READ, kit.service.reads.volumes_index)
            begin(line, target, f"X-Nomad-Token: {token['SecretID']}\r\n")
        await anyio.wait_all_tasks_blocked()
        assert len(kit.service.reads.waiters) == 1
        await acl.read("DELETE", f"/v1/acl/token/{token['AccessorID']}")
        kept.entries.clear()
        await write(kit, a_put(kit, 1, name="new"))
        for line in lines:
            assert (await end(line)).startswith(b"HTTP/1.1 403 ")
        noted = [msgspec.structs.replace(entry, at_ns=0, request_id="", took_us=0) for entry in kept.entries]
        assert len(noted) == 2
        assert noted[0] == noted[1]
        assert noted[0].who.accessor == token["AccessorID"]
        group.cancel_scope.cancel()
