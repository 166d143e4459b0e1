"""Identities and join tokens as version 1 wrote them are read by the newest code. The file is never edited."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from moorage.model.identity import Identity, JoinToken, JoinUse, Withdrawal
from moorage.model.ids import NodeId
from moorage.state import codec

DATA = Path(__file__).parent / "data" / "records-identities-v1.jsonl"
NODE = NodeId("11111111-2222-3333-4444-555555555555")
OTHER = NodeId("22222222-2222-3333-4444-555555555555")
NOW_NS = 1700000000000000001
GONE = Withdrawal(secret_hash="0" * 64, reason="disk «replaced»", by="root", at_ns=NOW_NS)
RECORDS: dict[str, msgspec.Struct] = {
    f"identities/{NODE}": Identity(
        node_id=NODE,
        secret_hash="a" * 64,
        joined_by="token",
        join_token_id="t1",
        joined_at_ns=NOW_NS,
        withdrawn=(GONE,),
    ),
    f"identities/{OTHER}": Identity(node_id=OTHER, joined_by="certificate", withdrawn=(GONE,)),
    "join-tokens/t1": JoinToken(
        id="t1",
        secret_hash="b" * 64,
        created_at_ns=NOW_NS,
        expires_at_ns=NOW_NS + 1,
        uses_max=3,
        uses=(JoinUse(node_id=NODE, secret_hash="a" * 64, at_ns=NOW_NS),),
        note="rack 7",
    ),
}


@pytest.mark.parametrize("key", sorted(RECORDS))
def test_version_1_means_what_it_meant(key: str) -> None:
    found = {row["key"]: row["value"].encode() for row in map(msgspec.json.decode, DATA.read_bytes().splitlines())}
    assert found.keys() == RECORDS.keys()
    assert codec.decode_key(key, found[key]) == RECORDS[key]
