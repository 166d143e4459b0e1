"""Whatever a client sends gets an answer, never a traceback, and the server goes on serving.

One server for all tests here: each of them finds it as the ones before left it.
"""

from __future__ import annotations

import copy
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from asking import Reply, ask, describe_volume, get, put
from dev_server import Fleet, Program, running_fleet

from moorage.api.routes import ROUTES

MIB = 1 << 20
NODE = "99999999-2222-4333-8444-555555555555"


@pytest.fixture(scope="module")
def shared_fleet() -> Iterator[Fleet]:
    """The fleet of this module."""
    with running_fleet() as running:
        yield running


@pytest.fixture(scope="module")
def program(shared_fleet: Fleet) -> Program:
    """The one server."""
    return shared_fleet.start_dev()


@pytest.fixture
def url(program: Program) -> Iterator[str]:
    """The server's address; after the test it must still serve, and have nothing to be ashamed of in its log."""
    before = len(program.log)
    yield program.url
    reply = ask(program.url, "GET", "/v1/volumes?type=csi")
    assert reply.status == 200
    logged = program.log[before:]
    assert "request.crashed" not in logged, logged[-3000:]
    assert "Traceback" not in logged, logged[-3000:]


def check_reply(reply: Reply, what: str) -> None:
    """An answer of ours, in words for people."""
    assert 200 <= reply.status < 600, what
    for word in ("Traceback", "internal error", 'File "'):
        assert word not in reply.text, f"{what}: {reply.status} {reply.text[:300]}"
    if reply.status >= 400 and reply.status != 404:
        assert len(reply.text.strip()) > 3, f"{what}: {reply.status} says nothing"


