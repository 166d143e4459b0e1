"""The client's typed calls, its errors, its transports over real sockets, and standing queries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest
from aiohttp import web

from moorage.client.api import RETRY_CAP_S, Client, follow, retry_delay_s
from moorage.client.transport import Answer, CallTransport, HttpTransport
from moorage.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    MoorageError,
    NotFound,
    Rejected,
    Unavailable,
)
from moorage.model.assignment import (
    ClaimAssignments,
    NodeRegistered,
    NodeRegistration,
    PluginReport,
    PluginsReported,
    StepAssignments,
)
from moorage.model.ids import NodeId
from moorage.model.node import Node

pytestmark = pytest.mark.anyio
NODE = Node(id=NodeId("n/1"), name="one")


def answering(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Client:
    async def handle(method: str, path: str, query: Mapping[str, str], sent: bytes | None) -> Answer:
        return Answer(status, headers or {}, body)

    return Client(CallTransport(handle))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest),
        (401, Forbidden),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (413, Rejected),
        (302, Rejected),
        (408, Unavailable),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
async def test_errors_by_status(status: int, kind: type[MoorageError]) -> None:
    with pytest.raises(MoorageError) as caught:
        await answering(status, b"volume not found\n").register_node(NODE)
    assert type(caught.value) is kind
    assert caught.value.message == "volume not found"


async def test_an_error_without_a_text_says_its_status() -> None:
    with pytest.raises(Unavailable, match="502"):
        await answering(502).register_node(NODE)


async def test_retry_after_is_a_hint() -> None:
    with pytest.raises(Unavailable) as caught:
        await answering(503, b"later", {"retry-after": "7"}).register_node(NODE)
    assert caught.value.retry_after_s == 7.0
    with pytest.raises(Unavailable) as caught:
        await answering(503, b"later", {"retry-after": "Wed, 21 Oct"}).register_node(NODE)
    assert caught.value.retry_after_s == 1.0


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"lease_s": "soon"}'])
async def test_an_answer_that_cannot_be_read_is_no_answer(body: bytes) -> None:
    with pytest.raises(Unavailable, match="NodeRegistered"):
        await answering(200, body).register_node(NODE)


async def test_the_call_is_made_as_the_page_wants_it() -> None:
    seen: list[tuple[str, str, dict[str, str], bytes | None]] = []

    async def handle(method: str, path: str, query: Mapping[str, str], body: bytes | None) -> Answer:
        seen.append((method, path, dict(query), body))
        page = path.rpartition("/")[2]
        found = {
            "register": NodeRegistered(lease_s=3.0),
            "steps": StepAssignments(index=9, steps=()),
            "claims": ClaimAssignments(index=8, claims=()),
            "plugins": PluginsReported(count=7, is_taken=False),
        }
        return Answer(200, {}, msgspec.json.encode(found.get(page)))

    client = Client(CallTransport(handle))
    assert (await client.register_node(NODE)).lease_s == 3.0
    assert (await client.wait_steps(NODE.id, 4, 1.5)).index == 9
    assert (await client.wait_claims(NODE.id, 4, 60)).index == 8
    report = PluginReport(instances={}, calling=("v",), after=5)
    assert await client.report_plugins(NODE.id, report) == PluginsReported(count=7, is_taken=False)
    await client.report(NODE.id, [])
    assert [(m, p, q) for m, p, q, _ in seen] == [
        ("PUT", "/v1/node/n%2F1/register", {}),
        ("GET", "/v1/node/n%2F1/steps", {"index": "4", "wait": "1500ms"}),
        ("GET", "/v1/node/n%2F1/claims", {"index": "4", "wait": "60000ms"}),
        ("PUT", "/v1/node/n%2F1/plugins", {}),
        ("PUT", "/v1/node/n%2F1/reports", {}),
    ]
    assert msgspec.json.decode(seen[3][3] or b"", type=PluginReport) == PluginReport(
        instances={}, calling=("v",), after=5
    )
    assert msgspec.json.decode(seen[0][3] or b"", type=NodeRegistration).node == NODE


# -- standing queries ------------------------------------------------------------------------------------------------


async def collect(script: list[int | MoorageError], count: int) -> tuple[list[int], list[int], list[MoorageError]]:
    """The indexes asked with, the indexes yielded, and the faults told, for a scripted server."""
    asked: list[int] = []
    told: list[MoorageError] = []
    found: list[int] = []

    async def fetch(index: int) -> StepAssignments:
        asked.append(index)
        answer = script.pop(0)
        if isinstance(answer, MoorageError):
            raise answer
        return StepAssignments(index=answer, steps=())

    with anyio.fail_after(10):
        async for answer in follow(fetch, random=lambda: 0.0, on_fault=told.append):
            found.append(answer.index)
            if len(found) == count:
                break
    return asked, found, told


async def test_a_standing_query_keeps_its_place_over_errors() -> None:
    lost = Unavailable("gone")
    asked, found, told = await collect([5, lost, lost, 7, NotFound("no node"), 8], 3)
    assert asked == [0, 5, 5, 5, 7, 7]
    assert found == [5, 7, 8]
    assert len(told) == 3


async def test_an_index_that_goes_back_is_followed() -> None:
    asked, found, _ = await collect([50, 3, 4], 3)
    assert asked == [0, 50, 3]
    assert found == [50, 3, 4]


async def test_answers_without_news_do_not_spin() -> None:
    started = anyio.current_time()
    _, found, _ = await collect([5, 5, 5, 5, 6], 5)
    assert found == [5, 5, 5, 5, 6]
    assert anyio.current_time() - started >= 0.05 + 0.1 + 0.2


def test_pauses_grow_to_a_cap() -> None:
    pauses = [retry_delay_s(n, 0.999) for n in range(1, 40)]
    assert pauses == sorted(pauses)
    assert max(pauses) <= RETRY_CAP_S
    assert retry_delay_s(1, 0.0) < retry_delay_s(1, 0.9)


async def test_what_is_not_ours_is_not_swallowed() -> None:
    async def fetch(index: int) -> StepAssignments:
        raise AssertionError("impossible")

    with pytest.raises(AssertionError):
        async for _ in follow(fetch, random=lambda: 0.0):
            pass


# -- HTTP ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def server(socket: Path | None = None) -> AsyncIterator[tuple[str, list[web.Request]]]:
    seen: list[web.Request] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request)
        if request.path == "/slow":
            await anyio.sleep(60)
        body = await request.read()
        return web.Response(status=207, body=body[::-1], headers={"X-Nomad-Index": "7"})

    application = web.Application()
    application.router.add_route("*", "/{rest:.*}", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        if socket is not None:
            await web.UnixSite(runner, str(socket)).start()
            yield f"unix://{socket}", seen
        else:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}", seen
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("is_unix", [False, True])
async def test_http_carries_a_request(tmp_path: Path, is_unix: bool) -> None:
    async with server(tmp_path / "s" if is_unix else None) as (address, seen):
        transport = HttpTransport(address, token="hunter2")
        answer = await transport.request("PUT", "/v1/a%2Fb", query={"index": "1"}, body=b"abc", timeout_s=5)
        await transport.aclose()
    assert (answer.status, answer.body) == (207, b"cba")
    assert answer.headers["x-nomad-index"] == "7"
    assert seen[0].raw_path == "/v1/a%2Fb?index=1"
    assert seen[0].headers["X-Nomad-Token"] == "hunter2"
    assert "hunter2" not in repr(transport)


async def test_http_failures_are_unavailable(tmp_path: Path) -> None:
    nobody = HttpTransport(f"unix://{tmp_path}/none", token="hunter2")
    with pytest.raises(Unavailable) as caught:
        await nobody.request("GET", "/", query={}, body=None, timeout_s=1)
    assert "hunter2" not in str(caught.value)
    await nobody.aclose()
    async with server() as (address, _):
        transport = HttpTransport(address)
        with pytest.raises(DeadlineExceeded):
            await transport.request("GET", "/slow", query={}, body=None, timeout_s=0.1)
        await transport.aclose()
        await transport.aclose()


@pytest.mark.parametrize("address", ["127.0.0.1:4646", "ftp://host", "http://", ""])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(BadRequest, match="http://"):
        HttpTransport(address)
