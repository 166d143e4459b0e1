"""Handlers of tokens and policies. Source: contract volumes-api §6.5; golden acl.json; clients §2.1."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct, field

from moorage.api.admission import find_secret
from moorage.api.bodies import decode
from moorage.api.http import Answer, Meta, Request, json_answer, text_answer
from moorage.api.params import ReadOptions, check_page_size, check_region, parse_duration_s, parse_read
from moorage.api.volumes import wait_for_change
from moorage.engine.reads import ACL_POLICIES, ACL_TOKENS
from moorage.engine.service import Service
from moorage.errors import BadRequest
from moorage.model.acl import ANONYMOUS, Policy, Token
from moorage.model.policy import NamespaceRule
from moorage.model.times import format_time
from moorage.rules import policies as policy_rules
from moorage.rules import tokens as token_rules
from moorage.rules.authorize import demand
from moorage.rules.tokens import SentToken

Json = dict[str, Any]

_BAD_ACCESSOR = "acl token lookup failed: index error: UUID must be 36 characters"
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)")
_NEVER = "0001-01-01T00:00:00Z"
_SECOND = 1_000_000_000


class BootstrapBody(Struct):
    """Body of a bootstrap; none at all is as good."""

    secret: str = field(default="", name="BootstrapSecret")


class PolicyBody(Struct):
    """A policy as a client sends it."""

    name: str = field(default="", name="Name")
    description: str = field(default="", name="Description")
    rules: str = field(default="", name="Rules")


class TokenBody(Struct):
    """A token as a client sends it. What only the server can know is not looked at."""

    accessor_id: str = field(default="", name="AccessorID")
    name: str = field(default="", name="Name")
    type: str = field(default="", name="Type")
    policies: list[str] | None = field(default=None, name="Policies")
    roles: list[Any] | None = field(default=None, name="Roles")
    is_global: bool = field(default=False, name="Global")
    expiration_ttl: str | int = field(default="", name="ExpirationTTL")
    expiration_time: str | None = field(default=None, name="ExpirationTime")


def _check_enabled(service: Service) -> None:
    if not service.acl.is_enabled:
        raise BadRequest("ACL support disabled")


def _index(service: Service, table: str) -> int:
    return max(1, service.reads.table_index(table))


def _written(revision: int) -> Json:
    return {"X-Nomad-Index": str(revision)}


# -- bootstrap -------------------------------------------------------------------------------------------------------


async def bootstrap(service: Service, request: Request) -> Answer:
    """PUT or POST /v1/acl/bootstrap."""
    _check_enabled(service)
    secret = ""
    if request.body:
        try:
            secret = decode(BootstrapBody, request.body).secret
        except BadRequest as error:
            raise BadRequest(f"failed to decode request body: {error.message}") from error
    made, secret = await service.acl.bootstrap(secret)
    return json_answer(request, show_token(made.value, made.created, made.modified, secret), **_written(made.modified))


# -- policies --------------------------------------------------------------------------------------------------------


async def list_policies(service: Service, request: Request) -> Answer:
    """GET /v1/acl/policies: all of them for a management token, else the caller's own."""
    _check_enabled(service)
    options = parse_read(request)
    await wait_for_change(service, options, (ACL_POLICIES,), lambda: _index(service, ACL_POLICIES))
    return _answer_policies(service, request, options.prefix, is_all=request.access.is_full)


async def list_own_policies(service: Service, request: Request) -> Answer:
    """GET /v1/acl/policy/self: the caller's own."""
    _check_enabled(service)
    parse_read(request)
    return _answer_policies(service, request, "", is_all=False)


def _answer_policies(service: Service, request: Request, prefix: str, *, is_all: bool) -> Answer:
    own = service.acl.find_policy_names(request.access)
    rows = [
        _policy_stub(r.value, r.created, r.modified)
        for r in service.acl.list_policies(prefix)
        if is_all or r.value.name in own
    ]
    return json_answer(request, rows, Meta(index=_index(service, ACL_POLICIES)))


async def read_policy(service: Service, request: Request, name: str) -> Answer:
    """GET /v1/acl/policy/:name: the caller's own, ``anonymous``, and any for a management token."""
    _check_enabled(service)
    _check_policy_name(name)
    access = request.access
    demand(access.is_full or name == ANONYMOUS or name in service.acl.find_policy_names(access))
    options = parse_read(request)
    await wait_for_change(service, options, (ACL_POLICIES + name,), lambda: _index(service, ACL_POLICIES))
    found = service.acl.find_policy(name)
    if found is None:
        return text_answer(404, "ACL policy not found", Meta(index=_index(service, ACL_POLICIES)))
    body = _policy_stub(found.value, found.created, found.modified) | {
        "Rules": found.value.rules,
        "RulesJSON": _show_rules(found.value),
    }
    return json_answer(request, body, Meta(index=found.modified))


