"""Handlers of identities: a node joins; join tokens; reset. And the check that an agent's page is asked by its own
agent, which holds whether or not access control is on.
"""

from __future__ import annotations

from typing import Any

import msgspec

from moorage.api.admission import find_secret
from moorage.api.bodies import JoinTokenBody, ResetIdentityBody, decode
from moorage.api.http import JSON, Answer, Meta, Request, empty_answer, json_answer
from moorage.api.params import check_region, parse_duration_s
from moorage.engine.service import Service
from moorage.errors import BadRequest
from moorage.model.assignment import NodeJoin, NodeJoined
from moorage.model.identity import JoinToken
from moorage.model.ids import NodeId
from moorage.model.times import format_time

NODE_ID_CHARS = 36
NAME_CHARS_MAX = 255


def check_own(service: Service, request: Request, node_id: str, *, name: str | None = None) -> None:
    """The request comes from the node's own agent, which registers as ``name`` if it does. Raises Forbidden."""
    service.identities.check_own(node_id, find_secret(request), request.peer, name=name)


async def join(service: Service, request: Request, node_id: str) -> Answer:
    """PUT /v1/node/:id/join."""
    try:
        sent = msgspec.json.decode(request.body, type=NodeJoin)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("json: a name, and a join_token if there is one, are needed") from None
    if len(node_id) != NODE_ID_CHARS:
        raise BadRequest(f"a node's ID is a UUID of {NODE_ID_CHARS} characters")
    if len(sent.name) > NAME_CHARS_MAX:
        raise BadRequest(f"a node's name has at most {NAME_CHARS_MAX} characters")
    joined_by = await service.identities.join(
        NodeId(node_id), find_secret(request), name=sent.name, join_token=sent.join_token, peer=request.peer
    )
    return Answer(body=msgspec.json.encode(NodeJoined(joined_by=joined_by)), content_type=JSON)


async def reset(service: Service, request: Request, node_id: str) -> Answer:
    """PUT or POST /v1/node/:id/reset-identity."""
    body = decode(ResetIdentityBody, request.body)
    check_region(request.query)
    revision = await service.identities.reset(node_id, reason=body.reason, by=body.by)
    return json_answer(request, {"Index": revision}, Meta(index=revision))


def _shown(token: JoinToken) -> dict[str, Any]:
    return {
        "CreateTime": format_time(token.created_at_ns),
        "ExpirationTime": format_time(token.expires_at_ns),
        "ID": token.id,
        "Note": token.note,
        "Nodes": [use.node_id for use in token.uses],
        "Uses": token.uses_max,
        "UsesLeft": max(0, token.uses_max - len(token.uses)),
    }


async def list_tokens(service: Service, request: Request) -> Answer:
    """GET /v1/nodes/join-tokens. The tokens themselves are shown by nothing."""
    check_region(request.query)
    rows = [_shown(token) for token in service.identities.list_tokens()]
    return json_answer(request, rows, Meta(index=service.identities.tokens_index))


async def create_token(service: Service, request: Request) -> Answer:
    """PUT or POST /v1/nodes/join-tokens. The answer alone has the token."""
    body = decode(JoinTokenBody, request.body)
    check_region(request.query)
    ttl_s = parse_duration_s(body.ttl)
    if ttl_s is None:
        raise BadRequest(f"TTL {body.ttl[:32]!r} is not a duration such as 30m or 24h")
    made = await service.identities.create_token(ttl_s=ttl_s, uses=body.uses, note=body.note)
    answer = {**_shown(made.record), "Token": made.secret}
    return json_answer(request, answer, Meta(index=made.revision))


async def delete_token(service: Service, request: Request, token_id: str) -> Answer:
    """DELETE /v1/nodes/join-token/:id."""
    check_region(request.query)
    return empty_answer(Meta(index=await service.identities.delete_token(token_id)))
