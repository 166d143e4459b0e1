"""Answers without a task as bytes: what the door puts around each answer, put around one that others were given too."""

from __future__ import annotations

import logging
import time
from typing import Any

import structlog

from moorage.api.entries import Entry, Headers


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

    def write(
        self, entry: Entry, request_id: str, first: Headers, *, took_s: float, waited_s: float | None = None
    ) -> bytes:
        """The head of an answer. ``first``: headers that come before all others. ``took_s``: since its request came."""
        if first is not self._first:
            self._first = first
            lines = b"".join([b"%s: %s\r\n" % line for line in first])
            self._lead = b"HTTP/1.1 200 OK\r\n%svary: %s\r\nx-request-id: " % (lines, self._vary)
        lead, own_id, took_ms = self._lead, request_id.encode("latin-1"), took_s * 1e3
        if waited_s is None:
            return b"%s%s\r\n%sserver-timing: total;dur=%.2f\r\n\r\n" % (lead, own_id, entry.head, took_ms)
        times = (waited_s * 1e3, took_ms)
        return b"%s%s\r\n%sserver-timing: wait;dur=%.2f, total;dur=%.2f\r\n\r\n" % (lead, own_id, entry.head, *times)

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
