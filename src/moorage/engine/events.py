"""The event stream's middle: a bounded ring of what happened, and its readers.

The ring follows the feed in the same loop turn: one ``Happening`` per revision that tells anything. After a start it is
filled from the store's log, as far back as that goes, so that a reader which resumes by index loses nothing.
``oldest`` is the smallest index that can still be asked for: every event from there on is in the ring.

A reader has a queue of references of its own. One that leaves more than ``unread_max`` revisions unread is cut off and
told where to resume; it never slows anybody else.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import structlog

from moorage.engine.event_making import Event, Happening, PastBatch, pick_concerned, read_batch, retell, tell
from moorage.errors import Compacted, StoreUnavailable, Unavailable
from moorage.model.ids import Revision
from moorage.rules.events import EventFilter
from moorage.state.feed import Change
from moorage.state.repo import Repo
from moorage.state.store import EventBatch

log = structlog.get_logger()


class EventSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the event stream.

    weight_max: how much the ring keeps; a usual event weighs 1, one of a volume with many claims more. It keeps records
        as they were, some 1 to 2 kB an event that nothing else needs: most of what memory grows by after a start.
    past_revisions: how far back in the store's log the ring is filled from after a start.
    fill_s: how long that may take, in seconds; later events are served even if it does not succeed.
    unread_max: revisions that a reader may leave unread, beside those it began with. An eighth of the ring's weight, so
        that one that is cut off finds the next revision still there, though revisions of several events are among them.
    readers_max: readers at a time.
    heartbeat_s: pause between heartbeats, in seconds.
    text_bytes_max: JSON of recent events kept for other readers of the same event.
    """

    weight_max: int = 4096
    past_revisions: int = 2048
    fill_s: float = 10.0
    unread_max: int = 512
    readers_max: int = 256
    heartbeat_s: float = 30.0
    text_bytes_max: int = 8 << 20


class End(msgspec.Struct, frozen=True, kw_only=True):
    """Why a reader gets no more, in a sentence, and the index to go on with: every event from there on is kept."""

    text: str
    index: int


class Reader:
    """One reader's place. Made by ``Events.open``; ``next`` is for one task. ``ended``: why it gets no more."""

    def __init__(self, wanted: EventFilter, *, first: int, unread_max: int) -> None:
        self._wanted = wanted
        self._first = first
        self._unread_max = unread_max
        self._queue: deque[Happening] = deque()
        # What was in the ring when the reader came is not its fault.
        self._inherited = 0
        self.ended: End | None = None
        self._wake: anyio.Event | None = None

    async def next(self, *, timeout_s: float) -> Happening | End | None:
        """What happened next, as far as it was asked for; None at the timeout (seconds); an End is the last answer."""
        with anyio.move_on_after(timeout_s):
            while not self._queue and self.ended is None:
                self._wake = wake = anyio.Event()
                await wake.wait()
        if self._queue:
            self._inherited = max(0, self._inherited - 1)
            return self._queue.popleft()
        return self.ended

    def inherit(self, happening: Happening) -> None:
        """Take from the ring what happened before the reader came."""
        picked = self._pick(happening)
        if picked is not None and self.ended is None:
            self._queue.append(picked)
            self._inherited += 1

    def offer(self, happening: Happening) -> None:
        """Take what just happened; the reader is cut off when too much is unread."""
        picked = self._pick(happening)
        if picked is None or self.ended is not None:
            return
        if len(self._queue) - self._inherited >= self._unread_max:
            index = self._queue[0].revision
            text = (
                f"the reader is too slow: more than {self._unread_max} revisions are unread; go on with index={index}"
            )
            self.stop(End(text=text, index=index))
            return
        self._queue.append(picked)
        self._rouse()

    def stop(self, end: End) -> None:
        """Stop here; what is unread is dropped."""
        self._queue.clear()
        self.ended = self.ended or end
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None:
            self._wake.set()
            self._wake = None

    def _pick(self, happening: Happening) -> Happening | None:
        events = tuple(e for e in happening.events if self._wanted.matches(e.label))
        if not events or happening.revision < self._first:
            return None
        return happening if len(events) == len(happening.events) else Happening(happening.revision, events)


class Texts:
    """The JSON of recent events, made once and shared by all readers; bounded in bytes, the oldest go first."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self.made = 0

    def find(self, event: Event, make: Callable[[Event], bytes]) -> bytes:
        """The event's text; made now if it is not kept."""
        key = (event.revision, event.position)
        found = self._kept.get(key)
        if found is None:
            found = make(event)
            self.made += 1
            self._kept[key] = found
            self._bytes += len(found)
            while self._bytes > self._bytes_max and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return found