class Line:
    """A connection that is kept: a server that drops it fails the test."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
        self._connection.connect()
        self._connection.auto_open = 0

    def ask(self, method: str, path: str, body: bytes | None = None) -> Reply:
        """The answer. Of one without a length, a stream, only the head: its connection is given up for a new one."""
        self._connection.request(method, path, body=body)
        answer = self._connection.getresponse()
        headers = {k.lower(): v for k, v in answer.getheaders()}
        is_stream = answer.status == 200 and "content-length" not in headers
        content = b"" if is_stream else answer.read()
        if is_stream:
            self._connection.close()
            self._connection.connect()
        return Reply(status=answer.status, headers=headers, body=content)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def line(url: str) -> Iterator[Line]:
    """A kept connection to the server."""
    kept = Line(url)
    yield kept
    kept.close()


def send_raw(url: str, content: bytes, *, is_half: bool = False, is_all: bool = False) -> bytes:
    """All that comes back for these bytes until the server closes; empty when it closes at once.

    ``is_half``: leave without reading. ``is_all``: say that nothing more will come, for what asks for no end.
    """
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(content)
        if is_half:
            return b""
        if is_all:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionResetError:
            pass
        return received


# -- bodies ----------------------------------------------------------------------------------------------------------

BODIES: dict[str, bytes | None] = {
    "none": None,
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "object": b"{}",
    "text": b'"x"',
    "number": b"7",
    "cut": b'{"Volumes": [{"ID": "a"',
    "not-json": b"ID=a&Name=b",
    "null-elements": b'{"Volumes": [null], "Snapshots": [null], "Allocation": null}',
    "nulls-within": b'{"Volumes": [{"ID": "a", "RequestedCapabilities": [null]}], "Snapshots": [{"ID": null}]}',
    "invalid-utf8": b'{"Volumes": [{"ID": "\xff\xfe"}]}',
    "lone-surrogate": b'{"Volumes": [{"ID": "\\ud800", "PluginID": "hostpath"}]}',
    "nul-in-text": b'{"Volumes": [{"ID": "a\\u0000b", "PluginID": "hostpath"}]}',
    "deep-lists": b'{"Volumes": ' + b"[" * 100_000,
    "deep-objects": b'{"Volumes": [' + b'{"Context": ' * 50_000,
    "deep-and-closed": b'{"Other": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "huge-number": b'{"Volumes": [{"ID": "a", "RequestedCapacityMin": ' + b"9" * 400 + b"}]}",
    "infinite-number": b'{"Volumes": [{"ID": "a", "RequestedCapacityMin": 1e999}]}',
    "two-documents": b"{}{}",
    "bom": b"\xef\xbb\xbf{}",
}


@pytest.mark.parametrize("name", BODIES)
def test_every_route_answers_every_method_and_body(line: Line, name: str) -> None:
    for route in ROUTES:
        path = route.pattern.replace(":id", "x")
        for method in ("GET", "PUT", "POST", "DELETE", "PATCH"):
            reply = line.ask(method, path, BODIES[name])
            check_reply(reply, f"{method} {path} with {name}")
            if method not in route.handlers:
                assert reply.status in (404, 405), f"{method} {path}: {reply.status} {reply.text[:100]}"


CREATE = describe_volume("odd")
CREATE["Volumes"][0] |= {
    "MountOptions": {"FSType": "ext4", "MountFlags": ["noatime"]},
    "Parameters": {"a": "b"},
    "Secrets": {"a": "b"},
    "Context": {"a": "b"},
    "RequestedTopologies": {"Required": [{"Segments": {"a": "b"}}], "Preferred": [{"Segments": {"a": "b"}}]},
    "SnapshotID": "",
    "CloneID": "",
}
REGISTER = copy.deepcopy(CREATE)
REGISTER["Volumes"][0]["ExternalID"] = "an-external-id"
REGISTER["Volumes"][0]["Topologies"] = [{"Segments": {"a": "b"}}]
SNAPSHOT = {
    "Snapshots": [{"SourceVolumeID": "odd", "PluginID": "hostpath", "Name": "s", "Parameters": {}, "Secrets": {}}]
}
ALLOCATION: dict[str, Any] = {
    "Allocation": {
        "ID": "11111111-2222-4333-8444-555555555555",
        "Name": "web.db[0]",
        "Namespace": "default",
        "JobID": "web",
        "TaskGroup": "db",
        "NodeID": NODE,
        "Tasks": ["postgres"],
        "Volumes": [
            {
                "Name": "data",
                "Source": "not-there",
                "ReadOnly": False,
                "AccessMode": "single-node-writer",
                "AttachmentMode": "file-system",
                "MountOptions": {"FSType": "ext4", "MountFlags": ["noatime"]},
                "Target": "/srv/data",
            }
        ],
    }
}
ODD_VALUES: tuple[object, ...] = (None, [], {}, "x", "", 7, -1, 1.5, 2**70, True, [None], [[]], {"x": None})


def list_ways(value: object, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value inside a JSON value, itself first."""
    yield way
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from list_ways(inner, (*way, name))
    if isinstance(value, list):
        for position, inner in enumerate(value):
            yield from list_ways(inner, (*way, position))


def put_in(body: Any, way: tuple[Any, ...], value: object) -> Any:
    """A copy of the body with another value at the end of the way."""
    if not way:
        return value
    changed = copy.deepcopy(body)
    inner = changed
    for part in way[:-1]:
        inner = inner[part]
    inner[way[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/volume/csi/odd/create", CREATE),
        ("/v1/volumes", REGISTER),
        ("/v1/volumes/snapshot", SNAPSHOT),
        ("/v1/allocations", ALLOCATION),
    ],
    ids=["create", "register", "snapshot", "allocation"],
)
def test_every_value_may_be_of_any_type(line: Line, path: str, body: object) -> None:
    for way in list_ways(body):
        for value in ODD_VALUES:
            sent = json.dumps(put_in(body, way, value)).encode()
            check_reply(line.ask("PUT", path, sent), f"PUT {path} with {value!r} at {way}")


