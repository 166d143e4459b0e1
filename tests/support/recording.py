"""A recording of what a server sends and is sent, and the answers read from it.

``install`` runs inside the server's own process: every connection's transport writes what passes to a file, in the
clear, before TLS; a kill loses nothing that was written. ``read_answers`` puts each answer together with the request
that it answers, unpacked. Of what comes in, the first bytes of each piece are kept: to see which marks went in.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moorage.testing.canaries import unpack_bytes

RECORD = "MOORING_RECORD"
IN_BYTES_MAX = 64 << 10
_FRAME = struct.Struct(">QBI")
_ASKED, _OUT, _IN, _OVER = range(4)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer, as its reader would have it. ``method`` and ``path`` are empty where no request was understood."""

    method: str
    path: str
    status: int
    headers: bytes
    body: bytes


@dataclass(kw_only=True)
class Recorded:
    """What passed over one connection."""

    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    came: list[bytes] = field(default_factory=list)


class _Transport:
    """A transport that notes what is written."""

    def __init__(self, inner: Any, note: Any) -> None:
        self._inner = inner
        self._note = note

    def write(self, data: bytes) -> None:
        self._note(_OUT, bytes(data))
        self._inner.write(data)

    def writelines(self, pieces: list[bytes]) -> None:
        self.write(b"".join(pieces))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def install(path: str) -> None:
    """Record all that this process serves from now on."""
    from moorage.serve.quick_protocol import QuickProtocol as Protocol

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    numbers = itertools.count(os.getpid() << 32)
    # Of the class that connections are of: what it has from others is as good as its own.
    made, lost = Protocol.connection_made, Protocol.connection_lost
    headed, received = Protocol.on_headers_complete, Protocol.data_received

    def connection_made(self: Any, transport: Any) -> None:
        number = next(numbers)

        def note(kind: int, data: bytes) -> None:
            os.write(descriptor, _FRAME.pack(number, kind, len(data)) + data)

        self.recorded = note
        made(self, _Transport(transport, note))  # type: ignore[arg-type]

    def connection_lost(self: Any, error: Exception | None) -> None:
        self.recorded(_OVER, b"")
        lost(self, error)

    def data_received(self: Any, data: bytes) -> None:
        self.recorded(_IN, data[:IN_BYTES_MAX])
        received(self, data)

    def on_headers_complete(self: Any) -> None:
        self.recorded(_ASKED, self.parser.get_method() + b" " + self.url)
        headed(self)

    for replacement in (connection_made, connection_lost, data_received, on_headers_complete):
        setattr(Protocol, replacement.__name__, replacement)


def read_connections(path: Path) -> Iterator[Recorded]:
    """What passed over each connection. A frame that a kill cut is left out."""
    open_ones: dict[int, Recorded] = {}
    with path.open("rb") as file:
        while len(head := file.read(_FRAME.size)) == _FRAME.size:
            number, kind, length = _FRAME.unpack(head)
            data = file.read(length)
            found = open_ones.setdefault(number, Recorded())
            if kind == _ASKED:
                method, _, target = data.decode("latin-1").partition(" ")
                found.asked.append((method, target))
            elif kind == _OVER:
                yield open_ones.pop(number)
            else:
                (found.sent if kind == _OUT else found.came).append(data)
    yield from open_ones.values()


def read_answers(connection: Recorded) -> Iterator[Answer]:
    """The answers of a connection, in their order. What is no answer comes as one with status 0."""
    data = b"".join(connection.sent)
    asked = iter(connection.asked)
    at = 0
    while at < len(data):
        method, path = next(asked, ("", ""))
        # Interim answers (100 Continue) come before the one that counts.
        while data.startswith(b"HTTP/1.1 1", at):
            at = data.find(b"\r\n\r\n", at) + 4
        end = data.find(b"\r\n\r\n", at)
        words = data[at:end].split(None, 2)
        if end < 0 or len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            yield Answer(method=method, path=path, status=0, headers=b"", body=data[at:])
            return
        head, status = data[at:end], int(words[1])
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        at = end + 4
        if method == "HEAD" or status in (204, 304):
            body = b""
        elif fields.get(b"transfer-encoding") == b"chunked":
            body, at = _join_chunks(data, at)
        else:
            length = int(fields.get(b"content-length", len(data) - at))
            body, at = data[at : at + length], at + length
        coding = fields.get(b"content-encoding", b"").decode()
        body = unpack_bytes(body, coding) if coding and body else body
        yield Answer(method=method, path=path, status=status, headers=head, body=body)


def _join_chunks(data: bytes, at: int) -> tuple[bytes, int]:
    """A chunked body from there, and where it ends. One that was cut is given as far as it goes."""
    pieces: list[bytes] = []
    while (end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:end], 16)
        at = end + 2 + size + 2
        if not size:
            break
        pieces.append(data[end + 2 : end + 2 + size])
    else:
        at = len(data)
    return b"".join(pieces), min(at, len(data))


def find_path() -> str:
    """Where this process is to record to; empty: nowhere."""
    return os.environ.get(RECORD, "")
