"""Turnstiles as version 1 wrote them are read by the newest code. The file is never edited."""

from __future__ import annotations

from pathlib import Path

import msgspec

from moorage.model.ids import NodeId, PluginId
from moorage.model.node import Turnstile
from moorage.state import codec

DATA = Path(__file__).parent / "data" / "records-turnstiles-v1.jsonl"
NODE = NodeId("11111111-2222-3333-4444-555555555555")


def test_version_1_means_what_it_meant() -> None:
    (row,) = map(msgspec.json.decode, DATA.read_bytes().splitlines())
    assert row["key"] == f"turnstiles/{NODE}/org.example.csi"
    found = codec.decode_key(row["key"], row["value"].encode())
    assert found == Turnstile(node_id=NODE, plugin_id=PluginId("org.example.csi"))
