"""From a request to an answer: routing, error texts and statuses; and the ASGI door in front of it.

``App.answer`` needs no server: tests and the embedded agent call it directly. A refusal becomes the recorded plain
text and status, or an RFC 9457 problem with an honest status for a client that accepts those. Nothing a client sends
may end in a traceback on its side: what we did not foresee is logged with the request's id and answered with 500.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

import anyio
import msgspec
import structlog

from moorage.api.http import TEXT, Answer, Request, text_answer
from moorage.api.params import find_query
from moorage.api.routes import ROUTES, Router
from moorage.engine.service import Service
from moorage.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    MoorageError,
    NotFound,
    Rejected,
    Unavailable,
)

log = structlog.get_logger()

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_BYTES_MAX = 16 * 1024 * 1024
TARGET_BYTES_MAX = 64 * 1024
# What a refused body may still send before we answer: a client that is cut off in the middle never reads the answer.
DRAIN_BYTES_MAX = 512 * 1024 * 1024
DRAIN_S = 30.0
BODY_S = 60.0
PROBLEM = "application/problem+json"

INVALID_METHOD = text_answer(405, "Invalid method")
NO_RESOURCE = text_answer(404, "resource not found")
NOTHING = Answer(status=404)


class App:
    """The HTTP face of a Service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._router = Router(ROUTES)
        self.is_stopping = anyio.Event()

    async def answer(self, request: Request) -> Answer:
        """The answer to a request; never raises but for cancellation."""
        found = self._router.find(request.parts)
        if found is None:
            return _unrouted(request)
        handler = found.route.handlers.get(request.method)
        if handler is None:
            return _wrong_method(request)
        try:
            return await handler(self._service, request, *found.arguments)
        except MoorageError as error:
            return refuse(request, error)
        except Exception:
            incident = self._service.chance.new_id()
            log.exception("request.crashed", method=request.method, path=request.path[:200], incident=incident)
            return text_answer(500, f"internal error; the server's log has it as incident {incident}")

    # -- ASGI --------------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry, HTTP only."""
        if scope["type"] != "http":
            return
        answer = await self._answer_scope(scope, receive)
        if answer is not None:
            await _send(send, answer)

    async def _answer_scope(self, scope: Scope, receive: Receive) -> Answer | None:
        target: bytes = scope.get("raw_path") or scope["path"].encode()
        if len(target) + len(scope["query_string"]) > TARGET_BYTES_MAX:
            return text_answer(414, f"the request's path and query are longer than {TARGET_BYTES_MAX} bytes")
        target = target.partition(b"?")[0]
        redirect = _find_redirect(target, scope["query_string"])
        if redirect is not None:
            return redirect
        body = await _read_body(receive)
        if isinstance(body, Answer) or body is None:
            return body
        request = Request(
            method=scope["method"],
            path=target.decode("latin-1"),
            parts=tuple(unquote_to_bytes(target).decode("utf-8", "replace").split("/")[1:]),
            query=find_query(scope["query_string"]) if scope["query_string"] else {},
            headers={k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]},
            body=body,
        )
        if request.method == "GET" and request.query.get("index"):
            return await self._answer_unless_gone(request, receive)
        return await self.answer(request)

    async def _answer_unless_gone(self, request: Request, receive: Receive) -> Answer | None:
        """A read that may wait: given up when the client leaves or the server stops."""
        result: Answer | None = None
        async with anyio.create_task_group() as group:

            async def watch_client() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            async def watch_stop() -> None:
                await self.is_stopping.wait()
                group.cancel_scope.cancel()

            group.start_soon(watch_client)
            group.start_soon(watch_stop)
            result = await self.answer(request)
            group.cancel_scope.cancel()
        if result is None and self.is_stopping.is_set():
            return text_answer(503, "the server is stopping; ask again")
        return result


async def _read_body(receive: Receive) -> bytes | Answer | None:
    """The body whole; an Answer when it is refused; None when the client has left."""
    chunks: list[bytes] = []
    size = 0
    with anyio.move_on_after(BODY_S) as scope:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > BODY_BYTES_MAX:
                chunks.clear()
                if size > DRAIN_BYTES_MAX:
                    break
            else:
                chunks.append(chunk)
            if not message.get("more_body", False):
                break
    if scope.cancelled_caught:
        return text_answer(408, f"the request's body did not arrive within {BODY_S:.0f} s", Connection="close")
    if size > BODY_BYTES_MAX:
        return text_answer(413, f"the request's body is larger than {BODY_BYTES_MAX} bytes", Connection="close")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _send(send: Send, answer: Answer) -> None:
    headers = [
        (b"content-length", str(len(answer.body)).encode()),
        (b"vary", b"Accept-Encoding"),
    ]
    if answer.content_type is not None:
        headers.append((b"content-type", answer.content_type.encode()))
    headers += [(k.encode("latin-1"), v.encode("latin-1", "replace")) for k, v in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


# -- refusals --------------------------------------------------------------------------------------------------------


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


def _unrouted(request: Request) -> Answer:
    """What a path gets that no handler owns. Under a volume's or plugin's path it is a resource that does not exist."""
    if request.parts[:3] in (("v1", "volume", "host"), ("v1", "plugin", "csi")):
        return NO_RESOURCE
    if request.parts[:3] != ("v1", "volume", "csi"):
        return NOTHING
    if len(request.parts) == 5 and request.method not in ("PUT", "DELETE"):
        return INVALID_METHOD
    return NO_RESOURCE


def _wrong_method(request: Request) -> Answer:
    """405, but a two-part volume path with PUT or DELETE is a verb that does not exist there; as is any under host."""
    if request.parts[:3] == ("v1", "volume", "host"):
        return NO_RESOURCE
    is_volume_verb = request.parts[:3] == ("v1", "volume", "csi") and len(request.parts) == 5
    return NO_RESOURCE if is_volume_verb and request.method in ("PUT", "DELETE") else INVALID_METHOD


# Recorded servers answer 500 to nearly every refusal; these codes alone have a status of their own.
PLAIN_STATUS: dict[str, int] = {"bad_request": 400, "forbidden": 403, "node_missing": 404, "allocation_missing": 404}


def _honest_status(error: MoorageError) -> int:
    for kind, status in ((BadRequest, 400), (Forbidden, 403), (NotFound, 404), (Conflict, 409), (Rejected, 400)):
        if isinstance(error, kind):
            return status
    return 503 if isinstance(error, Unavailable) else 500


def refuse(request: Request, error: MoorageError) -> Answer:
    """A refusal as this client wants it: the recorded plain text, or a problem with an honest status."""
    retry = {"Retry-After": str(max(1, round(error.retry_after_s)))} if isinstance(error, Unavailable) else {}
    if PROBLEM in request.header("accept"):
        status = _honest_status(error)
        body = {
            "type": f"urn:moorage:error:{error.code}",
            "title": error.code.replace("_", " "),
            "status": status,
            "detail": error.message,
            "code": error.code,
            **{k: v for k, v in error.fields.items() if k not in ("type", "title", "status", "detail", "code")},
        }
        return Answer(status=status, body=msgspec.json.encode(body), content_type=PROBLEM, headers=retry)
    status = PLAIN_STATUS.get(error.code, 500)
    return Answer(status=status, body=error.message.encode("utf-8", "replace"), content_type=TEXT, headers=retry)
