"""Whatever a client sends gets an answer, never a traceback, and the server goes on serving. Bodies: test_bad_bodies.

One server for all tests here: each of them finds it as the ones before left it.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable

import pytest
from asking import ask, describe_volume, get, put
from rough_client import check_reply, send_raw

MIB = 1 << 20


@pytest.fixture
def url(unharmed_url: str) -> str:
    """The server's address."""
    return unharmed_url


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
    faults: list[Exception] = []

    def run(send: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                send()
        except (AssertionError, OSError, http.client.HTTPException) as error:
            faults.append(error)

    senders: tuple[Callable[[], object], ...] = (
        lambda: send_raw(url, b"\x00garbage\r\n\r\n", is_all=True),
        lambda: check_reply(ask(url, "PUT", "/v1/volumes", body=b'{"Volumes": ' + b"[" * 100_000), "deep"),
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
