"""Tokens: checks of what a client sends, times to live, and the hash that answers show. Pure.

Source: contract volumes-api §6.5; golden acl.json.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import cast

import msgspec

from moorage.errors import BadRequest
from moorage.model.acl import Token, TokenKind
from moorage.rules.registration import join_errors

NAME_BYTES_MAX = 256
POLICIES_MAX = 256
TTL_MIN_S = 60
# What a signed number of nanoseconds can hold of years to come.
EXPIRES_NS_MAX = 2**63 - 1
_SECOND = 1_000_000_000
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

replace = msgspec.structs.replace


class SentToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token as a client asks for it. ``ttl_ns`` and ``expires_at_ns`` 0: it does not expire."""

    name: str = ""
    kind: str = ""
    policies: tuple[str, ...] | None = None
    has_roles: bool = False
    is_global: bool = False
    ttl_ns: int = 0
    expires_at_ns: int = 0


def is_uuid(text: str) -> bool:
    """Whether a text is a UUID in lower case."""
    return _UUID.fullmatch(text) is not None


def is_expired(token: Token, *, now_ns: int) -> bool:
    """Whether a token's time is up."""
    return 0 < token.expires_at_ns <= now_ns


def make_token(sent: SentToken, *, accessor_id: str, secret_hash: str, now_ns: int) -> Token:
    """The record of a new token. Raises BadRequest with every finding."""
    findings = _check(sent)
    expires_at_ns = sent.expires_at_ns
    if sent.ttl_ns and sent.expires_at_ns:
        findings.append("expiration time and expiration TTL exclude each other: give one")
    elif sent.ttl_ns:
        expires_at_ns = now_ns + sent.ttl_ns
    if expires_at_ns and not findings:
        findings += _check_expiry(expires_at_ns - now_ns, expires_at_ns)
    _refuse(findings)
    return Token(
        accessor_id=accessor_id,
        secret_hash=secret_hash,
        name=sent.name,
        kind=cast(TokenKind, sent.kind),
        policies=sent.policies or None,
        is_global=sent.is_global,
        ttl_ns=sent.ttl_ns,
        expires_at_ns=expires_at_ns,
        created_at_ns=now_ns,
    )


def change_token(old: Token, sent: SentToken) -> Token:
    """A token with what may change: name, type, policies. What is not said of its expiry stays. Raises BadRequest."""
    findings = _check(sent)
    if sent.is_global != old.is_global:
        findings.append("cannot toggle global mode of a token: make another one")
    if sent.ttl_ns not in (0, old.ttl_ns) or sent.expires_at_ns not in (0, old.expires_at_ns):
        findings.append("cannot change the expiration of a token: make another one")
    _refuse(findings)
    return replace(old, name=sent.name, kind=cast(TokenKind, sent.kind), policies=sent.policies or None)


def _check(sent: SentToken) -> list[str]:
    findings = []
    if len(sent.name.encode("utf-8", "surrogatepass")) > NAME_BYTES_MAX:
        findings.append("token name too long")
    if sent.has_roles:
        findings.append("there are no roles here: name policies")
    if sent.policies is not None and len(sent.policies) > POLICIES_MAX:
        findings.append(f"a token has at most {POLICIES_MAX} policies")
    if sent.kind == "client":
        if not sent.policies:
            findings.append("client token missing policies or roles")
    elif sent.kind == "management":
        if sent.policies:
            findings.append("management token cannot be associated with policies or roles")
    else:
        findings.append("token type must be client or management")
    return findings


def _check_expiry(left_ns: int, expires_at_ns: int) -> list[str]:
    if left_ns < TTL_MIN_S * _SECOND:
        minimum = format_duration(TTL_MIN_S * _SECOND)
        return [f"expiration time cannot be less than {minimum} in the future (was {format_duration(left_ns)})"]
    return ["expiration time is too far away"] if expires_at_ns > EXPIRES_NS_MAX else []


def _refuse(findings: list[str]) -> None:
    if findings:
        raise BadRequest(f"token 0 invalid: {join_errors(findings)}", code="token_invalid")


def fingerprint(token: Token) -> str:
    """The hash that answers show: base64 of BLAKE2b-256 over name, type, policies and scope."""
    digest = hashlib.blake2b(digest_size=32)
    scope = "global" if token.is_global else "local"
    for text in (token.name, token.kind, *(token.policies or ()), scope):
        digest.update(text.encode("utf-8", "surrogatepass"))
    return base64.b64encode(digest.digest()).decode()


def format_duration(nanoseconds: int) -> str:
    """A duration in Go's spelling: ``1h0m0s``, ``1m0s``, ``1.5s``, ``300ms``; empty for 0."""
    if not nanoseconds:
        return ""
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    for unit, name in ((1, "ns"), (1_000, "µs"), (1_000_000, "ms")):
        if rest < unit * 1000:
            return f"{sign}{_fraction(rest, unit)}{name}"
    minutes, seconds_ns = divmod(rest, 60 * _SECOND)
    hours, minutes = divmod(minutes, 60)
    text = f"{_fraction(seconds_ns, _SECOND)}s"
    if hours:
        return f"{sign}{hours}h{minutes}m{text}"
    return f"{sign}{minutes}m{text}" if minutes else f"{sign}{text}"


def _fraction(amount: int, unit: int) -> str:
    whole, rest = divmod(amount, unit)
    return f"{whole}.{rest:0{len(str(unit)) - 1}d}".rstrip("0") if rest else str(whole)
