"""The tests that every ``Store`` passes, shipped so that a new store can be judged by them.

A test module derives a class from ``StoreSuite``, marks it for anyio's pytest plugin, and gives a fixture
``open_store``: a function that returns an async context manager over a new, empty store.
What differs between stores is not judged here: how many writes a slow reader may miss before it gets Compacted, whether
empty batches are sent as bookmarks, and whether a watch from just below the compacted revision still works.
Never: a clock in a judgement (deadlines only end a test that hangs), and no import of pytest.
"""

from __future__ import annotations

import anyio
import anyio.lowlevel

from moorage.errors import Compacted, StoreUnavailable
from moorage.model.ids import Revision
from moorage.state.store import TXN_OPS_MAX, VALUE_BYTES_MAX, Compare, Delete, Entry, Put, TxnResult
from moorage.testing.store_follow_suite import FollowSuite
from moorage.testing.store_use import ODD_KEYS, OpenStore, delete, find, put, refused
from moorage.testing.store_watch_suite import WatchSuite


class TransactionSuite:
    """Revisions, compares, branches, limits."""

    async def test_new_store_is_empty_at_revision_0(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            assert await store.revision() == 0
            assert await store.get("t/a") is None
            listing = await store.list("")
            assert (listing.entries, listing.revision) == ((), 0)

    async def test_one_transaction_is_one_revision(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            result = await store.transact((), [Put("t/b", b"2"), Put("t/a", b"1")])
            assert result == TxnResult(True, Revision(1))
            assert await find(store, "t/a") == Entry("t/a", b"1", Revision(1), Revision(1), 1)
            assert await find(store, "t/b") == Entry("t/b", b"2", Revision(1), Revision(1), 1)
            assert await put(store, "t/c") == 2
            assert await store.revision() == 2

    async def test_version_counts_writes_since_creation(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            for _ in range(3):
                await put(store, "t/a", b"same")
            assert await find(store, "t/a") == Entry("t/a", b"same", Revision(1), Revision(3), 3)
            await delete(store, "t/a")
            await put(store, "t/a", b"new")
            assert await find(store, "t/a") == Entry("t/a", b"new", Revision(5), Revision(5), 1)

    async def test_compare_with_modify_revision(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            await put(store, "t/a", b"1")
            await put(store, "t/a", b"2")
            for wrong in (0, 1, 3):
                result = await store.transact([Compare("t/a", Revision(wrong))], [Put("t/a", b"3")])
                assert result == TxnResult(False, Revision(2))
            assert (await find(store, "t/a")).value == b"2"
            assert (await store.transact([Compare("t/a", Revision(2))], [Put("t/a", b"3")])).succeeded

    async def test_compare_with_0_means_absent(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            absent = [Compare("t/a", Revision(0))]
            assert (await store.transact(absent, [Put("t/a", b"1")])).succeeded
            assert not (await store.transact(absent, [Put("t/a", b"2")])).succeeded
            await delete(store, "t/a")
            assert (await store.transact(absent, [Put("t/a", b"3")])).succeeded

    async def test_one_failed_compare_fails_all(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            await put(store, "t/a")
            compares = [Compare("t/a", Revision(1)), Compare("t/b", Revision(7))]
            assert not (await store.transact(compares, [Put("t/c", b"")])).succeeded
            assert await store.get("t/c") is None

    async def test_otherwise_runs_when_a_compare_fails(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            compares = [Compare("t/a", Revision(9))]
            result = await store.transact(compares, [Put("t/a", b"then")], [Put("t/b", b"otherwise")])
            assert result == TxnResult(False, Revision(1))
            assert await store.get("t/a") is None
            assert (await find(store, "t/b")).value == b"otherwise"

    async def test_each_of_several_stands_by_itself(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            await put(store, "t/a", b"0")
            results = await store.transact_each(
                [
                    ([Compare("t/a", Revision(1))], [Put("t/a", b"1"), Put("t/b", b"1")]),
                    ([Compare("t/a", Revision(1))], [Put("t/c", b"2")]),
                    ((), [Delete("t/absent")]),
                    ([Compare("t/b", Revision(2))], [Delete("t/b")]),
                ]
            )
            assert results == [
                TxnResult(True, Revision(2)),
                TxnResult(False, Revision(2)),
                TxnResult(True, Revision(2)),
                TxnResult(True, Revision(3)),
            ]
            assert [(entry.key, entry.value) for entry in (await store.list("")).entries] == [("t/a", b"1")]
            assert await store.transact_each([]) == []

    async def test_nothing_to_change_is_no_revision(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            await put(store, "t/a")
            assert await store.transact((), [Delete("t/x"), Delete("t/y")]) == TxnResult(True, Revision(1))
            assert await store.transact((), ()) == TxnResult(True, Revision(1))
            assert await store.transact((), [Delete("t/a"), Delete("t/x")]) == TxnResult(True, Revision(2))
            assert await store.revision() == 2

    async def test_revision_stays_when_the_newest_key_goes(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            await put(store, "t/a")
            await delete(store, "t/a")
            assert (await store.list("")).revision == 2
            assert await put(store, "t/a") == 3

    async def test_only_one_of_many_wins_a_compare(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            await put(store, "t/a", b"start")
            won: list[int] = []

            async def race(number: int) -> None:
                if (await store.transact([Compare("t/a", Revision(1))], [Put("t/a", b"%d" % number)])).succeeded:
                    won.append(number)

            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(race, number)
            assert len(won) == 1
            assert await find(store, "t/a") == Entry("t/a", b"%d" % won[0], Revision(1), Revision(2), 2)

    async def test_no_increment_is_lost(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            await put(store, "t/n", b"0")

            async def add(times: int) -> None:
                while times:
                    entry = await find(store, "t/n")
                    new = Put("t/n", b"%d" % (int(entry.value) + 1))
                    times -= (await store.transact([Compare("t/n", entry.modify_revision)], [new])).succeeded

            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(add, 5)
            assert await find(store, "t/n") == Entry("t/n", b"40", Revision(1), Revision(41), 41)

    async def test_values_up_to_the_limit(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            for value in (b"", bytes(range(256)), b"x" * VALUE_BYTES_MAX):
                await put(store, "t/a", value)
                assert (await find(store, "t/a")).value == value
            with refused(ValueError, "t/a"):
                await put(store, "t/a", b"x" * (VALUE_BYTES_MAX + 1))

    async def test_operations_up_to_the_limit(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            ops = [Put(f"t/{number}", b"") for number in range(TXN_OPS_MAX + 1)]
            assert (await store.transact((), ops[:TXN_OPS_MAX])).revision == 1
            with refused(ValueError, str(TXN_OPS_MAX)):
                await store.transact((), ops)
            with refused(ValueError, str(TXN_OPS_MAX)):
                await store.transact((), (), ops)
            assert len((await store.list("t/")).entries) == TXN_OPS_MAX

    async def test_key_twice_or_empty_is_refused(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            with refused(ValueError, "t/a"):
                await store.transact((), [Put("t/a", b"1"), Put("t/b", b""), Delete("t/a")])
            with refused(ValueError, "t/a"):
                await store.transact((), (), [Delete("t/a"), Delete("t/a")])
            with refused(ValueError, "empty"):
                await put(store, "")
            with refused(ValueError, "surrogate"):
                await put(store, "t/\ud800")
            assert await store.revision() == 0
            # The same key in both branches, and in a compare as well, is one change at most.
            assert (await store.transact([Compare("t/a", Revision(0))], [Put("t/a", b"")], [Delete("t/a")])).succeeded

    async def test_cancelled_transaction_is_whole_or_absent(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            for number in range(20):
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(store.transact, (), [Put(f"t/{number}/a", b""), Put(f"t/{number}/b", b"")])
                        for _ in range(number % 4):
                            await anyio.lowlevel.checkpoint()
                        scope.cancel()
            last = await put(store, "t/last")
            entries = (await store.list("t/")).entries
            assert len(entries) % 2 == 1
            assert max(entry.modify_revision for entry in entries) == last
            for entry in entries[:-1]:
                other = entry.key[:-1] + ("b" if entry.key.endswith("a") else "a")
                assert (await find(store, other)).modify_revision == entry.modify_revision

    async def test_scrub_keeps_values_and_forgets_history(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            await put(store, "a", b"1")
            await put(store, "a", b"2")
            assert await store.is_clean()
            await store.mark_unclean()
            assert not await store.is_clean()
            await store.scrub()
            assert await store.is_clean()
            assert [e.value for e in (await store.list("")).entries] == [b"2"]
            async with store.watch("", Revision(1)) as batches:
                with refused(Compacted), anyio.fail_after(10):
                    await anext(batches)
            await put(store, "b", b"3")
            assert await store.revision() == 3

    async def test_closed_store_refuses_everything(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            await put(store, "t/a")
            await store.close()
            for call in (store.get("t/a"), store.list(""), store.transact((), [Put("t/a", b"")]), store.revision()):
                with refused(StoreUnavailable, "closed"):
                    await call
            with refused(StoreUnavailable, "closed"):
                await store.compact(Revision(1))
            await store.close()

    async def test_close_finishes_what_is_queued(self, open_store: OpenStore) -> None:
        async with open_store() as store, anyio.create_task_group() as tasks:
            revisions: list[Revision] = []

            async def write(number: int) -> None:
                revisions.append(await put(store, f"t/{number}"))

            for number in range(40):
                tasks.start_soon(write, number)
            await anyio.lowlevel.checkpoint()
            await store.close()
            await anyio.lowlevel.checkpoint()
            assert sorted(revisions) == list(range(1, 41))


class ListSuite:
    """Order, ranges, limits."""

    async def test_byte_order_and_prefix(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            for key in ("s/z", *reversed(ODD_KEYS), "t", "t0", "u/a"):
                await put(store, key, key.encode())
            listing = await store.list("t/")
            assert [entry.key for entry in listing.entries] == sorted(ODD_KEYS, key=str.encode)
            assert all(entry.value == entry.key.encode() for entry in listing.entries)
            assert listing.revision == len(ODD_KEYS) + 4
            everything = [entry.key for entry in (await store.list("")).entries]
            assert everything == sorted(everything, key=str.encode)
            assert len(everything) == len(ODD_KEYS) + 4
            for key in ODD_KEYS:
                assert key in [entry.key for entry in (await store.list(key)).entries]

    async def test_last_prefixes(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            keys = ["\ud7ff", "\ud7ffa", "\ue000", "\U0010ffff", "\U0010ffff\U0010ffff", "\U0010ffffa"]
            for key in keys:
                await put(store, key)
            for prefix in ("\ud7ff", "\ue000", "\U0010ffff", "\U0010ffff\U0010ffff"):
                found = [entry.key for entry in (await store.list(prefix)).entries]
                assert found == sorted(key for key in keys if key.startswith(prefix)), prefix

    async def test_paging(self, open_store: OpenStore) -> None:
        async with open_store() as store:
            keys = [f"t/{number:02}" for number in range(10)]
            for key in ("s/a", *keys, "u/a"):
                await put(store, key)
            pages: list[int] = []
            found: list[str] = []
            after = ""
            while page := (await store.list("t/", after_key=after, limit=4)).entries:
                pages.append(len(page))
                found += [entry.key for entry in page]
                after = page[-1].key
            assert (pages, found) == ([4, 4, 2], keys)
            # A key that does not exist, or that is outside of the prefix, is a position all the same.
            for position, expected in (("t/045", keys[5:]), ("a", keys), ("s/zz", keys), ("u", [])):
                assert [entry.key for entry in (await store.list("t/", after_key=position)).entries] == expected
            with refused(ValueError, "limit"):
                await store.list("t/", limit=-1)

    async def test_listing_is_one_moment(self, open_store: OpenStore) -> None:
        async with open_store() as store, anyio.create_task_group() as tasks:

            async def write() -> None:
                for number in range(60):
                    await store.transact((), [Put(f"t/{letter}", b"%d" % number) for letter in "abc"])

            tasks.start_soon(write)
            revision = 0
            while revision < 60:
                listing = await store.list("t/")
                revision = listing.revision
                assert len({entry.value for entry in listing.entries}) <= 1
                assert {entry.modify_revision for entry in listing.entries} <= {revision}


class StoreSuite(TransactionSuite, ListSuite, WatchSuite, FollowSuite):
    """Everything that a ``Store`` promises."""
