"""Sealing anew: brings every value that hides something under the active key, then scrubs what was there before.

Runs at each start, where there is usually nothing to do, and after each change of keys. A value is replaced by a
guarded write of the same record, so that a concurrent change wins and is sealed anew by its own writer. Broken off at
any point it begins again: what is left to do is seen in the values, and the store keeps in mind that it is unclean.
Never: a key or a secret in a text; holds up other writes for longer than one small transaction, or the scrub.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol

import anyio
import anyio.to_thread
import msgspec
import structlog
from anyio.abc import TaskStatus

from moorage.errors import Rejected, StoreUnavailable
from moorage.state import keys
from moorage.state.codec import Records, find_seal_key
from moorage.state.keyring import Keyring
from moorage.state.sealing import Sealer
from moorage.state.store import Compare, Entry, Put, Store

log = structlog.get_logger()

Phase = Literal["sealing", "scrubbing", "done"]
BATCH = 16
PAGE = 256
PAUSE_S = 0.01
RETRY_S = 5.0
HIDING_TABLES = (keys.VOLUMES, keys.CLAIMS, keys.ALLOCATIONS, keys.OPERATIONS)


class KeySource(Protocol):
    """Where the keys come from. Both block: they are called in a worker thread."""

    def load(self) -> Keyring:
        """The keys as they are written down now. Raises BadRequest."""
        ...

    def renew(self) -> Keyring:
        """The keys with a new active one, where the source can make one; else as they are written down now.

        Raises BadRequest.
        """
        ...

    def describe(self) -> str:
        """The place of the keys, for people."""
        ...

    def describe_removal(self, key_ids: tuple[str, ...]) -> str:
        """How to take these keys away, for people."""
        ...


class SealProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is. ``done`` of ``total`` values that have something to hide are under the active key; ``old_keys``
    are the other keys at hand; ``last_error`` is what holds it up, or empty."""

    phase: Phase
    active_key: str
    old_keys: tuple[str, ...]
    where: str
    done: int = 0
    total: int = 0
    last_error: str = ""
    text: str = ""


