"""The part of the store suite that judges watches; see ``testing.store_suite``."""

from __future__ import annotations

import anyio
import anyio.lowlevel

from moorage.errors import Compacted, StoreUnavailable
from moorage.model.ids import Revision
from moorage.state.store import TXN_OPS_MAX, Delete, Entry, Event, EventBatch, Put
from moorage.testing.store_use import DEADLINE_S, ODD_KEYS, OpenStore, check_order, delete, find, put, refused, take


class WatchSuite:
    """Ordered, unique, complete, resumable, atomic; compaction; slow readers."""

    async def test_from_the_past_then_live(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            for number in range(5):
                await put(store, "t/a", b"%d" % number)
            async with store.watch("", Revision(2)) as batches:
                past = await take(batches, 3)
                await put(store, "t/a", b"5")
                live = await take(batches, 1)
            assert [batch.revision for batch in past + live] == [3, 4, 5, 6]
            assert [event.entry.value for batch in past + live for event in batch.events if event.entry] == [
                b"2", b"3", b"4", b"5"
            ]  # fmt: skip

    async def test_events_carry_before_and_after(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            created = Entry("t/a", b"1", Revision(1), Revision(1), 1)
            changed = Entry("t/a", b"2", Revision(1), Revision(2), 2)
            again = Entry("t/a", b"3", Revision(4), Revision(4), 1)
            expected = [
                EventBatch(Revision(1), (Event("t/a", Revision(1), created, None),)),
                EventBatch(Revision(2), (Event("t/a", Revision(2), changed, created),)),
                EventBatch(Revision(3), (Event("t/a", Revision(3), None, changed),)),
                EventBatch(Revision(4), (Event("t/a", Revision(4), again, None),)),
            ]
            async with store.watch("", Revision(0)) as live:
                await put(store, "t/a", b"1")
                await put(store, "t/a", b"2")
                await delete(store, "t/a")
                await put(store, "t/a", b"3")
                assert await take(live, 4) == expected
            async with store.watch("", Revision(0)) as replayed:
                assert await take(replayed, 4) == expected

    async def test_batch_is_whole_and_in_order_of_operations(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            await put(store, "t/gone")
            keys = [f"t/{number}" for number in reversed(range(TXN_OPS_MAX - 2))]
            async with store.watch("t/", Revision(1)) as live:
                ops = [Put(key, b"") for key in keys]
                await store.transact((), [*ops[:50], Delete("t/gone"), Delete("t/absent"), *ops[50:]])
                batch = (await take(live, 1))[0]
            assert [event.key for event in batch.events] == [*keys[:50], "t/gone", *keys[50:]]
            async with store.watch("t/", Revision(1)) as replayed:
                assert await take(replayed, 1) == [batch]

    async def test_prefix_selects_events(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            async with store.watch("t/", Revision(0)) as live:
                await store.transact((), [Put("s/a", b""), Put("t/a", b""), Put("t", b""), Put("t/b", b"")])
                await put(store, "u/a")
                await put(store, "t/c")
                seen = await take(live, 2)
            async with store.watch("t/", Revision(0)) as replayed:
                assert await take(replayed, 2) == seen
            assert [[event.key for event in batch.events] for batch in seen] == [["t/a", "t/b"], ["t/c"]]
            assert [batch.revision for batch in seen] == [1, 3]

    async def test_odd_prefixes(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            for key in ODD_KEYS:
                await put(store, key)
            for prefix in ODD_KEYS:
                expected = [key for key in ODD_KEYS if key.startswith(prefix)]
                async with store.watch(prefix, Revision(0)) as replayed:
                    assert [b.events[0].key for b in await take(replayed, len(expected))] == expected

    async def test_from_the_future(self, open_store: OpenStore) -> None:
        async with open_store() as store, store.watch("", Revision(3)) as batches:
            for number in range(5):
                await put(store, f"t/{number}")
            assert [batch.revision for batch in await take(batches, 2)] == [4, 5]

    async def test_no_gap_and_no_repetition_under_load(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            for number in range(300):
                await put(store, f"t/{number % 7}")

            async def write(first: int) -> None:
                for number in range(50):
                    await put(store, f"t/{first}/{number}")

            async def read(after: int) -> None:
                async with store.watch("t/", Revision(after)) as batches:
                    seen = await take(batches, 700 - after)
                check_order(seen)
                assert [batch.revision for batch in seen] == list(range(after + 1, 701))

            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    tasks.start_soon(write, number)
                for after in (0, 0, 150, 299, 300, 301, 320, 500):
                    tasks.start_soon(read, after)

    async def test_long_history_in_pieces(self, open_store: OpenStore) -> None:
        """More than any store reads at once: by bytes, by revisions in one go, by operations in one go."""
        async with open_store() as store, store.watch("", Revision(0)) as live:
            for number in range(12):
                await put(store, f"big/{number % 2}", b"x" * 900_000)
            seen = await take(live, 12)
            async with store.watch("", Revision(0)) as replayed:
                assert await take(replayed, 12) == seen
            async with anyio.create_task_group() as tasks:
                for number in range(24):
                    ops = [Put(f"t/{number}/{key}", b"") for key in range(TXN_OPS_MAX)]
                    tasks.start_soon(store.transact, (), ops)
            seen = await take(live, 24)
            async with store.watch("", Revision(12)) as replayed:
                assert await take(replayed, 24) == seen

    async def test_resume_where_a_reader_stopped(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            seen: list[EventBatch] = []
            async with anyio.create_task_group() as tasks:

                async def write() -> None:
                    for number in range(100):
                        await put(store, f"t/{number}")

                tasks.start_soon(write)
                while len(seen) < 100:
                    async with store.watch("", seen[-1].revision if seen else Revision(0)) as batches:
                        seen += await take(batches, 5)
            assert [batch.revision for batch in seen] == list(range(1, 101))

    async def test_many_watchers_get_the_same(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            seen: dict[int, list[EventBatch]] = {}
            ready = 0

            async def read(number: int) -> None:
                nonlocal ready
                async with store.watch("t/" if number % 2 else "", Revision(0)) as batches:
                    ready += 1
                    seen[number] = await take(batches, 20)

            async with anyio.create_task_group() as tasks:
                for number in range(40):
                    tasks.start_soon(read, number)
                while ready < 40:
                    await anyio.lowlevel.checkpoint()
                for number in range(20):
                    await put(store, f"t/{number}")
            assert all(batches == seen[0] for batches in seen.values())

    async def test_left_watch_costs_nothing_and_says_nothing(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            async with store.watch("", Revision(0)) as left:
                await put(store, "t/a")
            await put(store, "t/b")
            with refused(StoreUnavailable), anyio.fail_after(DEADLINE_S):
                await anext(left)

    async def test_compaction(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            for number in range(10):
                await put(store, f"t/{number % 3}", b"%d" % number)
            before = await store.list("")
            await store.compact(Revision(6))
            await store.compact(Revision(4))
            assert await store.list("") == before
            for after in (0, 3, 4):
                async with store.watch("", Revision(after)) as batches:
                    with refused(Compacted), anyio.fail_after(DEADLINE_S):
                        await anext(batches)
            async with store.watch("", Revision(6)) as batches:
                seen = await take(batches, 4)
            assert [batch.revision for batch in seen] == [7, 8, 9, 10]
            first = seen[0].events[0]
            assert first.previous == Entry("t/0", b"3", Revision(1), Revision(4), 2)

    async def test_compaction_never_goes_beyond_the_newest(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            await put(store, "t/a")
            await store.compact(Revision(1000))
            assert await store.revision() == 1
            async with store.watch("", Revision(1)) as batches:
                assert await put(store, "t/a") == 2
                assert [batch.revision for batch in await take(batches, 1)] == [2]
            assert (await find(store, "t/a")).version == 2

    async def test_slow_reader_never_slows_a_writer(self, open_store: OpenStore) -> None:
        start = Revision(0)
        async with open_store() as store, store.watch("", start) as slow, store.watch("", start) as quick:
            for number in range(400):
                with anyio.fail_after(DEADLINE_S):
                    await put(store, "t/a", b"%d" % number)
                assert [batch.revision for batch in await take(quick, 1)] == [number + 1]
            # The slow one gets everything or Compacted, and never a stream with a hole.
            try:
                seen = await take(slow, 400)
            except Compacted:
                return
            assert [batch.revision for batch in seen] == list(range(1, 401))

    async def test_written_is_seen(self, open_store: OpenStore) -> None:
        """Whoever awaited ``transact`` finds its write where a reader that was waiting has put it."""
        async with open_store() as store, anyio.create_task_group() as tasks:
            view: dict[str, int] = {}

            async def follow() -> None:
                async with store.watch("", Revision(0)) as batches:
                    async for batch in batches:
                        for event in batch.events:
                            view[event.key] = event.revision

            async def write(number: int) -> None:
                for _ in range(20):
                    revision = await put(store, f"t/{number}")
                    assert view.get(f"t/{number}") == revision

            tasks.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            async with anyio.create_task_group() as writers:
                for number in range(30):
                    writers.start_soon(write, number)
            tasks.cancel_scope.cancel()

    async def test_close_ends_watches_after_what_they_hold(self, open_store: OpenStore) -> None:
        async with open_store() as store, store.watch("", Revision(0)) as batches:
            await put(store, "t/a")
            await store.close()
            assert [batch.revision for batch in await take(batches, 1)] == [1]
            with refused(StoreUnavailable, "closed"), anyio.fail_after(DEADLINE_S):
                await anext(batches)

    async def test_close_wakes_a_waiting_reader(self, open_store: OpenStore) -> None:
        async with open_store() as store, anyio.create_task_group() as tasks:

            async def read() -> None:
                async with store.watch("", Revision(0)) as batches:
                    with refused(StoreUnavailable, "closed"):
                        await anext(batches)

            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(DEADLINE_S):
                await store.close()
