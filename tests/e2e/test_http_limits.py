"""Limits of the HTTP server on real sockets: slow heads, bodies and readers; crowds of connections and waiters."""

from __future__ import annotations

import itertools
import socket
import time
from typing import Any

import anyio
import pytest
import uvicorn
from limited_site import LONG, is_closed, read_all, read_answer, serving
from many_volumes import Line, many_volumes

from moorage.api.limits import Hits, Limits, client_of
from moorage.serve import connections as book
from moorage.serve import http
from moorage.serve.open_files import bound_connections

pytestmark = pytest.mark.anyio

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
PUT = b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """As the program runs."""
    return "asyncio", {"use_uvloop": True}


# -- time ------------------------------------------------------------------------------------------------------------


async def test_a_head_that_does_not_end_is_refused() -> None:
    async with serving(head_s=0.2) as site:
        half = await site.connect(sent=GET[:-2])
        silent = await site.connect()
        answer = await read_all(half)
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert answer.endswith(b"the request's head did not arrive within 0.2 s")
        assert b"\r\nx-request-id: id\r\n" in answer
        assert await is_closed(silent)
        assert site.door.hits == {"head_time": 2}
        assert site.asked == []
        await half.aclose()
        await site.until(lambda: site.connections.count == 0)


async def test_the_time_of_a_head_begins_anew_with_each_request_and_does_not_run_during_an_answer() -> None:
    async with serving(head_s=0.3) as site:
        stream = await site.connect(sent=GET.replace(b"/a", b"/wait"))
        await anyio.sleep(0.7)
        site.go.set()
        assert (await read_answer(stream)).endswith(b"\r\n\r\n0")
        await anyio.sleep(0.7)
        await stream.send(GET[:10])
        await anyio.sleep(0.1)
        await stream.send(GET[10:])
        assert (await read_answer(stream)).endswith(b"\r\n\r\n0")
        await stream.send(GET[:10])
        assert b"408" in await read_all(stream)


async def test_a_body_that_comes_too_slowly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "BODY_LOOK_S", 0.3)
    async with serving(body_rate_min=4) as site:
        slow = await site.connect(sent=PUT.replace(b"10", b"1000"))
        steady = await site.connect(sent=PUT.replace(b"10", b"20"))
        for _ in range(20):
            await anyio.sleep(0.04)
            await steady.send(b"x")
        assert (await read_answer(steady)).endswith(b"\r\n\r\n20")
        answer = await read_all(slow)
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"slower than 4 bytes a second" in answer
        assert site.door.hits == {"body_time": 1}
        assert site.asked == ["/a"], "a request whose body is missing is not answered by the application"


async def test_an_idle_connection_is_closed() -> None:
    async with serving(idle_s=0.2) as site:
        stream = await site.connect(sent=GET)
        assert (await read_answer(stream)).endswith(b"\r\n\r\n0")
        assert await is_closed(stream)


async def test_a_reader_that_takes_nothing_is_cut_off_and_holds_little() -> None:
    async with serving(write_s=0.3) as site:
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await anyio.to_thread.run_sync(wire.connect, ("127.0.0.1", site.port))
        wire.sendall(GET.replace(b"/a", b"/long"))
        await site.until(lambda: len(site.connections.unsent) == 1)
        (connection, _) = site.connections.unsent.find_first() or (None, 0)
        assert connection is not None
        assert connection.transport.get_write_buffer_size() < 1 << 20
        assert site.door.unsent_bytes == len(LONG)
        await site.until(lambda: site.connections.count == 0)
        assert site.door.hits == {"write_time": 1}
        await site.until(lambda: site.door.unsent_bytes == 0)
        wire.close()


