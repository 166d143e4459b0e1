"""The one place where a gRPC call is awaited.

A channel to a unix socket, and a unary call with a deadline whose failures are errors of ours. Cancellation passes
through: grpc drops the message by which anyio knows its own cancellation (grpc/grpc#43502), so it is asked for again
at a checkpoint before it goes on.

Never: retries, knowledge of what a status means for a method.
Importing this costs about 130 ms (grpc); rooms that may not need it import it late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import anyio.lowlevel
import msgspec
from google.protobuf.message import DecodeError, Message

from moorage.errors import DriverFault
from moorage.lean_grpc import grpc

RECONNECT_MAX_MS = 1_000
RECEIVE_MAX_BYTES = 64 * 1024 * 1024
UNIX_PATH_MAX_BYTES = 107
# Status of an answer that came but could not be read: no gRPC code says this, and the call may well have worked.
UNREADABLE = "UNREADABLE"

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # Without it the percent-encoded socket path is sent as authority, which some drivers' servers refuse.
    ("grpc.default_authority", "localhost"),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
    ("grpc.max_receive_message_length", RECEIVE_MAX_BYTES),
    ("grpc.enable_http_proxy", 0),
)

Channel = grpc.aio.Channel
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class Rpc(msgspec.Struct, Generic[Request, Response], frozen=True):
    """A unary method: its ``path`` on the wire (``/package.Service/Method``) and the classes of its two messages."""

    path: str
    request_type: type[Request]
    response_type: type[Response]

    @property
    def service(self) -> str:
        """The full name of the service, such as ``csi.v1.Node``."""
        return self.path[1:].rpartition("/")[0]

    @property
    def name(self) -> str:
        """The bare name of the method, such as ``NodeGetInfo``."""
        return self.path.rpartition("/")[2]


def unix_channel(path: str) -> Channel:
    """A channel to the unix socket at ``path``; it connects when first used and reconnects within about a second.

    Raises: ValueError when the path is longer than the kernel allows.
    """
    size = len(path.encode())
    if not path or size > UNIX_PATH_MAX_BYTES:
        raise ValueError(f"socket path must have 1 to {UNIX_PATH_MAX_BYTES} bytes, this has {size}: {path!r}")
    return grpc.aio.insecure_channel(f"unix:{path}", options=CHANNEL_OPTIONS)


def is_connected(channel: Channel) -> bool:
    """Whether the connection that the channel had still stands; grpc hears at once when the other process ends."""
    return channel.get_state() is grpc.ChannelConnectivity.READY


async def call(
    channel: Channel,
    rpc: Rpc[Request, Response],
    request: Request,
    *,
    timeout_s: float,
    metadata: Sequence[tuple[str, str]] = (),
) -> Response:
    """Make one unary call and wait for its answer at most ``timeout_s`` seconds.

    Raises: DriverFault with the bare method name, the gRPC code's name as ``status`` and the server's text as message;
    ``final`` is always False here, because what a status means is for the caller to know. An answer that cannot be
    read has status ``UNREADABLE``.
    """
    serialize: Callable[[Any], bytes] = rpc.request_type.SerializeToString
    # The answer is parsed here: grpc would hide an unreadable one behind None.
    method: grpc.aio.UnaryUnaryMultiCallable[Request, bytes]
    method = channel.unary_unary(rpc.path, request_serializer=serialize)
    try:
        answer = await method(request, timeout=timeout_s, metadata=tuple(metadata) or None)
        return rpc.response_type.FromString(answer)
    except asyncio.CancelledError:
        await anyio.lowlevel.checkpoint()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Nobody cancelled us: the channel was closed under the call.
        raise _fault(rpc.name, grpc.StatusCode.CANCELLED.name, "the connection was closed during the call") from None
    except grpc.aio.AioRpcError as e:
        raise _fault(rpc.name, e.code().name, e.details() or "") from e
    except grpc.aio.UsageError as e:
        raise _fault(rpc.name, grpc.StatusCode.UNAVAILABLE.name, "the connection is closed") from e
    except DecodeError as e:
        raise _fault(rpc.name, UNREADABLE, f"the answer is not a valid {rpc.response_type.__name__}") from e


def _fault(method: str, status: str, message: str) -> DriverFault:
    return DriverFault(message, method=method, status=status, final=False)
