"""The door: limits, request ids, timing, CORS, streams that end; refusals in both forms; pretty answers."""

from __future__ import annotations

import json
import re
from typing import Any

import anyio
import pytest
import structlog
from asgi_asking import Exchange, exchange, make_door
from engine_kit import PLUGIN, Kit, running_kit

from moorage.api.app import App
from moorage.api.door import Door
from moorage.api.http import JSON, Answer, Request, Write
from moorage.api.limits import HttpSettings, Limits

pytestmark = pytest.mark.anyio

OK = Answer(body=b"ok", content_type="text/plain")
PROBLEM = "application/problem+json"
PAGE = "https://ui.example"


def a_body(volume_id: str, **members: object) -> bytes:
    capability = {"AccessMode": "single-node-writer", "AttachmentMode": "file-system"}
    volume = {"ID": volume_id, "Name": volume_id, "PluginID": PLUGIN, "RequestedCapabilities": [capability]}
    return json.dumps({"Volumes": [volume | members]}).encode()


# -- limits ----------------------------------------------------------------------------------------------------------


async def both_forms(door: Door, target: str = "/v1/x", *, body: bytes = b"", **headers: str) -> tuple[Exchange, Any]:
    """The refusal as text and as a problem; checks what is the same in both."""
    plain = await exchange(door, "PUT", target, body=body, **headers)
    problem = await exchange(door, "PUT", target, body=body, accept=PROBLEM, **headers)
    assert plain.headers["content-type"] == "text/plain; charset=utf-8"
    assert problem.headers["content-type"] == PROBLEM
    found = json.loads(problem.body)
    assert found["detail"] == plain.body.decode()
    assert problem.status == plain.status == found["status"]
    assert plain.headers["Connection"] == "close"
    return plain, found


async def test_target_limit() -> None:
    door = make_door(OK, limits=Limits(target_bytes_max=100))
    assert (await exchange(door, "GET", "/" + "a" * 40 + "?" + "b" * 59)).status == 200
    plain, problem = await both_forms(door, "/" + "a" * 40 + "?" + "b" * 60)
    assert plain.status == 414
    assert plain.body == b"the request's path and query are longer than 100 bytes"
    assert (problem["code"], problem["limit"]) == ("target_too_long", "100")


async def test_header_limits() -> None:
    many = {f"h{n}": "" for n in range(12)}
    door = make_door(OK, limits=Limits(headers_max=13))
    assert (await exchange(door, "GET", "/v1/x", **many)).status == 200
    plain, problem = await both_forms(make_door(OK, limits=Limits(headers_max=11)), **many)
    assert (plain.status, plain.body) == (431, b"the request has more than 11 headers")
    assert problem["code"] == "headers_too_many"
    plain, problem = await both_forms(make_door(OK, limits=Limits(header_bytes_max=50)), long="x" * 50)
    assert (plain.status, plain.body) == (431, b"the request's headers are larger than 50 bytes")
    assert problem["code"] == "headers_too_large"


async def test_body_limit() -> None:
    door = make_door(OK, limits=Limits(body_bytes_max=1000))
    assert (await exchange(door, "PUT", "/v1/x", body=b"x" * 1000)).status == 200
    plain, problem = await both_forms(door, body=b"x" * 1001)
    assert (plain.status, plain.body) == (413, b"the request's body is larger than 1000 bytes")
    assert (problem["code"], problem["limit"]) == ("body_too_large", "1000")


async def test_too_large_a_body_is_read_on_but_not_for_ever() -> None:
    door = make_door(OK, limits=Limits(body_bytes_max=10, drain_bytes_max=35))
    for chunks, received in ((3, 3), (9, 4)):
        made = Exchange([b"x" * 10] * chunks)
        await made.run(door, "PUT", "/v1/x", {})
        assert (made.status, made.received) == (413, received)


async def test_a_client_that_asks_before_it_sends_is_told_at_once() -> None:
    door = make_door(OK, limits=Limits(body_bytes_max=10))
    made = Exchange([b"x" * 11])
    await made.run(door, "PUT", "/v1/x", {"Expect": "100-continue", "Content-Length": "11"})
    assert (made.status, made.received) == (413, 0)