class Resealing:
    """One store's keys at work. ``run`` must be running for ``rotate`` to come to an end."""

    def __init__(
        self, store: Store, records: Records, source: KeySource, *, pause_s: float = PAUSE_S, retry_s: float = RETRY_S
    ) -> None:
        assert records.sealer is not None
        self._store = store
        self._records = records
        self._sealer: Sealer = records.sealer
        self._source = source
        self._pause_s = pause_s
        self._retry_s = retry_s
        self._wake = anyio.Event()
        self._phase: Phase = "sealing"
        self._done = 0
        self._total = 0
        self._last_error = ""

    @property
    def progress(self) -> SealProgress:
        """How far it is now."""
        ring = self._sealer.keyring
        old = tuple(key.id for key in ring.others)
        return SealProgress(
            phase=self._phase,
            active_key=ring.active.id,
            old_keys=old,
            where=self._source.describe(),
            done=self._done,
            total=self._total,
            last_error=self._last_error,
            text=self._describe(old),
        )

    def _describe(self, old: tuple[str, ...]) -> str:
        active = self._sealer.keyring.active.id
        if self._phase == "done" and old:
            names = "the old key " + old[0] + " may go" if len(old) == 1 else f"the old keys {', '.join(old)} may go"
            return f"everything is sealed with key {active}; {names}: {self._source.describe_removal(old)}"
        if self._phase == "done":
            return f"everything is sealed with key {active}; there is no other key"
        keep = "; keep every key until this is done" if old else ""
        return f"records are being sealed with key {active}{keep}"

    async def rotate(self) -> SealProgress:
        """Take a new active key and begin to seal everything anew with it; returns at once.

        Raises Rejected while an earlier change is under way, BadRequest for keys that cannot be read or written.
        """
        if self._phase != "done":
            raise Rejected(
                "an earlier change of keys is not finished: see `moorage operator secrets status`", code="rotation_busy"
            )
        self._phase = "sealing"
        try:
            # What was deleted is still in the history under the old key: it goes too.
            await self._store.mark_unclean()
            keyring = await anyio.to_thread.run_sync(self._source.renew)
        except BaseException:
            self._phase = "done"
            raise
        self._begin(keyring)
        return self.progress

    def _begin(self, keyring: Keyring) -> None:
        before = self._sealer.keyring
        # A key that sealed until now opens until everything is sealed anew, even if it is written down no more.
        known = {key.id for key in keyring.keys}
        rest = tuple(key for key in before.keys if key.id not in known)
        self._sealer.use(msgspec.structs.replace(keyring, others=(*keyring.others, *rest)))
        log.info("seal.key", key_id=keyring.active.id, before=before.active.id)
        self._phase, self._done, self._total = "sealing", 0, 0
        self._wake.set()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Seal what is not sealed yet, at the start and whenever keys have changed, until cancelled."""
        task_status.started()
        while True:
            self._wake = anyio.Event()
            try:
                await self._seal_all()
                self._last_error = ""
            except StoreUnavailable as error:
                self._last_error = error.message
                log.warning("seal.waits", error=error.message)
                with anyio.move_on_after(self._retry_s):
                    await self._wake.wait()
                continue
            await self._wake.wait()

    async def _seal_all(self) -> None:
        self._phase = "sealing"
        # What is on its way to the disk was sealed with the key before: it is behind an empty transaction.
        await self._store.transact((), ())
        while stale := await self._count():
            log.info("seal.begins", key_id=self._sealer.keyring.active.id, values=stale)
            await self._store.mark_unclean()
            await self._pass()
        if not await self._store.is_clean():
            self._phase = "scrubbing"
            await self._store.scrub()
        if not self._wake.is_set():
            self._phase = "done"
            log.info("seal.done", key_id=self._sealer.keyring.active.id, sealed=self._done)

    async def _count(self) -> int:
        """How many values are stale."""
        stale = sealed = 0
        async for entry in list_hiding(self._store):
            if self._records.is_stale(entry.key, entry.value):
                stale += 1
            elif find_seal_key(entry.value):
                sealed += 1
        self._done, self._total = sealed, sealed + stale
        return stale

    async def _pass(self) -> None:
        """Seal anew what is stale."""
        batch: list[Entry] = []
        async for entry in list_hiding(self._store):
            if self._records.is_stale(entry.key, entry.value):
                batch.append(entry)
            if len(batch) == BATCH:
                await self._seal(batch)
                batch = []
        if batch:
            await self._seal(batch)

    async def _seal(self, batch: list[Entry]) -> None:
        """Write records again as they are; one that has changed meanwhile is left to the next pass."""
        puts = [Put(e.key, self._records.encode(e.key, self._records.decode(e.key, e.value))) for e in batch]
        compares = [Compare(e.key, e.modify_revision) for e in batch]
        if not (await self._store.transact(compares, puts)).succeeded:
            for compare, put in zip(compares, puts, strict=True):
                await self._store.transact([compare], [put])
        self._done = min(self._total, self._done + len(batch))
        await anyio.sleep(self._pause_s)


async def list_hiding(store: Store) -> AsyncIterator[Entry]:
    """Every entry of the tables whose records may hide something, page by page."""
    for table in HIDING_TABLES:
        after = ""
        while True:
            page = await store.list(table, after_key=after, limit=PAGE)
            for entry in page.entries:
                yield entry
            if len(page.entries) < PAGE:
                break
            after = page.entries[-1].key


async def find_sealed(store: Store) -> tuple[str, str]:
    """The store key of some sealed value and the ID of its key; both empty where nothing is sealed."""
    async for entry in list_hiding(store):
        if key_id := find_seal_key(entry.value):
            return entry.key, key_id
    return "", ""
