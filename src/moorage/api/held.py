"""Reads that wait and are no task meanwhile: held until the waiters' register says that their time has come.

Whoever asks the same and may do the same is given the same bytes, made once a turn of the loop. What a caller may do is
looked up when it is answered, and only then. Whatever is no plain answer then (a refusal, a volume that is gone, a long
list, a server that stops) goes the long way, as a request that has waited already.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Protocol, cast
from weakref import WeakValueDictionary

import structlog

from moorage.api.admission import find_access
from moorage.api.crowd import Crowd
from moorage.api.entries import Asked, Entries, Entry, Headers, read_request
from moorage.api.http import Hold, Waited
from moorage.api.once import Once
from moorage.api.replies import Replies
from moorage.engine.service import Service
from moorage.engine.waiters import Waiter
from moorage.model.acl import Caller

log = structlog.get_logger()

_WAITING = (b"index", b"wait")
# For the question without its waiting: it is answered at once.
_OVER = Waited(began_s=0.0, waited_s=0.0, left_s=None, caller=Caller())


class HeldConnection(Protocol):
    """A connection, as far as a held read knows it."""

    client_key: str

    @property
    def headers(self) -> Headers:
        """Of the request in hand."""
        ...

    def now_s(self) -> float:
        """The loop's clock."""
        ...

    def first_headers(self) -> Headers:
        """Those that come before all others, alike for all connections."""
        ...

    def give(self, head: bytes, body: bytes) -> bool:
        """Answer the held read. Whether it could be: else its reader takes nothing, or the connection ends after it."""
        ...

    def finish(self, now_s: float) -> None:
        """Do what is left to do after an answer, some turns of the loop later at the most."""
        ...

    def pass_on(self, waited: Waited) -> None:
        """Let the held read go the long way."""
        ...


class Question:
    """What reads ask for, apart from their waiting: ``target``; one for all who ask the same in the same way."""

    __slots__ = ("__weakref__", "coding", "secret", "target")

    def __init__(self, target: bytes, coding: str, secret: str) -> None:
        self.target = target
        self.coding = coding
        self.secret = secret


class HeldRead(Waiter):
    """One of them. ``began_s``: when its request came, of ``perf_counter``."""

    __slots__ = ("began_s", "caller", "connection", "held_s", "question", "request_id", "room")

    def __init__(
        self, room: HeldReads, question: Question, connection: HeldConnection, *,
        caller: Caller, request_id: str, began_s: float,
    ) -> None:  # fmt: skip
        self.room = room
        self.question = question
        self.connection = connection
        self.caller = caller
        self.request_id = request_id.encode("latin-1")
        self.began_s = began_s
        self.held_s = time.perf_counter()

    def leave(self) -> None:
        """Its client has gone."""
        self.room.leave(self)

    def part(self) -> Waited:
        """Hold it no more; what it has waited, and has still to wait."""
        return self.room.part(self)