def test_a_refusal_of_a_type_names_the_place(url: str) -> None:
    body = put_in(CREATE, ("Volumes", 0, "RequestedCapabilities", 0, "AccessMode"), 7)
    reply = ask(url, "PUT", "/v1/volume/csi/odd/create", body=body)
    assert reply.status == 400
    assert "RequestedCapabilities" in reply.text or "AccessMode" in reply.text, reply.text


def test_an_unknown_plugin_is_named(url: str) -> None:
    body = put_in(describe_volume("stranger"), ("Volumes", 0, "PluginID"), "nosuch")
    reply = ask(url, "PUT", "/v1/volume/csi/stranger/create", body=body)
    assert reply.status == 500
    assert "nosuch" in reply.text
    assert ask(url, "GET", "/v1/volume/csi/stranger").status == 404
    assert ask(url, "GET", "/v1/volumes/external?plugin_id=nosuch").status == 500


@pytest.mark.slow
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_a_body_of_100_mb_is_refused_and_the_connection_answers(url: str, is_chunked: bool) -> None:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    headers = {} if is_chunked else {"Content-Length": str(100 * MIB)}
    connection.request("PUT", "/v1/volume/csi/big/create", body=(b" " * MIB for _ in range(100)), headers=headers,
                       encode_chunked=is_chunked)  # fmt: skip
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    assert answer.status == 413
    assert "larger than" in text


def test_a_body_just_below_the_limit_is_read(url: str) -> None:
    body = json.dumps(describe_volume("wide")).encode()
    reply = ask(url, "PUT", "/v1/volume/csi/wide/create", body=body + b" " * (15 * MIB))
    assert reply.status == 200, reply.text[:300]


# -- targets, methods, headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/volume/csi/" + "a" * 100_000, "/v1/volumes?type=csi&prefix=" + "a" * 100_000])
def test_a_target_of_100_kb_is_refused(url: str, path: str) -> None:
    reply = ask(url, "GET", path)
    assert reply.status == 414
    assert "bytes" in reply.text


@pytest.mark.parametrize(
    "path",
    [
        "/v1/volume/csi/%ff%fe",
        "/v1/volume/csi/%00",
        "/v1/volume/csi/%",
        "/v1/volume/csi/%zz",
        "/v1/volume/csi/%2e%2e/%2e%2e",
        "/v1/../../etc/passwd",
        "/v1/volumes?type=csi&prefix=%ff&namespace=%00",
        "/v1/volumes?type=csi&filter=%ff",
        "/v1/volumes?type=csi&per_page=99999999999999999999",
        "/v1/volumes?type=csi&per_page=%D9%A3",
        "/v1/volumes?type=csi&next_token=%ff...",
        "/v1/volumes?type=csi&index=-1",
        "/v1/volumes?type=csi&index=1e3",
        "/v1/volumes?type=csi&index=99999999999999999999999",
        "/v1/volumes?type=csi&index=1&wait=soon",
        "/v1/volumes?type=csi&index=0&wait=" + "9" * 4000 + "h",
        "/v1/volumes?&&&===&%=%",
        "/v1/volumes/external?plugin_id=%00&per_page=-1",
        "/v1/volumes/external?plugin_id=hostpath&next_token=%00",
        "/v1/allocation/%ff",
        "/v1/node/%ff",
        "//",
        "/",
    ],
)
def test_odd_targets_are_answered(url: str, path: str) -> None:
    for method in ("GET", "DELETE", "PUT"):
        check_reply(ask(url, method, path), f"{method} {path[:80]}")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PATCH", "TRACE", "PROPFIND"])
def test_other_methods_are_refused(url: str, method: str) -> None:
    for path in ("/v1/volumes?type=csi", "/v1/volume/csi/x", "/v1/plugins", "/nowhere"):
        assert ask(url, method, path).status in (404, 405), f"{method} {path}"


def test_a_made_up_method_gets_an_answer(url: str) -> None:
    assert send_raw(url, b"BREW /v1/volumes HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 4")


