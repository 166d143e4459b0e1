"""Access control: tokens, policies, who is calling.

Never: I/O, clock, randomness; a token's secret (records hold only what it can be recognised by).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from moorage.model.ids import NodeId

TokenKind = Literal["client", "management"]
CallerKind = Literal["anonymous", "client", "management", "node"]

ANONYMOUS = "anonymous"
BOOTSTRAP_NAME = "Bootstrap Token"


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token's record. ``accessor_id`` names it; ``secret_hash`` is SHA-256 of the secret, in hexadecimal digits.

    ``policies`` None: none were given (management tokens). ``ttl_ns``: the time to live that it was made with, 0 when
    none was given; ``expires_at_ns`` 0: never. ``hash``: what answers show, so that a client can tell a change.
    """

    accessor_id: str
    secret_hash: str
    name: str = ""
    kind: TokenKind = "client"
    policies: tuple[str, ...] | None = None
    is_global: bool = False
    ttl_ns: int = 0
    expires_at_ns: int = 0
    created_at_ns: int = 0


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy's record: its rules stay the text that was sent, byte for byte."""

    name: str
    description: str = ""
    rules: str = ""


class Bootstrap(msgspec.Struct, frozen=True, kw_only=True):
    """The record of the first management token: there is no second one until an operator resets it.

    ``accessor_id``: the token that was made. The index that a reset names is the revision of this record.
    """

    accessor_id: str
    at_ns: int = 0


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, as far as it is known. ``accessor_id`` and ``name`` are a token's; ``node_id`` is a node's.

    An anonymous caller has none of them; with access control off every caller is anonymous.
    """

    kind: CallerKind = "anonymous"
    accessor_id: str = ""
    name: str = ""
    node_id: NodeId | None = None