async def test_body_time() -> None:
    door = make_door(OK, limits=Limits(body_s=0.05))
    for accept, kind in (("*/*", "text/plain; charset=utf-8"), (PROBLEM, PROBLEM)):
        made = Exchange(is_sending=False)
        with anyio.fail_after(5):
            await made.run(door, "PUT", "/v1/x", {"Accept": accept})
        assert (made.status, made.headers["content-type"]) == (408, kind)
        assert b"the request's body did not arrive within 0.05 s" in made.body


async def test_a_client_that_leaves_gets_nothing() -> None:
    made = Exchange(is_sending=False)
    made.leave()
    await made.run(make_door(OK), "PUT", "/v1/x", {})
    assert made.status == 0


# -- ids and times ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "used"),
    [("abc-123", "abc-123"), ("a" * 128, "a" * 128), ("a" * 129, "id-1"), ("a b", "id-1"), ("é", "id-1"), ("", "id-1")],
)
async def test_request_ids(given: str, used: str) -> None:
    seen: list[object] = []

    async def answer(request: Request) -> Answer:
        seen.append(structlog.contextvars.get_contextvars().get("request_id"))
        return OK

    door = Door(answer, settings=HttpSettings(), new_id=lambda: "id-1")
    got = await exchange(door, "GET", "/v1/x", x_request_id=given)
    assert got.headers["x-request-id"] == used
    assert seen == [used]
    assert "request_id" not in structlog.contextvars.get_contextvars()


async def test_server_timing() -> None:
    async with running_kit() as kit:
        got = await exchange(kit.app, "GET", "/v1/volumes?type=csi")
        assert re.fullmatch(r"total;dur=\d+\.\d\d", got.headers["server-timing"])
        got = await exchange(kit.app, "GET", "/v1/volumes?type=csi&index=1000000&wait=50ms")
        found = re.fullmatch(r"wait;dur=(\d+\.\d\d), total;dur=(\d+\.\d\d)", got.headers["server-timing"])
        assert found is not None
        assert 45 <= float(found[1]) <= float(found[2])


# -- CORS ------------------------------------------------------------------------------------------------------------


async def test_cors_is_off() -> None:
    async with running_kit() as kit:
        ask = {"origin": PAGE, "access_control_request_method": "PUT"}
        got = await exchange(kit.app, "OPTIONS", "/v1/volumes", **ask)
        assert (got.status, got.body) == (405, b"Invalid method")
        got = await exchange(kit.app, "GET", "/v1/volumes?type=csi", **ask)
        assert not [name for name in got.headers if name.startswith("access-control")]


async def test_cors_for_allowed_origins() -> None:
    async with running_kit() as kit:
        app = App(kit.service, HttpSettings(allowed_origins=(PAGE,), preflight_s=60))
        preflight = {"access_control_request_method": "PUT", "access_control_request_headers": "x-nomad-token"}
        got = await exchange(app, "OPTIONS", "/v1/volumes", origin=PAGE, **preflight)
        assert (got.status, got.body) == (204, b"")
        assert "content-length" not in got.headers
        assert got.headers["access-control-allow-origin"] == PAGE
        assert "PUT" in got.headers["Access-Control-Allow-Methods"]
        assert "X-Nomad-Token" in got.headers["Access-Control-Allow-Headers"]
        assert got.headers["Access-Control-Max-Age"] == "60"
        got = await exchange(app, "GET", "/v1/volumes?type=csi", origin=PAGE)
        assert got.headers["access-control-allow-origin"] == PAGE
        assert "X-Nomad-Index" in got.headers["access-control-expose-headers"]
        assert got.headers["vary"] == "Accept-Encoding, Origin"
        # A refusal is readable too.
        got = await exchange(app, "GET", "/v1/volume/csi/none", origin=PAGE)
        assert (got.status, got.headers["access-control-allow-origin"]) == (404, PAGE)
        for origin in ("https://evil.example", PAGE + ".evil.example", PAGE.replace("https", "http"), "null"):
            got = await exchange(app, "OPTIONS", "/v1/volumes", origin=origin, **preflight)
            assert got.status == 405
            assert "access-control-allow-origin" not in got.headers
        # Not a preflight: no method is asked for.
        assert (await exchange(app, "OPTIONS", "/v1/volumes", origin=PAGE)).status == 405


