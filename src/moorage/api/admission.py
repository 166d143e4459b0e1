"""Admission: whose request it is, and whether the caller may ask at all. Comes before every handler.

A request that may not ask is refused before its parameters and its body are looked at, so that a refusal tells nothing.
Source: contract volumes-api §1.2.
"""

from __future__ import annotations

import msgspec

from moorage.api.grants import Grant
from moorage.api.http import Request
from moorage.engine.service import Service
from moorage.errors import Forbidden
from moorage.rules.authorize import NOBODY, Access, demand


def find_secret(request: Request) -> str:
    """The secret that a request bears, or empty. ``X-Nomad-Token`` wins over ``Authorization: Bearer``, good or bad."""
    return find_secret_in(request.header("x-nomad-token"), request.header("authorization"))


def find_secret_in(token: str, authorization: str) -> str:
    """The same from the two headers."""
    given = token.strip()
    if given:
        return given
    words = authorization.split()
    return words[1] if len(words) > 1 and words[0].lower() == "bearer" else ""


def find_access(service: Service, secret: str) -> Access | None:
    """What a caller may do, as far as that tells answers apart; None for one that is to be refused, and for a node's
    own secret: it has no rules, as the anonymous caller may have none."""
    try:
        access = service.accesses.resolve(secret)
    except Forbidden:
        return None
    return None if access.caller.kind == "node" else access


def admit(service: Service, grant: Grant, request: Request, arguments: tuple[str, ...]) -> Request:
    """The request with its caller, if it may ask. Raises Forbidden."""
    is_free = grant.is_free(request)
    try:
        access = service.accesses.resolve(find_secret(request))
    except Forbidden:
        if not is_free:
            raise
        access = NOBODY
    demand(is_free or grant.test(access, request, arguments))
    return msgspec.structs.replace(request, access=access)
