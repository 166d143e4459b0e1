"""Serve the driver's calls over gRPC on a unix socket.

Shapes: one row a call; the request and response classes are those of ``moorage.csi.calls``.
Raises BadRequest for an endpoint that cannot be served, Unavailable when another process serves it.
Never:  answers with a traceback: what has no name becomes INTERNAL with the kernel's words, and is logged.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from moorage.csi import calls, mounting
from moorage.csi.local import loop
from moorage.csi.local.devices import Devices
from moorage.csi.local.identity import Identity
from moorage.csi.local.keeper import Keeper
from moorage.csi.local.node import Node
from moorage.csi.local.publishing import Publisher
from moorage.csi.local.snapshots import Snapshots
from moorage.csi.local.storage import Storage
from moorage.csi.local.volumes import Volumes
from moorage.drawing import RandomIds
from moorage.errors import BadRequest, Rejected, Unavailable
from moorage.lean_grpc import grpc

log = structlog.get_logger("moorage.csi.local")

CALLS_MAX = 1024
STOP_GRACE_S = 5.0
SOCKET_BYTES_MAX = 107
_EXHAUSTED = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_TRANSIENT = {errno.ECANCELED, errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT}
_NODE_ID = re.compile("[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_PREFIXES = ("unix://", "unix:")

Answer = Callable[[Any], Awaitable[Any]]


def parse_endpoint(endpoint: str) -> str:
    """The path of the socket that ``unix:///path/x.sock`` names."""
    path = endpoint
    for prefix in _PREFIXES:
        if endpoint.startswith(prefix):
            path = endpoint.removeprefix(prefix)
            break
    if not path.startswith("/"):
        raise BadRequest(f"endpoint {endpoint!r} must be unix:///absolute/path.sock")
    if len(os.fsencode(path)) > SOCKET_BYTES_MAX:
        raise BadRequest(
            f"endpoint {endpoint!r}: a socket path has at most {SOCKET_BYTES_MAX} bytes: choose a shorter one"
        )
    return path


async def serve(
    *,
    endpoint: str,
    data_dir: Path,
    node_id: str,
    may_mount: bool | None = None,
    may_attach: bool | None = None,
    now_ns: Callable[[], int] = time.time_ns,
    new_id: Callable[[], str] | None = None,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; ready, and said so, when the socket answers.

    ``may_mount`` and ``may_attach`` (loop devices) None find it out; ``new_id`` None draws random UUIDs.
    """
    path = parse_endpoint(endpoint)
    if not _NODE_ID.fullmatch(node_id):
        rule = "1 to 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends"
        raise BadRequest(f"node id {node_id!r} is also a topology value: it needs {rule}")
    storage = Storage(data_dir)
    keeper = Keeper(storage, now_ns=now_ns, new_id=new_id or RandomIds().new_id)
    if may_mount is None:
        may_mount = await anyio.to_thread.run_sync(mounting.can_mount)
    if may_attach is None:
        may_attach = may_mount and await anyio.to_thread.run_sync(loop.can_attach)
    async with anyio.create_task_group() as group:
        await group.start(keeper.run_until_cancelled)
        publisher = Publisher(storage, may_mount=may_mount)
        devices = Devices(storage, is_supported=may_attach)
        await anyio.to_thread.run_sync(publisher.clean)
        await anyio.to_thread.run_sync(devices.clean, keeper.volumes.ordered())
        await anyio.to_thread.run_sync(_prepare_socket, path)
        parts = (
            Identity(storage),
            Volumes(keeper, devices, node_id=node_id),
            Snapshots(keeper, devices),
            Node(keeper, publisher, devices, node_id=node_id),
        )
        server = make_server(parts)
        inode = _bind_socket(server, path)
        await server.start()
        log.info("ready", endpoint=f"unix://{path}", volumes=len(keeper.volumes), snapshots=len(keeper.snapshots))
        task_status.started()
        try:
            await anyio.sleep_forever()
        finally:
            keeper.stop_copies()
            with anyio.CancelScope(shield=True), anyio.move_on_after(2 * STOP_GRACE_S):
                await server.stop(STOP_GRACE_S)
            _remove_socket(path, inode)


def make_server(parts: tuple[object, ...]) -> grpc.aio.Server:
    """A server with a handler for each call that one of ``parts`` answers by a method of its name in snake case."""
    server = grpc.aio.server(
        options=(("grpc.max_receive_message_length", 4 * 1024 * 1024), ("grpc.so_reuseport", 0)),
        maximum_concurrent_rpcs=CALLS_MAX,
    )
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for path, rpc in calls.RPCS.items():
        _, service, name = path.split("/")
        method = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
        for part in parts:
            answer = getattr(part, method, None)
            if answer is not None:
                services.setdefault(service, {})[name] = grpc.unary_unary_rpc_method_handler(
                    _guard(name, answer),
                    request_deserializer=rpc.request_type.FromString,
                    response_serializer=rpc.response_type.SerializeToString,
                )
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(service, handlers) for service, handlers in services.items())
    )
    return server


def status_of(error: OSError) -> grpc.StatusCode:
    """The status of an error of the kernel. What another try may mend is not final for orchestrators."""
    if error.errno in _EXHAUSTED:
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    return grpc.StatusCode.UNAVAILABLE if error.errno in _TRANSIENT else grpc.StatusCode.INTERNAL


def _guard(name: str, answer: Answer) -> Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]:
    """The answer with its errors as gRPC statuses."""

    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await answer(request)
        except Rejected as error:
            await context.abort(grpc.StatusCode[error.code], error.message)
        except OSError as error:
            status = status_of(error)
            text = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
            log.error("a call failed", method=name, status=status.name, error=text)
            await context.abort(status, text)

    return handle


def _prepare_socket(path: str) -> None:
    """Make the socket's directory, and take away a socket that nobody serves."""
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    if not os.path.lexists(path):
        return
    # A connect to a plain file is refused just as one to a dead socket: the kind must be looked at.
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise BadRequest(f"endpoint {path} exists and is not a socket: remove it, or choose another path")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(1.0)
        probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except OSError as error:
        raise BadRequest(f"endpoint {path} exists and cannot be replaced: {error.strerror or error}") from error
    else:
        raise Unavailable(f"another process serves {path}: stop it first")
    finally:
        probe.close()


def _bind_socket(server: grpc.aio.Server, path: str) -> int:
    """Bind with mode 0600; the inode of the socket. The mask is the process's, so nothing else may run now."""
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise BadRequest(f"cannot bind {path}: {error}") from error
    finally:
        os.umask(before)
    return os.stat(path).st_ino


def _remove_socket(path: str, inode: int) -> None:
    try:
        if os.stat(path).st_ino == inode:
            os.unlink(path)
    except FileNotFoundError:
        return
