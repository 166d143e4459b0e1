"""How deep a JSON text is nested, found at C speed, before a decoder that calls itself for each level meets it."""

from __future__ import annotations

import re
from array import array
from itertools import accumulate

# A text, whole or cut off by the end. Possessive, so that no text makes it look at a byte twice.
_TEXTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_ALL_BUT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
# What a bracket does to the depth, as signed bytes.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
# So many brackets are looked at first: what is absurdly deep is so from its beginning.
GLANCE = 4096


def is_nested_deeper(text: bytes, depth_max: int) -> bool:
    """Whether a JSON text is nested deeper than ``depth_max``. Of what is no JSON it may say so too."""
    if text.count(b"[") + text.count(b"{") <= depth_max:
        return False
    steps = _TEXTS.sub(b"", text).translate(_STEPS, _ALL_BUT_BRACKETS)
    return _measure(steps[:GLANCE]) > depth_max or (len(steps) > GLANCE and _measure(steps) > depth_max)


def _measure(steps: bytes) -> int:
    return max(accumulate(array("b", steps)), default=0)
