"""The part of the store suite that judges watches whose reader follows; see ``testing.store_suite``."""

from __future__ import annotations

import anyio
import anyio.lowlevel

from moorage.errors import Compacted, StoreUnavailable
from moorage.model.ids import Revision
from moorage.state.store import EventBatch, Store
from moorage.testing.store_use import DEADLINE_S, OpenStore, put, refused


class FollowSuite:
    """Every batch once and in order, in time for its writer; ends and faults are the reader's."""

    async def test_a_follower_has_each_batch_before_its_writer_goes_on(self, open_store: OpenStore) -> None:
        async with open_store() as store, anyio.create_task_group() as tasks:
            for _ in range(3):
                await put(store, "t/a")
            seen: list[int] = []

            async def follow() -> None:
                async with store.watch("t/", Revision(1)) as batches:
                    await batches.follow(lambda batch: seen.append(batch.revision))

            tasks.start_soon(follow)
            with anyio.fail_after(DEADLINE_S):
                while seen != [2, 3]:
                    await anyio.lowlevel.checkpoint()
            # Another prefix is not told.
            await put(store, "u/a")
            for number in range(5, 25):
                await put(store, f"t/{number}")
                assert seen[-1] == number
            assert seen == [2, 3, *range(5, 25)]
            tasks.cancel_scope.cancel()

    async def test_many_writers_at_once_lose_and_repeat_nothing(self, open_store: OpenStore) -> None:
        async with open_store() as store, anyio.create_task_group() as tasks:
            seen: list[int] = []

            async def follow() -> None:
                async with store.watch("", Revision(0)) as batches:
                    await batches.follow(lambda batch: seen.append(batch.revision))

            async def write(number: int) -> None:
                for turn in range(10):
                    await put(store, f"t/{number}", b"%d" % turn)

            async with anyio.create_task_group() as writers:
                for number in range(10):
                    writers.start_soon(write, number)
                # It begins in the midst of them.
                tasks.start_soon(follow)
            with anyio.fail_after(DEADLINE_S):
                while len(seen) < 100:
                    await anyio.lowlevel.checkpoint()
            assert seen == list(range(1, 101))
            tasks.cancel_scope.cancel()

    async def test_who_stops_following_reads_on_where_it_was(self, open_store: OpenStore) -> None:
        async with open_store() as store, store.watch("", Revision(0)) as batches:
            seen: list[int] = []
            with anyio.move_on_after(0.05):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(put, store, "t/a")
                    await batches.follow(lambda batch: seen.append(batch.revision))
            await put(store, "t/b")
            with anyio.fail_after(DEADLINE_S):
                assert (seen, (await anext(batches)).revision) == ([1], 2)

    async def test_a_close_ends_following(self, open_store: OpenStore) -> None:
        async with open_store() as store, anyio.create_task_group() as tasks:
            ended = anyio.Event()

            async def follow() -> None:
                async with store.watch("", Revision(0)) as batches:
                    with refused(StoreUnavailable, "closed"):
                        await batches.follow(lambda batch: None)
                ended.set()

            tasks.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(DEADLINE_S):
                await store.close()
                await ended.wait()

    async def test_what_is_gone_is_told(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            for _ in range(5):
                await put(store, "t/a")
            await store.compact(Revision(4))
            async with store.watch("", Revision(2)) as batches:
                with refused(Compacted, "list again"), anyio.fail_after(DEADLINE_S):
                    await batches.follow(lambda batch: None)

    async def test_a_fault_of_the_reader_is_its_own(self, open_store: OpenStore) -> None:
        async with open_store() as store, anyio.create_task_group() as tasks:
            told: list[str] = []

            def take(batch: EventBatch) -> None:
                if batch.revision == 2:
                    raise ValueError("not this one")

            async def follow(store: Store) -> None:
                async with store.watch("", Revision(0)) as batches:
                    try:
                        await batches.follow(take)
                    except ValueError as error:
                        told.append(str(error))

            tasks.start_soon(follow, store)
            await anyio.wait_all_tasks_blocked()
            for _ in range(4):
                await put(store, "t/a")
            with anyio.fail_after(DEADLINE_S):
                while not told:
                    await anyio.lowlevel.checkpoint()
            assert told == ["not this one"]
