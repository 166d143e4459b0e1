"""Async client: typed calls for the pages between server and agent, and standing queries that never lose their place.

Connection trouble and 5xx are Unavailable; 4xx are Rejected in the kind that fits, each with the server's text.
Never: retries of a single call; the caller knows whether repeating is harmless.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Protocol, TypeVar
from urllib.parse import quote

import anyio
import msgspec

from moorage.client.transport import Answer, Transport
from moorage.errors import BadRequest, Conflict, Forbidden, MoorageError, NotFound, Rejected, Unavailable
from moorage.model.assignment import (
    ClaimAssignments,
    NodeJoin,
    NodeJoined,
    NodeRegistered,
    NodeRegistration,
    PluginReport,
    PluginsReported,
    Report,
    Reports,
    StepAssignment,
    StepAssignments,
    StepReport,
)
from moorage.model.ids import NodeId
from moorage.model.node import Node
from moorage.waking import now_s

CALL_TIMEOUT_S = 30.0
REGISTER_TIMEOUT_S = 3.0
WAIT_SLACK = 1.0625  # a server spreads the ends of waits over a sixteenth more
RETRY_FIRST_S = 0.1
RETRY_CAP_S = 5.0
TEXT_CHARS_MAX = 2000

_encode = msgspec.json.Encoder().encode
_REJECTIONS: dict[int, type[Rejected]] = {
    400: BadRequest,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
}


class Indexed(Protocol):
    """An answer that says where it stands."""

    @property
    def index(self) -> int:
        """The index to wait beyond."""
        ...


Found = TypeVar("Found", bound=Indexed)
Body = TypeVar("Body")


class NearSteps(Protocol):
    """A node's steps as its agent makes them, for a server in the same process."""

    async def try_now(self, assignment: StepAssignment) -> StepReport | None:
        """The outcome of a step that is on no list; None where it cannot be made at once."""
        ...


class AgentPages(Protocol):
    """What an agent asks of its server, by whatever way. All raise Unavailable (ask again) and Rejected (never)."""

    async def join(self, node_id: NodeId, name: str, join_token: str = "") -> NodeJoined:
        """Make this agent's secret the node's."""
        ...

    async def register_node(
        self, node: Node, *, clean_by: int = 0, is_empty: bool = False, epoch: int = 0, calling: tuple[str, ...] = ()
    ) -> NodeRegistered:
        """Make the node known, or renew its lease."""
        ...

    async def report_plugins(self, node_id: NodeId, report: PluginReport) -> PluginsReported:
        """Tell all driver instances of the node, and what it is calling."""
        ...

    async def report(self, node_id: NodeId, reports: Iterable[Report]) -> None:
        """Tell what came of assignments."""
        ...

    async def wait_steps(self, node_id: NodeId, index: int, wait_s: float, epoch: int = 0) -> StepAssignments:
        """The controller calls due for this node, once they are news."""
        ...

    async def wait_claims(self, node_id: NodeId, index: int, wait_s: float, epoch: int = 0) -> ClaimAssignments:
        """The claims of this node, once they are news."""
        ...

    def offer(self, node_id: NodeId, steps: NearSteps) -> None:
        """Let the server ask this node's drivers without a page, if it is in this process."""
        ...


