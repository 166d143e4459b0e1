"""What the files of ``tests/upgrade/data`` mean, for tables that came after the first."""

from __future__ import annotations

import msgspec

from moorage.model.acl import Bootstrap, Policy, Token


def make_acl_records_1() -> dict[str, msgspec.Struct]:
    """What ``records-acl-v1.jsonl`` means."""
    token = Token(
        accessor_id="2d451016-dfa1-4887-b88b-e93319b4860d",
        secret_hash="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        name="ci",
        kind="client",
        policies=("read", "none"),
        is_global=True,
        ttl_ns=3600 * 10**9,
        expires_at_ns=1700000000000000002,
        created_at_ns=1700000000000000001,
    )
    bare = Token(accessor_id="e64cc3f6-c81b-4734-8f43-27432ea71e97", secret_hash="00", kind="management")
    rules = 'namespace "default" {\n  policy = "read"\n}\n'
    return {
        f"acl-tokens/{token.accessor_id}": token,
        f"acl-tokens/{bare.accessor_id}": bare,
        "acl-policies/read": Policy(name="read", description="d", rules=rules),
        "acl-bootstrap/once": Bootstrap(accessor_id=bare.accessor_id, at_ns=1700000000000000003),
    }
