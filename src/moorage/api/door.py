"""The ASGI door: from bytes to a Request within the limits, and from an Answer to bytes.

Here are what every exchange has in common, whatever is asked: limits, request ids, CORS, compression, timing, streams.
The application behind it is one function, ``answer(request)``.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import structlog
from anyio.abc import TaskGroup

from moorage.api import encoding, refusals
from moorage.api.cors import Cors
from moorage.api.crowd import Crowd
from moorage.api.http import Answer, Request, Stream, Waited
from moorage.api.limits import Hits, HttpSettings, client_of
from moorage.api.once import Once
from moorage.api.params import find_query, split_path
from moorage.api.pieces import PIECE_BYTES, TURN_BYTES, Whole, cut, gather
from moorage.api.refusals import Refusal, of_crowd, of_limit, refuse
from moorage.api.request_ids import BoundId, choose_id
from moorage.api.timing import Timing
from moorage.model.identity import Peer

log = structlog.get_logger()

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
# Where in a scope's state the server puts what the connection shows of the client.
PEER = "moorage.peer"
# And what happens when the client leaves; and a request's waiting so far, where it has waited already.
LEAVING = "moorage.leaving"
WAITED = "moorage.waited"
# And what takes a body and gives an answer without a message for each piece, once.
WHOLE = "moorage.whole"

NO_PEER = Peer()

# How long the last bytes of a stream may take once the server stops.
LAST_WORD_S = 1.0


class Gone(Exception):
    """The client has left: nobody is there to answer."""


class Door:
    """An ASGI application over a function. ``is_stopping``: waiting requests are answered, streams end."""

    def __init__(
        self,
        answer: Callable[[Request], Awaitable[Answer]],
        *,
        settings: HttpSettings,
        new_id: Callable[[], str],
    ) -> None:
        self._answer = answer
        self.limits = settings.limits
        self.new_id = new_id
        self._cors = Cors(settings)
        self.compressor = encoding.Compressor()
        self.is_stopping = Once()
        self.hits: Hits = Hits()
        self.unsent_bytes = 0
        self.crowd = Crowd(self.limits.waiters_per_client_max, self.hits)

    @property
    def vary(self) -> bytes:
        """What every answer says in ``Vary``."""
        return self._cors.vary

    @property
    def waiters(self) -> int:
        """Blocking queries and streams that are open."""
        return len(self.crowd)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry, HTTP only."""
        if scope["type"] != "http":
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        request_id = choose_id(headers.get("x-request-id", ""), self.new_id)
        state = scope.get("state") or {}
        waited: Waited | None = state.get(WAITED)
        # Taken out, because it has the scope itself.
        whole: Whole | None = state.pop(WHOLE, None)
        timing = Timing() if waited is None else Timing(waited.began_s, waited.waited_s)
        with timing, BoundId(request_id):
            client = client_of(scope["client"][0]) if scope.get("client") else ""
            try:
                answer = await self._answer_scope(scope, headers, client, receive, whole=whole)
                if answer.stream is None:
                    await self._send(answer, headers, request_id, timing, send=send, whole=whole)
                elif (full := self.crowd.refuse(client)) is not None:
                    await self._send(refuse(headers.get("accept", ""), full), headers, request_id, timing, send=send)
                else:
                    with self.crowd.counted(client):
                        await self._stream(answer, headers, request_id, receive=receive, send=send)
            except Gone:
                return
            status, took_s = answer.status, time.perf_counter() - timing.began_s
            log.debug(
                "request.answered",
                method=scope["method"],
                path=scope["path"][:200],
                status=status,
                client=client,
                took_s=round(took_s, 6),
            )

    # -- in ----------------------------------------------------------------------------------------------------------

    async def _answer_scope(
        self, scope: Scope, headers: Mapping[str, str], client: str, receive: Receive, *, whole: Whole | None
    ) -> Answer:
        accept = headers.get("accept", "")
        target: bytes = scope.get("raw_path") or scope["path"].encode()
        query: bytes = scope["query_string"]
        refusal = self._check_head(len(target) + len(query), scope["headers"])
        if refusal is not None:
            return refuse(accept, refusal)
        target = target.partition(b"?")[0]
        redirect = _find_redirect(target, query)
        if redirect is not None:
            return redirect
        method: str = scope["method"]
        if method == "OPTIONS":
            preflight = self._cors.answer_preflight(headers)
            if preflight is not None:
                return preflight
        body = whole.take(self.limits.body_bytes_max) if whole is not None else None
        if body is None:
            read = await self._read_body(headers, receive)
            if isinstance(read, Refusal):
                return refuse(accept, read)
            body = read
        state = scope.get("state") or {}
        request = Request(
            method=method,
            path=target.decode("latin-1"),
            parts=split_path(target),
            query=find_query(query) if query else {},
            raw_query=query,
            headers=headers,
            body=body,
            remote=(scope.get("client") or ("",))[0],
            peer=state.get(PEER) or NO_PEER,
            waited=state.get(WAITED),
        )
        if method == "GET" and request.query.get("index"):
            full = self.crowd.refuse(client) if request.waited is None else None
            if full is not None:
                return refuse(accept, full)
            with self.crowd.counted(client):
                return await self._answer_waiting(request, receive, state.get(LEAVING))
        return await self._answer(request)

    def _check_head(self, target_bytes: int, headers: Headers) -> Refusal | None:
        limits = self.limits
        if target_bytes > limits.target_bytes_max:
            text = f"the request's path and query are longer than {limits.target_bytes_max} bytes"
            return self._hit("target_bytes", of_limit(414, "target_too_long", text, limits.target_bytes_max))
        if len(headers) > limits.headers_max:
            text = f"the request has more than {limits.headers_max} headers"
            return self._hit("headers", of_limit(431, "headers_too_many", text, limits.headers_max))
        if sum(len(name) + len(value) for name, value in headers) > limits.header_bytes_max:
            text = f"the request's headers are larger than {limits.header_bytes_max} bytes"
            return self._hit("header_bytes", of_limit(431, "headers_too_large", text, limits.header_bytes_max))
        return None

    def _hit(self, limit: str, refusal: Refusal) -> Refusal:
        self.hits[limit] += 1
        return refusal

    async def _read_body(self, headers: Mapping[str, str], receive: Receive) -> bytes | Refusal:
        """The body whole, or why it is refused. Raises Gone."""
        limits = self.limits
        text = f"the request's body is larger than {limits.body_bytes_max} bytes"
        too_large = of_limit(413, "body_too_large", text, limits.body_bytes_max)
        # A client that asks before it sends is told at once.
        announced = headers.get("content-length", "")[:20] if "expect" in headers else ""
        if announced.isdigit() and int(announced) > limits.body_bytes_max:
            return self._hit("body_bytes", too_large)
        chunks: list[bytes] = []
        size = 0
        with anyio.move_on_after(limits.body_s) as scope:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                chunk = message.get("body", b"")
                size += len(chunk)
                if size <= limits.body_bytes_max:
                    chunks.append(chunk)
                else:
                    chunks.clear()
                if size > limits.drain_bytes_max or not message.get("more_body", False):
                    break
        if size > limits.body_bytes_max:
            return self._hit("body_bytes", too_large)
        if scope.cancelled_caught:
            text = f"the request's body did not arrive within {limits.body_s:g} s"
            return self._hit("body_time", of_limit(408, "body_too_slow", text, limits.body_s))
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _answer_waiting(self, request: Request, receive: Receive, leaving: Once | None) -> Answer:
        """A read that may wait: given up when the client leaves or the server stops. Raises Gone.

        ``leaving``: happens when the client leaves; with it, a waiter takes no task beside its own.
        """
        result: Answer | None = None
        if leaving is not None:
            with anyio.CancelScope() as scope:
                with self.is_stopping.calling(scope.cancel), leaving.calling(scope.cancel):
                    result = await self._answer(request)
            return self._end_waiting(request, result)
        async with anyio.create_task_group() as group:
            self._watch(group, receive)
            result = await self._answer(request)
            group.cancel_scope.cancel()
        return self._end_waiting(request, result)

    def _end_waiting(self, request: Request, result: Answer | None) -> Answer:
        if result is not None:
            return result
        if self.is_stopping.is_set():
            return refuse(request.header("accept"), refusals.STOPPING)
        raise Gone

    def _watch(self, group: TaskGroup, receive: Receive) -> None:
        """Cancel the group when the client leaves or the server stops."""

        async def watch_client() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        async def watch_stop() -> None:
            await self.is_stopping.wait()
            group.cancel_scope.cancel()

        group.start_soon(watch_client)
        group.start_soon(watch_stop)

    # -- out ---------------------------------------------------------------------------------------------------------

    def _head(self, answer: Answer, headers: Mapping[str, str], request_id: str) -> Headers:
        out: Headers = [
            (b"vary", self._cors.vary),
            (b"x-request-id", request_id.encode("latin-1")),
            *self._cors.allow(headers),
        ]
        if answer.content_type is not None:
            out.append((b"content-type", answer.content_type.encode()))
        return out + [(k.encode("latin-1"), v.encode("latin-1", "replace")) for k, v in answer.headers.items()]

    async def _send(
        self,
        answer: Answer,
        headers: Mapping[str, str],
        request_id: str,
        timing: Timing,
        *,
        send: Send,
        whole: Whole | None = None,
    ) -> None:
        size = sum(len(p.data) for p in answer.pieces) if answer.pieces else len(answer.body)
        if size > PIECE_BYTES and self.unsent_bytes + size > self.limits.unsent_bytes_max:
            text = "answers that their readers do not take fill the server's room for them; ask again later"
            crowd = of_crowd(503, "too_much_unsent", text, self.limits.unsent_bytes_max)
            answer = refuse(headers.get("accept", ""), self._hit("unsent_bytes", crowd))
        out = self._head(answer, headers, request_id)
        coding = _choose_coding(headers)
        is_plain = not coding and not answer.pieces
        pieces = (answer.body,) if is_plain else await self._find_pieces(answer, coding, out)
        size = sum(map(len, pieces))
        if answer.status != 204:
            out.append((b"content-length", str(size).encode()))
        out.append((b"server-timing", timing.header().encode()))
        is_short = size <= PIECE_BYTES and len(pieces) == 1
        if is_short and whole is not None and whole.give(answer.status, out, pieces[0]):
            return
        await send({"type": "http.response.start", "status": answer.status, "headers": out})
        if is_short:
            await send({"type": "http.response.body", "body": pieces[0]})
            return
        self.unsent_bytes += size
        try:
            parts = [part for piece in gather(pieces) for part in cut(piece)]
            in_turn = 0
            for number, part in enumerate(parts, start=1):
                await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})
                in_turn += len(part)
                if in_turn >= TURN_BYTES:
                    # A reader that takes everything at once would have the loop for as long as the body is.
                    in_turn = 0
                    await anyio.lowlevel.checkpoint()
        finally:
            self.unsent_bytes -= size

    async def _find_pieces(self, answer: Answer, coding: str, out: Headers) -> Sequence[bytes]:
        """The body's bytes in pieces, in the coding if it is worth it; the header that says so is put to the others."""
        if answer.pieces:
            if not coding:
                return [piece.data for piece in answer.pieces]
            out.append((b"content-encoding", coding.encode()))
            return await self.compressor.compress_pieces(answer.pieces, coding)
        body = answer.body
        if coding and len(body) >= encoding.BYTES_MIN and "Content-Encoding" not in answer.headers:
            out.append((b"content-encoding", coding.encode()))
            compress = self.compressor.compress_kept if answer.is_kept else self.compressor.compress
            return (await compress(body, coding),)
        return (body,)

    async def _stream(
        self, answer: Answer, headers: Mapping[str, str], request_id: str, *, receive: Receive, send: Send
    ) -> None:
        assert answer.stream is not None
        out = self._head(answer, headers, request_id)
        coding = _choose_coding(headers)
        if coding:
            out.append((b"content-encoding", coding.encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": out})
        await self._send_stream(answer.stream, encoding.Pieces(coding), receive=receive, send=send)

    async def _send_stream(self, stream: Stream, pieces: encoding.Pieces, *, receive: Receive, send: Send) -> None:
        """Send what the stream writes, each piece at once, until it ends, the client leaves or the server stops."""
        is_whole = False

        async def write(piece: bytes) -> None:
            with anyio.fail_after(self.limits.write_s):
                await send({"type": "http.response.body", "body": pieces.add(piece), "more_body": True})
            # A server that takes a piece without waiting must not keep the loop for a long backlog.
            await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            self._watch(group, receive)
            try:
                await stream(write)
                is_whole = True
            except TimeoutError:
                self.hits["write_time"] += 1
                log.info("stream.stuck", waited_s=self.limits.write_s)
            except Exception:
                log.exception("stream.crashed")
            group.cancel_scope.cancel()
        if is_whole or self.is_stopping.is_set():
            with anyio.move_on_after(LAST_WORD_S):
                await send({"type": "http.response.body", "body": pieces.finish(), "more_body": False})


def _choose_coding(headers: Mapping[str, str]) -> str:
    accepted = headers.get("accept-encoding", "")
    return encoding.choose_coding(accepted) if accepted else ""


def _find_redirect(target: bytes, query: bytes) -> Answer | None:
    """Paths that are another path's sloppy spelling. 307 keeps the method and the body. Source: contract §1.1."""
    clean: bytes | None = None
    if target == b"/":
        clean = b"/ui/"
    elif target in (b"/v1/volume/csi", b"/v1/plugin/csi"):
        clean = target + b"/"
    elif b"//" in target:
        clean = target
        while b"//" in clean:
            clean = clean.replace(b"//", b"/")
    if clean is None:
        return None
    location = (clean + (b"?" + query if query else b"")).decode("latin-1").replace("\r", "").replace("\n", "")
    href = location.replace("&", "&amp;").replace('"', "&#34;").replace("<", "&lt;")
    return Answer(
        status=307,
        body=f'<a href="{href}">Temporary Redirect</a>.\n\n'.encode(),
        content_type="text/html; charset=utf-8",
        headers={"Location": location},
    )
