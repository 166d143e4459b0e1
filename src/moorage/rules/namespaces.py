"""Namespaces: checks of what was sent, the fingerprint of a record, and the refusals of a deletion. Pure.

Source: golden namespaces.jsonl; contract volumes-api §4.2, §6.5 (how a fingerprint is made).
"""

from __future__ import annotations

import base64
import hashlib
import json

from moorage.errors import BadRequest, Conflict, NotFound, Rejected
from moorage.model.ids import DEFAULT_NAMESPACE, check_namespace
from moorage.model.namespace import Namespace
from moorage.rules.registration import join_errors

DESCRIPTION_BYTES_MAX = 256
REGION = "global"

# Members of a namespace that moorage keeps for its clients and makes nothing of.
SETTINGS = (
    "Capabilities",
    "ConsulConfiguration",
    "NodePoolConfiguration",
    "OptionalExtraClaims",
    "RequiredExtraClaims",
    "VaultConfiguration",
)


def check_sent(namespace: Namespace) -> None:
    """Check a namespace that a client sent. Raises Rejected with every finding, code ``validation``."""
    findings = []
    try:
        check_namespace(namespace.name)
    except BadRequest:
        findings.append(f'invalid name "{namespace.name[:64]}": 1 to 128 letters, digits and hyphens are allowed')
    if len(namespace.description.encode("utf-8", "surrogatepass")) > DESCRIPTION_BYTES_MAX:
        findings.append(f"description longer than {DESCRIPTION_BYTES_MAX}")
    if findings:
        text = f'invalid namespace "{namespace.name[:64]}": {join_errors(findings)}'
        raise Rejected(text, code="validation", namespace=namespace.name[:64])


def fingerprint(namespace: Namespace) -> str:
    """The hash that answers show: base64 of BLAKE2b-256 over the members, so that a client can tell a change."""
    digest = hashlib.blake2b(digest_size=32)
    for text in (namespace.name, namespace.description, namespace.quota):
        digest.update(text.encode("utf-8", "surrogatepass"))
    for member in sorted(namespace.settings):
        digest.update(f"{member}={json.dumps(namespace.settings[member], sort_keys=True)}".encode())
    for key, value in sorted((namespace.meta or {}).items()):
        digest.update(f"{key}{value}".encode("utf-8", "surrogatepass"))
    return base64.b64encode(digest.digest()).decode()


def check_deletable(name: str) -> None:
    """The default namespace stays. Raises Conflict with the recorded text."""
    if name == DEFAULT_NAMESPACE:
        raise Conflict("can not delete default namespace", code="namespace_default", namespace=name)


def missing(name: str) -> NotFound:
    """The refusal to delete what is not there; the text is the recorded one."""
    return NotFound("namespace not found", code="namespace_missing", namespace=name)


def in_use(name: str) -> Conflict:
    """The refusal to delete a namespace with volumes; the text is the recorded one."""
    text = f'namespace "{name}" has volumes associated with it in regions: [{REGION}]'
    return Conflict(join_errors([text]), code="namespace_in_use", namespace=name)
