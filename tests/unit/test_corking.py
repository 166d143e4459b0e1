"""An answer is one write; what must be seen earlier is."""

from __future__ import annotations

import asyncio

import anyio
import anyio.lowlevel
import pytest
from many_volumes import Line, Wire, many_volumes

from moorage.serve.corking import CorkedTransport

pytestmark = pytest.mark.anyio
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


def corked(wire: Wire) -> CorkedTransport:
    return CorkedTransport(wire, asyncio.get_running_loop())


async def test_head_and_body_are_one_write_and_the_rest_passes() -> None:
    wire = Wire()
    answer = corked(wire)
    answer.write(HEAD)
    assert wire.writes == []
    answer.write(b"body")
    assert wire.writes == [HEAD + b"body"]
    answer.write(b"more")
    assert wire.writes[1:] == [b"more"]
    await anyio.lowlevel.checkpoint()
    assert len(wire.writes) == 2


async def test_a_head_without_a_body_goes_in_the_next_turn() -> None:
    wire = Wire()
    answer = corked(wire)
    answer.write(HEAD)
    await anyio.lowlevel.checkpoint()
    await anyio.lowlevel.checkpoint()
    assert wire.writes == [HEAD]
    answer.write(b"body")
    assert wire.writes == [HEAD, b"body"]


async def test_interim_answers_are_not_held_and_closing_loses_nothing() -> None:
    wire = Wire()
    answer = corked(wire)
    answer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert len(wire.writes) == 1
    answer.write(HEAD)
    answer.close()
    assert wire.writes[1:] == [HEAD]
    assert wire.is_closed


@pytest.mark.parametrize("target", ["/v1/plugins", "/v1/volume/csi/nothing", "/v1/nodes"])
async def test_every_small_answer_of_the_long_way_is_one_write(target: str) -> None:
    async with many_volumes(1) as kit:
        line = Line(kit, is_quick=False)
        await line.ask(target)
        assert len(line.wire.writes) == 1


async def test_answers_without_a_body_come_before_those_of_later_requests() -> None:
    async with many_volumes(1) as kit:
        line = Line(kit)
        head = "HEAD /v1/plugins HTTP/1.1\r\nHost: moorage\r\n\r\n"
        get = "GET /v1/volume/csi/vol-000000 HTTP/1.1\r\nHost: moorage\r\n\r\n"
        line.protocol.data_received((head + get).encode())
        with anyio.fail_after(10):
            while b"vol-000000" not in b"".join(line.wire.writes):
                await anyio.sleep(0.001)
        answers = b"".join(line.wire.writes)
        assert answers.index(b"HTTP/1.1 405") < answers.index(b"HTTP/1.1 200")
