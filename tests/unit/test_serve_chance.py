"""The host's randomness: ids are UUIDs as the standard library makes them."""

from __future__ import annotations

import uuid

from moorage.serve.server import RealChance


def test_ids_are_random_uuids() -> None:
    chance = RealChance()
    found = [uuid.UUID(text) for text in (chance.new_id() for _ in range(2000))]
    assert len(set(found)) == len(found)
    assert {u.version for u in found} == {4}
    assert {u.variant for u in found} == {uuid.RFC_4122}
    # Every bit that is not fixed is now this, now that.
    ones, zeros = 0, 0
    for u in found:
        ones |= u.int
        zeros |= ~u.int & (1 << 128) - 1
    fixed = (0xF << 76) | (0xC0 << 56)
    assert (ones & zeros) == (1 << 128) - 1 - fixed
    assert all(str(u) == text for u, text in zip(found, map(str, found), strict=True))
