"""The audit log's form: one JSON object a line, each with its number, the hash of the line before and its own. Pure.

``{"seq":7,"time":"…",…,"prev":"<hash of line 6>","hash":"<SHA-256 of this line without its hash>"}``. Changing,
dropping, adding or moving a line breaks the chain there. What a chain cannot show by itself is that its end was cut
off, or that all of it was made anew: for that its head (number and hash) has to be kept elsewhere.
Never: I/O, clock.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

import msgspec

from moorage.model.audit import AuditEntry, Who
from moorage.model.times import format_time

START = "0" * 64
LINE_BYTES_MAX = 64 << 10
_HASH = re.compile(rb'"prev":"([0-9a-f]{64})","hash":"([0-9a-f]{64})"}\n?$')
_HASH_BYTES = len(',"hash":""}') + 64
_encoder = msgspec.json.Encoder()


class Head(msgspec.Struct, frozen=True):
    """The end of a chain so far: the last line's number and hash."""

    seq: int = 0
    hash: str = START


class _Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line without its hash; the order of the fields is the line's."""

    seq: int
    time: str
    result: str
    method: str = ""
    path: str = ""
    route: str = ""
    namespace: str = ""
    status: int = 0
    code: str = ""
    who: Who = Who()
    request_id: str = ""
    took_us: int = 0
    dropped: int = 0
    torn_bytes: int = 0
    prev: str


class Broken(msgspec.Struct, frozen=True):
    """Where a chain breaks: the line's place, counted from 1, and why."""

    line: int
    reason: str


def write_line(entry: AuditEntry, head: Head, *, dropped: int = 0, torn_bytes: int = 0) -> tuple[bytes, Head]:
    """The next line of a chain, with its newline, and the new head.

    ``dropped``: entries that could not be taken before this one; ``torn_bytes``: bytes of a line that a crash left
    unfinished before this one and that were taken away.
    """
    line = _Line(
        seq=head.seq + 1,
        time=format_time(entry.at_ns) or "",
        result=entry.result,
        method=entry.method,
        path=entry.path,
        route=entry.route,
        namespace=entry.namespace,
        status=entry.status,
        code=entry.code,
        who=entry.who,
        request_id=entry.request_id,
        took_us=entry.took_us,
        dropped=dropped,
        torn_bytes=torn_bytes,
        prev=head.hash,
    )
    text = _encoder.encode(line)
    digest = hashlib.sha256(text).hexdigest()
    return b'%s,"hash":"%s"}\n' % (text[:-1], digest.encode()), Head(line.seq, digest)


def read_head(line: bytes) -> tuple[Head, str]:
    """The head that a line makes, and the hash of the line before. Raises ValueError: it is not whole, or changed."""
    found = _HASH.search(line)
    text = line.rstrip(b"\n")
    if found is None or not line.endswith(b"\n"):
        raise ValueError("it is not a whole line of an audit log")
    digest = hashlib.sha256(text[:-_HASH_BYTES] + b"}").hexdigest()
    if digest != found[2].decode():
        raise ValueError("its hash does not fit: the line was changed")
    seq = msgspec.json.decode(text, type=_Numbered).seq
    return Head(seq, digest), found[1].decode()


class _Numbered(msgspec.Struct, frozen=True):
    seq: int


def follow(lines: Iterable[bytes], head: Head | None = None) -> Iterator[Head | Broken]:
    """The head after each line of a chain, or where it breaks; nothing comes after a break.

    ``head``: what the first line has to follow; None: it may begin anywhere, because older files may be gone.
    """
    for number, line in enumerate(lines, start=1):
        try:
            new, before = read_head(line)
        except (ValueError, msgspec.MsgspecError) as error:
            yield Broken(number, str(error) if isinstance(error, ValueError) else "it is not JSON")
            return
        if head is not None and (new.seq != head.seq + 1 or before != head.hash):
            what = "changed" if new.seq == head.seq + 1 else "taken away, added or moved"
            yield Broken(number, f"it is number {new.seq} and does not follow number {head.seq}: lines were {what}")
            return
        if head is None and new.seq == 1 and before != START:
            yield Broken(number, "it says that it is the first line, and is not")
            return
        head = new
        yield new
