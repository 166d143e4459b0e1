"""Compressed answers: the choice by Accept-Encoding, whole bodies, pieces of streams."""

from __future__ import annotations

import gzip
import json
import zlib

import anyio
import pytest
import zstandard
from asgi_asking import Exchange, exchange, make_door
from engine_kit import running_kit

from moorage.api import encoding
from moorage.api.encoding import BYTES_MIN, INLINE_BYTES_MAX, Compressor, Pieces, choose_coding
from moorage.api.http import JSON, Answer, Write
from moorage.api.pieces import PIECE_BYTES, gather

pytestmark = pytest.mark.anyio


def unpack(body: bytes, coding: str) -> bytes:
    if coding == "gzip":
        return gzip.decompress(body)
    if coding == "deflate":
        return zlib.decompress(body)
    if coding == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    assert coding == ""
    return body


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("", ""),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP", "gzip"),
        ("deflate", "deflate"),
        ("zstd", "zstd"),
        ("br", ""),
        ("identity", ""),
        ("gzip, deflate, br, zstd", "gzip"),
        ("deflate, gzip", "gzip"),
        ("deflate;q=1.0, gzip;q=0.5", "deflate"),
        ("gzip;q=0.8, zstd", "zstd"),
        ("gzip;q=0", ""),
        ("gzip;q=0.000", ""),
        ("gzip;q=0, *", "zstd"),
        ("*", "gzip"),
        ("*;q=0", ""),
        ("gzip ; q=0.5", "gzip"),
        ("gzip;q=0.5, identity", ""),
        ("gzip;q=0.5, identity;q=0.1", "gzip"),
        ("gzip;q=nonsense", ""),
        ("gzip;q=nan", ""),
        ("gzip;q=7", ""),
        (",,;q=1,", ""),
    ],
)
def test_choose_coding(accept: str, coding: str) -> None:
    assert choose_coding(accept) == coding


@pytest.mark.parametrize("coding", encoding.CODINGS)
async def test_whole_bodies_come_back(coding: str) -> None:
    body = json.dumps([{"ID": f"vol-{n}"} for n in range(2000)]).encode()
    door = make_door(Answer(body=body, content_type=JSON))
    got = await exchange(door, "GET", "/", accept_encoding=coding)
    assert got.status == 307  # the root is not asked of the application
    got = await exchange(door, "GET", "/v1/x", accept_encoding=coding)
    assert got.headers["content-encoding"] == coding
    assert got.headers["content-length"] == str(len(got.body))
    assert len(got.body) < len(body) // 4
    assert unpack(got.body, coding) == body


async def test_vary_is_always_there_and_small_bodies_stay() -> None:
    for size in (0, BYTES_MIN - 1):
        got = await exchange(make_door(Answer(body=b"x" * size)), "GET", "/v1/x", accept_encoding="gzip")
        assert "content-encoding" not in got.headers
        assert got.headers["vary"] == "Accept-Encoding"
        assert got.body == b"x" * size
    got = await exchange(make_door(Answer(body=b"x" * BYTES_MIN)), "GET", "/v1/x", accept_encoding="gzip")
    assert got.headers["content-encoding"] == "gzip"
    plain = await exchange(make_door(Answer(body=b"x" * BYTES_MIN)), "GET", "/v1/x")
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == "Accept-Encoding"


async def test_errors_are_compressed_too() -> None:
    async with running_kit() as kit:
        long_id = "v" * 400
        got = await exchange(kit.app, "DELETE", f"/v1/volume/csi/{long_id}", accept_encoding="gzip")
        assert (got.status, got.headers["content-encoding"]) == (500, "gzip")
        assert gzip.decompress(got.body) == f"volume not found: {long_id}".encode()


async def test_what_is_compressed_already_stays() -> None:
    packed = gzip.compress(b"x" * 10_000, mtime=0) + b"\0" * BYTES_MIN
    door = make_door(Answer(body=packed, headers={"Content-Encoding": "gzip"}))
    got = await exchange(door, "GET", "/v1/x", accept_encoding="gzip")
    assert got.body == packed


async def test_large_bodies_go_to_a_thread() -> None:
    compressor = Compressor()
    small, large = b"a" * INLINE_BYTES_MAX, b"ab" * INLINE_BYTES_MAX
    assert gzip.decompress(await compressor.compress(small, "gzip")) == small
    assert compressor.threaded == 0
    assert gzip.decompress(await compressor.compress(large, "gzip")) == large
    assert compressor.threaded == 1


@pytest.mark.parametrize("coding", ["", *encoding.CODINGS])
def test_each_piece_can_be_read_when_it_comes(coding: str) -> None:
    pieces = Pieces(coding)
    wire = b""
    for line in (b"{}\n", b'{"Index":1}\n', b"{}\n"):
        before = _unpack_begun(wire, coding)
        wire += pieces.add(line)
        assert _unpack_begun(wire, coding) == before + line
    wire += pieces.finish()
    assert unpack(wire, coding) == b'{}\n{"Index":1}\n{}\n'


def _unpack_begun(wire: bytes, coding: str) -> bytes:
    if not coding or not wire:
        return wire
    if coding == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(wire)
    return zlib.decompressobj(31 if coding == "gzip" else 15).decompress(wire)


async def test_streams_are_compressed_piece_by_piece() -> None:
    async def stream(write: Write) -> None:
        await write(b"one\n")
        await write(b"two\n")
        await anyio.sleep_forever()

    door = make_door(Answer(content_type=JSON, stream=stream))
    made = Exchange()
    async with anyio.create_task_group() as group:
        group.start_soon(made.run, door, "GET", "/v1/x", {"Accept-Encoding": "gzip"})
        pieces = await made.until_pieces(2)
        assert made.headers["content-encoding"] == "gzip"
        assert "content-length" not in made.headers
        assert _unpack_begun(pieces[0], "gzip") == b"one\n"
        assert _unpack_begun(pieces[0] + pieces[1], "gzip") == b"one\ntwo\n"
        made.leave()
    assert not made.is_whole


def test_small_pieces_are_sent_together_and_long_ones_as_they_are() -> None:
    long = bytes(PIECE_BYTES + 5)
    pieces = [b"[", *[b"x" * 5000] * 100, long, b"y", long, b"]"]
    gathered = gather(pieces)
    assert b"".join(gathered) == b"".join(pieces)
    assert len(gathered) == 2 + 1 + 1 + 1 + 1
    assert max(len(piece) for piece in gathered if piece is not long) <= PIECE_BYTES
    assert sum(piece is long for piece in gathered) == 2
    assert gather([]) == []