async def test_requests_that_stand_behind_a_stuck_answer_end_with_it(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(write_s=0.3) as site:
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await anyio.to_thread.run_sync(wire.connect, ("127.0.0.1", site.port))
        wire.sendall(GET.replace(b"/a", b"/long") * 4)
        await site.until(lambda: site.connections.count == 1)
        await site.until(lambda: site.connections.count == 0)
        await site.until(lambda: not site.door.unsent_bytes)
        assert site.asked == ["/long"]
        wire.close()
    assert not caplog.records, "uvicorn saw a write to a connection that is gone"


async def test_a_rest_that_is_not_taken_is_cut_off() -> None:
    async with serving(write_s=0.3) as site:
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await anyio.to_thread.run_sync(wire.connect, ("127.0.0.1", site.port))
        # Answers that fit into the buffers, so that each is written whole; then the connection ends.
        wire.sendall(GET.replace(b"HTTP/1.1", b"HTTP/1.1\r\nx: " + b"y" * 2000) * 60)
        await site.until(lambda: len(site.asked) >= 60)
        wire.sendall(GET.replace(b"/a", b"/long").replace(b"Host", b"Connection: close\r\nHost"))
        await site.until(lambda: site.connections.count == 0)
        assert site.door.hits == {"write_time": 1}
        wire.close()


async def test_a_slow_reader_that_takes_some_of_it_gets_all_of_it() -> None:
    def read_slowly(port: int) -> int:
        found = 0
        with socket.socket() as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
            wire.connect(("127.0.0.1", port))
            wire.sendall(GET.replace(b"/a", b"/long").replace(b"Host", b"Connection: close\r\nHost"))
            while piece := wire.recv(128 << 10):
                found += len(piece)
                time.sleep(0.025)
        return found

    # Longer than a busy machine, or TCP with a closed window, lets a reader wait.
    async with serving(write_s=1.0) as site:
        began_s = anyio.current_time()
        assert await anyio.to_thread.run_sync(read_slowly, site.port) > len(LONG)
        assert anyio.current_time() - began_s > 2.5
        assert not site.door.hits


# -- number ----------------------------------------------------------------------------------------------------------


async def test_more_connections_of_one_address_are_refused_and_others_are_not() -> None:
    async with serving(connections_per_client_max=3) as site:
        kept = [await site.connect() for _ in range(3)]
        await site.until(lambda: site.connections.count == 3)
        # The refusal is read even though a request is under way when it comes.
        answer = await read_all(await site.connect(sent=GET))
        assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert b"retry-after: 1\r\n" in answer
        assert b"3 connections from this address are open" in answer
        other = await site.connect(host="127.0.0.2", sent=GET)
        assert (await read_answer(other)).endswith(b"\r\n\r\n0")
        assert site.door.hits == {"connections_per_client": 1}
        await kept[0].aclose()
        await site.until(lambda: site.connections.count <= 3)
        again = await site.connect(sent=GET)
        assert (await read_answer(again)).endswith(b"\r\n\r\n0")


async def test_an_idle_connection_makes_room_for_a_new_one_of_its_address() -> None:
    async with serving(connections_per_client_max=2) as site:
        idle = await site.connect(sent=GET)
        await read_answer(idle)
        busy = await site.connect(sent=GET.replace(b"/a", b"/wait"))
        await site.until(lambda: "/wait" in site.asked)
        new = await site.connect(sent=GET)
        assert (await read_answer(new)).endswith(b"\r\n\r\n0")
        assert await is_closed(idle)
        site.go.set()
        assert (await read_answer(busy)).endswith(b"\r\n\r\n0")
        assert not site.door.hits


async def test_all_connections_together_are_limited_and_silent_ones_make_room() -> None:
    async with serving(connections_max=2) as site:
        for host in ("127.0.0.2", "127.0.0.3"):
            await site.connect(host=host)
        await site.until(lambda: site.connections.count == 2)
        answer = await read_all(await site.connect(sent=GET))
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"retry-after: 1\r\n" in answer
        assert site.door.hits == {"connections": 1}
        await anyio.sleep(book.HEAD_GRACE_S + 0.1)
        new = await site.connect(sent=GET)
        assert (await read_answer(new)).endswith(b"\r\n\r\n0")


async def test_waiters_of_one_address_are_limited() -> None:
    wait = b"GET /wait?index=1 HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving(waiters_per_client_max=2) as site:
        waiting = [await site.connect(sent=wait) for _ in range(2)]
        await site.until(lambda: site.door.waiters == 2)
        refused = await site.connect(sent=wait)
        answer = await read_answer(refused)
        assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert b"retry-after: 1\r\n" in answer
        assert b"2 blocking queries and event streams of this address are open" in answer
        # The connection goes on, and so does everybody else.
        await refused.send(GET)
        assert (await read_answer(refused)).endswith(b"\r\n\r\n0")
        other = await site.connect(host="127.0.0.2", sent=wait)
        await site.until(lambda: site.door.waiters == 3)
        site.go.set()
        for stream in (*waiting, other):
            assert (await read_answer(stream)).endswith(b"\r\n\r\n0")
        assert site.door.waiters == 0
        assert site.door.hits == {"waiters_per_client": 1}


async def test_pipelined_requests_are_limited() -> None:
    async with serving(pipelined_max=4) as site:
        stream = await site.connect(sent=GET * 4)
        for _ in range(4):
            assert (await read_answer(stream)).endswith(b"\r\n\r\n0")
        flood = await site.connect(sent=GET.replace(b"/a", b"/wait") + GET * 20)
        await site.until(lambda: site.connections.count == 1)
        assert await is_closed(flood), "nothing that could be taken for an earlier request's answer"
        assert site.door.hits == {"pipelined": 1}


async def test_answers_that_nobody_takes_are_limited() -> None:
    long = GET.replace(b"/a", b"/long")
    async with serving(unsent_bytes_max=len(LONG)) as site:
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await anyio.to_thread.run_sync(wire.connect, ("127.0.0.1", site.port))
        wire.sendall(long)
        await site.until(lambda: site.door.unsent_bytes)
        stream = await site.connect(sent=long)
        answer = await read_answer(stream)
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        await stream.send(GET)
        assert (await read_answer(stream)).endswith(b"\r\n\r\n0")
        wire.close()
        await site.until(lambda: not site.door.unsent_bytes)
        await stream.send(long)
        assert (await read_answer(stream)).endswith(LONG)
        assert site.door.hits == {"unsent_bytes": 1}


# -- the book --------------------------------------------------------------------------------------------------------


class Silent:
    """A connection that does nothing."""

    client_key = "a"

    def end(self, why: str) -> None:
        raise AssertionError(why)

    cut = end


async def test_thousands_of_silent_connections_cost_the_sweep_nothing() -> None:
    kept = book.Connections(Limits(connections_per_client_max=100_000, connections_max=100_000), Hits(), new_id=str)
    for number in range(50_000):
        silent = Silent()
        assert kept.admit(silent, number / 1e4) is None
        kept.heads.enter(silent, number / 1e4)
    assert [kept.sweep(now_s) for now_s in (1.0, 5.0, 9.99)] == [0, 0, 0]


async def test_without_connections_nothing_is_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = book.Connections(Limits(head_s=0.3), Hits(), new_id=str)
    swept: list[float] = []
    sweep = kept.sweep
    monkeypatch.setattr(kept, "sweep", lambda now_s: swept.append(now_s) or sweep(now_s))
    ended = anyio.Event()

    class Slow(Silent):
        def end(self, why: str) -> None:
            assert why == "head_time"
            kept.leave(self)
            ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(kept.run)
        await anyio.sleep(0.5)
        assert swept == []
        slow = Slow()
        kept.admit(slow, anyio.current_time())
        kept.heads.enter(slow, anyio.current_time())
        with anyio.fail_after(5):
            await ended.wait()
        assert kept.hits == {"head_time": 1}
        await anyio.sleep(0.4)
        count = len(swept)
        await anyio.sleep(0.5)
        assert len(swept) == count
        group.cancel_scope.cancel()


async def test_a_reader_is_looked_at_once_where_its_answer_is_written_while_it_takes_nothing() -> None:
    """Else the second look of a moment finds that nothing was taken since the first: slow readers lost the end."""
    async with many_volumes(1) as kit:
        line = Line(kit, is_quick=False)
        book, protocol = line.book, line.protocol
        await line.ask("/v1/volume/csi/vol-000000")
        # All is written while the reader takes nothing.
        line.wire.get_write_buffer_size = lambda: 100  # type: ignore[method-assign]
        protocol.pause_writing()
        protocol.on_response_complete()
        looks: list[float] = []
        protocol.is_reader_overdue = lambda wait_s: looks.append(wait_s) or len(looks) > 1  # type: ignore[method-assign]
        now_s = anyio.current_time() + book.unsent.wait_s
        book.sweep(now_s)
        assert (looks, protocol in book.unsent) == ([book.unsent.wait_s], True)
        # It takes again: what is left of the answer is looked at all the same.
        protocol.resume_writing()
        looks.clear()
        book.sweep(now_s + book.unsent.wait_s)
        assert (len(looks), protocol in book.unsent) == (1, True)


async def test_the_sweep_sleeps_until_somebody_is_due() -> None:
    """And nobody is ended later for it, whoever comes while it sleeps."""
    kept = book.Connections(Limits(head_s=5.0, idle_s=60.0), Hits(), new_id=str)
    shortest_s = min(line.wait_s for line, _ in kept._looks)
    assert kept.find_pause_s(100.0) == shortest_s == book.LINGER_S
    silent = Silent()
    kept.idle.enter(silent, 100.0)
    assert kept.find_pause_s(100.0) == kept.find_pause_s(157.9) == shortest_s
    assert kept.find_pause_s(159.0) == pytest.approx(1.0)
    assert kept.find_pause_s(159.99) == kept.find_pause_s(161.0) == book.SWEEP_S
    kept.idle.leave(silent)
    kept.heads.enter(silent, 157.9)
    assert kept.find_pause_s(161.0) == pytest.approx(1.9)
    kept.lingering.enter(silent, 161.0)
    # What is due after it was entered is not due before the pause that was chosen before it came is over.
    assert all(161.0 + line.wait_s >= 161.0 + shortest_s for line, _ in kept._looks)


async def test_a_server_looks_at_the_date_alone_and_is_told_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    look = uvicorn.Server.on_tick

    async def note(server: uvicorn.Server, counter: int) -> bool:
        looks.append(anyio.current_time())
        return await look(server, counter)

    monkeypatch.setattr(uvicorn.Server, "on_tick", note)
    monkeypatch.setattr(http, "DATE_S", 0.5)
    dates: set[str] = set()
    with anyio.fail_after(30):
        async with serving() as site:
            while len(dates) < 3:
                stream = await site.connect(sent=GET)
                head = (await read_answer(stream)).partition(b"\r\n\r\n")[0].decode()
                dates |= {line for line in head.split("\r\n") if line.startswith("date: ")}
                await anyio.sleep(0.05)
    assert min(after - before for before, after in itertools.pairwise(looks[1:-1])) > 0.4
    monkeypatch.setattr(http, "DATE_S", 600.0)
    with anyio.fail_after(30):
        async with serving() as site:
            await site.until(lambda: len(looks) > 0)


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
async def test_whom_an_address_belongs_to(address: str, client: str) -> None:
    assert client_of(address) == client


async def test_connections_leave_files_for_everything_else() -> None:
    assert bound_connections(16384, 1 << 20) == 16384
    assert bound_connections(16384, 1024) == 768
    assert bound_connections(16384, 256) == 128
