"""A proxy between an orchestrator and a driver that writes down every call.

Shapes: calls are forwarded byte for byte, with their metadata and what is left of their deadline; statuses and answers
    come back as the driver gave them. A caller that gives a call up cancels it at the driver too. A driver that ends
    takes the judge's connections with it, and its socket is dead, or gone, as long as the driver's is.
Never:  changes a call; keeps one back because of a finding.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
from google.protobuf.message import DecodeError, Message

from moorage.csi.calls import RPCS
from moorage.lean_grpc import grpc
from moorage.rpc import RECEIVE_MAX_BYTES, UNIX_PATH_MAX_BYTES, UNREADABLE, Channel, Rpc, unix_channel
from moorage.testing.judge_records import GIVEN_UP, Ended, LogFile, Opened, Redactor, Scope, Started, hash_request
from moorage.testing.judge_users import find_users

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
CALLS_MAX = 4096
STOP_GRACE_S = 1.0
LATE_S = 0.05
LOOK_S = 0.05
# Deadlines beyond this are none: gRPC tells of calls without one that they have centuries left.
DEADLINE_MAX_S = 10 * 365 * 86400.0

Context = grpc.aio.ServicerContext[Any, Any]


class Proxy:
    """One judge between the socket ``listen`` and the driver's socket ``driver``."""

    def __init__(self, *, listen: Path, driver: Path, log: Path, scope: Scope = "whole") -> None:
        self.listen = listen
        self.driver = driver
        self._log_path = log
        self._scope: Scope = scope
        self._redactor = Redactor()
        self._ids = itertools.count(1)

    def prepare(self) -> None:
        """Open the log. Raises OSError, ValueError for a path where no socket can be."""
        if len(os.fsencode(self.driver)) > UNIX_PATH_MAX_BYTES:
            raise ValueError(f"a socket's path has at most {UNIX_PATH_MAX_BYTES} bytes, this has more: {self.driver}")
        _check_bindable(self.listen)
        self._log = LogFile(self._log_path)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Stand in for the driver while the block runs; ``prepare`` comes first."""
        boot_id = await anyio.to_thread.run_sync(BOOT_ID_FILE.read_text)
        self._log.write(
            Opened(
                at_ns=time.time_ns(),
                judge=self._log_path.stem,
                driver=str(self.driver),
                scope=self._scope,
                boot_id=boot_id.strip(),
            )
        )
        try:
            async with anyio.create_task_group() as group:
                looked = anyio.Event()
                group.start_soon(self._follow_driver, looked)
                await looked.wait()
                yield
                group.cancel_scope.cancel()
        finally:
            _remove(self.listen)
            self._log.close()

    async def _follow_driver(self, looked: anyio.Event) -> None:
        """Listen as long as the driver does, for ever. ``looked`` is set when the driver was looked for once."""
        _remove(self.listen)
        while True:
            if await _is_taking_connections(self.driver):
                async with self._listening() as channel:
                    looked.set()
                    await _wait_broken(channel)
            if not self.driver.exists():
                _remove(self.listen)
            looked.set()
            await anyio.sleep(LOOK_S)

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[Channel]:
        """A server at ``listen`` whose calls go to the channel; afterwards the socket's file is there, and dead."""
        channel = unix_channel(str(self.driver))
        server = grpc.aio.server(
            options=(("grpc.max_receive_message_length", RECEIVE_MAX_BYTES), ("grpc.so_reuseport", 0)),
            maximum_concurrent_rpcs=CALLS_MAX,
        )
        services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for rpc in RPCS.values():
            handle = self._handler(rpc, channel)
            services.setdefault(rpc.service, {})[rpc.name] = grpc.unary_unary_rpc_method_handler(handle)
        server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(service, handlers) for service, handlers in services.items())
        )
        # Bound under another name: grpc removes that one at its end, and the file stays as that of a killed driver.
        bound = _name_to_bind(self.listen)
        _remove(bound)
        server.add_insecure_port(f"unix:{bound}")
        os.rename(bound, self.listen)
        await server.start()
        try:
            yield channel
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(4 * STOP_GRACE_S):
                await server.stop(STOP_GRACE_S)
                await channel.close(0)

    def _handler(self, rpc: Rpc[Message, Message], channel: Channel) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handle(content: bytes, context: Context) -> bytes:
            number = next(self._ids)
            await self._note_start(number, rpc, content, context)
            try:
                answer = await _forward(channel, rpc, content, context)
            except asyncio.CancelledError:
                self._note_end(number, GIVEN_UP)
                raise
            except grpc.aio.AioRpcError as error:
                left_s = _time_left_s(context)
                is_late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and left_s is not None and left_s < LATE_S
                self._note_end(number, GIVEN_UP if is_late else error.code().name, message=error.details() or "")
                trailing = tuple(error.trailing_metadata() or ())
                await context.abort(error.code(), error.details() or "", trailing)
            self._note_answer(number, rpc, answer)
            return answer

        return handle

    async def _note_start(self, number: int, rpc: Rpc[Message, Message], content: bytes, context: Context) -> None:
        """Write the call's first line."""
        try:
            described, leaks = self._redactor.describe(rpc.request_type.FromString(content))
        except DecodeError:
            described, leaks = {"unreadable": True}, ()
        users: tuple[str, ...] = ()
        if rpc.name == "NodeUnpublishVolume" and described.get("target_path"):
            users = await anyio.to_thread.run_sync(find_users, described["target_path"])
        self._log.write(
            Started(
                at_ns=time.time_ns(),
                id=number,
                method=rpc.name,
                deadline_s=_time_left_s(context),
                request=described,
                hash=hash_request(described),
                leaks=leaks,
                users=tuple(self._redactor.clean(user) for user in users),
            )
        )

    def _note_answer(self, number: int, rpc: Rpc[Message, Message], content: bytes) -> None:
        try:
            described, _ = self._redactor.describe(rpc.response_type.FromString(content))
        except DecodeError:
            self._note_end(number, UNREADABLE)
            return
        if rpc.name.startswith("List"):
            described = {key: len(value) if isinstance(value, list) else value for key, value in described.items()}
        self._log.write(Ended(at_ns=time.time_ns(), id=number, status="OK", answer=described))

    def _note_end(self, number: int, status: str, *, message: str = "") -> None:
        text = self._redactor.clean(message)
        self._log.write(Ended(at_ns=time.time_ns(), id=number, status=status, answer={}, message=text))


