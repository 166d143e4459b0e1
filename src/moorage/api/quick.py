"""Reads that can be answered at once: without a task, straight from the parser.

What such a read was answered is kept as the bytes that were sent, found by the request's target, the coding that its
client takes and what its caller may do. All of them go when anything has changed that such an answer shows, or what
anybody may do: the stamp tells. Whoever may not ask, asks for anything else, or asks in an unusual way, goes the long
way through the door: nothing here refuses, and nothing here waits.
What the door does for each request is done here too: limits, request ids, timing, the log's line; the app counts.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import structlog

from moorage.api.admission import find_secret_in
from moorage.api.encoding import BYTES_MIN, choose_coding
from moorage.api.http import Answer, Repeat, Request
from moorage.api.limits import Limits
from moorage.api.params import find_query, split_path
from moorage.api.request_ids import choose_id
from moorage.engine.service import Service
from moorage.errors import Forbidden
from moorage.rules.authorize import Acl

BODY_BYTES_MAX = 256 << 10
BYTES_MAX = 16 << 20
ENTRY_BYTES = 512
# Those that the door looks at and that this knows nothing of.
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
_READ = frozenset((b"accept-encoding", b"authorization", b"x-nomad-token", b"x-request-id"))
_KNOWN = _UNUSUAL | _READ
# What may be asked here at all; the app knows the rest.
_PREFIX = b"/v1/volume"

Headers = Sequence[tuple[bytes, bytes]]
# Coding, whether access control is off, and the merged rules: who has the same ones is answered the same.
_For = tuple[str, bool, Acl]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An answer: the head behind the request's id and before its timing, and the body. ``route``: to count it by."""

    head: bytes
    body: bytes
    route: str


class Asked(Protocol):
    """The app, as far as it answers at once."""

    def answer_now(self, request: Request) -> Answer | None:
        """The answer; None for what must wait, is refused, or is nothing to be given again."""
        ...

    def count_now(self, route: str, took_s: float) -> None:
        """Count an answer that was given again."""
        ...


class Quick:
    """Answers at once. ``compress``: None for what is too large; ``vary``: the value of that header."""

    def __init__(
        self,
        service: Service,
        app: Asked,
        *,
        compress: Callable[[bytes, str], bytes | None],
        limits: Limits,
        vary: bytes,
    ) -> None:
        self.bytes = 0
        # How many were given that had been given before, and how many were made here.
        self.given = self.made = 0
        self._service = service
        self._app = app
        self._compress = compress
        self._headers_max = limits.headers_max
        self._head_bytes_max = min(limits.header_bytes_max, limits.target_bytes_max)
        self._vary = vary
        self._log: Any = structlog.get_logger().bind()
        self._is_debugging = bool(self._log.is_enabled_for(logging.DEBUG))
        self._stamp: object = None
        self._entries: OrderedDict[bytes, dict[_For, Entry]] = OrderedDict()

    def ask(self, target: bytes, headers: Headers, head_bytes: int, *, first: Headers, client: str) -> bytes | None:
        """The bytes of the answer to a GET without a body; None: it has to go the long way.

        ``head_bytes``: the size of target and headers; ``first``: headers that come before all others.
        """
        if not target.startswith(_PREFIX) or len(headers) > self._headers_max or head_bytes > self._head_bytes_max:
            return None
        began_s = time.perf_counter()
        given: dict[bytes, str] = {}
        for name, value in headers:
            if name in _KNOWN:
                if name in _UNUSUAL and (name != b"connection" or value.lower() != b"keep-alive"):
                    return None
                given[name] = value.decode("latin-1")
        access = self._find_access(given.get(b"x-nomad-token", ""), given.get(b"authorization", ""))
        if access is None:
            return None
        accepted = given.get(b"accept-encoding")
        key = (choose_coding(accepted) if accepted else "", *access)
        entry = self._find(target, key)
        if entry is None:
            entry = self._make(target, headers, key)
            if entry is None:
                return None
            self.made += 1
        else:
            self.given += 1
            self._app.count_now(entry.route, time.perf_counter() - began_s)
        request_id = choose_id(given.get(b"x-request-id", ""), self._service.chance.new_id)
        took_s = time.perf_counter() - began_s
        if self._is_debugging:
            self._log.debug(
                "request.answered",
                method="GET",
                path=target.partition(b"?")[0].decode("latin-1")[:200],
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

    def _find_access(self, token: str, authorization: str) -> tuple[bool, Acl] | None:
        """What the caller may do, as far as it tells answers apart; None for one that is to be refused."""
        try:
            access = self._service.accesses.resolve(find_secret_in(token, authorization))
        except Forbidden:
            return None
        # A node's own secret has no rules, as the anonymous caller may have none: it goes the long way.
        return None if access.caller.kind == "node" else (access.is_open, access.acl)

    # -- what was answered -------------------------------------------------------------------------------------------

    def _find(self, target: bytes, key: _For) -> Entry | None:
        if self._stamp != self._service.shelf.stamp:
            return None
        of_target = self._entries.get(target)
        return of_target.get(key) if of_target is not None else None

    def _make(self, target: bytes, headers: Headers, key: _For) -> Entry | None:
        """Ask the app, and keep what it says. What of a target may mean something else to the door is not asked."""
        path, _, query = target.partition(b"?")
        if b"index=" in query or b"//" in path or b"#" in target or target.endswith(b"?") or not target.isascii():
            return None
        request = Request(
            method="GET",
            path=path.decode("latin-1"),
            parts=split_path(path),
            query=find_query(query) if query else {},
            raw_query=query,
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in headers},
        )
        answer = self._app.answer_now(request)
        if answer is None or answer.repeat is None or answer.content_type is None:
            return None
        body, coding = answer.body, key[0]
        lines = [(b"content-type", answer.content_type.encode())]
        lines += [
            (name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in answer.headers.items()
        ]
        if coding and len(body) >= BYTES_MIN:
            packed = self._compress(body, coding)
            if packed is None:
                return None
            body = packed
            lines.append((b"content-encoding", coding.encode()))
        lines.append((b"content-length", str(len(body)).encode()))
        head = b"".join([b"%s: %s\r\n" % (name.lower(), value) for name, value in lines])
        entry = Entry(head, body, answer.repeat.route)
        self._keep(target, key, entry, answer.repeat)
        return entry

    def _keep(self, target: bytes, key: _For, entry: Entry, repeat: Repeat) -> None:
        if len(entry.body) > BODY_BYTES_MAX:
            return
        if self._stamp != repeat.stamp:
            self._stamp = repeat.stamp
            self._entries.clear()
            self.bytes = 0
        self._entries.setdefault(target, {})[key] = entry
        self.bytes += _weigh(target, entry)
        while self.bytes > BYTES_MAX:
            oldest, of_oldest = self._entries.popitem(last=False)
            self.bytes -= sum(_weigh(oldest, entry) for entry in of_oldest.values())


def _weigh(target: bytes, entry: Entry) -> int:
    return len(entry.body) + len(target) + len(entry.head) + ENTRY_BYTES