async def write_policy(service: Service, request: Request, name: str) -> Answer:
    """PUT or POST /v1/acl/policy/:name."""
    _check_enabled(service)
    _check_policy_name(name)
    body = decode(PolicyBody, request.body)
    check_region(request.query)
    if body.name != name:
        raise BadRequest("ACL policy name does not match request path")
    policy = Policy(name=body.name, description=body.description, rules=body.rules)
    return Answer(headers=_written(await service.acl.put_policy(policy)))


async def delete_policy(service: Service, request: Request, name: str) -> Answer:
    """DELETE /v1/acl/policy/:name."""
    _check_enabled(service)
    _check_policy_name(name)
    check_region(request.query)
    return Answer(headers=_written(await service.acl.delete_policy(name)))


def _check_policy_name(name: str) -> None:
    if not name:
        raise BadRequest("Missing Policy Name")


def _policy_stub(policy: Policy, created: int, modified: int) -> Json:
    return {
        "CreateIndex": created,
        "Description": policy.description,
        "Hash": policy_rules.fingerprint(policy),
        "JobACL": None,
        "ModifyIndex": modified,
        "Name": policy.name,
    }


def _show_rules(policy: Policy) -> Json | None:
    """The rules as newer servers show them, with the capabilities that levels stand for; None: not understood."""
    try:
        rules = policy_rules.parse_rules(policy.rules)
    except BadRequest:
        return None
    return {
        "Agent": _show_level(rules.agent),
        "ExtraKeysHCL": None,
        "HostVolumes": _show_named(rules.host_volumes),
        "Namespaces": _show_named(rules.namespaces, Variables=None),
        "Node": _show_level(rules.node),
        "NodePools": _show_named(rules.node_pools),
        "Operator": _show_level(rules.operator),
        "Plugin": _show_level(rules.plugin),
        "Quota": _show_level(rules.quota),
        "Raw": policy.rules,
        "Sentinel": _show_level(rules.sentinel),
    }


def _show_level(level: str) -> Json | None:
    return {"Policy": level} if level else None


def _show_named(rules: tuple[NamespaceRule, ...], **more: None) -> list[Json] | None:
    return [
        {"Capabilities": list(r.capabilities) or None, "Name": r.name, "Policy": r.policy} | more for r in rules
    ] or None


# -- tokens ----------------------------------------------------------------------------------------------------------


async def list_tokens(service: Service, request: Request) -> Answer:
    """GET /v1/acl/tokens, in the order of creation."""
    _check_enabled(service)
    options = parse_read(request)
    check_page_size(options)
    await wait_for_change(service, options, (ACL_TOKENS,), lambda: _index(service, ACL_TOKENS))
    page, next_token = _cut_page(service, options)
    headers = {"X-Nomad-NextToken": next_token} if next_token else {}
    return json_answer(request, page, Meta(index=_index(service, ACL_TOKENS)), **headers)


def _cut_page(service: Service, options: ReadOptions) -> tuple[list[Json], str]:
    """One page, and the token of the next: the creation and accessor of its first entry."""
    page: list[Json] = []
    created, _, accessor = options.next_token.partition(".")
    first = (int(created), accessor) if created.isascii() and created.isdigit() and len(created) < 20 else (0, "")
    for record in service.acl.list_tokens(options.prefix):
        token = record.value
        if (record.created, token.accessor_id) < first:
            continue
        if options.per_page and len(page) == options.per_page:
            return page, f"{record.created}.{token.accessor_id}"
        shown = show_token(token, record.created, record.modified)
        page.append({k: v for k, v in shown.items() if k not in ("SecretID", "ExpirationTTL")})
    return page, ""


async def read_token(service: Service, request: Request, accessor_id: str) -> Answer:
    """GET /v1/acl/token/:accessor: any for a management token, else the caller's own."""
    _check_enabled(service)
    if not accessor_id:
        raise BadRequest("Missing Token Accessor")
    own_id = request.caller.accessor_id
    demand(request.access.is_full or (own_id != "" and own_id == accessor_id))
    options = parse_read(request)
    if len(accessor_id) != 36:
        return text_answer(500, _BAD_ACCESSOR)
    await wait_for_change(service, options, (ACL_TOKENS + accessor_id,), lambda: _index(service, ACL_TOKENS))
    found = service.acl.find_token(accessor_id)
    if found is None:
        return text_answer(404, "ACL token not found", Meta(index=_index(service, ACL_TOKENS)))
    secret = find_secret(request) if own_id == accessor_id else ""
    body = show_token(found.value, found.created, found.modified, secret)
    return json_answer(request, body, Meta(index=found.modified))


