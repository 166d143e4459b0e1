"""The embedded agent's way to the server: the same requests, without a socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import unquote

from moorage.api.app import App
from moorage.api.http import Request
from moorage.client.transport import Answer as ClientAnswer
from moorage.model.identity import Peer

Handle = Callable[[str, str, Mapping[str, str], bytes | None], Awaitable[ClientAnswer]]


def make_handle(app: App, secret: str = "") -> Handle:
    """The app as a function of method, path, query and body: the embedded agent asks it without a socket, with its
    node's secret as token."""
    headers = {"x-nomad-token": secret} if secret else {}

    async def handle(method: str, path: str, query: Mapping[str, str], body: bytes | None) -> ClientAnswer:
        request = Request(
            method=method,
            path=path,
            parts=tuple(unquote(path).split("/")[1:]),
            query=query,
            headers=headers,
            body=body or b"",
            peer=Peer(is_embedded=True),
        )
        answer = await app.answer(request)
        return ClientAnswer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.whole())

    return handle
