"""Reads that wait and are no task meanwhile: held until the waiters' register says that their time has come.

Whoever asks the same and may do the same is given the same bytes, made once a turn of the loop. What a caller may do is
looked up when it is answered, and only then. Whatever is no plain answer then (a refusal, a volume that is gone, a long
list, a server that stops) goes the long way, as a request that has waited already.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Protocol, cast

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
        """Those that come before all others."""
        ...

    def may_give(self) -> bool:
        """Whether its reader takes what is written, and the connection goes on after it."""
        ...

    def give(self, head: bytes, body: bytes) -> bool:
        """Answer the held read. Whether there is nothing more to it than that the connection rests."""
        ...

    def rest(self, now_s: float) -> None:
        """Nothing is asked on the connection from now on."""
        ...

    def pass_on(self, waited: Waited) -> None:
        """Let the held read go the long way."""
        ...


class Question:
    """What a read asks for, apart from its waiting: ``target``; and what else of its request its answer needs."""

    __slots__ = ("began_s", "coding", "request_id", "secret", "target")

    def __init__(self, target: bytes, *, secret: str, coding: str, request_id: str, began_s: float) -> None:
        self.target = target
        self.secret = secret
        self.coding = coding
        self.request_id = request_id
        self.began_s = began_s


class HeldRead(Waiter):
    """One of them."""

    __slots__ = ("caller", "connection", "held_s", "question", "room")

    def __init__(self, room: HeldReads, question: Question, connection: HeldConnection, caller: Caller) -> None:
        self.room = room
        self.question = question
        self.connection = connection
        self.caller = caller
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

    async def run(self) -> None:
        """Hold and answer until cancelled."""
        with self._is_stopping.calling(self._waiters.stop):
            await self._waiters.run(self.answer)

    # -- coming ------------------------------------------------------------------------------------------------------

    def hold(
        self, target: bytes, question: Question, connection: HeldConnection, caller: Caller
    ) -> HeldRead | bytes | None:
        """A read that waits from now on, or its answer where it need not; None: it has to go the long way.

        ``target``: with what it says about waiting.
        """
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
        read = HeldRead(self, question, connection, caller)
        if hold.is_due:
            entry = self._find_entry(read)
            if entry is None:
                return None
            self._count(entry.route, 1)
            return self._write(read, entry) + entry.body
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
        return Waited(began_s=read.question.began_s, waited_s=waited_s, left_s=left_s, caller=read.caller)

    def answer(self, waiters: list[Waiter]) -> None:
        """Answer those of one turn, or let them go the long way. First all are written, one after the other, so that
        the last one's reader waits for nothing else; then the connections rest."""
        entries: dict[tuple[bytes, str, str], Entry | None] = {}
        given: list[tuple[HeldConnection, bytes, Entry]] = []
        passed = []
        for read in cast(list[HeldRead], waiters):
            entry = self._choose_entry(read, entries)
            if entry is None:
                passed.append(read)
            else:
                given.append((read.connection, self._write(read, entry), entry))
        rest = [connection for connection, head, entry in given if connection.give(head, entry.body)]
        for client, count in Counter([connection.client_key for connection, _, _ in given]).items():
            self._crowd.leave(client, count)
        for route, count in Counter([entry.route for _, _, entry in given]).items():
            self._count(route, count)
        if rest:
            now_s = rest[0].now_s()
            for connection in rest:
                connection.rest(now_s)
        for read in passed:
            read.connection.pass_on(self.part(read))

    def _choose_entry(self, read: HeldRead, found: dict[tuple[bytes, str, str], Entry | None]) -> Entry | None:
        """The answer, made once a turn for all who ask the same: nothing changes meanwhile, also not what anybody may
        do. None where it has to go the long way."""
        if read.why == "stopping" or not read.connection.may_give():
            return None
        question = read.question
        key = (question.target, question.coding, question.secret)
        try:
            return found[key] if key in found else found.setdefault(key, self._find_entry(read))
        except Exception:
            # It is met again, and answered, on the long way.
            log.exception("held.crashed", path=question.target[:200])
            return None

    def _find_entry(self, read: HeldRead) -> Entry | None:
        """The answer, by what the caller may do now."""
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

    def _write(self, read: HeldRead, entry: Entry) -> bytes:
        """The head of its answer."""
        question, connection, replies = read.question, read.connection, self._replies
        now_s, began_s = time.perf_counter(), question.began_s
        if replies.is_debugging:
            replies.note(question.target, question.request_id, client=connection.client_key, began_s=began_s)
        took_s, waited_s = now_s - began_s, now_s - read.held_s
        first = connection.first_headers()
        return replies.write(entry, question.request_id, first, took_s=took_s, waited_s=waited_s)


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
