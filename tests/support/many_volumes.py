"""A server's parts over many registered volumes, in memory, and connections to it without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import uvicorn
from engine_kit import NODE, PLUGIN, Kit, running_kit
from uvicorn.server import ServerState

from moorage.api.app import App
from moorage.model.ids import NamespaceName, PluginId, VolumeId
from moorage.model.volume import Capability, Volume
from moorage.serve.connections import Connections
from moorage.serve.quick_protocol import QuickProtocol
from moorage.state import keys
from moorage.state.store import Op, Put

BATCH = 100
CAPABILITY = Capability(access_mode="single-node-writer", attachment_mode="file-system")


def a_volume(number: int, *, namespace: str = "default", plugin_id: PluginId = PLUGIN, name: str = "") -> Volume:
    """A registered volume like those of the measurement: its ID is ``vol-`` and the number."""
    volume_id = VolumeId(f"vol-{number:06d}")
    return Volume(
        id=volume_id,
        namespace=NamespaceName(namespace),
        plugin_id=plugin_id,
        name=name or volume_id,
        state="ready",
        external_id=f"ext-{number}",
        requested_min_bytes=1 << 20,
        requested_max_bytes=4 << 20,
        capabilities=(CAPABILITY,),
        parameters={"tier": "fast" if number % 2 else "slow"},
        context={"zone": f"z{number % 5}"},
        created_at_ns=1_700_000_000_000_000_000 + number,
        modified_at_ns=1_700_000_000_000_000_000 + number,
    )


async def put_volumes(kit: Kit, volumes: Iterable[Volume]) -> None:
    """Write the volumes' records as they are, in batches."""
    pending: list[Op] = []

    async def flush() -> None:
        result = await kit.store.transact((), pending)
        await kit.repo.feed.reach(result.revision)
        pending.clear()

    for volume in volumes:
        key = keys.volume_key(volume.namespace, volume.id)
        pending.append(Put(key, kit.repo.feed.records.encode(key, volume)))
        if len(pending) == BATCH:
            await flush()
    if pending:
        await flush()


@asynccontextmanager
async def many_volumes(count: int, **options: Any) -> AsyncIterator[Kit]:
    """A running kit with so many volumes in the namespace ``default``."""
    async with running_kit(**options) as kit:
        await put_volumes(kit, map(a_volume, range(count)))
        yield kit


class Wire(asyncio.Transport):
    """The side of a connection that the server writes to. ``writes``: what it wrote, piece by piece."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__({"peername": (address, 40000), "sockname": ("127.0.0.1", 4646)})
        self.writes: list[bytes] = []
        self.is_closed = False
        self.moved = anyio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.writes.append(bytes(data))
        self.moved.set()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Keep them, each as it is."""
        self.writes.extend(map(bytes, list_of_data))
        self.moved.set()

    def get_write_buffer_size(self) -> int:
        """Everything is taken at once."""
        return 0

    def is_closing(self) -> bool:
        """Whether the server closed it."""
        return self.is_closed

    def close(self) -> None:
        """Note it."""
        self.is_closed = True
        self.moved.set()

    def abort(self) -> None:
        """Note it."""
        self.close()

    def can_write_eof(self) -> bool:
        """No."""
        return False

    def pause_reading(self) -> None:
        """Nothing to do."""

    def resume_reading(self) -> None:
        """Nothing to do."""


def _configure(app: App) -> uvicorn.Config:
    config = uvicorn.Config(
        app, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False, date_header=False
    )
    config.load()
    return config


class Line:
    """One connection to the server's protocol: bytes in, bytes out. ``address``: the client's. ``beside``: one of the
    same server's; without it, or a ``book``, the connection is the only one."""

    def __init__(
        self,
        kit: Kit,
        *,
        is_quick: bool = True,
        book: Connections | None = None,
        address: str = "127.0.0.1",
        beside: Line | None = None,
    ) -> None:
        app = kit.app
        self.config = beside.config if beside else _configure(app)
        if book is None:
            door = app.door
            book = beside.book if beside else Connections(door.limits, door.hits, new_id=door.new_id)
        self.book = book
        self.state: ServerState = beside.state if beside else ServerState()
        self.wire = Wire(address)
        quick = app.quick if is_quick else None
        self.protocol = QuickProtocol(self.config, self.state, {}, book=self.book, quick=quick)
        self.protocol.connection_made(self.wire)

    async def ask(self, target: str, *, method: str = "GET", head: str = "") -> bytes:
        """The bytes of the answer to a request without a body; ``head``: more lines of its head, each with its end."""
        wire = self.wire
        wire.writes.clear()
        end = "" if "\r\n\r\n" in head and "chunked" not in head else "\r\n"
        self.protocol.data_received(f"{method} {target} HTTP/1.1\r\nHost: moorage\r\n{head}{end}".encode())
        with anyio.fail_after(30):
            while self.protocol.is_answering() and not wire.is_closed:
                wire.moved = anyio.Event()
                await wire.moved.wait()
        return b"".join(wire.writes)

    async def ask_body(self, target: str, *, head: str = "") -> bytes:
        """The body of an answer that must be a 200."""
        got = await self.ask(target, head=head)
        first, _, body = got.partition(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 200 "), got[:400]
        return body


__all__ = ["NODE", "PLUGIN", "Kit", "Line", "Wire", "a_volume", "many_volumes", "put_volumes", "running_kit"]
