"""What the HTTP side takes from outside: limits of size, number and time, and which browsers' pages may ask."""

from __future__ import annotations

import ipaddress
from collections import Counter

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much one request, one client and all clients together may take; bytes and seconds.

    target_bytes_max: path and query. headers_max, header_bytes_max: request headers, their count and their size.
    handshake_s: the time that the handshake of TLS may take.
    head_s: the time that a request's head may take, and that a new connection may say nothing (with TLS: after its
    handshake).
    body_bytes_max, body_s: the request's body, its size and the time it may take to arrive. body_rate_min: the bytes a
    second that it must come at, looked at every few seconds; 0: any.
    drain_bytes_max: what a body that is too large may still send before the answer; a client that is cut off in the
    middle never reads it.
    json_depth_max: how deep a JSON body may be nested.
    pipelined_max: requests that one connection may send before the first of them is answered.
    idle_s: how long a connection may stay open between two requests.
    write_s: how long an answer waits for its reader to take some of it. write_rate_min: how much that must be, in bytes
    a second.
    unsent_bytes_max: what all answers together may hold that their readers have not taken yet.
    connections_max, connections_per_client_max: open connections, of all and of one address.
    waiters_per_client_max: blocking queries and event streams of one address.
    """

    target_bytes_max: int = 64 << 10
    headers_max: int = 128
    header_bytes_max: int = 64 << 10
    handshake_s: float = 10.0
    head_s: float = 10.0
    body_bytes_max: int = 16 << 20
    body_s: float = 60.0
    body_rate_min: int = 512
    drain_bytes_max: int = 512 << 20
    json_depth_max: int = 64
    pipelined_max: int = 64
    idle_s: float = 75.0
    write_s: float = 60.0
    write_rate_min: int = 512
    unsent_bytes_max: int = 512 << 20
    connections_max: int = 16384
    connections_per_client_max: int = 2048
    waiters_per_client_max: int = 1024


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the HTTP side.

    allowed_origins: origins of pages whose scripts may ask (``https://ui.example``), or ``*`` for all; none: CORS is
    off. preflight_s: how long a browser may remember what it was allowed.
    """

    limits: Limits = Limits()
    allowed_origins: tuple[str, ...] = ()
    preflight_s: int = 600


# How often each limit has refused something or ended a connection: the name that the metrics page shows → times.
Hits = Counter[str]


def client_of(address: str) -> str:
    """Whom an address belongs to, for counting: itself, or the /64 network of an IPv6 one, which is one host's.

    Empty (a unix socket) is a client of its own.
    """
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
