"""Short ways to use and judge a store in tests; see ``testing.store_suite``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager

import anyio

from moorage.model.ids import Revision
from moorage.state.store import Delete, Entry, EventBatch, Put, Store

OpenStore = Callable[[], AbstractAsyncContextManager[Store]]

DEADLINE_S = 30.0
# Keys that sort, match or encode differently where text is handled carelessly. UTF-16 would sort the last two the
# other way round; LIKE and GLOB know the first ones.
ODD_KEYS = (
    "t/%",
    "t/*",
    "t/A",
    "t/[a]",
    "t/_",
    "t/a",
    "t/a\x00b",
    "t/a'b",
    "t/é",
    "t/\ud7ff",
    "t/\uffff",
    "t/\U0001f600",
)


@contextmanager
def refused(kind: type[BaseException], text: str = "") -> Iterator[None]:
    """The block must raise ``kind`` with ``text`` in its message."""
    message: str | None = None
    try:
        yield
    except kind as error:
        message = str(error)
    assert message is not None, f"{kind.__name__} was not raised"
    assert text in message, f"{text!r} is not in {message!r}"


async def put(store: Store, key: str, value: bytes = b"v") -> Revision:
    """Set a key without a condition; returns the revision."""
    result = await store.transact((), [Put(key, value)])
    assert result.succeeded
    return result.revision


async def delete(store: Store, key: str) -> Revision:
    """Remove a key without a condition; returns the revision."""
    result = await store.transact((), [Delete(key)])
    assert result.succeeded
    return result.revision


async def find(store: Store, key: str) -> Entry:
    """The entry of a key that must exist."""
    entry = await store.get(key)
    assert entry is not None, key
    return entry


async def take(batches: AsyncIterator[EventBatch], count: int) -> list[EventBatch]:
    """The next ``count`` batches that are not bookmarks."""
    taken: list[EventBatch] = []
    with anyio.fail_after(DEADLINE_S):
        while len(taken) < count:
            batch = await anext(batches)
            if batch.events:
                taken.append(batch)
    return taken


def check_order(batches: Sequence[EventBatch]) -> None:
    """Revisions only grow, and every event carries its batch's revision."""
    revisions = [batch.revision for batch in batches]
    assert revisions == sorted(set(revisions)), revisions
    for batch in batches:
        for event in batch.events:
            assert event.revision == batch.revision
            assert event.entry is None or event.entry.modify_revision == batch.revision
            assert event.entry is not None or event.previous is not None