async def _forward(channel: Channel, rpc: Rpc[Message, Message], content: bytes, context: Context) -> bytes:
    metadata = tuple(
        (key, value)
        for key, value in context.invocation_metadata() or ()
        if not key.startswith(("grpc-", ":")) and key not in ("user-agent", "te", "content-type")
    )
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(rpc.path)
    return await method(content, timeout=_time_left_s(context), metadata=metadata)


async def _is_taking_connections(path: Path) -> bool:
    try:
        async with await anyio.connect_unix(path):
            return True
    except OSError:
        return False


async def _wait_broken(channel: Channel) -> None:
    """Return when the connection that the channel had, or tried to get, is no more."""
    has_begun = False
    while True:
        state = channel.get_state(try_to_connect=not has_begun)
        if state in (grpc.ChannelConnectivity.CONNECTING, grpc.ChannelConnectivity.READY):
            has_begun = True
        elif has_begun or state is not grpc.ChannelConnectivity.IDLE:
            return
        await anyio.sleep(LOOK_S)


def _name_to_bind(listen: Path) -> Path:
    return listen.with_name(f"{listen.name}~")


def _check_bindable(listen: Path) -> None:
    """Raises OSError when no socket can be made there."""
    bound = _name_to_bind(listen)
    _remove(bound)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(str(bound))
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(listen)) from error
    _remove(bound)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)


def _time_left_s(context: Context) -> float | None:
    left_s: float | None = context.time_remaining()
    return None if left_s is None or left_s > DEADLINE_MAX_S else max(0.0, left_s)
