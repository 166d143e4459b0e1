"""Guarded writes: a set of record changes, each with the revision it was decided on, as one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

import msgspec

from moorage.errors import BadRequest, MoorageError, StateConflict
from moorage.model.ids import Revision
from moorage.state.codec import Records
from moorage.state.feed import Feed
from moorage.state.store import TXN_OPS_MAX, VALUE_BYTES_MAX, Compare, Delete, EventBatch, Op, Put, Simple, Store
from moorage.state.view import View


class Write:
    """Changes to commit together. ``revision`` is the record's modify revision that the decision saw; 0: absent.

    ``records`` are those put so far, by key; ``ops`` holds a record put as None until it is committed.
    """

    def __init__(self) -> None:
        self.compares: dict[str, Compare] = {}
        self.ops: dict[str, Delete | None] = {}
        self.records: dict[str, msgspec.Struct] = {}

    def put(self, key: str, record: msgspec.Struct, *, revision: int) -> Write:
        """Set the record, if it is still at ``revision``."""
        self.expect(key, revision)
        self.ops[key] = None
        self.records[key] = record
        return self

    def delete(self, key: str, *, revision: int) -> Write:
        """Remove the record, if it is still at ``revision``."""
        self.expect(key, revision)
        self.ops[key] = Delete(key)
        return self

    def expect(self, key: str, revision: int) -> Write:
        """Demand that the record is still at ``revision``, without changing it."""
        self.compares[key] = Compare(key, Revision(revision))
        return self

    @property
    def is_too_long(self) -> bool:
        """Whether it is more than a store takes in one transaction."""
        return len(self.compares) > TXN_OPS_MAX

    def split(self) -> list[Write]:
        """The same in as many writes as it takes, in the order in which it was put."""
        if not self.is_too_long:
            return [self]
        parts: list[Write] = []
        for number, (key, compare) in enumerate(self.compares.items()):
            if number % TXN_OPS_MAX == 0:
                parts.append(Write())
            part = parts[-1]
            part.compares[key] = compare
            if key in self.ops:
                part.ops[key] = self.ops[key]
            if key in self.records:
                part.records[key] = self.records[key]
        return parts

    def make_ops(self, records: Records) -> list[Op]:
        """The changes as operations of a store. Raises BadRequest when a record is larger than a store keeps."""
        made: list[Op] = []
        for key, op in self.ops.items():
            if op is None:
                value = records.encode(key, self.records[key])
                if len(value) > VALUE_BYTES_MAX:
                    raise _too_large(key, len(value), self.records[key])
                made.append(Put(key, value))
            else:
                made.append(op)
        return made


class Repo:
    """The store with its view: reads look at ``view``, writes go through ``commit``."""

    def __init__(self, store: Store, feed: Feed) -> None:
        self._store = store
        self.feed = feed
        # The records in memory; a feed has one view for good.
        self.view: View = feed.view

    def watch(self, after: Revision) -> AbstractAsyncContextManager[AsyncIterator[EventBatch]]:
        """All batches above ``after``, as long as the store keeps them: see ``Store.watch``."""
        return self._store.watch("", after)

    async def commit_parts(self, write: Write) -> Revision:
        """Commit what may be too much for one transaction, in several then: cut off in between, the first ones stay.

        Returns the last revision. Raises as ``commit`` does.
        """
        *first, last = write.split()
        for part in first:
            await self.commit(part)
        return await self.commit(last)

    async def commit(self, write: Write) -> Revision:
        """Make the changes durable and visible in the view, all or none; returns their revision.

        Raises StateConflict when a record is not where the decision saw it: read again and decide again.
        Raises BadRequest when a record is larger than a store keeps, StoreUnavailable.
        """
        ops = write.make_ops(self.feed.records)
        self.feed.begin_writing(ops, write.records)
        try:
            result = await self._store.transact(tuple(write.compares.values()), ops)
        finally:
            self.feed.end_writing(ops)
        # What made a compare fail may not have reached the view yet; deciding again before it has would loop.
        await self.feed.reach(result.revision)
        if not result.succeeded:
            raise _conflict(write)
        return result.revision

    async def commit_each(self, writes: Sequence[Write]) -> list[Revision | MoorageError]:
        """As so many ``commit``, each by itself; what each returns or raises."""
        found: list[Revision | MoorageError] = [Revision(0)] * len(writes)
        begun: list[int] = []
        transactions: list[Simple] = []
        ops: list[Op] = []
        records: dict[str, msgspec.Struct] = {}
        for number, write in enumerate(writes):
            try:
                made = write.make_ops(self.feed.records)
            except BadRequest as error:
                found[number] = error
                continue
            begun.append(number)
            transactions.append((tuple(write.compares.values()), made))
            ops += made
            records |= write.records
        self.feed.begin_writing(ops, records)
        try:
            results = await self._store.transact_each(transactions)
        finally:
            self.feed.end_writing(ops)
        for number, result in zip(begun, results, strict=True):
            if isinstance(result, MoorageError):
                found[number] = result
                continue
            await self.feed.reach(result.revision)
            found[number] = result.revision if result.succeeded else _conflict(writes[number])
        return found


def _conflict(write: Write) -> StateConflict:
    return StateConflict("a record changed since it was read", key=next(iter(write.compares), ""))


def _too_large(key: str, size: int, record: msgspec.Struct) -> BadRequest:
    """Says which record, and where most of it is; none of what is in it."""
    sizes = {name: len(msgspec.json.encode(getattr(record, name))) for name in record.__struct_fields__}
    largest = max(sizes, key=lambda name: sizes[name])
    return BadRequest(
        f"{key} takes {size} bytes, most of them in {largest}; a record may have {VALUE_BYTES_MAX}: "
        f"make {largest} shorter",
        code="record_too_large",
    )
