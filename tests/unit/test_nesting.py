"""How deep JSON is nested: the quick answer is the right one, whatever stands in texts and however it ends."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.api.nesting import is_nested_deeper

LEAVES = st.none() | st.text(alphabet='[]{}"\\a', max_size=6) | st.integers()
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3))


def measure(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(measure, value), default=0) if isinstance(value, list) else 0


@settings(max_examples=40, deadline=None)
@given(value=VALUES, limit=st.integers(min_value=1, max_value=5))
def test_whole_texts_are_measured(value: Any, limit: int) -> None:
    assert is_nested_deeper(json.dumps(value).encode(), limit) == (measure(value) > limit)


@settings(max_examples=40, deadline=None)
@given(value=VALUES, cut=st.integers(min_value=0, max_value=200))
def test_a_text_that_is_cut_off_is_never_deeper_than_the_whole(value: Any, cut: int) -> None:
    assert not is_nested_deeper(json.dumps(value).encode()[:cut], max(measure(value), 1))


@pytest.mark.parametrize(
    ("text", "is_deeper"),
    [
        (b"[" * 65, True),
        (b"[" * 64, False),
        (b"[" * 64 + b"]" * 64, False),
        (b'{"a":' * 65 + b"1" + b"}" * 65, True),
        (b'["' + b"[" * 1000 + b'"]', False),
        # A bracket in a text closes nothing.
        (b'[ "]", ' * 65 + b"]" * 65, True),
        (b'["\\"' + b"[" * 100 + b'"]', False),
        (b"[],".join([b""] * 100_000) + b"[" * 65, True),
    ],
    ids=range(8),
)
def test_places(text: bytes, is_deeper: bool) -> None:
    assert is_nested_deeper(text, 64) == is_deeper


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 64 + b"[],".join([b""] * 1_000_000),
        (b"[" * 64 + b"]" * 64) * 60_000,
        b"[" * 65 + b'"' + b'\\"' * 2_000_000,
        b"]" * 4_000_000 + b"[" * 100,
    ],
    ids=range(4),
)
def test_no_text_takes_long(text: bytes) -> None:
    began_s = time.process_time()
    is_nested_deeper(text, 64)
    assert time.process_time() - began_s < 1.5
