"""A client that asks as fast as it gets answers: some connections, each with one request at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast


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
        found = sorted(self.times_s)
        return found[min(len(found) - 1, int(len(found) * share))] * 1e3 if found else 0.0


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
        if self._left < 0:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._head[:end]).lower()
            self._got.bad += not head.startswith(b"http/1.1 200")
            length = head[head.index(b"content-length: ") + 16 :].partition(b"\r\n")[0]
            self._left = int(length)
            data = bytes(self._head[end + 4 :])
            self._head.clear()
        self._left -= len(data)
        self._got.bytes += len(data)
        if self._left <= 0:
            self._left = -1
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
        own = (f"127.0.0.{2 + number // 1000}", 0) if connections > 1000 else None
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
