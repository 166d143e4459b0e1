"""SQLite against memory: any sequence of calls gives the same answers, also across compactions and reopens."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import anyio
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from moorage.errors import Compacted
from moorage.model.ids import Revision
from moorage.state.memory import MemoryStore
from moorage.state.sqlite import SqliteStore
from moorage.state.sqlite_files import Limits
from moorage.state.store import Compare, Delete, EventBatch, Listing, Op, Put, Store, TxnResult

KEYS = st.sampled_from(["a/1", "a/2", "a/é", "a/\U0001f600", "b/1", "b/%", "c"])
PREFIXES = st.sampled_from(["", "a/", "b/", "c", "nothing/"])
OPS = st.lists(
    st.one_of(st.builds(Put, KEYS, st.binary(max_size=8)), st.builds(Delete, KEYS)),
    max_size=4,
    unique_by=lambda op: op.key,
)
# -1 stands for the key's own revision, so that half of the compares hold.
COMPARES = st.lists(st.tuples(KEYS, st.sampled_from([-1, -1, 0, 1, 2, 5])), max_size=2)
Transaction = tuple[list[tuple[str, int]], list[Op], list[Op]]
TRANSACTIONS = st.tuples(COMPARES, OPS, OPS)


async def collect(store: Store, prefix: str, after: Revision) -> list[EventBatch] | None:
    """Everything under a prefix up to a mark that is written now; None: Compacted."""
    seen: list[EventBatch] = []
    mark = await store.transact((), [Put(prefix + "~", b"mark")])
    async with store.watch(prefix, after) as batches:
        try:
            while not seen or seen[-1].revision < mark.revision:
                seen.append(await anext(batches))
        except Compacted:
            return None
    return seen


async def run_group(store: Store, transactions: Sequence[Transaction], known: dict[str, int]) -> list[object]:
    """All transactions at once, in order, and what a watch that was open then saw."""
    start = await store.revision()
    results: dict[int, TxnResult] = {}

    async def run(number: int, compares: list[Compare], then: list[Op], otherwise: list[Op]) -> None:
        results[number] = await store.transact(compares, then, otherwise)

    async with store.watch("a/", start) as batches:
        async with anyio.create_task_group() as tasks:
            for number, (pairs, then, otherwise) in enumerate(transactions):
                compares = [Compare(key, Revision(known.get(key, 0) if want < 0 else want)) for key, want in pairs]
                tasks.start_soon(run, number, compares, then, otherwise)
        mark = await store.transact((), [Put("a/~", b"mark")])
        seen: list[EventBatch] = []
        while not seen or seen[-1].revision < mark.revision:
            seen.append(await anext(batches))
    return [sorted(results.items()), seen]


class StoreMachine(RuleBasedStateMachine):
    """Memory is the oracle."""

    @initialize()
    def open(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="moorage-store-"))
        self.limits = Limits(group_max=3, recent_bytes=1_000)
        self.portal_manager = start_blocking_portal()
        self.portal = self.portal_manager.__enter__()
        self.memory: MemoryStore = MemoryStore()
        self.sqlite = self.portal.call(self.open_sqlite)

    async def open_sqlite(self) -> SqliteStore:
        return await SqliteStore.open(self.directory / "state.db", limits=self.limits)

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.portal.call(self.sqlite.close)
            self.portal_manager.__exit__(None, None, None)
            shutil.rmtree(self.directory)

    async def everything(self, store: Store) -> Listing:
        return await store.list("")

    @rule(transactions=st.lists(TRANSACTIONS, min_size=1, max_size=6))
    def transact(self, transactions: Sequence[Transaction]) -> None:
        listing = self.portal.call(self.everything, self.memory)
        known: dict[str, int] = {entry.key: entry.modify_revision for entry in listing.entries}

        async def run(store: Store) -> list[object]:
            return await run_group(store, transactions, known)

        assert self.portal.call(run, self.sqlite) == self.portal.call(run, self.memory)

    @rule(prefix=PREFIXES, after_key=st.one_of(st.just(""), KEYS), limit=st.integers(0, 4))
    def list(self, prefix: str, after_key: str, limit: int) -> None:
        async def read(store: Store) -> Listing:
            return await store.list(prefix, after_key=after_key, limit=limit)

        assert self.portal.call(read, self.sqlite) == self.portal.call(read, self.memory)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        assert self.portal.call(self.sqlite.get, key) == self.portal.call(self.memory.get, key)

    @rule(prefix=PREFIXES, back=st.integers(0, 12))
    def watch_from_the_past(self, prefix: str, back: int) -> None:
        after = Revision(max(0, self.portal.call(self.memory.revision) - back))
        expected = self.portal.call(collect, self.memory, prefix, after)
        assert self.portal.call(collect, self.sqlite, prefix, after) == expected

    @rule(back=st.integers(-3, 12))
    def compact(self, back: int) -> None:
        revision = Revision(max(0, self.portal.call(self.memory.revision) - back))
        self.portal.call(self.memory.compact, revision)
        self.portal.call(self.sqlite.compact, revision)

    @rule()
    def reopen(self) -> None:
        self.portal.call(self.sqlite.close)
        self.sqlite = self.portal.call(self.open_sqlite)

    @invariant()
    def same_records(self) -> None:
        if hasattr(self, "directory"):
            assert self.portal.call(self.everything, self.sqlite) == self.portal.call(self.everything, self.memory)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
