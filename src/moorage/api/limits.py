"""What the HTTP side takes from outside: limits of size and time, and which browsers' pages may ask."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much one request may be and take; bytes and seconds.

    target_bytes_max: path and query. headers_max, header_bytes_max: request headers, their count and their size.
    body_bytes_max, body_s: the request's body, its size and the time it may take to arrive.
    drain_bytes_max: what a body that is too large may still send before the answer; a client that is cut off in the
    middle never reads it.
    write_s: how long a streaming answer waits for its reader to take a piece.
    """

    target_bytes_max: int = 64 << 10
    headers_max: int = 128
    header_bytes_max: int = 64 << 10
    body_bytes_max: int = 16 << 20
    body_s: float = 60.0
    drain_bytes_max: int = 512 << 20
    write_s: float = 60.0


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the HTTP side.

    allowed_origins: origins of pages whose scripts may ask (``https://ui.example``), or ``*`` for all; none: CORS is
    off. preflight_s: how long a browser may remember what it was allowed.
    """

    limits: Limits = Limits()
    allowed_origins: tuple[str, ...] = ()
    preflight_s: int = 600
