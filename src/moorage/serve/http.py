"""The HTTP server under the app: uvicorn with httptools and uvloop, as one task of ours."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import httptools
import uvicorn
from anyio.abc import TaskStatus
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from moorage.api.app import App
from moorage.errors import BadRequest

STOP_GRACE_S = 5
BACKLOG = 4096
# Above this the parser splits no target; the app's own limit is not above it.
TARGET_BYTES_MAX = 65535
HEAD_BYTES_MAX = 4 << 20


class _Server(uvicorn.Server):
    """A server that leaves signals to the program around it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signal."""
        yield


class _Protocol(HttpToolsProtocol):
    """HTTP on one connection: says what is wrong with a target that is too long, and takes no endless head."""

    _head_bytes = 0

    def on_message_begin(self) -> None:
        """A request begins."""
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX:
            raise httptools.HttpParserError("the head is too large")

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser refused, and close."""
        if len(getattr(self, "url", b"")) <= TARGET_BYTES_MAX:
            super().send_400_response(msg)
            return
        text = b"the request's path and query are longer than %d bytes" % TARGET_BYTES_MAX
        head = b"HTTP/1.1 414 URI Too Long\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
        self.transport.write(b"%scontent-length: %d\r\n\r\n%s" % (head, len(text), text))
        self.transport.close()


def open_socket(bind: str) -> socket.socket:
    """A listening socket on ``HOST:PORT`` (port 0: a free one). Raises BadRequest that names what is wrong."""
    host, colon, port_text = bind.rpartition(":")
    if not colon or not port_text.isdigit() or int(port_text) > 65535:
        raise BadRequest(f"--bind {bind!r} is not HOST:PORT")
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


def is_local(bind: str) -> bool:
    """Whether nothing but this host can reach what is bound there."""
    host = bind.rpartition(":")[0].strip("[]") or "127.0.0.1"
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_of(listener: socket.socket) -> str:
    """The base URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve_http(
    app: App, listener: socket.socket, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled; then requests in hand get STOP_GRACE_S to end, waiting ones are answered at once."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=STOP_GRACE_S,
        backlog=BACKLOG,
    )
    server = _Server(config)
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
                    server.should_exit = True

            group.start_soon(wait_started)
            group.start_soon(stop_when_cancelled)
            await server.serve(sockets=[listener])
        assert not shield.cancel_called
        group.cancel_scope.cancel()
