"""Reads that are answered without a task, straight from the parser: at once, or when they have waited.

Whoever may not ask, asks for anything else, or asks in an unusual way, goes the long way through the door: nothing here
refuses. What the door does for each request is done here too: limits, request ids, timing, the log's line; the app
counts.
"""

from __future__ import annotations

import time

from moorage.api.admission import find_access, find_secret_in
from moorage.api.encoding import choose_coding
from moorage.api.entries import Asked, Entries, read_request
from moorage.api.held import HeldConnection, HeldRead, HeldReads, strip_waiting
from moorage.api.limits import Limits
from moorage.api.replies import Replies
from moorage.api.request_ids import choose_id
from moorage.engine.service import Service

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
# What they may say without being unusual.
_HARMLESS = {b"connection": b"keep-alive", b"content-length": b"0"}
_READ = frozenset((b"accept-encoding", b"authorization", b"x-nomad-token", b"x-request-id"))
_KNOWN = _UNUSUAL | _READ
# What may be asked here at all, and what may wait; the app knows the rest.
_PREFIX = b"/v1/volume"
_PREFIX_HELD = b"/v1/"
_INDEX = b"index="


class Quick:
    """Answers them."""

    def __init__(
        self, service: Service, app: Asked, entries: Entries, replies: Replies, *, held: HeldReads, limits: Limits
    ) -> None:
        # How many were given that had been given before, and how many were made here.
        self.given = self.made = 0
        self.held = held
        self.entries = entries
        self._service = service
        self._app = app
        self._replies = replies
        self._headers_max = limits.headers_max
        self._head_bytes_max = min(limits.header_bytes_max, limits.target_bytes_max)

    def ask(self, target: bytes, head_bytes: int, connection: HeldConnection) -> bytes | HeldRead | None:
        """The bytes of the answer to a GET without a body; or it waits; None: it has to go the long way.

        ``head_bytes``: the size of target and headers.
        """
        may_wait = _INDEX in target and target.startswith(_PREFIX_HELD)
        headers = connection.headers
        if not (may_wait or target.startswith(_PREFIX)):
            return None
        if len(headers) > self._headers_max or head_bytes > self._head_bytes_max:
            return None
        began_s = time.perf_counter()
        given: dict[bytes, str] = {}
        for name, value in headers:
            if name in _KNOWN:
                if name in _UNUSUAL and value.lower() != _HARMLESS.get(name):
                    return None
                given[name] = value.decode("latin-1")
        secret = find_secret_in(given.get(b"x-nomad-token", ""), given.get(b"authorization", ""))
        access = find_access(self._service, secret)
        if access is None:
            return None
        accepted = given.get(b"accept-encoding")
        coding = choose_coding(accepted) if accepted else ""
        given_id = given.get(b"x-request-id", "")
        if may_wait:
            plain = strip_waiting(target)
            if plain is None:
                return None
            request_id = choose_id(given_id, self._service.chance.new_id)
            question = self.held.find_question(plain, coding, secret)
            read = HeldRead(
                self.held, question, connection, caller=access.caller, request_id=request_id, began_s=began_s
            )
            return self.held.hold(target, read)
        key = (coding, access.is_open, access.acl)
        entry = self.entries.find(target, key)
        if entry is None:
            request = read_request(target, headers)
            entry = self.entries.make(request, target, key) if request is not None else None
            if entry is None:
                return None
            self.made += 1
        else:
            self.given += 1
        self._app.count_now(entry.route, time.perf_counter() - began_s)
        request_id = choose_id(given_id, self._service.chance.new_id)
        replies = self._replies
        if replies.is_debugging:
            replies.note(target, request_id, client=connection.client_key, began_s=began_s)
        took_s = time.perf_counter() - began_s
        return replies.write(entry, request_id, connection.first_headers(), took_s=took_s) + entry.body
