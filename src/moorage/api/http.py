"""Requests and answers, apart from any server: one function makes an answer of a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any

import msgspec

from moorage.engine.segments import Piece
from moorage.model.acl import Caller
from moorage.model.identity import Peer
from moorage.rules.authorize import NOBODY, Access

_encoder = msgspec.json.Encoder(order="sorted")

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"

# Sends one piece of an answer, and returns when the client can take more.
Write = Callable[[bytes], Awaitable[None]]
Stream = Callable[[Write], Awaitable[None]]


class Hold(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a read would wait for: a change on the topics above a revision, for a time between two in seconds; not at
    all where ``is_due``. A handler gives it to who asks without waiting, and is not gone on with."""

    topics: tuple[str, ...]
    above: int
    least_s: float
    most_s: float
    is_due: bool

    def __await__(self) -> Generator[Hold, None, None]:
        """Give it, and nothing after it."""
        yield self


class Waited(msgspec.Struct, frozen=True, kw_only=True):
    """What a read has waited already, where it was not a task of its own yet.

    began_s, waited_s: when it was asked, and for how long it waited, by the clock of ``time.perf_counter``.
    left_s: how long it has still to wait; None: it is to be answered now. caller: who asked.
    """

    began_s: float
    waited_s: float
    left_s: float | None
    caller: Caller


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request. ``parts`` are the path's segments, each percent-decoded; ``query`` holds first values, ``raw_query``
    the whole query as it came; header names are lower case. ``peer``: what the connection shows of the client.
    ``access``: who asks and what it may do; the app puts it there before any handler sees the request.
    ``remote``: the address that it came from, or empty. ``is_asking``: what it would wait for is wanted, in place of
    an answer. ``waited``: where it has waited already."""

    method: str
    path: str
    parts: tuple[str, ...] = ()
    query: Mapping[str, str] = {}
    raw_query: bytes = b""
    headers: Mapping[str, str] = {}
    body: bytes = b""
    peer: Peer = Peer()
    access: Access = NOBODY
    remote: str = ""
    is_asking: bool = False
    waited: Waited | None = None

    @property
    def caller(self) -> Caller:
        """Who asks."""
        return self.access.caller

    def header(self, name: str) -> str:
        """A header's value by its lower-case name, or empty."""
        return self.headers.get(name, "")


class Repeat(msgspec.Struct, frozen=True):
    """Whoever asks the same and may do the same gets the same answer, while the stamp of what it shows is this one;
    None: in this turn of the loop alone. ``route``: the pattern of its path."""

    route: str
    stamp: object


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer. ``content_type`` None: none is sent (an empty body).

    ``pieces``: a long body in pieces, which may be those of other answers too; ``body`` is then not looked at.
    ``stream``: writes the body piece by piece, until it ends or is cancelled; ``body`` is then not looked at.
    ``is_kept``: the body is one of those that are kept for other requests, whose compressed form is worth it too.
    """

    status: int = 200
    body: bytes = b""
    content_type: str | None = None
    headers: Mapping[str, str] = {}
    pieces: tuple[Piece, ...] = ()
    stream: Stream | None = None
    is_kept: bool = False
    repeat: Repeat | None = None

    def whole(self) -> bytes:
        """The body in one, for a caller in the same process."""
        return b"".join(piece.data for piece in self.pieces) if self.pieces else self.body


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """The query headers: which revision the answer shows, and whether a leader is known."""

    index: int
    is_leader_known: bool = True

    def headers(self) -> dict[str, str]:
        """The headers as they go on the wire."""
        return {
            "X-Nomad-Index": str(self.index),
            "X-Nomad-KnownLeader": "true" if self.is_leader_known else "false",
            "X-Nomad-LastContact": "0",
        }


# What calls that only ask a driver answer: no table of ours has an index for them. Source: contract §2.8.
NO_TABLE = Meta(index=0, is_leader_known=False)


def encode(value: Any, *, pretty: bool = False) -> bytes:
    """JSON as the recorded server writes it: keys in byte order; pretty: four blanks and a final newline."""
    body = _encoder.encode(value)
    return msgspec.json.format(body, indent=4) + b"\n" if pretty else body


def json_answer(request: Request, value: Any, meta: Meta | None = None, **headers: str) -> Answer:
    """A 200 with a JSON body, indented if the request asks for it."""
    pretty = request.query.get("pretty", "0") != "0"
    found = {**(meta.headers() if meta else {}), **headers}
    return Answer(body=encode(value, pretty=pretty), content_type=JSON, headers=found)


def raw_answer(request: Request, body: bytes, meta: Meta, **headers: str) -> Answer:
    """A 200 with a JSON body that is kept as bytes, indented if the request asks for it."""
    found = {**meta.headers(), **headers}
    if request.query.get("pretty", "0") != "0":
        return Answer(body=msgspec.json.format(body, indent=4) + b"\n", content_type=JSON, headers=found)
    return Answer(body=body, content_type=JSON, headers=found, is_kept=True)


def empty_answer(meta: Meta | None = None) -> Answer:
    """A 200 without a body."""
    return Answer(headers=meta.headers() if meta else {})


def text_answer(status: int, text: str, meta: Meta | None = None, **headers: str) -> Answer:
    """A plain text answer, as the recorded server writes its refusals."""
    found = {**(meta.headers() if meta else {}), **headers}
    return Answer(status=status, body=text.encode("utf-8", "replace"), content_type=TEXT, headers=found)
