"""Policy texts: HCL 1 or JSON to rules; and the checks of what a client sends. Pure.

Texts of refusals begin like the recorded ones and then name the line, the column and what would be right.
A key that nobody knows is refused, at the top as newer servers do, and inside a block as well: a policy whose
``polcy = "deny"`` is passed over would not do what its writer believes.
Source: contract volumes-api §6.2, §6.3, §6.5; golden acl.json.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping

from moorage.errors import BadRequest
from moorage.model.acl import Policy
from moorage.model.hcl import Body, Item, Listing, Scalar, Value, parse
from moorage.model.policy import NamespaceRule, PolicyRules
from moorage.rules.registration import join_errors

DESCRIPTION_BYTES_MAX = 256
DENY = "deny"

_NAME = re.compile(r"[a-zA-Z0-9-]{1,128}")
_NAMESPACE_NAME = re.compile(r"[a-zA-Z0-9-*]{1,128}")

_READ = (
    "list-jobs",
    "parse-job",
    "read-job",
    "csi-list-volume",
    "csi-read-volume",
    "read-job-scaling",
    "list-scaling-policies",
    "read-scaling-policy",
    "host-volume-read",
)
_WRITE = (
    *_READ,
    "scale-job",
    "submit-job",
    "dispatch-job",
    "read-logs",
    "read-fs",
    "alloc-exec",
    "alloc-lifecycle",
    "csi-mount-volume",
    "csi-write-volume",
    "submit-recommendation",
    "host-volume-create",
)
_SCALE = ("read-job", "read-job-scaling", "list-scaling-policies", "read-scaling-policy", "scale-job")

# Level → capabilities, by kind of block.
NAMESPACE_LEVELS: Mapping[str, tuple[str, ...]] = {"deny": (DENY,), "read": _READ, "write": _WRITE, "scale": _SCALE}
HOST_VOLUME_LEVELS: Mapping[str, tuple[str, ...]] = {
    "deny": (DENY,),
    "read": ("mount-readonly",),
    "write": ("mount-readonly", "mount-readwrite"),
}
NODE_POOL_LEVELS: Mapping[str, tuple[str, ...]] = {
    "deny": (DENY,),
    "read": ("read",),
    "write": ("delete", "read", "write"),
}

# Those of the reference that no level stands for are valid too, used here or not.
NAMESPACE_CAPABILITIES = frozenset(
    {
        DENY,
        *_WRITE,
        *_SCALE,
        "alloc-node-exec",
        "csi-register-plugin",
        "sentinel-override",
        "host-volume-register",
        "host-volume-write",
        "host-volume-delete",
    }
)
_HOST_VOLUME_CAPABILITIES = frozenset({DENY, "mount-readonly", "mount-readwrite"})
_NODE_POOL_CAPABILITIES = frozenset({DENY, "delete", "read", "write"})

_NAMED_BLOCKS: Mapping[str, tuple[Mapping[str, tuple[str, ...]], frozenset[str]]] = {
    "namespace": (NAMESPACE_LEVELS, NAMESPACE_CAPABILITIES),
    "host_volume": (HOST_VOLUME_LEVELS, _HOST_VOLUME_CAPABILITIES),
    "node_pool": (NODE_POOL_LEVELS, _NODE_POOL_CAPABILITIES),
}
_PLAIN_LEVELS = ("deny", "read", "write")
_PLAIN_BLOCKS: Mapping[str, tuple[str, ...]] = {
    "plugin": ("deny", "read", "list", "write"),
    "node": _PLAIN_LEVELS,
    "agent": _PLAIN_LEVELS,
    "operator": _PLAIN_LEVELS,
    "quota": _PLAIN_LEVELS,
    "sentinel": _PLAIN_LEVELS,
}


def check_policy(policy: Policy) -> PolicyRules:
    """Check a policy that a client sent, and give back its rules. Raises BadRequest with every finding."""
    findings = []
    rules = PolicyRules()
    if not _NAME.fullmatch(policy.name):
        findings.append(f"invalid name '{policy.name[:128]}'")
    try:
        rules = parse_rules(policy.rules)
    except BadRequest as error:
        findings.append(f"failed to parse rules: {error.message}")
    if len(policy.description.encode("utf-8", "surrogatepass")) > DESCRIPTION_BYTES_MAX:
        findings.append(f"description longer than {DESCRIPTION_BYTES_MAX}")
    if findings:
        raise BadRequest(f"policy 0 invalid: {join_errors(findings)}", code="policy_invalid", policy=policy.name[:128])
    return rules


def fingerprint(policy: Policy) -> str:
    """The hash that answers show: base64 of BLAKE2b-256 over name, description and rules."""
    digest = hashlib.blake2b(digest_size=32)
    for text in (policy.name, policy.description, policy.rules):
        digest.update(text.encode("utf-8", "surrogatepass"))
    return base64.b64encode(digest.digest()).decode()


# -- from text to rules ----------------------------------------------------------------------------------------------


def parse_rules(text: str) -> PolicyRules:
    """The rules of a policy's text; an empty one has none. Raises BadRequest that names line and column."""
    if not text.strip():
        return PolicyRules()
    try:
        body = parse(text)
    except BadRequest as error:
        raise BadRequest(f"Failed to parse ACL Policy: {error.message}", code=error.code, **error.fields) from error
    _check_keys(body)
    named = {kind: _merge(_read_named(body, kind)) for kind in _NAMED_BLOCKS}
    levels = {kind: _read_level(body, kind) for kind in _PLAIN_BLOCKS}
    return PolicyRules(
        namespaces=named["namespace"], host_volumes=named["host_volume"], node_pools=named["node_pool"], **levels
    )


