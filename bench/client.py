"""A client that asks as fast as it gets answers: some connections, each with one request at a time."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

CALL_S = 300.0
# Files a process needs besides its connections.
FILES_SPARE = 100


class Refused(Exception):
    """A server answered something else than it was to, or did not answer."""


def call(host: str, port: int, what: tuple[str, str], body: object = None) -> tuple[dict[str, str], bytes]:
    """One request (``what``: its method and target) on a connection of its own that must succeed: the headers and the
    body. Raises Refused."""
    method, target = what
    connection = http.client.HTTPConnection(host, port, timeout=CALL_S)
    try:
        connection.request(method, target, None if body is None else json.dumps(body).encode())
        answer = connection.getresponse()
        data = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Refused(f"{host}:{port} gave no answer to {method} {target}: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise Refused(tell_refusal(f"{host}:{port}", what, answer.status, data))
    return {k.lower(): v for k, v in answer.getheaders()}, data


def tell_refusal(site: str, what: tuple[str, str], status: int, body: bytes) -> str:
    """An answer that is an error, for people."""
    return f"{site} answered {status} to {' '.join(what)}: {body[:300].decode('utf-8', 'replace').strip()}"


def choose_source(number: int, connections: int) -> tuple[str, int] | None:
    """The address that this one of so many connections comes from: at most 1,000 come from one."""
    return (f"127.0.0.{2 + number // 1000}", 0) if connections > 1000 else None


def allow_files(connections: int) -> None:
    """Let this process have so many connections open, if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + FILES_SPARE
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


@dataclass
class Got:
    """What came of a run: requests, seconds, each request's own time, statuses other than 200, bytes."""

    count: int = 0
    took_s: float = 0.0
    times_s: list[float] = field(default_factory=list)
    bad: int = 0
    bytes: int = 0

    @property
    def per_s(self) -> float:
        """Requests a second."""
        return self.count / self.took_s if self.took_s else 0.0

    def percentile_ms(self, share: float) -> float:
        """The time below which this share of the requests was, in milliseconds."""
        return find_percentile_ms(self.times_s, share) if self.times_s else 0.0


def find_percentile_ms(times_s: Sequence[float], share: float) -> float:
    """The time below which this share of all was, in milliseconds."""
    return sorted(times_s)[min(len(times_s) - 1, int(len(times_s) * share))] * 1e3


class Asker(asyncio.Protocol):
    """One connection. ``make``: the bytes of the next request; None: there is none. ``is_staying``: it is left open
    then."""

    def __init__(
        self, make: Callable[[], bytes | None], got: Got, done: Callable[[], None], *, is_staying: bool = False
    ) -> None:
        self._is_staying = is_staying
        self._make, self._got, self._done = make, got, done
        self._head = bytearray()
        self._left = -1
        # Of a body in chunks: bytes until the next chunk's size, with which _head begins then; is it the last.
        self._skip, self._is_last = -1, False
        self._is_over = False
        self._sent_s = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask the first question."""
        # Not all of them are of that class.
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        try:
            request = None if self._is_over else self._make()
        except Exception:
            self._finish()
            raise
        assert self._transport is not None
        if request is None:
            self._finish()
            return
        self._sent_s = time.perf_counter()
        self._transport.write(request)

    def _finish(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._done()
        if not self._is_staying:
            self.close()

    def close(self) -> None:
        """End the connection."""
        assert self._transport is not None
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """A part of an answer."""
        if self._skip >= 0:
            self._take_chunks(data)
            return
        if self._left < 0:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._head[:end]).lower()
            self._got.bad += not head.startswith(b"http/1.1 200")
            if b"transfer-encoding: chunked" in head:
                del self._head[: end + 4]
                self._skip, self._is_last = 0, False
                self._take_chunks(b"")
                return
            length = head[head.index(b"content-length: ") + 16 :].partition(b"\r\n")[0]
            self._left = int(length)
            data = bytes(self._head[end + 4 :])
            self._head.clear()
        self._left -= len(data)
        self._got.bytes += len(data)
        if self._left <= 0:
            self._left = -1
            self._end_answer()

    def _take_chunks(self, data: bytes) -> None:
        """A part of a body in chunks."""
        held = self._head
        held += data
        while held:
            taken = min(self._skip, len(held))
            del held[:taken]
            self._skip -= taken
            end = held.find(b"\r\n")
            if self._skip or (end < 0 and not self._is_last):
                return
            if self._is_last:
                self._skip = -1
                self._end_answer()
                return
            size = int(held[:end], 16)
            self._got.bytes += size
            del held[: end + 2]
            # With the line's end behind it.
            self._skip, self._is_last = size + 2, not size

    def _end_answer(self) -> None:
        self._got.count += 1
        self._got.times_s.append(time.perf_counter() - self._sent_s)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closed it, or we did."""
        if not self._is_over:
            self._is_over = True
            self._got.bad += 1
            self._done()


async def drive(
    host: str,
    port: int,
    make: Callable[[], bytes | None],
    *,
    connections: int,
    seconds: float | None = None,
    is_closing_last: bool = False,
) -> Got:
    """Ask over so many connections until ``make`` has no more, or for so long. ``is_closing_last``: no connection is
    closed before the last answer has come. At most 1,000 of them come from one address."""
    loop = asyncio.get_running_loop()
    got, ends_s = Got(), None if seconds is None else time.perf_counter() + seconds
    left, over = connections, asyncio.Event()

    def next_request() -> bytes | None:
        return None if ends_s is not None and time.perf_counter() >= ends_s else make()

    def done() -> None:
        nonlocal left
        left -= 1
        if not left:
            over.set()

    began_s = time.perf_counter()
    askers: list[Asker] = []
    for number in range(connections):
        own = choose_source(number, connections)
        _, asker = await loop.create_connection(
            lambda: Asker(next_request, got, done, is_staying=is_closing_last), host, port, local_addr=own
        )
        askers.append(asker)
    await over.wait()
    got.took_s = time.perf_counter() - began_s
    for asker in askers if is_closing_last else ():
        asker.close()
    return got


def request(method: str, target: str, body: bytes = b"", *, is_gzip: bool = False) -> bytes:
    """The bytes of a request."""
    coding = "Accept-Encoding: gzip\r\n" if is_gzip else ""
    length = f"Content-Length: {len(body)}\r\n" if method != "GET" else ""
    return f"{method} {target} HTTP/1.1\r\nHost: bench\r\n{coding}{length}\r\n".encode() + body
