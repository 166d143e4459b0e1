"""Deciding again: the loop around a guarded write whose compare may fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from moorage.errors import StateConflict, Unavailable

T = TypeVar("T")

RETRY_AFTER_S = 1.0
TRIES_MAX = 8
# Where many claimants or agents write at once.
TRIES_MAX_CROWDED = 16
# Where of so many that come at once one gets on with each commit.
TRIES_MAX_QUEUED = 128


async def decide_again(
    decide: Callable[[], Awaitable[T]], refusal: str, *, tries_max: int = TRIES_MAX, **fields: str
) -> T:
    """What ``decide`` returns: it reads the records, decides and commits, and is called anew after each StateConflict.

    Raises Unavailable with ``refusal`` (and the ids in ``fields``) when the records kept changing; whatever ``decide``
    raises otherwise passes through.
    """
    for _ in range(tries_max):
        try:
            return await decide()
        except StateConflict:
            continue
    raise Unavailable(refusal, retry_after_s=RETRY_AFTER_S, **fields)