async def test_cors_for_all() -> None:
    got = await exchange(make_door(OK, allowed_origins=("*",)), "GET", "/v1/x", origin="https://any.example")
    assert got.headers["access-control-allow-origin"] == "https://any.example"


# -- streams ---------------------------------------------------------------------------------------------------------


async def test_a_stream_that_ends_is_whole() -> None:
    async def stream(write: Write) -> None:
        await write(b"one\n")

    got = await exchange(make_door(Answer(content_type=JSON, stream=stream)), "GET", "/v1/x")
    assert (got.status, got.pieces, got.headers["content-type"]) == (200, [b"one\n"], JSON)


async def test_a_stream_ends_when_the_server_stops() -> None:
    async def stream(write: Write) -> None:
        await write(b"one\n")
        await anyio.sleep_forever()

    door = make_door(Answer(content_type=JSON, stream=stream))
    made = Exchange()
    async with anyio.create_task_group() as group:
        group.start_soon(made.run, door, "GET", "/v1/x", {})
        await made.until_pieces(1)
        door.is_stopping.set()
    assert made.is_whole


async def test_a_reader_that_takes_nothing_is_given_up() -> None:
    stuck = anyio.Event()

    class Stuck(Exchange):
        async def send(self, message: Any) -> None:
            if message["type"] == "http.response.body":
                stuck.set()
                await anyio.sleep_forever()

    async def stream(write: Write) -> None:
        await write(b"one\n")

    made = Stuck()
    with anyio.fail_after(5):
        door = make_door(Answer(stream=stream), limits=Limits(write_s=0.05))
        await made.run(door, "GET", "/v1/x", {})
    assert stuck.is_set()
    assert not made.is_whole


async def test_a_fault_in_a_stream_leaves_it_unfinished() -> None:
    async def stream(write: Write) -> None:
        await write(b"one\n")
        raise ZeroDivisionError

    made = Exchange()
    with structlog.testing.capture_logs() as logs:
        await made.run(make_door(Answer(stream=stream)), "GET", "/v1/x", {})
    assert not made.is_whole
    assert [entry["event"] for entry in logs if entry["log_level"] != "debug"] == ["stream.crashed"]


# -- refusals --------------------------------------------------------------------------------------------------------


async def as_problem(kit: Kit, method: str, target: str, body: bytes = b"") -> tuple[Exchange, dict[str, Any]]:
    got = await exchange(kit.app, method, target, body=body, accept=f"application/json, {PROBLEM}")
    found = json.loads(got.body)
    assert got.headers["content-type"] == PROBLEM
    assert found["status"] == got.status
    assert found["type"] == f"urn:moorage:error:{found['code']}"
    assert found["title"]
    assert found["detail"]
    return got, found


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "code"),
    [
        ("GET", "/v1/nope", b"", 404, "no_path"),
        ("GET", "/v1/volumes?type=odd", b"", 404, "no_resource"),
        ("PUT", "/v1/volume/csi/a/b", b"", 404, "no_resource"),
        ("PATCH", "/v1/volumes", b"", 405, "method_not_allowed"),
        ("GET", "/v1/volume/csi/none", b"", 404, "volume_missing"),
        ("GET", "/v1/plugin/csi/none", b"", 404, "plugin_missing"),
        ("GET", "/v1/allocation/none", b"", 404, "allocation_missing"),
        ("GET", "/v1/node/none", b"", 400, "bad_request"),
        ("GET", "/v1/node/99999999-2222-3333-4444-555555555555", b"", 404, "node_missing"),
        ("DELETE", "/v1/volume/csi/none", b"", 404, "volume_missing"),
        ("GET", "/v1/volumes?type=csi&wait=soon", b"", 400, "bad_request"),
        ("PUT", "/v1/volumes", b"", 400, "bad_request"),
        ("PUT", "/v1/volumes", b'{"Volumes": []}', 400, "validation"),
        ("PUT", "/v1/volumes", a_body("web", PluginID="none"), 404, "plugin_missing"),
        ("GET", "/v1/event/stream?topic=Nonsense", b"", 400, "bad_request"),
        ("GET", "/v1/event/stream?index=-1", b"", 400, "bad_request"),
    ],
)
async def test_problems(method: str, target: str, body: bytes, status: int, code: str) -> None:
    async with running_kit() as kit:
        _, found = await as_problem(kit, method, target, body)
        assert (found["status"], found["code"]) == (status, code), found


