"""The audit trail of one request: whether it is noted, and what is.

Noted are writes, whatever came of them; refusals for want of a grant; and reads of access control and of operators'
pages. An agent's own renewals and reports are noted only when they are refused: they are no request of anybody's.
Never: a body, a query, a header but the request's ID; waits longer than the sink does.
"""

from __future__ import annotations

import time

import structlog

from moorage.api import grants
from moorage.api.admission import find_secret
from moorage.api.http import Answer, Request
from moorage.api.routes import Found
from moorage.engine.service import Service
from moorage.errors import Forbidden, MoorageError, Rejected
from moorage.model.acl import Caller
from moorage.model.audit import AuditEntry, AuditSink, Result, Who

PATH_MAX = 512
# Asked by PUT, and nothing is written.
_READS = frozenset({"/v1/search", "/v1/search/fuzzy"})
_WATCHED = ("/v1/acl/", "/v1/operator/")


class Trail:
    """What becomes known of a request while it is answered."""

    __slots__ = ("begun_ns", "caller", "error", "found")

    def __init__(self) -> None:
        self.begun_ns = time.perf_counter_ns()
        self.found: Found | None = None
        self.caller: Caller | None = None
        self.error: BaseException | None = None


class Auditor:
    """Notes requests of one service."""

    def __init__(self, service: Service, sink: AuditSink) -> None:
        self._service = service
        self._sink = sink

    async def note(self, request: Request, trail: Trail, answer: Answer) -> None:
        """Note a request that is about to be answered, if it is one to be noted."""
        if self._is_noted(request, trail):
            await self._sink.note(self._describe(request, trail, answer))

    def note_left(self, request: Request, trail: Trail) -> None:
        """Note a request whose caller has gone."""
        if self._is_noted(request, trail):
            self._sink.note_now(self._describe(request, trail, None))

    def _is_noted(self, request: Request, trail: Trail) -> bool:
        if trail.found is None:
            return False
        if isinstance(trail.error, Forbidden):
            return True
        pattern = trail.found.route.pattern
        if request.method == "GET" or pattern in _READS:
            return pattern.startswith(_WATCHED)
        served = trail.found.route.handlers.get(request.method)
        return served is not None and (served.grant is not grants.NODE_SELF or trail.error is not None)

    def _describe(self, request: Request, trail: Trail, answer: Answer | None) -> AuditEntry:
        assert trail.found is not None
        error = trail.error
        return AuditEntry(
            at_ns=self._service.clock.now_ns(),
            request_id=str(structlog.contextvars.get_contextvars().get("request_id", "")),
            who=self._find_who(request, trail),
            method=request.method,
            path=request.path[:PATH_MAX],
            route=trail.found.route.pattern,
            namespace=request.query.get("namespace", "")[:PATH_MAX],
            result=_judge(error, answer),
            status=answer.status if answer is not None else 0,
            code=error.code if isinstance(error, MoorageError) else "crash" if error is not None else "",
            took_us=(time.perf_counter_ns() - trail.begun_ns) // 1000,
        )

    def _find_who(self, request: Request, trail: Trail) -> Who:
        caller = trail.caller
        if caller is None:
            try:
                caller = self._service.accesses.resolve(find_secret(request)).caller
            except Forbidden:
                return Who(kind="unknown", address=request.remote)
        return Who(
            kind=caller.kind,
            accessor=caller.accessor_id,
            name=caller.name[:PATH_MAX],
            node=caller.node_id or "",
            address=request.remote,
        )


def _judge(error: BaseException | None, answer: Answer | None) -> Result:
    if answer is None:
        return "left"
    if isinstance(error, Rejected):
        return "refused"
    if error is not None or answer.status >= 500:
        return "failed"
    return "refused" if answer.status >= 400 else "done"
