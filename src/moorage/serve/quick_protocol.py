"""Connections whose plain reads are answered without a task, at once or when they have waited.

A connection that holds a read is answering: nothing behind it is answered before it, and it is not idle. A held read
that has to go the long way becomes the request that it would have been.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import structlog
from httptools import HttpParserError, HttpRequestParser

from moorage.api.door import WAITED
from moorage.api.entries import Headers
from moorage.api.held import HeldRead
from moorage.api.http import Waited
from moorage.api.quick import Quick
from moorage.serve.connections import Connections
from moorage.serve.protocol import LimitedProtocol

log = structlog.get_logger()

# Requests of one connection that may be answered in one turn of the loop without a task.
QUICK_MAX = 16
# A body up to this size is written in one piece with its head, which costs less than the kernel's list of pieces.
JOINED_MAX = 4096


class _PlainGet:
    """What the parser said of a request that was held."""

    def get_http_version(self) -> str:
        return "1.1"

    def get_method(self) -> bytes:
        return b"GET"

    def should_keep_alive(self) -> bool:
        return True

    def should_upgrade(self) -> bool:
        return False


_PLAIN_GET = cast(HttpRequestParser, _PlainGet())


class QuickProtocol(LimitedProtocol):
    """One connection. ``quick`` None: each request is a task."""

    __slots__ = ("_held", "_is_ending", "_is_quick", "_quick", "_quick_count")

    def __init__(self, *args: Any, book: Connections, quick: Quick | None = None, **named: Any) -> None:
        super().__init__(*args, book=book, **named)
        self._quick = quick
        # Whether the request in hand was given an answer by ``quick``, and how many of this turn of the loop were.
        self._is_quick = False
        self._quick_count = 0
        self._held: HeldRead | None = None
        self._is_ending = False

    # -- the transport -----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self._quick_count = 0
        super().data_received(data)
        if self._quick_count and not self._is_over:
            self._note_quick()

    def _disconnect(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.leave()
        super()._disconnect()

    def shutdown(self) -> None:
        """The server stops: close, after the answer that is owed."""
        self._is_ending = True
        if self._held is None:
            super().shutdown()

    # -- the parser --------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins. The one before it, if it is held, can be held no more: answers come in order."""
        if self._held is not None:
            self.pass_on(self._held.part())
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if self._quick is not None and self._may_be_quick() and self._answer_quickly(self._quick):
            self._has_head = True
            self._is_quick = True
        else:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._is_quick:
            self._in_message = False
            self._is_quick = False
        else:
            super().on_message_complete()

    # -- answers without a task --------------------------------------------------------------------------------------

    def _may_be_quick(self) -> bool:
        """Whether the request in hand may be answered without a task: a plain GET, no earlier one is owed an answer,
        and the reader takes what is written."""
        parser = self.parser
        return (
            self._quick_count < QUICK_MAX
            and not self.is_answering()
            and not self.pipeline
            and not self.flow.write_paused
            and not self._is_ending
            and not self.transport.is_closing()
            and parser.get_method() == b"GET"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
        )

    def _answer_quickly(self, quick: Quick) -> bool:
        made = quick.made
        try:
            found = quick.ask(self.url, self._head_bytes, self)
        except Exception:
            # It is met again, and answered, on the long way; the parser would take it for the client's fault.
            log.exception("quick.crashed", path=self.url[:200])
            return False
        if found is None:
            return False
        if isinstance(found, HeldRead):
            self._held = found
            # Thousands wait: what can be made again is not kept.
            self.scope = None  # type: ignore[assignment]
            return True
        # One that had to be made may have taken long: what comes behind it waits for its turn.
        self._quick_count += 1 if quick.made == made else QUICK_MAX
        self.server_state.total_requests += 1
        self.transport.write(found)
        return True

    def _note_quick(self) -> None:
        """After answers without a task: the connection rests anew, and its reader has to take them."""
        book, now_s = self._book, self.loop.time()
        if self._phase == "idle":
            book.rest(self, now_s)
        if self._is_entered and self.has_unsent():
            self._watch_reader(now_s)

    # -- held reads --------------------------------------------------------------------------------------------------

    def is_answering(self) -> bool:
        """Whether an answer is owed."""
        return self._held is not None or super().is_answering()

    def now_s(self) -> float:
        """The loop's clock."""
        return self.loop.time()

    def first_headers(self) -> Headers:
        """Those that come before all others."""
        return self.server_state.default_headers

    def give(self, head: bytes, body: bytes) -> bool:
        """Answer the held read. Whether it could be: else its reader takes nothing, or the connection ends after it.

        What ``on_response_complete`` does for others is left to ``finish``.
        """
        if self.flow.write_paused or self._is_ending:
            return False
        self._held = None
        transport = self.transport
        if transport.is_closing():
            return True
        if len(body) <= JOINED_MAX:
            transport.write(head + body)
        else:
            # The body is that of many: it is not copied for each.
            transport.writelines((head, body))
        return True

    def finish(self, now_s: float) -> None:
        """The held read is answered, some turns of the loop ago at the most: the connection rests, unless more has
        come since, and its reader has to take the answer."""
        self.server_state.total_requests += 1
        if not self._is_entered or self.transport.is_closing():
            return
        if self.has_unsent():
            self._watch_reader(now_s)
        self._note_phase()

    def pass_on(self, waited: Waited) -> None:
        """Let the held read go the long way: begin it as the request that it would have been."""
        self._held = None
        if self.transport.is_closing():
            return
        url, headers = self.url, self.headers
        parser, self.parser = self.parser, _PLAIN_GET
        try:
            self._begin_message()
            self.url = url
            self.headers += headers
            self.scope["state"][WAITED] = waited
            super().on_headers_complete()
            super().on_message_complete()
        except HttpParserError as error:
            # A target that only the long way parses: no fault of one client's may reach the others.
            self.send_400_response(str(error))
            return
        finally:
            self.parser = parser
        if self._is_ending:
            self.cycle.keep_alive = False


def bind_book(book: Connections, quick: Quick | None = None) -> Callable[..., QuickProtocol]:
    """A factory of connections that are entered in ``book``, in the place of a protocol class. ``quick``: answers that
    need no task."""

    def make(*args: Any, **named: Any) -> QuickProtocol:
        return QuickProtocol(*args, book=book, quick=quick, **named)

    return make