def _check_keys(body: Body) -> None:
    unknown = [item for item in body.items if item.key not in _NAMED_BLOCKS and item.key not in _PLAIN_BLOCKS]
    if unknown:
        names = ", ".join(dict.fromkeys(item.key[:64] for item in unknown))
        known = ", ".join((*_NAMED_BLOCKS, *_PLAIN_BLOCKS))
        raise BadRequest(f"Invalid or duplicate policy keys: {names} ({_at(unknown[0])}; there are {known})")


def _at(part: Item | Value) -> str:
    return f"line {part.line}, column {part.column}"


def _bodies(value: Value) -> Iterable[Body] | None:
    """The blocks that a value stands for: itself, or in JSON a list of them; None where it is something else."""
    if isinstance(value, Body):
        return (value,)
    if isinstance(value, Listing) and all(isinstance(entry, Body) for entry in value.values):
        return [entry for entry in value.values if isinstance(entry, Body)]
    return None


def _read_named(body: Body, kind: str) -> list[NamespaceRule]:
    """Blocks with a name: ``namespace "x" { … }``, or a map from names to blocks as JSON has it."""
    found: list[NamespaceRule] = []
    for item in body.find(kind):
        blocks = _bodies(item.value)
        if blocks is None or len(item.labels) > 1:
            raise BadRequest(f'Failed to parse ACL Policy: {_at(item)}: expected {kind} "NAME" {{ … }}')
        if item.labels:
            found += [_read_rule(kind, item.labels[0], block, item) for block in blocks]
            continue
        for inner in (entry for block in blocks for entry in block.items):
            inner_blocks = _bodies(inner.value)
            if inner_blocks is None or inner.labels:
                raise BadRequest(f'Failed to parse ACL Policy: {_at(inner)}: expected {kind} "NAME" {{ … }}')
            found += [_read_rule(kind, inner.key, block, inner) for block in inner_blocks]
    return found


def _read_rule(kind: str, name: str, block: Body, where: Item) -> NamespaceRule:
    levels, known = _NAMED_BLOCKS[kind]
    if not _NAMESPACE_NAME.fullmatch(name):
        what = kind.replace("_", " ")
        raise BadRequest(
            f"Invalid {what} name: {name[:128]!r} ({_at(where)}; 1 to 128 letters, digits, hyphens and * are allowed)"
        )
    policy, given = "", list[str]()
    for item in block.items:
        if item.key == "policy":
            policy = _read_text(item, kind)
            if policy and policy not in levels:
                choices = ", ".join(levels)
                raise BadRequest(
                    f"Invalid {kind.replace('_', ' ')} policy: {policy[:64]!r} of {name!r} ({_at(item)}; "
                    f"there are {choices})"
                )
        elif item.key == "capabilities":
            given += _read_texts(item, kind)
            for capability in given:
                if capability not in known:
                    what = f"Invalid {kind.replace('_', ' ')} capability '{capability[:64]}' of {name!r}"
                    raise BadRequest(f"{what} ({_at(item)}; there are {', '.join(sorted(known))})")
        elif not (kind == "namespace" and item.key == "variables"):
            raise BadRequest(f"Invalid or duplicate policy keys: {item.key[:64]} in {kind} {name!r} ({_at(item)})")
    capabilities = tuple(dict.fromkeys((*given, *levels.get(policy, ()))))
    return NamespaceRule(name=name, policy=policy, capabilities=capabilities)


def _merge(rules: Iterable[NamespaceRule]) -> tuple[NamespaceRule, ...]:
    """Rules of one name add up, in the order of their first mention."""
    found: dict[str, NamespaceRule] = {}
    for rule in rules:
        held = found.get(rule.name)
        if held is not None:
            policy = DENY if DENY in (rule.policy, held.policy) else rule.policy or held.policy
            both = tuple(dict.fromkeys((*held.capabilities, *rule.capabilities)))
            rule = NamespaceRule(name=rule.name, policy=policy, capabilities=both)
        found[rule.name] = rule
    return tuple(found.values())


def _read_level(body: Body, kind: str) -> str:
    """The level of a block without a name; empty when the policy has no such block."""
    items = body.find(kind)
    if len(items) > 1:
        raise BadRequest(f"Invalid or duplicate policy keys: {kind} stands twice (again at {_at(items[1])})")
    for item in items:
        blocks = _bodies(item.value)
        if blocks is None or item.labels:
            raise BadRequest(f"Failed to parse ACL Policy: {_at(item)}: expected {kind} {{ policy = … }}")
        level = ""
        for inner in (entry for block in blocks for entry in block.items):
            if inner.key == "capabilities" and kind == "operator":
                _read_texts(inner, kind)
            elif inner.key != "policy":
                raise BadRequest(f"Invalid or duplicate policy keys: {inner.key[:64]} in {kind} ({_at(inner)})")
            else:
                level = _read_text(inner, kind)
        if level not in _PLAIN_BLOCKS[kind]:
            choices = ", ".join(_PLAIN_BLOCKS[kind])
            raise BadRequest(f"Invalid {kind} policy: {level[:64]!r} ({_at(item)}; there are {choices})")
        return level
    return ""


def _read_text(item: Item, kind: str) -> str:
    if isinstance(item.value, Scalar) and isinstance(item.value.value, str):
        return item.value.value
    raise BadRequest(f"Failed to parse ACL Policy: {_at(item)}: {kind}.{item.key} is not a text in quotes")


def _read_texts(item: Item, kind: str) -> list[str]:
    values = item.value.values if isinstance(item.value, Listing) else ()
    texts = [v.value for v in values if isinstance(v, Scalar) and isinstance(v.value, str)]
    if not isinstance(item.value, Listing) or len(texts) != len(values):
        raise BadRequest(f"Failed to parse ACL Policy: {_at(item)}: {kind}.{item.key} is not a list of texts")
    return texts
