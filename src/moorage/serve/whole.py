"""Requests that have come whole, and answers that go out whole: nearly all of them.

The messages between an application and its server are made for bodies that come and go in pieces. A body that is there
is taken, and a short answer is given, with one plain call; the bytes are those of the messages' way. Whatever is
unusual is not done here, and goes that way.
"""

from __future__ import annotations

import asyncio
import re

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

# What the messages' way refuses in a header's value.
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
Headers = list[tuple[bytes, bytes]]


class WholeExchange:
    """One request and its answer."""

    __slots__ = ("_cycle", "_transport")

    def __init__(self, cycle: RequestResponseCycle, transport: asyncio.Transport) -> None:
        self._cycle = cycle
        self._transport = transport

    def take(self, size_max: int) -> bytes | None:
        """The body, if it has come whole, is not longer than that, and nobody has to be told to send it."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue or len(cycle.body) > size_max:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        cycle.flow.resume_reading()
        cycle.message_event.clear()
        return body

    def give(self, status: int, headers: Headers, body: bytes) -> bool:
        """Answer, if that needs one write and nothing more; False: nothing has happened. ``headers``: with the body's
        length among them."""
        cycle = self._cycle
        if (
            cycle.response_started
            or cycle.disconnected
            or not cycle.keep_alive
            or cycle.flow.write_paused
            or cycle.scope["method"] == "HEAD"
            or status in (204, 304)
        ):
            return False
        lines = [STATUS_LINE[status]]
        for name, value in cycle.default_headers + headers:
            name = name.lower()
            if name == b"connection" or name == b"transfer-encoding":
                return False
            lines += (name, b": ", value, b"\r\n")
        if _CONTROL.search(b"".join(lines[3::4])):
            return False
        lines.append(b"\r\n")
        lines.append(body)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        self._transport.write(b"".join(lines))
        cycle.message_event.set()
        cycle.on_response()
        return True
