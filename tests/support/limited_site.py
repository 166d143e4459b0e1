"""A small site behind the real HTTP server, with limits that a test can wait for; and clients that misbehave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import SocketStream

from moorage.api.door import Door, Receive, Scope, Send
from moorage.api.http import Answer, Request
from moorage.api.limits import HttpSettings, Limits
from moorage.api.once import Once
from moorage.serve.connections import Connections
from moorage.serve.http import open_socket, serve_http

LONG = b"x" * (8 << 20)


class Site:
    """Answers ``/long`` with much, ``/wait`` when ``go`` is set, and everything else with the body's length."""

    def __init__(self, limits: Limits) -> None:
        self.go = anyio.Event()
        self.asked: list[str] = []
        self.door = Door(self.answer, settings=HttpSettings(limits=limits), new_id=lambda: "id")
        self.connections = Connections(limits, self.door.hits, new_id=self.door.new_id)
        # Nothing here is answered without a task.
        self.quick = None
        self.port = 0
        self.clients: list[SocketStream] = []

    @property
    def is_stopping(self) -> Once:
        return self.door.is_stopping

    async def answer(self, request: Request) -> Answer:
        self.asked.append(request.path)
        if request.path == "/wait":
            await self.go.wait()
        body = LONG if request.path == "/long" else b"%d" % len(request.body)
        return Answer(body=body, content_type="text/plain")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.door(scope, receive, send)

    async def until(self, is_so: Callable[[], Any]) -> None:
        """Return once it is so."""
        with anyio.fail_after(10):
            while not is_so():
                await anyio.sleep(0.005)

    async def connect(self, *, host: str = "127.0.0.1", sent: bytes = b"") -> SocketStream:
        """A connection on which this was sent. ``host``: the address that it comes from."""
        stream = await anyio.connect_tcp("127.0.0.1", self.port, local_host=host)
        self.clients.append(stream)
        if sent:
            await stream.send(sent)
        return stream


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[Site]:
    """A site that serves while the block runs."""
    site = Site(Limits(**limits))
    listener = open_socket("127.0.0.1:0")
    try:
        site.port = listener.getsockname()[1]
        async with anyio.create_task_group() as group:
            await group.start(serve_http, site, listener, site.connections)
            try:
                yield site
            finally:
                with anyio.CancelScope(shield=True):
                    for client in site.clients:
                        await client.aclose()
            site.go.set()
            group.cancel_scope.cancel()
    finally:
        listener.close()


async def read_all(stream: SocketStream) -> bytes:
    """Everything until the server closes."""
    found = b""
    with anyio.fail_after(10):
        try:
            while True:
                found += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return found


async def read_answer(stream: SocketStream) -> bytes:
    """One answer with a length."""
    found = b""
    with anyio.fail_after(10):
        while b"\r\n\r\n" not in found:
            found += await stream.receive()
        head, _, body = found.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += await stream.receive()
    return head + b"\r\n\r\n" + body


async def is_closed(stream: SocketStream) -> bool:
    """Whether the server closes the connection without another word."""
    return await read_all(stream) == b""
