"""The loop around guarded writes: decided again after a conflict, given up after so many."""

from __future__ import annotations

import pytest

from moorage.engine.retrying import TRIES_MAX, decide_again
from moorage.errors import NotFound, StateConflict, Unavailable

pytestmark = pytest.mark.anyio


class Deciding:
    """Conflicts so many times, then answers."""

    def __init__(self, conflicts: int) -> None:
        self.left = conflicts
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise StateConflict("changed")
        return "done"


async def test_a_conflict_is_decided_again() -> None:
    deciding = Deciding(TRIES_MAX - 1)
    assert await decide_again(deciding, "restless") == "done"
    assert deciding.calls == TRIES_MAX


async def test_what_keeps_changing_is_refused_with_its_ids() -> None:
    deciding = Deciding(99)
    with pytest.raises(Unavailable, match="restless") as refused:
        await decide_again(deciding, "restless", tries_max=3, namespace="n")
    assert (deciding.calls, refused.value.fields) == (3, {"namespace": "n"})


async def test_a_refusal_passes_through() -> None:
    async def decide() -> None:
        raise NotFound("gone")

    with pytest.raises(NotFound, match="gone"):
        await decide_again(decide, "restless")
