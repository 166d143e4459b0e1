"""The embedded agent's way to the server in its own process: the same pages, without a socket.

What is asked for every use and every write, the standing queries and reports, goes to the engine as records; the rest,
and whatever is to be refused, goes through the application as any agent's request, which also notes it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar
from urllib.parse import unquote

import structlog

from moorage.api.app import App
from moorage.api.http import Answer as AppAnswer
from moorage.api.http import Request
from moorage.api.params import WAIT_MAX_S
from moorage.api.refusals import Refusal, of_crash, of_error, refuse
from moorage.client.api import Client, NearSteps, check_answer
from moorage.client.transport import Answer, CallTransport
from moorage.engine.service import Service
from moorage.errors import Forbidden, MoorageError
from moorage.model.assignment import ClaimAssignments, Report, StepAssignment, StepAssignments, StepReport
from moorage.model.identity import Identity, Peer
from moorage.model.ids import NodeId
from moorage.state.view import Record

log = structlog.get_logger()

T = TypeVar("T")
Handle = Callable[[str, str, Mapping[str, str], bytes | None], Awaitable[Answer]]
PEER = Peer(is_embedded=True)


class EmbeddedClient(Client):
    """The pages of the agent with this secret, which lives in the server's process. Each answer and error is what a
    ``Client`` over HTTP gives; records are the engine's own, which nobody changes."""

    def __init__(self, app: App, service: Service, secret: str) -> None:
        super().__init__(CallTransport(make_handle(app, secret)))
        self._service = service
        self._secret = secret
        # The identity by which this agent was let in last.
        self._known: Record[Identity] | None = None

    async def report(self, node_id: NodeId, reports: Iterable[Report]) -> None:
        """See ``Client``."""
        told = tuple(reports)
        if not self._is_own(node_id):
            return await super().report(node_id, told)
        service = self._service
        await self._ask(service.nodes.report(node_id, told))
        service.diagnostics.note(node_id, told, now_ns=service.clock.now_ns())
        return None

    async def wait_steps(self, node_id: NodeId, index: int, wait_s: float, epoch: int = 0) -> StepAssignments:
        """See ``Client``."""
        if self._is_own(node_id):
            bound_s = min(wait_s, WAIT_MAX_S)
            found = await self._ask(self._service.nodes.wait_steps(node_id, index=index, wait_s=bound_s, epoch=epoch))
            # One whose identity was taken away while it waited learns nothing any more.
            if self._is_own(node_id):
                return found
        return await super().wait_steps(node_id, index, wait_s, epoch)

    async def wait_claims(self, node_id: NodeId, index: int, wait_s: float, epoch: int = 0) -> ClaimAssignments:
        """See ``Client``."""
        if self._is_own(node_id):
            bound_s = min(wait_s, WAIT_MAX_S)
            found = await self._ask(self._service.nodes.wait_claims(node_id, index=index, wait_s=bound_s, epoch=epoch))
            if self._is_own(node_id):
                return found
        return await super().wait_claims(node_id, index, wait_s, epoch)

    def offer(self, node_id: NodeId, steps: NearSteps) -> None:
        """See ``AgentPages``: the engine asks this node's drivers in the task of the request."""
        service = self._service

        async def ask(assignment: StepAssignment) -> StepReport | None:
            if not self._is_own(node_id):
                return None
            told = await steps.try_now(assignment)
            if told is not None:
                service.nodes.driver_calls.note_step(assignment.step, told)
                service.diagnostics.note(node_id, (told,), now_ns=service.clock.now_ns())
            return told

        service.operations.questions.offer(node_id, ask)

    def _is_own(self, node_id: NodeId) -> bool:
        """Whether this agent's secret is the node's. Looked up anew only when the identity on record is another."""
        identities = self._service.identities
        found = identities.find(node_id)
        if found is not None and found is self._known:
            return True
        try:
            identities.check_own(node_id, self._secret, PEER)
        except Forbidden:
            return False
        self._known = found
        return True

    async def _ask(self, asking: Awaitable[T]) -> T:
        """What the engine answers. Raises what a client makes of the application's refusal."""
        try:
            return await asking
        except MoorageError as error:
            refusal = of_error(error)
        except Exception:
            # A fault of ours in one question must not end the agent, nor the server beside it.
            incident = self._service.chance.new_id()
            log.exception("request.crashed", incident=incident)
            refusal = of_crash(incident)
        raise _told(refusal)


def _told(refusal: Refusal) -> MoorageError:
    """The error that a client raises for a refusal."""
    try:
        check_answer(_to_client(refuse("", refusal)))
    except MoorageError as error:
        return error
    raise AssertionError(refusal)


def _to_client(answer: AppAnswer) -> Answer:
    return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.whole())


def make_handle(app: App, secret: str = "") -> Handle:
    """The app as a function of method, path, query and body: the embedded agent asks it without a socket, with its
    node's secret as token."""
    headers = {"x-nomad-token": secret} if secret else {}

    async def handle(method: str, path: str, query: Mapping[str, str], body: bytes | None) -> Answer:
        request = Request(
            method=method,
            path=path,
            parts=tuple(unquote(path).split("/")[1:]),
            query=query,
            headers=headers,
            body=body or b"",
            peer=PEER,
        )
        return _to_client(await app.answer(request))

    return handle
