"""From a request to an answer: routing, and what a handler's error becomes.

``App.answer`` needs no server: tests and the embedded agent call it directly; as an ASGI application the same App
stands behind its ``Door``. Nothing a client sends may end in a traceback on its side: what we did not foresee is logged
with the request's id and answered with 500.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import Any

import msgspec
import structlog

from moorage.api.admission import admit
from moorage.api.audit import Auditor, Trail
from moorage.api.door import Door, Receive, Scope, Send
from moorage.api.entries import Entries
from moorage.api.held import HeldReads
from moorage.api.http import TEXT, Answer, Hold, Repeat, Request
from moorage.api.limits import HttpSettings
from moorage.api.metrics import NO_ROUTE, RequestMeter
from moorage.api.nesting import is_nested_deeper
from moorage.api.once import Once
from moorage.api.quick import Quick
from moorage.api.refusals import of_answer, of_crash, of_depth, of_error, of_unrouted, of_wrong_method, refuse
from moorage.api.replies import Replies
from moorage.api.routes import ROUTES, Found, Router, Served
from moorage.api.spelling import JsonSpelling
from moorage.engine.service import Service
from moorage.errors import MoorageError
from moorage.model.audit import AuditSink

log = structlog.get_logger()

# Reads whose handlers wait for nothing but an ``index``, write nothing and are noted in no audit log.
_READ_NOW = frozenset(("/v1/volumes", "/v1/volume/csi/:id"))
# And those that are answered without a task only when they have waited: nothing tells when their answers change.
_HELD = _READ_NOW | {
    "/v1/plugins",
    "/v1/plugin/csi/:id",
    "/v1/nodes",
    "/v1/node/:id",
    "/v1/node/:id/allocations",
    "/v1/allocations",
    "/v1/allocation/:id",
    "/v1/namespaces",
    "/v1/namespace/:name",
    "/v1/jobs",
    "/v1/evaluations",
    "/v1/deployments",
}


def finish_now(handler: Coroutine[Any, Any, Answer]) -> Answer | Hold | None:
    """What a handler answers without waiting, or tells that it would wait for; None where it would wait for anything
    else. It is given up. Raises what it raises."""
    try:
        found = handler.send(None)
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer
    handler.close()
    return found if isinstance(found, Hold) else None


class App:
    """The HTTP face of a Service."""

    def __init__(
        self, service: Service, settings: HttpSettings | None = None, *, audit: AuditSink | None = None
    ) -> None:
        self._service = service
        service.shelf.spell(JsonSpelling())
        self._auditor = Auditor(service, audit) if audit is not None else None
        self._router = Router(ROUTES)
        self._meter = RequestMeter()
        service.meters.add(self._meter.read)
        self.door = Door(self.answer, settings=settings or HttpSettings(), new_id=service.chance.new_id)
        door = self.door
        entries = Entries(service, self, door.compressor.compress_now)
        replies = Replies(door.vary)
        self.held = HeldReads(service, self, entries, replies, is_stopping=door.is_stopping, crowd=door.crowd)
        self.quick = Quick(service, self, entries, replies, held=self.held, limits=door.limits)

    @property
    def is_stopping(self) -> Once:
        """Set when the server stops: requests that wait are answered, streams end."""
        return self.door.is_stopping

    async def answer(self, request: Request) -> Answer:
        """The answer to a request; never raises but for cancellation."""
        began_s = time.perf_counter()
        trail = Trail()
        try:
            answer = await self._answer(request, trail)
        except BaseException:
            if self._auditor is not None:
                self._auditor.note_left(request, trail)
            raise
        self._count(request, trail, answer, time.perf_counter() - began_s)
        if self._auditor is not None:
            await self._auditor.note(request, trail, answer)
        return answer

    def answer_now(self, request: Request) -> Answer | Hold | None:
        """The answer to a read that needs no waiting, is no refusal and may be given to others; or what it would wait
        for; None for any other, about which nothing has happened yet: it is to go to ``answer``."""
        found = self._router.find(request.parts)
        has_waited = request.waited is not None
        if found is None or found.route.pattern not in (_HELD if has_waited or request.is_asking else _READ_NOW):
            return None
        served = found.route.handlers[request.method]
        try:
            admitted = admit(self._service, served.grant, request, found.arguments)
            answer = finish_now(served.handler(self._service, admitted, *found.arguments))
        except MoorageError:
            return None
        if answer is None or isinstance(answer, Hold):
            return answer
        is_plain = answer.status == 200 and answer.stream is None and not answer.pieces
        if not is_plain or not (answer.is_kept or has_waited):
            return None
        stamp = self._service.shelf.stamp if answer.is_kept else None
        return msgspec.structs.replace(answer, repeat=Repeat(found.route.pattern, stamp))

    def count_now(self, route: str, took_s: float | None, *, times: int = 1) -> None:
        """Count a read that was answered without a task, or so many; ``took_s`` None: it waited on purpose."""
        self._meter.note("GET", route, 200, took_s, times=times)

    def _count(self, request: Request, trail: Trail, answer: Answer, took_s: float) -> None:
        is_waiting = answer.stream is not None or "index" in request.query
        route = trail.found.route.pattern if trail.found is not None else NO_ROUTE
        self._meter.note(request.method, route, answer.status, None if is_waiting else took_s)

    async def _answer(self, request: Request, trail: Trail) -> Answer:
        accept = request.header("accept")
        found = trail.found = self._router.find(request.parts)
        if found is None:
            return refuse(accept, of_unrouted(request.method, request.parts))
        served = found.route.handlers.get(request.method)
        if served is None:
            return refuse(accept, of_wrong_method(request.method, request.parts, found.route.handlers))
        if request.body and is_nested_deeper(request.body, self.door.limits.json_depth_max):
            self.door.hits["json_depth"] += 1
            return refuse(accept, of_depth(self.door.limits.json_depth_max))
        try:
            answer = await self._serve(served, request, found, trail)
        except MoorageError as error:
            if error.code == "over_limit":
                self.door.hits[error.fields.get("limit", "")] += 1
            trail.error = error
            return refuse(accept, of_error(error))
        except Exception as error:
            trail.error = error
            incident = self._service.chance.new_id()
            log.exception("request.crashed", method=request.method, path=request.path[:200], incident=incident)
            return refuse(accept, of_crash(incident))
        if answer.status >= 400 and answer.content_type in (TEXT, None):
            return refuse(accept, of_answer(answer))
        return answer

    async def _serve(self, served: Served, request: Request, found: Found, trail: Trail) -> Answer:
        """Let the handler answer, if the caller may ask. Raises what it raises, and Forbidden.

        A read that waited is answered anew when the caller's grants changed meanwhile: what it shows was chosen by the
        old ones.
        """
        service, arguments = self._service, found.arguments
        if request.waited is not None:
            trail.caller = request.waited.caller
        admitted = admit(service, served.grant, request, arguments)
        trail.caller = admitted.caller
        answer = await served.handler(service, admitted, *arguments)
        if found.route.is_blocking and "index" in request.query:
            again = admit(service, served.grant, request, arguments)
            if again.access is not admitted.access and again.access != admitted.access:
                now = {name: value for name, value in again.query.items() if name != "index"}
                answer = await served.handler(service, msgspec.structs.replace(again, query=now), *arguments)
        return answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        await self.door(scope, receive, send)
