"""Unary calls over a real socket: deadlines, cancellation, reconnecting."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import grpc
import grpc.aio
import pytest

from moorage.csi.calls import GET_PLUGIN_INFO, PROBE
from moorage.csi.proto import csi_pb2 as csi
from moorage.errors import DriverFault
from moorage.rpc import UNREADABLE, Rpc, call, unix_channel

pytestmark = pytest.mark.anyio
Handler = Callable[[Any, Any], Awaitable[Any]]


def _to_bytes(message: Any) -> bytes:
    return message if isinstance(message, bytes) else bytes(message.SerializeToString())


@asynccontextmanager
async def serve(path: Path, rpc: Rpc[Any, Any], handler: Handler) -> AsyncIterator[None]:
    """One method on a socket."""
    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(
        handler,
        request_deserializer=rpc.request_type.FromString,
        response_serializer=_to_bytes,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(rpc.service, {rpc.name: method}),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await server.stop(0)


async def answer(request: Any, context: Any) -> csi.ProbeResponse:
    return csi.ProbeResponse()


async def hang(request: Any, context: Any) -> csi.ProbeResponse:
    await anyio.sleep(30)
    return csi.ProbeResponse()


async def probe(channel: grpc.aio.Channel, *, timeout_s: float = 5) -> csi.ProbeResponse:
    return await call(channel, PROBE, csi.ProbeRequest(), timeout_s=timeout_s)


async def test_names_of_a_row() -> None:
    assert (PROBE.path, PROBE.service, PROBE.name) == ("/csi.v1.Identity/Probe", "csi.v1.Identity", "Probe")


async def test_metadata_reaches_the_server(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    async def look(request: Any, context: Any) -> csi.GetPluginInfoResponse:
        seen.update(context.invocation_metadata())
        return csi.GetPluginInfoResponse(name="x")

    async with serve(tmp_path / "s", GET_PLUGIN_INFO, look), unix_channel(str(tmp_path / "s")) as channel:
        request = csi.GetPluginInfoRequest()
        got = await call(channel, GET_PLUGIN_INFO, request, timeout_s=5, metadata=[("x-one", "1")])
    assert got.name == "x"
    assert seen["x-one"] == "1"


async def test_authority_is_localhost(tmp_path: Path) -> None:
    """Read as bytes, because a Python server does not tell it."""
    got = b""
    listener = await anyio.create_unix_listener(tmp_path / "s")

    async def read(stream: anyio.abc.SocketStream) -> None:
        nonlocal got
        await stream.send(b"\0\0\0\4\0\0\0\0\0")  # an empty SETTINGS frame
        while PROBE.path.encode() not in got:
            got += await stream.receive()
        await stream.aclose()

    async with listener, unix_channel(str(tmp_path / "s")) as channel, anyio.create_task_group() as group:
        group.start_soon(listener.serve, read)
        with pytest.raises(DriverFault):
            await probe(channel)
        group.cancel_scope.cancel()
    assert b":authority" in got
    assert b"localhost" in got
    assert b"tmp%2F" not in got


async def test_status_and_text_of_the_server(tmp_path: Path) -> None:
    async def refuse(request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no ceph here")

    async with serve(tmp_path / "s", PROBE, refuse), unix_channel(str(tmp_path / "s")) as channel:
        with pytest.raises(DriverFault) as caught:
            await probe(channel)
    fault = caught.value
    assert (fault.method, fault.status, fault.message) == ("Probe", "FAILED_PRECONDITION", "no ceph here")
    assert not fault.final


async def test_method_that_is_not_served(tmp_path: Path) -> None:
    async with serve(tmp_path / "s", GET_PLUGIN_INFO, answer), unix_channel(str(tmp_path / "s")) as channel:
        with pytest.raises(DriverFault) as caught:
            await probe(channel)
    assert caught.value.status == "UNIMPLEMENTED"


async def test_answer_that_cannot_be_read(tmp_path: Path) -> None:
    async def babble(request: Any, context: Any) -> bytes:
        return b"\x0a\x02\xff\xff"  # a string field that is not UTF-8

    async with serve(tmp_path / "s", GET_PLUGIN_INFO, babble), unix_channel(str(tmp_path / "s")) as channel:
        with pytest.raises(DriverFault) as caught:
            await call(channel, GET_PLUGIN_INFO, csi.GetPluginInfoRequest(), timeout_s=5)
    assert caught.value.status == UNREADABLE


async def test_large_answers_pass(tmp_path: Path) -> None:
    async def much(request: Any, context: Any) -> csi.GetPluginInfoResponse:
        return csi.GetPluginInfoResponse(name="x" * (8 * 1024 * 1024))

    async with serve(tmp_path / "s", GET_PLUGIN_INFO, much), unix_channel(str(tmp_path / "s")) as channel:
        got = await call(channel, GET_PLUGIN_INFO, csi.GetPluginInfoRequest(), timeout_s=20)
    assert len(got.name) == 8 * 1024 * 1024


async def test_no_socket_is_unavailable(tmp_path: Path) -> None:
    async with unix_channel(str(tmp_path / "none")) as channel:
        with pytest.raises(DriverFault) as caught:
            await probe(channel)
    assert caught.value.status == "UNAVAILABLE"


async def test_deadline(tmp_path: Path) -> None:
    async with serve(tmp_path / "s", PROBE, hang), unix_channel(str(tmp_path / "s")) as channel:
        with pytest.raises(DriverFault) as caught:
            await probe(channel, timeout_s=0.1)
    assert caught.value.status == "DEADLINE_EXCEEDED"


async def test_fail_after_gives_timeout_error(tmp_path: Path) -> None:
    async with serve(tmp_path / "s", PROBE, hang), unix_channel(str(tmp_path / "s")) as channel:
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.1):
                await probe(channel)


async def test_move_on_after_goes_on(tmp_path: Path) -> None:
    async with serve(tmp_path / "s", PROBE, hang), unix_channel(str(tmp_path / "s")) as channel:
        with anyio.move_on_after(0.1) as scope:
            await probe(channel)
        assert scope.cancelled_caught
        await anyio.lowlevel.checkpoint()  # nothing of the cancellation is left over


async def test_cancelled_group_ends_without_error(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serve(path, PROBE, hang), unix_channel(str(path)) as channel, anyio.create_task_group() as group:
        group.start_soon(probe, channel)
        await anyio.sleep(0.1)
        group.cancel_scope.cancel()


async def test_channel_closed_under_a_call_is_a_fault(tmp_path: Path) -> None:
    faults: list[DriverFault] = []

    async def ask(channel: grpc.aio.Channel) -> None:
        with pytest.raises(DriverFault) as caught:
            await probe(channel)
        faults.append(caught.value)

    async with serve(tmp_path / "s", PROBE, hang):
        channel = unix_channel(str(tmp_path / "s"))
        async with anyio.create_task_group() as group:
            group.start_soon(ask, channel)
            await anyio.sleep(0.2)
            await channel.close()
        with pytest.raises(DriverFault) as caught:
            await probe(channel)
    assert faults[0].status == "CANCELLED"
    assert caught.value.status == "UNAVAILABLE"


async def test_reconnects_soon_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with unix_channel(str(path)) as channel:
        async with serve(path, PROBE, answer):
            await probe(channel)
        path.unlink(missing_ok=True)
        # Long enough for gRPC's own back-off to have grown, were it not bounded.
        with anyio.move_on_after(6):
            while True:
                with pytest.raises(DriverFault) as caught:
                    await probe(channel)
                assert caught.value.status == "UNAVAILABLE"
                await anyio.sleep(0.1)
        async with serve(path, PROBE, answer):
            began = time.monotonic()
            while True:
                try:
                    await probe(channel)
                    break
                except DriverFault:
                    await anyio.sleep(0.05)
            assert time.monotonic() - began < 2.5


@pytest.mark.parametrize("path", ["", "/" + "x" * 107])
async def test_paths_that_no_socket_can_have(path: str) -> None:
    with pytest.raises(ValueError, match="socket path must have 1 to 107 bytes"):
        unix_channel(path)