class Client:
    """The agent's pages over a transport. ``call_timeout_s`` bounds every call that does not wait for news."""

    def __init__(self, transport: Transport, *, call_timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._transport = transport
        self._call_timeout_s = call_timeout_s

    async def join(self, node_id: NodeId, name: str, join_token: str = "") -> NodeJoined:
        """Make the transport's token the node's secret. Repeating it is harmless. Raises Forbidden with what to do."""
        body = _encode(NodeJoin(name=name, join_token=join_token))
        return _decode(await self._call("PUT", _page(node_id, "join"), body=body), NodeJoined)

    async def register_node(
        self, node: Node, *, clean_by: int = 0, is_empty: bool = False, epoch: int = 0, calling: tuple[str, ...] = ()
    ) -> NodeRegistered:
        """Make the node known, or renew its lease. Raises Conflict when the server had lost the node: clean first."""
        body = _encode(NodeRegistration(node=node, clean_by=clean_by, is_empty=is_empty, epoch=epoch, calling=calling))
        # Short: a heartbeat that hangs in a dead connection must not outlast the lease that it renews.
        timeout_s = min(self._call_timeout_s, REGISTER_TIMEOUT_S)
        answer = await self._call("PUT", _page(node.id, "register"), body=body, timeout_s=timeout_s)
        return _decode(answer, NodeRegistered)

    async def report_plugins(self, node_id: NodeId, report: PluginReport) -> PluginsReported:
        """Tell all driver instances of the node, and what it is calling; an instance that is left out is gone."""
        answer = await self._call("PUT", _page(node_id, "plugins"), body=_encode(report))
        # A server of an earlier version says nothing, and takes what comes.
        return _decode(answer, PluginsReported) if answer.body else PluginsReported()

    async def report(self, node_id: NodeId, reports: Iterable[Report]) -> None:
        """Tell what came of assignments. Repeating it is harmless; a stale one is ignored."""
        await self._call("PUT", _page(node_id, "reports"), body=_encode(Reports(reports=tuple(reports))))

    async def wait_steps(self, node_id: NodeId, index: int, wait_s: float, epoch: int = 0) -> StepAssignments:
        """The controller calls due for this node, as soon as they differ from those at ``index``; with the ``epoch`` of
        the last answer perhaps only what is new since."""
        return _decode(await self._wait(_page(node_id, "steps"), index, wait_s, epoch), StepAssignments)

    async def wait_claims(self, node_id: NodeId, index: int, wait_s: float, epoch: int = 0) -> ClaimAssignments:
        """The claims of this node, as soon as they differ from those at ``index``; ``epoch``: as in ``wait_steps``."""
        return _decode(await self._wait(_page(node_id, "claims"), index, wait_s, epoch), ClaimAssignments)

    def offer(self, node_id: NodeId, steps: NearSteps) -> None:
        """Nothing: the server is elsewhere."""

    async def _wait(self, path: str, index: int, wait_s: float, epoch: int) -> Answer:
        query = {"index": str(index), "wait": f"{round(wait_s * 1000)}ms"}
        if epoch:
            query["epoch"] = str(epoch)
        timeout_s = wait_s * WAIT_SLACK + self._call_timeout_s
        return check_answer(await self._transport.request("GET", path, query=query, body=None, timeout_s=timeout_s))

    async def _call(
        self, method: str, path: str, *, body: bytes | None = None, timeout_s: float | None = None
    ) -> Answer:
        answer = await self._transport.request(
            method, path, query={}, body=body, timeout_s=timeout_s or self._call_timeout_s
        )
        return check_answer(answer)


def _page(node_id: NodeId, name: str) -> str:
    return f"/v1/node/{quote(node_id, safe='')}/{name}"


def check_answer(answer: Answer) -> Answer:
    """The answer, if it is a good one. Raises the error that it tells."""
    if 200 <= answer.status < 300:
        return answer
    text = answer.body[: TEXT_CHARS_MAX * 4].decode("utf-8", "replace").strip()[:TEXT_CHARS_MAX]
    message = text or f"the server answered {answer.status} without a text"
    if 300 <= answer.status < 500 and answer.status not in (408, 429):
        raise _REJECTIONS.get(answer.status, Rejected)(message)
    raise Unavailable(message, retry_after_s=_retry_after_s(answer))


def _retry_after_s(answer: Answer) -> float:
    text = answer.headers.get("retry-after", "")
    return min(float(text), 60.0) if text.isascii() and text.isdigit() else 1.0


def _decode(answer: Answer, kind: type[Body]) -> Body:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Unavailable(f"the server's answer is not a {kind.__name__}: {e}") from e


def retry_delay_s(failures: int, jitter: float) -> float:
    """Seconds to wait after ``failures`` failed tries in a row: doubling, capped, the upper half random.

    ``jitter`` is in [0, 1).
    """
    full = min(RETRY_CAP_S, RETRY_FIRST_S * 2.0 ** min(failures - 1, 16))
    return full * (0.5 + 0.5 * jitter)


async def follow(
    fetch: Callable[[int], Awaitable[Found]],
    *,
    random: Callable[[], float],
    on_fault: Callable[[MoorageError], None] = lambda fault: None,
    on_answer: Callable[[], None] = lambda: None,
) -> AsyncIterator[Found]:
    """Every answer of a standing query, for ever; ``fetch`` gets the index to wait beyond, first 0.

    A failed fetch is told to ``on_fault`` and repeated at the same index with growing pauses. An index that goes back
    (a server restored from a backup) is followed, because each answer is the whole truth. An answer without news that
    came too early to be the end of a wait counts as a failed one for the pause, so that no fault makes this spin.
    """
    index = failures = 0
    while True:
        started_at_s = now_s()
        try:
            answer = await fetch(index)
        except (Rejected, Unavailable) as e:
            failures += 1
            on_fault(e)
            await anyio.sleep(retry_delay_s(failures, random()))
            continue
        on_answer()
        is_news = answer.index != index
        is_hasty = not is_news and now_s() - started_at_s < RETRY_FIRST_S
        index = answer.index
        yield answer
        failures = failures + 1 if is_hasty else 0
        if is_hasty:
            await anyio.sleep(retry_delay_s(failures, random()))