async def read_own_token(service: Service, request: Request) -> Answer:
    """GET /v1/acl/token/self: the caller's own, or one that stands for a caller who has none."""
    secret = find_secret(request)
    found = service.acl.find_own_token(secret) if service.acl.is_enabled else None
    if found is not None:
        body = show_token(found.value, found.created, found.modified, secret)
        return json_answer(request, body, Meta(index=found.modified))
    accessor_id, name, policies = ANONYMOUS, "Anonymous Token", [ANONYMOUS]
    if not service.acl.is_enabled:
        accessor_id, name, policies = "acls-disabled", "ACLs disabled token", []
    elif request.caller.kind == "node":
        accessor_id, name, policies = request.caller.node_id or "node", "Node", []
    shown = show_token(Token(accessor_id=accessor_id, secret_hash="", name=name), 0, 0)
    body = shown | {"CreateTime": _NEVER, "Hash": None, "Policies": policies or None}
    return json_answer(request, body, Meta(index=0))


async def write_token(service: Service, request: Request, accessor_id: str = "") -> Answer:
    """PUT or POST /v1/acl/token makes one, …/:accessor changes one."""
    _check_enabled(service)
    body = decode(TokenBody, request.body)
    check_region(request.query)
    if accessor_id and body.accessor_id != accessor_id:
        raise BadRequest("ACL token accessor does not match request path")
    sent = _parse_token(body)
    if body.accessor_id:
        changed = await service.acl.update_token(body.accessor_id, sent)
        shown = show_token(changed.value, changed.created, changed.modified)
        return json_answer(request, shown, **_written(changed.modified))
    made, secret = await service.acl.create_token(sent)
    return json_answer(request, show_token(made.value, made.created, made.modified, secret), **_written(made.modified))


def _parse_token(body: TokenBody) -> SentToken:
    ttl = body.expiration_ttl
    ttl_ns: int | None = ttl if isinstance(ttl, int) else 0
    if isinstance(ttl, str) and ttl:
        ttl_s = parse_duration_s(ttl)
        ttl_ns = None if ttl_s is None else round(ttl_s * _SECOND)
    if ttl_ns is None or not 0 <= ttl_ns <= token_rules.EXPIRES_NS_MAX:
        raise BadRequest(f"ExpirationTTL {str(ttl)[:64]!r} is not a duration such as 8h or 90m")
    return SentToken(
        name=body.name,
        kind=body.type,
        policies=None if body.policies is None else tuple(body.policies),
        has_roles=bool(body.roles),
        is_global=body.is_global,
        ttl_ns=ttl_ns,
        expires_at_ns=_parse_time(body.expiration_time or ""),
    )


def _parse_time(text: str) -> int:
    """RFC 3339 as nanoseconds since the epoch; 0 for none. Raises BadRequest."""
    if text in ("", _NEVER):
        return 0
    found = _TIME.fullmatch(text)
    try:
        if found is None:
            raise ValueError(text)
        moment = datetime.fromisoformat(found[1].upper() + found[3].upper().replace("Z", "+00:00"))
    except ValueError as error:
        text = f"ExpirationTime {text[:64]!r} is not a time such as 2030-01-31T12:00:00Z"
        raise BadRequest(text) from error
    seconds = int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    return max(1, seconds * _SECOND + int((found[2] or "").ljust(9, "0")))


async def delete_token(service: Service, request: Request, accessor_id: str) -> Answer:
    """DELETE /v1/acl/token/:accessor."""
    _check_enabled(service)
    if not accessor_id:
        raise BadRequest("Missing Token Accessor")
    check_region(request.query)
    if len(accessor_id) != 36:
        raise BadRequest(f"token lookup failed: {_BAD_ACCESSOR}")
    return Answer(headers=_written(await service.acl.delete_token(accessor_id)))


def show_token(token: Token, created: int, modified: int, secret: str = "") -> Json:
    """A token as answers show it. ``secret`` is empty where it is not known: records do not hold it."""
    return {
        "AccessorID": token.accessor_id,
        "CreateIndex": created,
        "CreateTime": format_time(token.created_at_ns),
        "ExpirationTTL": token_rules.format_duration(token.ttl_ns),
        "ExpirationTime": format_time(token.expires_at_ns),
        "Global": token.is_global,
        "Hash": token_rules.fingerprint(token),
        "ModifyIndex": modified,
        "Name": token.name,
        "Policies": list(token.policies) if token.policies is not None else None,
        "Roles": None,
        "SecretID": secret,
        "Type": token.kind,
    }