def test_options_of_the_server_itself(url: str) -> None:
    answer = send_raw(url, b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 4")


def test_a_flood_of_headers(url: str) -> None:
    many = {f"X-Header-{number}": "v" for number in range(90)}
    assert ask(url, "GET", "/v1/volumes?type=csi", headers=many).status == 200
    flood = b"".join(b"X-Header-%d: %s\r\n" % (number, b"v" * 100) for number in range(5000))
    answer = send_raw(url, b"GET /v1/volumes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + flood + b"\r\n")
    assert answer[:10] in (b"HTTP/1.1 2", b"HTTP/1.1 4"), answer[:200]
    answer = send_raw(
        url, b"GET /v1/volumes HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: " + b"v" * MIB + b"\r\n\r\n"
    )
    assert answer[:10] in (b"HTTP/1.1 2", b"HTTP/1.1 4"), answer[:200]


def test_odd_headers(url: str) -> None:
    head = b"PUT /v1/volume/csi/x/create HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    for more in (
        b"Content-Length: 2\r\nX-Nomad-Token: \xff\xfe\r\nAccept: \xff\r\n\r\n{}",
        b"Content-Length: 2\r\nX-Nomad-CSI-Secrets: ,,=,a,=b,c=\r\n\r\n{}",
        b"Content-Length: 2\r\nContent-Encoding: gzip\r\n\r\n{}",
        b"Content-Length: 2\r\nAccept: application/problem+json\r\n\r\n{}",
    ):
        answer = send_raw(url, head + more)
        assert answer[:10] in (b"HTTP/1.1 4", b"HTTP/1.1 5"), (more, answer[:200])
        assert b"Traceback" not in answer


# -- the wire --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\x01\x02\x03" * 1000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300,  # the beginning of a TLS session
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/volumes HTTP/9.9\r\n\r\n",
        b"PUT /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PUT /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"PUT /v1/volumes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PUT /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_garbage_on_the_socket_is_refused_or_closed(url: str, content: bytes) -> None:
    answer = send_raw(url, content, is_all=True)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 "), answer[:200]
    assert b"Traceback" not in answer


@pytest.mark.parametrize(
    "content",
    [
        b"GE",
        b"PUT /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Le",
        b'PUT /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"Volumes": [',
        b"PUT /v1/volumes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"GET /v1/volumes?type=csi&index=999999&wait=60s HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_clients_that_leave_in_the_middle(url: str, content: bytes) -> None:
    for _ in range(20):
        send_raw(url, content, is_half=True)


def test_requests_in_a_row_without_waiting(url: str) -> None:
    one = b"GET /v1/volumes?type=csi HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /v1/plugins HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert send_raw(url, one * 50 + last).count(b"HTTP/1.1 200") == 51


# -- what one client does to another ---------------------------------------------------------------------------------


def test_nonsense_from_many_does_not_disturb_one(url: str) -> None:
    """While clients send nonsense, another one's creates all succeed."""
    stop = threading.Event()
    faults: list[BaseException] = []

    def run(send: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                send()
        except BaseException as error:
            faults.append(error)

    senders: tuple[Callable[[], object], ...] = (
        lambda: send_raw(url, b"\x00garbage\r\n\r\n", is_all=True),
        lambda: check_reply(ask(url, "PUT", "/v1/volumes", body=BODIES["deep-lists"]), "deep"),
        lambda: check_reply(ask(url, "PUT", "/v1/allocations", body={"Allocation": {"Volumes": [None]}}), "null"),
    )
    threads = [threading.Thread(target=run, args=(send,)) for send in senders]
    for thread in threads:
        thread.start()
    try:
        for number in range(20):
            put(url, f"/v1/volume/csi/calm-{number}/create", describe_volume(f"calm-{number}"))
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert faults == []
    assert len(get(url, "/v1/volumes?type=csi&prefix=calm-")) == 20