class HeldReads:
    """All of them. ``answered``, ``made``: how many were answered here, and with how many bodies; ``passed``: how many
    went the long way after all."""

    def __init__(
        self, service: Service, app: Asked, entries: Entries, replies: Replies, *, is_stopping: Once, crowd: Crowd
    ) -> None:
        self.answered = self.made = self.passed = 0
        self._service = service
        self._app = app
        self._entries = entries
        self._replies = replies
        self._is_stopping = is_stopping
        self._crowd = crowd
        self._waiters = service.reads.waiters
        self._questions: WeakValueDictionary[tuple[bytes, str, str], Question] = WeakValueDictionary()
        # Whose answers are written, while there is something left to do about them.
        self._given: list[HeldConnection] = []

    async def run(self) -> None:
        """Hold and answer until cancelled."""
        with self._is_stopping.calling(self._waiters.stop):
            await self._waiters.run(self)

    # -- coming ------------------------------------------------------------------------------------------------------

    def find_question(self, target: bytes, coding: str, secret: str) -> Question:
        """The one for all who ask this now."""
        key = (target, coding, secret)
        found = self._questions.get(key)
        if found is None:
            found = self._questions[key] = Question(target, coding, secret)
        return found

    def hold(self, target: bytes, read: HeldRead) -> HeldRead | bytes | None:
        """A read that waits from now on, or its answer where it need not; None: it has to go the long way.

        ``target``: with what it says about waiting.
        """
        connection = read.connection
        client = connection.client_key
        if not self._waiters.is_running or self._is_stopping.is_set() or self._crowd.is_full(client):
            return None
        request = read_request(target, connection.headers, is_asking=True)
        index = request.query.get("index", "") if request is not None else ""
        if request is None or not index.isascii() or not index.strip("0").isdigit():
            return None
        hold = self._app.answer_now(request)
        if not isinstance(hold, Hold):
            return None
        if hold.is_due:
            entry = self._find_entry(read)
            if entry is None:
                return None
            self._count(entry.route, 1)
            return self._write(entry, [read])[0] + entry.body
        now_s = connection.now_s()
        self._waiters.enter(
            read, hold.topics, above=hold.above, least_s=now_s + hold.least_s, most_s=now_s + hold.most_s
        )
        self._crowd.enter(client)
        return read

    # -- going -------------------------------------------------------------------------------------------------------

    def leave(self, read: HeldRead) -> None:
        """Forget it."""
        self._waiters.leave(read)
        self._crowd.leave(read.connection.client_key)

    def part(self, read: HeldRead) -> Waited:
        """Forget it; what it has waited. One that was called already has nothing left to wait."""
        left_s = self._waiters.find_left_s(read, read.connection.now_s()) if read.why in (None, "stopping") else None
        self.leave(read)
        self.passed += 1
        waited_s = time.perf_counter() - read.held_s
        return Waited(began_s=read.began_s, waited_s=waited_s, left_s=left_s, caller=read.caller)

    def answer(self, waiters: list[Waiter]) -> None:
        """Answer those of one turn, or let them go the long way. Who asks the same is given the same, which is looked
        up once a turn: nothing changes meanwhile, also not what anybody may do. All are written one after the other, so
        that the last one's reader waits for nothing else."""
        alike: dict[Question, list[HeldRead]] = {}
        passed: list[HeldRead] = []
        for read in cast(list[HeldRead], waiters):
            if read.why == "stopping":
                passed.append(read)
            elif (found := alike.get(read.question)) is not None:
                found.append(read)
            else:
                alike[read.question] = [read]
        for reads in alike.values():
            passed += self._give(reads)
        for read in passed:
            read.connection.pass_on(self.part(read))

    def _give(self, reads: list[HeldRead]) -> list[HeldRead]:
        """Answer those who ask the same; those that have to go the long way."""
        try:
            entry = self._find_entry(reads[0])
        except Exception:
            # It is met again, and answered, on the long way.
            log.exception("held.crashed", path=reads[0].question.target[:200])
            entry = None
        if entry is None:
            return reads
        body, passed = entry.body, []
        given = []
        for read, head in zip(reads, self._write(entry, reads), strict=True):
            if read.connection.give(head, body):
                given.append(read.connection)
            else:
                passed.append(read)
        self._given += given
        for client, count in Counter([connection.client_key for connection in given]).items():
            self._crowd.leave(client, count)
        self._count(entry.route, len(given))
        return passed

    def finish(self) -> None:
        """Do what is left to do after the answers since the last time."""
        if self._given:
            now_s = self._given[0].now_s()
            for connection in self._given:
                connection.finish(now_s)
            self._given.clear()

    def _find_entry(self, read: HeldRead) -> Entry | None:
        """The answer, by what the caller may do now. None where it has to go the long way."""
        question = read.question
        access = find_access(self._service, question.secret)
        if access is None:
            return None
        key = (question.target, (question.coding, access.is_open, access.acl))
        entry = self._entries.find(*key)
        if entry is None:
            request = read_request(question.target, read.connection.headers, waited=_OVER)
            entry = self._entries.make(request, *key) if request is not None else None
            self.made += 1
        return entry

    def _count(self, route: str, times: int) -> None:
        self.answered += times
        self._app.count_now(route, None, times=times)

    def _write(self, entry: Entry, reads: list[HeldRead]) -> list[bytes]:
        """The heads of their answers."""
        replies, now_s = self._replies, time.perf_counter()
        if replies.is_debugging:
            for read in reads:
                request_id, client = read.request_id.decode("latin-1"), read.connection.client_key
                replies.note(read.question.target, request_id, client=client, began_s=read.began_s)
        return replies.write_waited(entry, reads, reads[0].connection.first_headers(), now_s)


def strip_waiting(target: bytes) -> bytes | None:
    """The target without what it says about waiting; None where that is not plain to see."""
    path, _, query = target.partition(b"?")
    left = []
    for pair in query.split(b"&"):
        name = pair.partition(b"=")[0]
        if b"%" in name or b"+" in name:
            return None
        if name not in _WAITING:
            left.append(pair)
    return path + b"?" + b"&".join(left) if left else path
