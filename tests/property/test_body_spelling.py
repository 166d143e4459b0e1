"""A body that spells its members as the API does is read by a short way: what comes of it is what the lenient way makes
of it, for any body, refusals and their texts included."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.api import bodies
from moorage.api.bodies import Body, decode, decode_leniently
from moorage.errors import BadRequest

KINDS: list[type[Body]] = [
    kind for kind in vars(bodies).values() if isinstance(kind, type) and issubclass(kind, Body) and kind is not Body
]
NUMBERS = st.sampled_from([0, 1, -1, 1.0, 5e3, 1.5, -0.0, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, float("inf")])
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.sampled_from(["", "a", "é", "\x00", "default"]))
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "ID", "Segments"]), inner),
)


def members(kind: Any) -> st.SearchStrategy[Any]:
    """Objects like a body of this kind, now and then with something else in a member's place, or misspelt."""
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    spelt = {name: st.one_of(of(inner), of(inner), of(inner), ANYTHING) for name, inner in fields.items()}
    wild = {name.lower(): ANYTHING for name in list(fields)[:2]} | {"Unknown": ANYTHING}
    return st.fixed_dictionaries({}, optional=spelt) | st.fixed_dictionaries({}, optional=spelt | wild)


def of(kind: Any) -> st.SearchStrategy[Any]:
    """Values like one of this type."""
    text = str(kind)
    inner = next((k for k in KINDS if f"{k.__module__}.{k.__name__}" in text), None)
    if inner is not None:
        return st.lists(st.one_of(members(inner), st.none()), max_size=2) if "list" in text else members(inner)
    if "dict" in text:
        return st.dictionaries(st.sampled_from(["k", "zone"]), st.sampled_from(["v", None]), max_size=2)
    if "list" in text:
        return st.lists(st.sampled_from(["ro", None]), max_size=2)
    return st.booleans() if "bool" in text else NUMBERS if "int" in text else st.sampled_from(["", "a"])


def told(read: Any, kind: type[Body], body: bytes) -> str:
    try:
        return repr(read(kind, body))
    except BadRequest as error:
        return f"refused: {error.message}"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_both_ways_read_alike(kind: type[Body], data: st.DataObject) -> None:
    body = json.dumps(data.draw(members(kind))).replace("Infinity", "1e999").encode()
    cut = data.draw(st.integers(0, len(body)) | st.none())
    body = body if cut is None else body[:cut]
    body += data.draw(st.sampled_from([b"", b"", b" \n", b"{}", b"\xff"]))
    if body:
        assert told(decode, kind, body) == told(decode_leniently, kind, body)


def test_every_part_of_a_body_knows_its_members() -> None:
    """One that did not would lose what the lenient way finds under another spelling."""
    for kind in KINDS:
        assert kind.__struct_config__.forbid_unknown_fields
        for field in msgspec.structs.fields(kind):
            parts = [k for k in vars(bodies).values() if isinstance(k, type) and k.__name__ in str(field.type)]
            assert all(issubclass(part, Body) for part in parts if issubclass(part, msgspec.Struct)), field
