"""Identities of nodes: the secret that an agent presents, and the join tokens that let new ones in.

Secrets themselves are on no record, only their hashes. Never: I/O, clock, randomness.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from moorage.model.ids import NodeId

# What let a node in:
#   first_use    nothing was asked for, and nobody had the node's ID yet
#   token        a join token
#   certificate  a client certificate that names the node
#   embedded     it runs inside the server's own process
JoinedBy = Literal["first_use", "token", "certificate", "embedded"]


class Withdrawal(msgspec.Struct, frozen=True, kw_only=True):
    """An operator took a node's secret away; it never counts again."""

    secret_hash: str
    reason: str
    by: str = ""
    at_ns: int = 0


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A node's identity. ``secret_hash`` is empty when it was reset and nobody has joined since; then, and later,
    ``withdrawn`` has the secrets that were taken away, the newest last. ``name``: the node's, as it joined last."""

    node_id: NodeId
    secret_hash: str = ""
    joined_by: JoinedBy = "first_use"
    join_token_id: str = ""
    joined_at_ns: int = 0
    name: str = ""
    withdrawn: tuple[Withdrawal, ...] = ()


class JoinUse(msgspec.Struct, frozen=True, kw_only=True):
    """A node that joined with a token; the same node with the same secret may repeat it."""

    node_id: NodeId
    secret_hash: str
    at_ns: int


class JoinToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token that lets ``uses_max`` nodes join until ``expires_at_ns``."""

    id: str
    secret_hash: str
    created_at_ns: int
    expires_at_ns: int
    uses_max: int = 1
    uses: tuple[JoinUse, ...] = ()
    note: str = ""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Who is at the other end of a connection, as far as the connection itself shows it.

    ``agents``: the nodes, by name or ID, that its verified client certificate stands for. ``is_embedded``: no
    connection at all, a part of the server's own process.
    """

    has_certificate: bool = False
    agents: tuple[str, ...] = ()
    is_embedded: bool = False
