"""Requests to an app through its ASGI door, without a socket: what the door adds can be looked at byte by byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import anyio

from moorage.api.app import App
from moorage.api.door import Door, Message, Scope
from moorage.api.http import Answer, Request
from moorage.api.limits import HttpSettings


class Exchange:
    """One exchange. The client sends ``chunks``, then waits; it leaves when ``leave`` is called."""

    def __init__(self, chunks: Iterable[bytes] = (b"",), *, is_sending: bool = True) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: list[bytes] = []
        self.is_whole = False
        self.received = 0
        self._chunks = list(chunks)
        self._is_sending = is_sending
        self._left = anyio.Event()
        self._moved = anyio.Event()

    @property
    def body(self) -> bytes:
        """What came so far."""
        return b"".join(self.pieces)

    def leave(self) -> None:
        """Close the connection."""
        self._left.set()

    async def until_pieces(self, count: int) -> list[bytes]:
        """The pieces, once there are so many."""
        with anyio.fail_after(10):
            while len(self.pieces) < count:
                await self._moved.wait()
        return self.pieces

    async def receive(self) -> Message:
        """The door's view of the client."""
        if self._is_sending and self._chunks:
            self.received += 1
            chunk = self._chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(self._chunks)}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """The door's view of the wire."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            return
        if message["body"]:
            self.pieces.append(message["body"])
        self.is_whole = not message.get("more_body", False)
        self._moved.set()
        self._moved = anyio.Event()

    async def run(self, app: App | Door, method: str, target: str, headers: Mapping[str, str]) -> None:
        """The exchange from begin to end."""
        path, _, query = target.partition("?")
        scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        }
        await app(scope, self.receive, self.send)


async def exchange(app: App | Door, method: str, target: str, *, body: bytes = b"", **headers: str) -> Exchange:
    """One whole exchange; ``_`` in a header's name stands for ``-``."""
    made = Exchange([body])
    with anyio.fail_after(20):
        await made.run(app, method, target, {k.replace("_", "-"): v for k, v in headers.items()})
    assert made.is_whole
    return made


def make_door(answer: Answer, **settings: Any) -> Door:
    """A door with one answer for everything."""

    async def give(request: Request) -> Answer:
        return answer

    return Door(give, settings=HttpSettings(**settings), new_id=lambda: "id-1")
