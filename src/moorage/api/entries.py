"""Answers as the bytes that were sent, kept for whoever asks the same and may do the same.

They are found by the request's target, the coding that its client takes and what its caller may do. All of them go when
anything has changed that such an answer shows, or what anybody may do: the stamp tells.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from moorage.api.encoding import BYTES_MIN
from moorage.api.http import Answer, Hold, Request, Waited
from moorage.api.params import find_query, split_path
from moorage.engine.service import Service
from moorage.rules.authorize import Acl

BODY_BYTES_MAX = 256 << 10
BYTES_MAX = 16 << 20
ENTRY_BYTES = 512

Headers = Sequence[tuple[bytes, bytes]]
# Coding, whether access control is off, and the merged rules: who has the same ones is answered the same.
For = tuple[str, bool, Acl]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An answer: the head behind the request's id and before its timing, and the body. ``route``: to count it by."""

    head: bytes
    body: bytes
    route: str


def read_request(
    target: bytes, headers: Headers, *, is_asking: bool = False, waited: Waited | None = None
) -> Request | None:
    """A GET without a body; None where its target may mean something else to the door."""
    path, _, query = target.partition(b"?")
    if b"//" in path or b"#" in target or target.endswith(b"?") or not target.isascii():
        return None
    return Request(
        method="GET",
        path=path.decode("latin-1"),
        parts=split_path(path),
        query=find_query(query) if query else {},
        raw_query=query,
        headers={name.decode("latin-1"): value.decode("latin-1") for name, value in headers},
        is_asking=is_asking,
        waited=waited,
    )


class Asked(Protocol):
    """The app, as far as it answers at once."""

    def answer_now(self, request: Request) -> Answer | Hold | None:
        """The answer, or what it would wait for; None for what is refused, or is nothing to be given to others."""
        ...

    def count_now(self, route: str, took_s: float | None, *, times: int = 1) -> None:
        """Count an answer that was given without a task, or so many; None: it waited on purpose."""
        ...


class Entries:
    """What is kept. ``compress``: None for what is too large."""

    def __init__(self, service: Service, app: Asked, compress: Callable[[bytes, str], bytes | None]) -> None:
        self.bytes = 0
        self._service = service
        self._app = app
        self._compress = compress
        self._stamp: object = None
        self._kept: OrderedDict[bytes, dict[For, Entry]] = OrderedDict()

    def find(self, target: bytes, key: For) -> Entry | None:
        """What is kept, while it is what would be answered."""
        if self._stamp != self._service.shelf.stamp:
            return None
        of_target = self._kept.get(target)
        return of_target.get(key) if of_target is not None else None

    def make(self, request: Request, target: bytes, key: For) -> Entry | None:
        """Ask the app, and keep what it says under this target if others may have it later; None: nobody may."""
        answer = self._app.answer_now(request)
        if not isinstance(answer, Answer) or answer.repeat is None or answer.content_type is None:
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
        if len(body) > BODY_BYTES_MAX:
            return None
        head = b"".join([b"%s: %s\r\n" % (name.lower(), value) for name, value in lines])
        entry = Entry(head, body, answer.repeat.route)
        if answer.repeat.stamp is not None:
            self._keep(target, key, entry, answer.repeat.stamp)
        return entry

    def _keep(self, target: bytes, key: For, entry: Entry, stamp: object) -> None:
        if self._stamp != stamp:
            self._stamp = stamp
            self._kept.clear()
            self.bytes = 0
        self._kept.setdefault(target, {})[key] = entry
        self.bytes += _weigh(target, entry)
        while self.bytes > BYTES_MAX:
            oldest, of_oldest = self._kept.popitem(last=False)
            self.bytes -= sum(_weigh(oldest, entry) for entry in of_oldest.values())


def _weigh(target: bytes, entry: Entry) -> int:
    return len(entry.body) + len(target) + len(entry.head) + ENTRY_BYTES
