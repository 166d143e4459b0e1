"""Refusals: every answer that says no is made here, from one shape, in the form that its client wants.

A client gets the recorded plain text and status; one that accepts ``application/problem+json`` gets an RFC 9457
problem with an honest status and a stable ``code``. Texts and statuses of routing are here too.
Source: contract volumes-api §1.1, §1.5; RFC 9457; RFC 9110 §15.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from moorage.api.http import TEXT, Answer
from moorage.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    MoorageError,
    NotFound,
    Rejected,
    Unavailable,
)

PROBLEM = "application/problem+json"
# Members of a problem that an error's fields may not take.
_OWN_MEMBERS = frozenset({"type", "title", "status", "detail", "code"})

# Recorded servers answer 500 to nearly every refusal; these codes alone have a status of their own.
PLAIN_STATUS: dict[str, int] = {
    "bad_request": 400,
    "acl_bootstrap_done": 400,
    "policy_invalid": 400,
    "token_invalid": 400,
    "over_limit": 400,
    "forbidden": 403,
    "node_missing": 404,
    "join_token_missing": 404,
    "allocation_missing": 404,
    # An agent decides by it: a node that was lost comes back only clean.
    "node_lost": 409,
}

_HONEST_STATUS: tuple[tuple[type[MoorageError], int], ...] = (
    (BadRequest, 400),
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (Rejected, 400),
    (Unavailable, 503),
)

# What handlers answer as a recorded text: its code and its honest status.
_TEXTS: dict[str, tuple[str, int]] = {
    "volume not found": ("volume_missing", 404),
    "plugin not found": ("plugin_missing", 404),
    "alloc not found": ("allocation_missing", 404),
    "node not found": ("node_missing", 404),
    "node lookup failed: index error: UUID must be 36 characters": ("bad_request", 400),
    "ACL policy not found": ("acl_policy_missing", 404),
    "ACL token not found": ("acl_token_missing", 404),
    "acl token lookup failed: index error: UUID must be 36 characters": ("bad_request", 400),
    "missing volume ID": ("bad_request", 400),
    "missing plugin ID": ("bad_request", 400),
    "resource not found": ("no_resource", 404),
}
_CODES = {400: "bad_request", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", 501: "unsupported"}


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal before it has a form. ``status``: the recorded one; ``honest``: a problem's, 0 for the same.

    ``detail``: a problem's sentence where the recorded ``text`` is empty.
    """

    status: int
    code: str
    text: str = ""
    honest: int = 0
    detail: str = ""
    headers: Mapping[str, str] = {}
    fields: Mapping[str, str] = {}


def refuse(accept: str, refusal: Refusal) -> Answer:
    """The refusal in the form that an ``Accept`` value asks for."""
    if PROBLEM not in accept.lower():
        body = refusal.text.encode("utf-8", "replace")
        content_type = TEXT if body else None
        return Answer(status=refusal.status, body=body, content_type=content_type, headers=refusal.headers)
    status = refusal.honest or refusal.status
    problem = {
        "type": f"urn:moorage:error:{refusal.code}",
        "title": refusal.code.replace("_", " "),
        "status": status,
        "detail": refusal.text or refusal.detail,
        "code": refusal.code,
        **{k: v for k, v in refusal.fields.items() if k not in _OWN_MEMBERS},
    }
    body = msgspec.json.encode(problem)
    return Answer(status=status, body=body, content_type=PROBLEM, headers=refusal.headers)


def of_error(error: MoorageError) -> Refusal:
    """The refusal that an error is."""
    retry = {"Retry-After": str(max(1, round(error.retry_after_s)))} if isinstance(error, Unavailable) else {}
    return Refusal(
        status=PLAIN_STATUS.get(error.code, 403 if isinstance(error, Forbidden) else 500),
        honest=next((status for kind, status in _HONEST_STATUS if isinstance(error, kind)), 500),
        code=error.code,
        text=error.message,
        headers=retry,
        fields=error.fields,
    )


def of_answer(answer: Answer) -> Refusal:
    """The refusal that a handler answered as a recorded text."""
    text = answer.body.decode("utf-8", "replace")
    code, honest = _TEXTS.get(text, (_CODES.get(answer.status, "error"), answer.status))
    return Refusal(status=answer.status, honest=honest, code=code, text=text, headers=answer.headers)


# -- routing ---------------------------------------------------------------------------------------------------------

NO_RESOURCE = Refusal(status=404, code="no_resource", text="resource not found")
NOTHING = Refusal(status=404, code="no_path", detail="nothing is served under this path")


def of_unrouted(method: str, parts: tuple[str, ...]) -> Refusal:
    """What a path gets that no handler owns. Under a volume's or plugin's path it is a resource that does not exist."""
    if parts[:3] in (("v1", "volume", "host"), ("v1", "plugin", "csi")):
        return NO_RESOURCE
    if parts[:3] != ("v1", "volume", "csi"):
        return NOTHING
    if len(parts) == 5 and method not in ("PUT", "DELETE"):
        return _wrong_method(("DELETE", "PUT"))
    return NO_RESOURCE


def of_wrong_method(method: str, parts: tuple[str, ...], allowed: Iterable[str]) -> Refusal:
    """405, but a two-part volume path with PUT or DELETE is a verb that does not exist there; as is any under host."""
    if parts[:3] == ("v1", "volume", "host"):
        return NO_RESOURCE
    is_volume_verb = parts[:3] == ("v1", "volume", "csi") and len(parts) == 5
    return NO_RESOURCE if is_volume_verb and method in ("PUT", "DELETE") else _wrong_method(allowed)


def _wrong_method(allowed: Iterable[str]) -> Refusal:
    headers = {"Allow": ", ".join(sorted(allowed))}
    return Refusal(status=405, code="method_not_allowed", text="Invalid method", headers=headers)


def of_crash(incident: str) -> Refusal:
    """What a client hears of a fault of ours."""
    text = f"internal error; the server's log has it as incident {incident}"
    return Refusal(status=500, code="internal", text=text)


# -- limits ----------------------------------------------------------------------------------------------------------

_CLOSE = {"Connection": "close"}


def of_limit(status: int, code: str, text: str, limit: float) -> Refusal:
    """A request that is over a limit, which the text and the problem's ``limit`` name. The connection ends."""
    return Refusal(status=status, code=code, text=text, headers=_CLOSE, fields={"limit": f"{limit:g}"})


def of_crowd(status: int, code: str, text: str, limit: float) -> Refusal:
    """A request that comes while too much is going on; asked again later it may be answered."""
    return Refusal(status=status, code=code, text=text, headers={"Retry-After": "1"}, fields={"limit": f"{limit:g}"})


def of_depth(depth_max: int) -> Refusal:
    """A JSON body that is nested too deep."""
    text = f"invalid character: JSON is nested deeper than {depth_max} levels"
    return Refusal(status=400, code="over_limit", text=text, fields={"limit": str(depth_max)})


STOPPING = Refusal(
    status=503, code="stopping", text="the server is stopping; ask again", headers={"Retry-After": "1", **_CLOSE}
)