async def test_problem_of_a_volume_in_use() -> None:
    async with running_kit() as kit:
        await exchange(kit.app, "PUT", "/v1/volume/csi/web/create", body=a_body("web"))
        use = {"Allocation": {"Volumes": [{"Name": "data", "Source": "web"}]}}
        started = await exchange(kit.app, "PUT", "/v1/allocations", body=json.dumps(use).encode())
        assert started.status == 200
        plain = await exchange(kit.app, "DELETE", "/v1/volume/csi/web")
        assert (plain.status, plain.body) == (500, b"volume in use: web")
        _, found = await as_problem(kit, "DELETE", "/v1/volume/csi/web")
        assert (found["status"], found["code"], found["detail"]) == (409, "volume_in_use", "volume in use: web")


async def test_problem_of_what_comes_later() -> None:
    async with running_kit(request_s=0.2) as kit:
        kit.is_calling = False
        got, found = await as_problem(kit, "GET", f"/v1/volumes/external?plugin_id={PLUGIN}")
        assert (got.status, found["code"]) == (503, "deadline_exceeded")
        assert int(got.headers["Retry-After"]) >= 1


async def test_problem_of_a_stopping_server() -> None:
    async with running_kit() as kit:
        for accept, kind in (("*/*", "text/plain; charset=utf-8"), (PROBLEM, PROBLEM)):
            app = App(kit.service)
            app.is_stopping.set()
            got = await exchange(app, "GET", "/v1/volumes?type=csi&index=100000", accept=accept)
            assert (got.status, got.headers["content-type"]) == (503, kind)


async def test_problem_keeps_the_headers_of_the_text() -> None:
    async with running_kit() as kit:
        got, _ = await as_problem(kit, "GET", "/v1/volume/csi/none")
        assert "X-Nomad-Index" in got.headers


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/v1/volumes", "GET, POST, PUT"),
        ("DELETE", "/v1/plugins", "GET"),
        ("GET", "/v1/volume/csi/a/create", "POST, PUT"),
        ("PUT", "/v1/event/stream", "GET"),
    ],
)
async def test_405_names_what_is_allowed(method: str, path: str, allowed: str) -> None:
    async with running_kit() as kit:
        got = await exchange(kit.app, method, path)
        assert (got.status, got.headers["Allow"]) == (405, allowed)


async def test_a_fault_of_ours_has_an_incident() -> None:
    async with running_kit() as kit:
        kit.service.reads.list_plugins = None  # type: ignore[method-assign, assignment]
        with structlog.testing.capture_logs() as logs:
            got, found = await as_problem(kit, "GET", "/v1/plugins?type=csi")
        assert (got.status, found["code"]) == (500, "internal")
        assert logs[0]["incident"] in found["detail"]


# -- pretty ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "is_pretty"),
    [("", False), ("&pretty", True), ("&pretty=1", True), ("&pretty=false", True), ("&pretty=0", False)],
)
async def test_pretty(query: str, is_pretty: bool) -> None:
    async with running_kit() as kit:
        got = await exchange(kit.app, "GET", f"/v1/plugins?type=csi{query}")
        compact = await exchange(kit.app, "GET", "/v1/plugins?type=csi")
        assert json.loads(got.body) == json.loads(compact.body)
        if is_pretty:
            assert got.body.startswith(b'[\n    {\n        "ControllerRequired": ')
            assert got.body.endswith(b"\n    }\n]\n")
        else:
            assert got.body == compact.body
            assert b"\n" not in got.body


async def test_errors_are_never_pretty() -> None:
    async with running_kit() as kit:
        got = await exchange(kit.app, "GET", "/v1/volume/csi/none?pretty")
        assert got.body == b"volume not found"
