"""Reads that were answered before and would be answered alike: given again without a task, straight from the parser.

An entry is what one answer sent, found by the request's target, the coding its client takes and what its caller may do.
All entries go when anything has changed that such an answer shows, or what anybody may do: the stamp tells. Whoever may
not ask, asks for anything else, or asks in an unusual way, goes the long way: nothing here refuses.
What the long way does for each request is done here too: request ids, timing, counting, the log's line.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import structlog

from moorage.api.admission import find_secret_in
from moorage.api.encoding import choose_coding
from moorage.api.http import Repeat
from moorage.api.limits import Limits
from moorage.api.metrics import RequestMeter
from moorage.api.request_ids import choose_id
from moorage.engine.service import Service
from moorage.errors import Forbidden
from moorage.rules.authorize import Acl

BODY_BYTES_MAX = 256 << 10
BYTES_MAX = 16 << 20
ENTRY_BYTES = 512
# Those that the long way looks at and that this one knows nothing of.
_UNUSUAL = frozenset(
    (
        b"access-control-request-method",
        b"connection",
        b"content-length",
        b"expect",
        b"origin",
        b"transfer-encoding",
        b"upgrade",
    )
)
_SEEN = {b"accept-encoding", b"authorization", b"x-nomad-token", b"x-request-id"}
_KNOWN = _UNUSUAL | _SEEN

Headers = Sequence[tuple[bytes, bytes]]
# Coding, whether access control is off, and the merged rules: who has the same ones is answered the same.
_For = tuple[str, bool, Acl]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An answer: the head behind the request's id and before its timing, and the body. ``route``: to count it by."""

    head: bytes
    body: bytes
    route: str
    path: str


class Quick:
    """The answers. ``vary``: the value of that header."""

    def __init__(self, service: Service, meter: RequestMeter, limits: Limits, *, vary: bytes) -> None:
        self.bytes = 0
        self.given = 0
        self._service = service
        self._meter = meter
        self._limits = limits
        self._vary = vary
        self._log: Any = structlog.get_logger().bind()
        self._stamp: object = None
        self._entries: OrderedDict[bytes, dict[_For, Entry]] = OrderedDict()

    def find(
        self, target: bytes, headers: Headers, head_bytes: int, *, first: Sequence[tuple[bytes, bytes]], client: str
    ) -> bytes | None:
        """The bytes of an answer to a GET without a body; None: it has to go the long way.

        ``head_bytes``: the size of target and headers; ``first``: headers that come before all others.
        """
        of_target = self._entries.get(target)
        limits = self._limits
        if of_target is None or len(headers) > limits.headers_max or head_bytes > limits.header_bytes_max:
            return None
        began_s = time.perf_counter()
        if self._stamp != self._service.shelf.stamp:
            return None
        given: dict[bytes, str] = {}
        for name, value in headers:
            if name in _KNOWN:
                if name in _UNUSUAL and (name != b"connection" or value.lower() != b"keep-alive"):
                    return None
                given[name] = value.decode("latin-1")
        access = self._find_access(given)
        if access is None:
            return None
        entry = of_target.get((choose_coding(given.get(b"accept-encoding", "")), *access))
        if entry is None:
            return None
        request_id = choose_id(given.get(b"x-request-id", ""), self._service.chance.new_id)
        self.given += 1
        took_s = time.perf_counter() - began_s
        self._meter.note("GET", entry.route, 200, took_s)
        self._log.debug(
            "request.answered",
            method="GET",
            path=entry.path,
            status=200,
            client=client,
            took_s=round(took_s, 6),
            request_id=request_id,
        )
        lines = b"".join([b"%s: %s\r\n" % line for line in first])
        return b"HTTP/1.1 200 OK\r\n%svary: %s\r\nx-request-id: %s\r\n%sserver-timing: total;dur=%.2f\r\n\r\n%s" % (
            lines,
            self._vary,
            request_id.encode("latin-1"),
            entry.head,
            took_s * 1e3,
            entry.body,
        )

    def _find_access(self, given: Mapping[bytes, str]) -> tuple[bool, Acl] | None:
        """What the caller may do, as far as it tells answers apart; None for one that is to be refused."""
        secret = find_secret_in(given.get(b"x-nomad-token", ""), given.get(b"authorization", ""))
        try:
            access = self._service.accesses.resolve(secret)
        except Forbidden:
            return None
        # A node's own secret has no rules, as the anonymous caller may have none: it goes the long way.
        return None if access.caller.kind == "node" else (access.is_open, access.acl)

    def keep(
        self, scope: Mapping[str, Any], headers: Mapping[str, str], lines: Headers, *, body: bytes, repeat: Repeat
    ) -> None:
        """Keep what was just answered to the request of an ASGI scope: ``lines`` are the headers of the answer between
        its id and its timing."""
        stamp = self._service.shelf.stamp
        if repeat.stamp != stamp or len(body) > BODY_BYTES_MAX or "origin" in headers:
            return
        if self._stamp != stamp:
            self._stamp = stamp
            self._entries.clear()
            self.bytes = 0
        known = (b"x-nomad-token", b"authorization")
        access = self._find_access({name: headers.get(name.decode(), "") for name in known})
        if access is None:
            return
        query: bytes = scope["query_string"]
        target: bytes = scope["raw_path"] + (b"?" + query if query else b"")
        key = (choose_coding(headers.get("accept-encoding", "")), *access)
        of_target = self._entries.setdefault(target, {})
        if key in of_target:
            return
        head = b"".join(b"%s: %s\r\n" % (name.lower(), value) for name, value in lines)
        path = target.partition(b"?")[0].decode("latin-1")[:200]
        of_target[key] = Entry(head, body, repeat.route, path)
        self.bytes += len(body) + len(target) + len(head) + ENTRY_BYTES
        while self.bytes > BYTES_MAX:
            oldest, of_oldest = self._entries.popitem(last=False)
            for entry in of_oldest.values():
                self.bytes -= len(entry.body) + len(oldest) + len(entry.head) + ENTRY_BYTES