class Events:
    """What happened lately, and who is told."""

    def __init__(self, repo: Repo, settings: EventSettings | None = None) -> None:
        self.settings = settings or EventSettings()
        self.texts = Texts(self.settings.text_bytes_max)
        self._repo = repo
        self._ring: deque[Happening] = deque()
        self._weight = 0
        self._floor = Revision(0)
        self._newest = Revision(0)
        self._pending: list[Change] = []
        self._is_following = False
        self._readers: set[Reader] = set()
        repo.feed.subscribe(self._note)
        repo.feed.subscribe_ends(self._end_revision)

    @property
    def oldest(self) -> int:
        """The smallest index that can be asked for."""
        return self._floor + 1

    @property
    def kept(self) -> int:
        """How many revisions are in the buffer."""
        return len(self._ring)

    @property
    def readers(self) -> int:
        """How many readers there are."""
        return len(self._readers)

    # -- following the feed ------------------------------------------------------------------------------------------

    def _note(self, change: Change) -> None:
        if self._is_following:
            self._pending.append(change)

    def _end_revision(self, revision: Revision, is_load: bool) -> None:
        pending, self._pending = self._pending, []
        if is_load:
            self._start_over(revision)
        elif revision > self._newest:
            self._newest = revision
            happening = tell(self._repo.view, revision, pending) if pending else None
            if happening is not None:
                self._keep(happening)
                for reader in tuple(self._readers):
                    reader.offer(happening)

    def _start_over(self, revision: Revision) -> None:
        """Everything was loaded: what happened before is not known, unless it is filled in."""
        self._is_following = True
        self._ring.clear()
        self._weight = 0
        self._floor = self._newest = revision
        for reader in tuple(self._readers):
            reader.stop(_gone(self.oldest))

    def _keep(self, happening: Happening) -> None:
        self._ring.append(happening)
        self._weight += _weigh(happening)
        while self._weight > self.settings.weight_max and len(self._ring) > 1:
            dropped = self._ring.popleft()
            self._weight -= _weigh(dropped)
            self._floor = dropped.revision

    # -- filling from the log ----------------------------------------------------------------------------------------

    async def fill(self) -> None:
        """After a start, once the feed is loaded: fill the ring from the store's log, as far back as it is kept.

        Raises nothing. What cannot be read in time is left out, and readers that ask for it are told so.
        """
        span = self.settings.past_revisions
        with anyio.move_on_after(self.settings.fill_s) as scope:
            while span > 0 and self._newest > 0:
                try:
                    await self._fill_from(Revision(max(0, self._newest - span)))
                    return
                except Compacted:
                    span //= 4
                except StoreUnavailable as error:
                    log.warning("events.unfilled", reason=error.message)
                    return
        if scope.cancelled_caught:
            log.warning("events.unfilled", reason=f"the log was not read within {self.settings.fill_s:g} s")

    async def _fill_from(self, floor: Revision) -> None:
        batches: list[PastBatch] = []
        async with self._repo.watch(floor) as history:
            await self._read_past(history, batches)
            # No await since the last look at the view: the log has told all that the view shows.
            reached = self._repo.view.revision
            batches = [b for b in batches if b[0] <= reached]
            picked = pick_concerned(self._repo.view, batches)
        found = await anyio.to_thread.run_sync(retell, picked, batches)
        if self._floor > reached:
            # Loaded anew meanwhile.
            return
        later = [h for h in self._ring if h.revision > reached]
        self._ring.clear()
        self._weight = 0
        self._floor = floor
        for happening in (*found, *later):
            self._keep(happening)
        log.debug("events.filled", oldest=self.oldest, newest=self._newest, revisions=len(self._ring))

    async def _read_past(self, history: AsyncIterator[EventBatch], batches: list[PastBatch]) -> None:
        while not batches or batches[-1][0] < self._repo.view.revision:
            batches.append(read_batch(await anext(history), self._repo.feed.records))
            await anyio.lowlevel.checkpoint()

    # -- readers -----------------------------------------------------------------------------------------------------

    def check_room(self) -> None:
        """Raises Unavailable when there are as many readers as there may be."""
        if len(self._readers) >= self.settings.readers_max:
            text = f"{self.settings.readers_max} event streams are open, which is the limit: close one, or try later"
            raise Unavailable(text, code="too_many_streams", retry_after_s=5.0)

    @contextmanager
    def open(self, wanted: EventFilter, *, index: int) -> Iterator[Reader]:
        """A reader of what is kept from ``index`` on (0: from the oldest) and of all that happens while it is open.

        A reader that asks for what is no longer kept gets an End at once.
        """
        reader = Reader(wanted, first=index, unread_max=self.settings.unread_max)
        if 0 < index <= self._floor:
            reader.stop(_gone(self.oldest))
        for happening in self._ring:
            reader.inherit(happening)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)


def _weigh(happening: Happening) -> int:
    return sum(e.weight for e in happening.events)


def _gone(oldest: int) -> End:
    text = f"events before index {oldest} are no longer kept: list again, then go on with the index of the list plus 1"
    return End(text=text, index=oldest)
