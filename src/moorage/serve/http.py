"""The HTTP server under the app: uvicorn with httptools and uvloop, as one task of ours."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import uvicorn
from anyio.abc import TaskGroup, TaskStatus

from moorage.api.app import App
from moorage.errors import BadRequest
from moorage.serve.addresses import UNIX
from moorage.serve.connections import Connections
from moorage.serve.handshakes import TlsListener
from moorage.serve.quick_protocol import bind_book
from moorage.waking import Bell

STOP_GRACE_S = 5
# How often the date in the answers' heads is renewed, and the number of a tick at which uvicorn does so.
DATE_S = 1.0
_DATE_TICK = 0
BACKLOG = 4096


class _Server(uvicorn.Server):
    """A server that leaves signals to the program around it. ``group``: runs what accepts for TLS."""

    def __init__(self, config: uvicorn.Config, book: Connections) -> None:
        super().__init__(config)
        self.group: TaskGroup | None = None
        self._book = book
        self._is_ending = Bell()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signal."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, as uvicorn does where sockets are given; with TLS in a way that knows of handshakes."""
        config, loop = self.config, asyncio.get_running_loop()

        def make(_loop: asyncio.AbstractEventLoop | None = None) -> Any:
            return config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state, _loop=_loop
            )

        servers: list[Any] = []
        for listener in sockets or ():
            if config.ssl is None:
                servers.append(await loop.create_server(make, sock=listener, backlog=config.backlog))
                continue
            assert self.group is not None, "set before it serves"
            accepting = TlsListener(listener, make, config.ssl, self._book)
            self.group.start_soon(accepting.run)
            servers.append(accepting)
        self.servers = servers
        self.started = True

    async def main_loop(self) -> None:
        """Renew the date until ``end``. uvicorn looks ten times a second whether it is to end, which is most of what an
        idle server does."""
        while not await self.on_tick(_DATE_TICK):
            await self._is_ending.wait(DATE_S)

    def end(self) -> None:
        """Let requests in hand end, and serve no more."""
        self.should_exit = True
        self._is_ending.ring()


def open_socket(bind: str) -> socket.socket:
    """A listening socket on ``HOST:PORT`` (port 0: a free one) or ``unix:///PATH``. Raises BadRequest that names what
    is wrong."""
    if bind.startswith(UNIX):
        return _open_unix_socket(bind)
    host, colon, port_text = bind.rpartition(":")
    if not colon or not port_text.isdigit() or int(port_text) > 65535:
        raise BadRequest(f"--bind {bind!r} is not HOST:PORT or unix:///PATH")
    host = host.strip("[]") or "127.0.0.1"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port_text)))
    except OSError as error:
        listener.close()
        raise BadRequest(f"--bind {bind}: {error.strerror or error}; is another server there?") from error
    listener.listen(BACKLOG)
    return listener


def _open_unix_socket(bind: str) -> socket.socket:
    """A socket file for this user and its group; what a dead server left in its place is taken away."""
    path = bind.removeprefix(UNIX)
    if not path.startswith("/"):
        raise BadRequest(f"--bind {bind!r} is not unix:// and an absolute path")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_left_over(path):
            os.unlink(path)
        mask = os.umask(0o117)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
    except OSError as error:
        listener.close()
        raise BadRequest(f"--bind {bind}: {error.strerror or error}; is another server there?") from error
    listener.listen(BACKLOG)
    return listener


def _is_left_over(path: str) -> bool:
    """Whether there is a socket file that nobody serves."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        asker.settimeout(1.0)
        try:
            asker.connect(path)
        except ConnectionRefusedError:
            return True
    return False


def address_of(listener: socket.socket, *, is_tls: bool = False) -> str:
    """The base URL of a listening socket."""
    if listener.family == socket.AF_UNIX:
        return f"{UNIX}{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    scheme = "https" if is_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def serve_http(
    app: App,
    listener: socket.socket,
    connections: Connections | None = None,
    *,
    context: ssl.SSLContext | None = None,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, with TLS if there is a ``context``; then requests in hand get STOP_GRACE_S to end, waiting
    ones are answered at once.

    ``connections``: their book; None: one of its own, with the app's limits.
    """
    if connections is None:
        connections = Connections(app.door.limits, app.door.hits, new_id=app.door.new_id)
    config = uvicorn.Config(
        app,
        # Called like a class, with the arguments of one.
        http=bind_book(connections, app.quick),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # Who asks is counted and limited by address: a header does not say who it is.
        proxy_headers=False,
        timeout_graceful_shutdown=STOP_GRACE_S,
        backlog=BACKLOG,
        ssl_context_factory=None if context is None else lambda config, default: context,
    )
    # It warns of each malformed request, as often as a client sends one.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = _Server(config, connections)
    async with anyio.create_task_group() as group:

        async def wait_started() -> None:
            # uvicorn has no event for it.
            while not server.started:  # noqa: ASYNC110
                await anyio.sleep(0.005)
            task_status.started()

        with anyio.CancelScope(shield=True) as shield:

            async def stop_when_cancelled() -> None:
                try:
                    await anyio.sleep_forever()
                finally:
                    app.is_stopping.set()
                    server.end()

            group.start_soon(wait_started)
            group.start_soon(connections.run)
            group.start_soon(stop_when_cancelled)
            # Who waits is answered to the end.
            async with anyio.create_task_group() as answering:
                server.group = answering
                if app.quick is not None:
                    answering.start_soon(app.quick.held.run)
                await server.serve(sockets=[listener])
                answering.cancel_scope.cancel()
        assert not shield.cancel_called
        group.cancel_scope.cancel()
