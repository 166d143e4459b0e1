"""Who may be a node: which secret counts for it, and what lets a new one in. Pure.

    identity         secret       credential                     becomes
    none             any          enough                         bound to the secret
    bound            the same     any                            the same: repeating a join is harmless
    bound            another      any                            refused: an operator resets it first
    reset            withdrawn    any                            refused: that secret never counts again
    reset            any other    enough                         bound to the secret

Enough is: a part of the server's own process; a certificate that names the node; a join token that still counts, or
that this node has used with this very secret; or nothing, where no credential is asked for.
An agent chooses its secret and keeps it before it sends it: whatever crashes after that, the same join repeats.
"""

from __future__ import annotations

import re

import msgspec

from moorage.errors import BadRequest, Forbidden
from moorage.model.identity import Identity, JoinedBy, JoinToken, JoinUse, Peer, Withdrawal
from moorage.model.ids import NodeId
from moorage.model.times import format_time

replace = msgspec.structs.replace

NODE_SECRET_PREFIX = "moorage-node-"
JOIN_TOKEN_PREFIX = "moorage-join-"
WITHDRAWN_MAX = 16
USES_MAX = 1000
TTL_S_MAX = 365 * 86400.0
NOTE_CHARS_MAX = 200
KEPT_S = 86400.0
_SECOND = 1_000_000_000
_SECRET = re.compile(r"[A-Za-z0-9_-]{32,128}")
_ADVICE = "make a join token with `moorage node join-token create` and name its file as agent.join_token_file"


def check_node_secret(secret: str) -> None:
    """Whether a text may be a node's secret. Raises Forbidden: a short one could be guessed."""
    if not secret.startswith(NODE_SECRET_PREFIX) or not _SECRET.fullmatch(secret[len(NODE_SECRET_PREFIX) :]):
        text = f"a node joins with a secret of its own as its token: {NODE_SECRET_PREFIX} and 32 to 128 random letters"
        raise Forbidden(text, code="node_secret_missing")


def bind(
    known: Identity | None,
    node_id: NodeId,
    secret_hash: str,
    *,
    peer: Peer,
    name: str,
    token: JoinToken | None,
    is_join_needed: bool,
    now_ns: int,
) -> Identity:
    """The identity of a node that joins; equal to ``known`` when secret and name are its own already.

    ``token`` is one that counts (``check_join_token``), or None. Raises Forbidden with what to do.
    """
    if known is not None and known.secret_hash == secret_hash:
        return known if known.name == name else replace(known, name=name)
    if known is not None and known.secret_hash:
        text = (
            f'node "{node_id}" belongs to another secret: where its own was lost, an operator says '
            f"`moorage node reset-identity {node_id} --reason …`"
        )
        raise Forbidden(text, code="node_secret_wrong", node=node_id)
    if known is not None and any(w.secret_hash == secret_hash for w in known.withdrawn):
        text = f'the secret of node "{node_id}" was withdrawn: remove its file on the node and start the agent again'
        raise Forbidden(text, code="node_secret_withdrawn", node=node_id)
    joined_by = _find_credential(peer, node_id, name=name, token=token)
    if joined_by is None and is_join_needed:
        raise Forbidden(f'node "{node_id}" may not join without a credential: {_ADVICE}', code="join_refused")
    return Identity(
        node_id=node_id,
        secret_hash=secret_hash,
        joined_by=joined_by or "first_use",
        join_token_id=token.id if joined_by == "token" and token is not None else "",
        joined_at_ns=now_ns,
        name=name,
        withdrawn=known.withdrawn if known else (),
    )


def _find_credential(peer: Peer, node_id: NodeId, *, name: str, token: JoinToken | None) -> JoinedBy | None:
    if peer.is_embedded:
        return "embedded"
    if is_certified(peer, node_id, name):
        return "certificate"
    return "token" if token is not None else None


def is_certified(peer: Peer, node_id: str, name: str) -> bool:
    """Whether the connection's certificate stands for the node."""
    return node_id in peer.agents or (bool(name) and name in peer.agents)


def check_join_token(token: JoinToken | None, node_id: NodeId, secret_hash: str, *, now_ns: int) -> JoinToken:
    """The token, if it still lets this node in. Raises Forbidden that says why not.

    A node that has used it with the same secret may always come again.
    """
    if token is None:
        raise Forbidden(f"the join token is not known here: {_ADVICE}", code="join_token_unknown")
    if any(use.node_id == node_id and use.secret_hash == secret_hash for use in token.uses):
        return token
    if now_ns >= token.expires_at_ns:
        when = format_time(token.expires_at_ns // _SECOND * _SECOND)
        raise Forbidden(f"the join token expired at {when}: {_ADVICE}", code="join_token_expired")
    if len(token.uses) >= token.uses_max:
        raise Forbidden(f"the join token is used up: {_ADVICE}", code="join_token_used")
    return token


def use_join_token(token: JoinToken, node_id: NodeId, secret_hash: str, *, now_ns: int) -> JoinToken:
    """The token after this node has joined with it; unchanged when it had before."""
    if any(use.node_id == node_id and use.secret_hash == secret_hash for use in token.uses):
        return token
    return replace(token, uses=(*token.uses, JoinUse(node_id=node_id, secret_hash=secret_hash, at_ns=now_ns)))


def reset(known: Identity, *, reason: str, by: str, now_ns: int) -> Identity:
    """The identity without its secret, which never counts again. Raises BadRequest without a reason."""
    if not reason.strip():
        raise BadRequest("Reason: one is needed; it is kept with the record")
    if not known.secret_hash:
        return known
    gone = Withdrawal(secret_hash=known.secret_hash, reason=reason, by=by, at_ns=now_ns)
    return replace(known, secret_hash="", withdrawn=(*known.withdrawn, gone)[-WITHDRAWN_MAX:])


def make_join_token(token_id: str, secret_hash: str, *, ttl_s: float, uses: int, note: str, now_ns: int) -> JoinToken:
    """A new token's record. Raises BadRequest that names the member."""
    if not 0 < ttl_s <= TTL_S_MAX:
        raise BadRequest(f"TTL: more than nothing and at most {TTL_S_MAX / 86400:g} days are possible")
    if not 1 <= uses <= USES_MAX:
        raise BadRequest(f"Uses: 1 to {USES_MAX} are possible, not {uses}")
    if len(note) > NOTE_CHARS_MAX:
        raise BadRequest(f"Note: at most {NOTE_CHARS_MAX} characters are possible")
    return JoinToken(
        id=token_id,
        secret_hash=secret_hash,
        created_at_ns=now_ns,
        expires_at_ns=now_ns + int(ttl_s * _SECOND),
        uses_max=uses,
        note=note,
    )


def is_stale(token: JoinToken, *, now_ns: int) -> bool:
    """Whether a token has been of no use for so long that it need not be kept."""
    is_over = now_ns >= token.expires_at_ns or len(token.uses) >= token.uses_max
    last_ns = max(token.expires_at_ns if now_ns >= token.expires_at_ns else 0, *(use.at_ns for use in token.uses), 0)
    return is_over and now_ns - last_ns > KEPT_S * _SECOND
