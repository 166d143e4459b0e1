"""Waiting until the view has reached a revision: each is woken at its own, and a commit looks at none of the others."""

from __future__ import annotations

import anyio
import pytest

from moorage.model.ids import Revision
from moorage.state.feed import Feed
from moorage.state.memory import MemoryStore
from moorage.state.store import Put

pytestmark = pytest.mark.anyio


class Counted(int):
    """A revision that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: int) -> bool:
        Counted.compared += 1
        return int(self) < other

    def __le__(self, other: int) -> bool:
        Counted.compared += 1
        return int(self) <= other


async def commit(store: MemoryStore, number: int) -> None:
    await store.transact((), [Put(f"x/{number}", b"{}")])
    await anyio.wait_all_tasks_blocked()


async def test_each_is_woken_at_its_own_revision() -> None:
    store = MemoryStore()
    feed = Feed(store)
    woken: list[int] = []

    async def wait(revision: int) -> None:
        await feed.reach(Revision(revision))
        woken.append(revision)

    async with anyio.create_task_group() as group:
        await group.start(feed.run)
        for revision in (4, 2, 3, 2, 1):
            group.start_soon(wait, revision)
        await anyio.wait_all_tasks_blocked()
        for number, expected in enumerate(([1], [1, 2, 2], [1, 2, 2, 3], [1, 2, 2, 3, 4])):
            await commit(store, number)
            assert sorted(woken) == expected
        await feed.reach(Revision(4))
        group.cancel_scope.cancel()


@pytest.mark.parametrize("waiting", [10, 1000])
async def test_a_commit_looks_at_the_first_that_waits_only(waiting: int) -> None:
    store = MemoryStore()
    feed = Feed(store)
    async with anyio.create_task_group() as group:
        await group.start(feed.run)
        for number in range(waiting):
            group.start_soon(feed.reach, Counted(1000 + number))
        await anyio.wait_all_tasks_blocked()
        Counted.compared = 0
        for number in range(5):
            await commit(store, number)
        assert Counted.compared <= 2 * 5
        group.cancel_scope.cancel()
