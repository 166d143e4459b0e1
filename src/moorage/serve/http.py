"""The HTTP server under the app: uvicorn with httptools and uvloop, as one task of ours."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import uvicorn
from anyio.abc import TaskStatus

from moorage.api.app import App
from moorage.errors import BadRequest

STOP_GRACE_S = 5
BACKLOG = 4096


class _Server(uvicorn.Server):
    """A server that leaves signals to the program around it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signal."""
        yield


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
        http="httptools",
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
