"""Answers without a task as bytes: what the door puts around each answer, put around one that others were given too."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any, Protocol

import structlog

from moorage.api.entries import Entry, Headers


class WaitedRead(Protocol):
    """A read that has waited: the bytes of its ``request_id``, and when it came and when its wait began, of
    ``perf_counter``."""

    request_id: bytes
    began_s: float
    held_s: float


class Replies:
    """Writes them. ``vary``: the value of that header."""

    def __init__(self, vary: bytes) -> None:
        self._vary = vary
        self._log: Any = structlog.get_logger().bind()
        # Whether there is anything to note.
        self.is_debugging = bool(self._log.is_enabled_for(logging.DEBUG))
        # The head up to the request's id is alike for all that are answered in the same second.
        self._first: Headers | None = None
        self._lead = b""

    def write(self, entry: Entry, request_id: str, first: Headers, *, took_s: float) -> bytes:
        """The head of an answer. ``first``: headers that come before all others. ``took_s``: since its request came."""
        parts = (self._find_lead(first), request_id.encode("latin-1"), entry.head, took_s * 1e3)
        return b"%s%s\r\n%sserver-timing: total;dur=%.2f\r\n\r\n" % parts

    def write_waited(self, entry: Entry, reads: Iterable[WaitedRead], first: Headers, now_s: float) -> list[bytes]:
        """The heads of one answer for all these, which have waited for it. ``now_s``: of ``perf_counter``."""
        lead, head = self._find_lead(first), entry.head
        return [
            b"%s%s\r\n%sserver-timing: wait;dur=%.2f, total;dur=%.2f\r\n\r\n"
            % (lead, read.request_id, head, (now_s - read.held_s) * 1e3, (now_s - read.began_s) * 1e3)
            for read in reads
        ]

    def _find_lead(self, first: Headers) -> bytes:
        if first is not self._first:
            self._first = first
            lines = b"".join([b"%s: %s\r\n" % line for line in first])
            self._lead = b"HTTP/1.1 200 OK\r\n%svary: %s\r\nx-request-id: " % (lines, self._vary)
        return self._lead

    def note(self, target: bytes, request_id: str, *, client: str, began_s: float) -> None:
        """The log's line of an answer."""
        if self.is_debugging:
            self._log.debug(
                "request.answered",
                method="GET",
                path=target.partition(b"?")[0].decode("latin-1")[:200],
                status=200,
                client=client,
                took_s=round(time.perf_counter() - began_s, 6),
                request_id=request_id,
            )
