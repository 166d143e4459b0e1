"""HTTP on one connection: uvicorn's protocol with limits of size, number and time.

uvicorn bounds neither the time that a head or a body may take nor what a reader leaves untaken, and its parser bounds
no size. Each connection is entered in the book of ``Connections`` under what it is at; nothing here has a timer.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from typing import Any, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from moorage.api.door import LEAVING, PEER, WHOLE
from moorage.api.limits import client_of
from moorage.api.once import Once
from moorage.model.identity import Peer
from moorage.serve.connections import Connection, Connections, Overdue, Refused
from moorage.serve.corking import CorkedTransport
from moorage.serve.lines import Line
from moorage.serve.tls import find_peer
from moorage.serve.whole import WholeExchange

# Above this the parser splits no target; the app's own limit is not above it.
TARGET_BYTES_MAX = 65535
# Beyond the app's own limits, which give an answer with all its headers, this is where reading a head ends.
HEAD_SLACK_BYTES = 4 << 20
HEADERS_SLACK = 4096

_Phase = Literal["head", "body", "busy", "idle"]
_STATUS = {400: b"Bad Request", 408: b"Request Timeout", 414: b"URI Too Long", 429: b"Too Many Requests"}
_STATUS |= {431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    # Beside uvicorn's own: with them in one, its table of attributes would be five times as large, for each connection.
    __slots__ = (
        "_body_began_s",
        "_body_bytes",
        "_book",
        "_corked",
        "_has_head",
        "_head_bytes",
        "_in_message",
        "_is_entered",
        "_is_over",
        "_leaving",
        "_looked_bytes",
        "_looked_s",
        "_peer",
        "_phase",
        "_refused",
        "_running",
        "_untaken",
        "client_key",
        "handshake",
    )

    def __init__(self, *args: Any, book: Connections, **named: Any) -> None:
        super().__init__(*args, **named)
        self._book = book
        self.client_key = ""
        # The place in the book that the connection had so far, where it came by TLS.
        self.handshake: Connection | None = None
        self._phase: _Phase = "head"
        self._in_message = False
        self._has_head = False
        self._head_bytes = 0
        self._is_over = False
        self._peer = Peer()
        self._leaving = Once()
        self._is_entered = False
        self._refused: tuple[int, str] | None = None
        # Whose answer is being made; uvicorn's ``cycle`` is the request that came last, which may wait behind it.
        self._running: RequestResponseCycle | None = None
        self._corked: CorkedTransport | None = None
        # Of the body in hand: when it began, what has come, and what had come at the last look and when.
        self._body_began_s = 0.0
        self._body_bytes = 0
        self._looked_bytes = 0
        self._looked_s = 0.0
        # What the reader had not taken at the last look; None: there was none since something was written.
        self._untaken: int | None = None

    # -- the transport -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self.client_key = client_of(self.client[0]) if self.client else ""
        shown = transport.get_extra_info("ssl_object")
        self._peer = find_peer(shown.getpeercert()) if shown is not None else Peer()
        now_s = self.loop.time()
        refused = None
        if self.handshake is not None:
            self._book.replace(self.handshake, self)
            self.handshake = None
        else:
            refused = self._book.admit(self, now_s)
        self._is_entered = True
        if refused is not None:
            self._refuse_connection(refused)
            return
        self._book.heads.enter(self, now_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._is_over = True
        if self._is_entered:
            self._is_entered = False
            self._book.leave(self)
        self._disconnect()
        super().connection_lost(exc)

    def _disconnect(self) -> None:
        """Let the request in hand end; those behind it do not begin. uvicorn tells only the one that came last."""
        self.pipeline.clear()
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        self._leaving.set()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._is_over:
            return
        if self._phase == "body":
            self._body_bytes += len(data)
        super().data_received(data)
        if not self._is_over:
            self._note_phase()

    def pause_writing(self) -> None:
        """The reader does not take what is written."""
        if self._is_entered:
            self._watch_reader(self.loop.time())
        super().pause_writing()

    def resume_writing(self) -> None:
        """The reader takes again."""
        self._untaken = None
        if self.is_answering():
            self._book.unsent.leave(self)
        super().resume_writing()

    # -- the parser --------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        if len(self.pipeline) >= self._book.limits.pipelined_max:
            self._fail(400, f"more than {self._book.limits.pipelined_max} requests without an answer", "pipelined")
        self._head_bytes = 0
        self._in_message, self._has_head = True, False
        self._begin_message()

    def _begin_message(self) -> None:
        super().on_message_begin()
        self.scope["state"] = {PEER: self._peer, LEAVING: self._leaving}

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._head_bytes += len(url)
        if self._head_bytes > TARGET_BYTES_MAX:
            text = f"the request's path and query are longer than {TARGET_BYTES_MAX} bytes"
            self._fail(414, text, "target_bytes")
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._head_bytes += len(name) + len(value)
        limits = self._book.limits
        if self._head_bytes > limits.header_bytes_max + HEAD_SLACK_BYTES:
            self._fail(431, f"the request's headers are larger than {limits.header_bytes_max} bytes", "header_bytes")
        if len(self.headers) > limits.headers_max + HEADERS_SLACK:
            self._fail(431, f"the request has more than {limits.headers_max} headers", "headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._has_head = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_message = False
        super().on_message_complete()

    def _fail(self, status: int, text: str, limit: str) -> None:
        """Stop parsing; the answer is given by ``send_400_response``."""
        self._refused = (status, text)
        self._book.hit(limit, self.loop.time())
        raise httptools.HttpParserError(text)

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser refused, and close."""
        status, text = self._refused or (400, msg)
        self._answer(status, text)

    # -- what it is at -----------------------------------------------------------------------------------------------

    def _find_phase(self) -> _Phase:
        if self._in_message and self._has_head:
            return "body"
        if self.is_answering():
            return "busy"
        return "head" if self._in_message else "idle"

    def is_answering(self) -> bool:
        """Whether an answer is owed. (uvicorn's attribute is None before the first request, whatever its type says.)"""
        return bool(self.cycle) and not self.cycle.response_complete

    def _note_phase(self) -> None:
        phase, before = self._find_phase(), self._phase
        # A new connection that has sent nothing of a request yet is not idle: its time runs.
        if phase == before or (phase == "idle" and before == "head" and not self._has_head):
            return
        self._phase = phase
        book = self._book
        now_s = self.loop.time()
        if before == "idle":
            book.rise(self)
        elif before != "busy":
            (book.heads if before == "head" else book.bodies).leave(self)
        if phase == "idle":
            book.rest(self, now_s)
        elif phase != "busy":
            line: Line[Any] = book.heads if phase == "head" else book.bodies
            line.enter(self, now_s)
            self._body_began_s = self._looked_s = now_s
            self._body_bytes = self._looked_bytes = 0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        self._corked = CorkedTransport(self.transport, self.loop)
        cycle.transport = self._corked  # type: ignore[assignment]  # it has all that a cycle uses
        cycle.scope["state"][WHOLE] = WholeExchange(cycle, self.transport)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """An answer is written: begin the next request that waits. In place of uvicorn's, which has a timer each."""
        if self._corked is not None:
            self._corked.flush()
            self._corked = None
        self.server_state.total_requests += 1
        if self._is_entered and self.has_unsent():
            self._watch_reader(self.loop.time())
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            self._note_phase()

    def _watch_reader(self, now_s: float) -> None:
        """See to it from now on that the reader takes what is written."""
        self._untaken = None
        self._book.unsent.enter(self, now_s)

    # -- the book's view ---------------------------------------------------------------------------------------------

    def has_unsent(self) -> bool:
        """Whether its reader has not taken everything yet."""
        return self.transport.get_write_buffer_size() > 0

    def is_reader_overdue(self, wait_s: float) -> bool:
        """Whether the reader has taken too little in ``wait_s``, which is when this was last asked; at first not."""
        before, self._untaken = self._untaken, self._count_untaken()
        return before is not None and before - self._untaken < self._book.limits.write_rate_min * wait_s

    def _count_untaken(self) -> int:
        """Bytes that the reader's host has not confirmed: a slow reader shows in the kernel's buffer first."""
        sock = self.transport.get_extra_info("socket")
        try:
            found = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
        except OSError:
            return int(self.transport.get_write_buffer_size())
        return int(self.transport.get_write_buffer_size()) + int(struct.unpack("i", found)[0])

    def is_body_overdue(self, now_s: float) -> bool:
        """Whether the body in hand came too slowly since this was last asked, or for too long altogether."""
        limits = self._book.limits
        if self.flow.read_paused:
            # It stands behind a request that is not answered yet: we do not read, so nothing can come.
            self._looked_s = self._body_began_s = now_s
            return False
        came, waited_s = self._body_bytes - self._looked_bytes, now_s - self._looked_s
        self._looked_bytes, self._looked_s = self._body_bytes, now_s
        return came < limits.body_rate_min * waited_s or now_s - self._body_began_s > limits.body_s

    def end(self, why: Overdue | Literal["room"]) -> None:
        """Say why where that can be said, and close."""
        limits = self._book.limits
        if why == "head_time" and self._in_message:
            self._answer(408, f"the request's head did not arrive within {limits.head_s:g} s")
        elif why == "body_time":
            text = f"the request's body did not arrive within {limits.body_s:g} s, or came slower than"
            self._answer(408, f"{text} {limits.body_rate_min} bytes a second")
        else:
            self._book.rise(self)
            self._is_over = True
            self.transport.close()

    def cut(self) -> None:
        """Close at once, whatever has not been sent yet."""
        self._is_over = True
        self._disconnect()
        self.transport.abort()

    def _refuse_connection(self, refused: Refused) -> None:
        limits = self._book.limits
        if refused == "connections_per_client":
            text = f"{limits.connections_per_client_max} connections from this address are open, which is the limit"
            self._answer(429, f"{text}: close one, or use one for many requests", retry=True)
        else:
            self._answer(503, f"{self._book.connections_max} connections are open, which is the limit", retry=True)

    def _answer(self, status: int, text: str, *, retry: bool = False) -> None:
        """Write an answer of our own, unless one is under way, and close once the client has had time to read it."""
        self._is_over = True
        if self.is_answering():
            is_own = self._in_message and self._has_head and not self.pipeline
            is_begun = self._running is not None and self._running.response_started
            self._disconnect()
            if is_begun or not is_own:
                # The client would take what we say for the answer to an earlier request.
                self.transport.abort()
                return
        body = text.encode()
        head = b"HTTP/1.1 %d %s\r\ncontent-type: text/plain; charset=utf-8\r\n" % (status, _STATUS[status])
        head += b"x-request-id: %s\r\n" % self._book.new_id().encode("ascii")
        head += b"retry-after: 1\r\n" if retry else b""
        self.transport.write(b"%sconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (head, len(body), body))
        self.flow.resume_reading()
        if self.transport.can_write_eof() and self._book.linger(self, self.loop.time()):
            self.transport.write_eof()
        else:
            self.transport.close()

    # uvicorn's timers, which the book replaces.

    def _unset_keepalive_if_required(self) -> None:
        pass
