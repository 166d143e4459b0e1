"""Compressed answers: which coding a client wants, and bodies in it, whole or piece by piece.

gzip is what the recorded API's clients ask for, so it wins where a client likes several equally; zstd is for clients
that prefer it or take nothing else. Small bodies stay as they are: a deliberate difference to the recorded server,
which compresses even empty ones; no client can tell.
Source: RFC 9110 §12.5.3; contract volumes-api §1.8.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import anyio
import anyio.lowlevel
import anyio.to_thread
import zstandard
from isal import isal_zlib

from moorage.engine.segments import Packed, Piece

BYTES_MIN = 256
# Up to here a body is compressed where it stands: about a millisecond.
INLINE_BYTES_MAX = 256 << 10
THREADS_MAX = 2
LEVEL = 1
ZSTD_LEVEL = 3
# What compressed forms of bodies that come again may take, together with these.
KEPT_BYTES_MAX = 8 << 20
# No name, no time, an unknown system; RFC 1952 §2.3. And a last block without anything: RFC 1951 §3.2.6.
GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_LAST_BLOCK = b"\x03\x00"
# zlib's window sizes, which also name the container: 31 gzip, 15 zlib (what HTTP calls deflate).
_WBITS = {"gzip": 31, "deflate": 15}
# In order of choice where a client likes them equally.
CODINGS = ("gzip", "zstd", "deflate")
_ALIASES = {"x-gzip": "gzip"}


@lru_cache(maxsize=256)
def choose_coding(accept: str) -> str:
    """The coding for an ``Accept-Encoding`` value; empty: none."""
    weights: dict[str, float] = {}
    for item in accept.lower().split(","):
        name, _, rest = item.partition(";")
        name = name.strip()
        if name:
            weights[_ALIASES.get(name, name)] = _parse_weight(rest)
    any_other = weights.get("*", 0.0)
    best, best_weight = "", 0.0
    for coding in CODINGS:
        weight = weights.get(coding, any_other)
        if weight > best_weight:
            best, best_weight = coding, weight
    return "" if weights.get("identity", 0.0) > best_weight else best


def _parse_weight(parameters: str) -> float:
    """The ``q`` among an item's parameters; 1 without one, 0 (not wanted) when it is no number from 0 to 1."""
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                weight = float(value.strip())
            except ValueError:
                return 0.0
            return weight if 0.0 <= weight <= 1.0 else 0.0
    return 1.0


def compress(body: bytes, coding: str) -> bytes:
    """The body in one of CODINGS."""
    if coding == "zstd":
        return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(body)
    packer = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, _WBITS[coding])
    return packer.compress(body) + packer.flush()


def deflate(data: bytes) -> Packed:
    """The data so that they can stand in any place of a deflate stream: nothing in them looks back further."""
    packer = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, -15)
    packed = packer.compress(data) + packer.flush(isal_zlib.Z_FULL_FLUSH)
    return Packed(bytes(memoryview(packed)), isal_zlib.crc32(data), len(data))


def _compress_pieces(pieces: Sequence[Piece], coding: str) -> bytes:
    packer = Pieces(coding)
    return b"".join([*(packer.add(piece.data) for piece in pieces), packer.finish()])


class Compressor:
    """Compresses whole bodies; large ones in a worker thread, so that the event loop is never held up."""

    def __init__(self) -> None:
        self._threads = anyio.CapacityLimiter(THREADS_MAX)
        self.threaded = 0
        # How many pieces were deflated because nobody had done so before.
        self.deflated = 0
        self._kept: OrderedDict[tuple[bytes, str], bytes] = OrderedDict()
        self._kept_bytes = 0

    async def compress_kept(self, body: bytes, coding: str) -> bytes:
        """The same for a body that is kept: the same one will come again."""
        found = self.compress_now(body, coding)
        return await self.compress(body, coding) if found is None else found

    def compress_now(self, body: bytes, coding: str) -> bytes | None:
        """The same, where the body stands; None for one that is too large for that."""
        if len(body) > INLINE_BYTES_MAX:
            return None
        found = self._kept.get((body, coding))
        if found is None:
            found = self._kept[body, coding] = compress(body, coding)
            self._kept_bytes += len(body) + len(found)
            while self._kept_bytes > KEPT_BYTES_MAX:
                (oldest, _), packed = self._kept.popitem(last=False)
                self._kept_bytes -= len(oldest) + len(packed)
        return found

    async def compress_pieces(self, pieces: Sequence[Piece], coding: str) -> list[bytes]:
        """A body of pieces in one of CODINGS, in pieces. gzip: one ordinary member, of which each piece's part is kept
        with the piece."""
        if coding != "gzip":
            self.threaded += 1
            return [await anyio.to_thread.run_sync(_compress_pieces, pieces, coding, limiter=self._threads)]
        parts = [GZIP_HEAD]
        checksum = size = fresh = 0
        for piece in pieces:
            packed = piece.packed
            if packed is None:
                packed = piece.packed = deflate(piece.data)
                self.deflated += 1
                fresh += packed.size
                if fresh > INLINE_BYTES_MAX:
                    fresh = 0
                    await anyio.lowlevel.checkpoint()
            parts.append(packed.data)
            checksum = isal_zlib.crc32_combine(checksum, packed.crc, packed.size)
            size += packed.size
        parts.append(_LAST_BLOCK + struct.pack("<II", checksum, size & 0xFFFFFFFF))
        return parts

    async def compress(self, body: bytes, coding: str) -> bytes:
        """The body in one of CODINGS."""
        if len(body) <= INLINE_BYTES_MAX:
            return compress(body, coding)
        self.threaded += 1
        return await anyio.to_thread.run_sync(compress, body, coding, limiter=self._threads)


class _Object(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self, mode: int, /) -> bytes: ...


class Pieces:
    """A stream's pieces, each readable by the client as soon as it has it; ``coding`` empty: as they are."""

    def __init__(self, coding: str) -> None:
        self._object: _Object | None = None
        if coding == "zstd":
            self._object = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()
            self._flush, self._finish = zstandard.COMPRESSOBJ_FLUSH_BLOCK, zstandard.COMPRESSOBJ_FLUSH_FINISH
        elif coding:
            self._object = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, _WBITS[coding])
            self._flush, self._finish = isal_zlib.Z_SYNC_FLUSH, isal_zlib.Z_FINISH

    def add(self, piece: bytes) -> bytes:
        """One piece, complete."""
        if self._object is None:
            return piece
        return self._object.compress(piece) + self._object.flush(self._flush)

    def finish(self) -> bytes:
        """What ends the stream."""
        return b"" if self._object is None else self._object.flush(self._finish)
