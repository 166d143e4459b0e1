"""Bodies and answers that are whole: the bytes that go out are those of the messages' way; the rest is left alone."""

from __future__ import annotations

import gc
import re
import weakref

import anyio
import pytest
from many_volumes import Line, many_volumes

from moorage.serve.whole import WholeExchange

pytestmark = pytest.mark.anyio

BODY = b'{"Volumes": [{"ID": "new", "PluginID": "hostpath", "ExternalID": "ext-1"}]}'
REGISTER = b"PUT /v1/volume/csi/new HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s"


def put(head: bytes = b"", body: bytes = BODY) -> bytes:
    return REGISTER % (len(body), head, body)


CASES: dict[str, list[bytes]] = {
    "register": [put()],
    "body in pieces": [put()[:-20], put()[-20:]],
    "chunked": [
        b"PUT /v1/volume/csi/new HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    ],
    "expect": [put(b"Expect: 100-continue\r\n")[: -len(BODY)], BODY],
    "expect and body at once": [put(b"Expect: 100-continue\r\n")],
    "close": [put(b"Connection: close\r\n")],
    "old": [put().replace(b"HTTP/1.1", b"HTTP/1.0")],
    "too long": [put(body=b" " * 200_000)],
    "not JSON": [put(body=b"{")],
    "no body": [b"PUT /v1/volumes HTTP/1.1\r\nHost: x\r\n\r\n"],
    "head": [b"HEAD /v1/volumes HTTP/1.1\r\nHost: x\r\n\r\n"],
    "preflight": [b"OPTIONS /v1/volumes HTTP/1.1\r\nHost: x\r\nAccess-Control-Request-Method: PUT\r\n\r\n"],
    "read": [b"GET /v1/volume/csi/vol-000001 HTTP/1.1\r\nHost: x\r\n\r\n"],
    "read, gzip": [b"GET /v1/volume/csi/vol-000001 HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n"],
    "long list": [b"GET /v1/volumes?type=csi HTTP/1.1\r\nHost: x\r\n\r\n"],
    "nothing there": [b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n"],
    "sent ahead": [put() + b"GET /v1/volume/csi/new HTTP/1.1\r\nHost: x\r\n\r\n"],
    "control in a header": [put(b"X-Request-Id: a\x01b\r\n")],
}


async def exchange(pieces: list[bytes], *, is_whole: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, bool, int]:
    """What goes out, whether the connection is closed then, and how many answers went the short way."""
    given = 0
    give = WholeExchange.give

    def note(self: WholeExchange, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        nonlocal given
        is_given = is_whole and give(self, status, headers, body)
        given += is_given
        return is_given

    with monkeypatch.context() as patch:
        patch.setattr(WholeExchange, "give", note)
        if not is_whole:
            patch.setattr(WholeExchange, "take", lambda self, size_max: None)
        async with many_volumes(700) as kit:
            line = Line(kit, is_quick=False)
            for piece in pieces:
                line.protocol.data_received(piece)
                await anyio.sleep(0.01)
            with anyio.fail_after(10):
                while line.protocol.is_answering() and not line.wire.is_closed:
                    await anyio.sleep(0.001)
            sent = b"".join(line.wire.writes)
            sent = re.sub(rb"(x-request-id|server-timing): [^\r]*", rb"\1: .", sent)
            sent = re.sub(rb'"(CreateIndex|ModifyIndex|CreateTime|ModifyTime)":\d+', rb'"\1":0', sent)
            return re.sub(rb"incident [0-9a-f-]*", b"incident .", sent), line.wire.is_closed, given


@pytest.mark.parametrize("name", CASES)
async def test_both_ways_send_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = await exchange(CASES[name], is_whole=True, monkeypatch=monkeypatch)
    long = await exchange(CASES[name], is_whole=False, monkeypatch=monkeypatch)
    assert short[:2] == long[:2]
    assert short[0].startswith(b"HTTP/1.1 ")
    usual = {"register", "body in pieces", "chunked", "not JSON", "no body", "read", "nothing there", "sent ahead"}
    if name in usual:
        assert short[2] >= 1
    if name in ("close", "old", "head", "long list"):
        assert short[2] == 0


async def test_a_header_that_may_not_be_sent_is_refused_as_before() -> None:
    async with many_volumes(1) as kit:
        line = Line(kit, is_quick=False)
        line.protocol.data_received(b"PUT /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        whole = WholeExchange(line.protocol.cycle, line.wire)
        assert not whole.give(200, [(b"content-length", b"0"), (b"x-odd", b"a\r\nb: c")], b"")
        assert not whole.give(200, [(b"content-length", b"0"), (b"Connection", b"close")], b"")
        assert whole.take(100) is None
        assert line.wire.writes == []


async def test_nothing_is_left_that_only_a_collector_frees() -> None:
    """A request's parts go as soon as it is answered: the collector runs seldom in a server."""
    async with many_volumes(1) as kit:
        line = Line(kit, is_quick=False)
        gc.collect()
        gc.disable()
        try:
            line.protocol.data_received(b"GET /v1/volume/csi/vol-000000 HTTP/1.1\r\nHost: x\r\n\r\n")
            found = weakref.ref(line.protocol.cycle.message_event)
            while line.protocol.is_answering():
                await anyio.sleep(0.001)
            await anyio.sleep(0.01)
            line.protocol.data_received(b"GET /v1/volume/csi/vol-000000 HTTP/1.1\r\nHost: x\r\n\r\n")
            await anyio.sleep(0.01)
            assert found() is None
        finally:
            gc.enable()
