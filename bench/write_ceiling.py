"""What the libraries under a write allow: the same calls and commits, with nothing of ours between them.

usage: python bench/write_ceiling.py [--count N]
       python bench/write_ceiling.py --serve PORT [--over uvicorn]

One process: uvloop; a protocol that takes any request with a body; for each one question (or create) to the embedded
driver over gRPC, and one (or two) rows in SQLite with ``synchronous=FULL``, where those that wait share a commit. No
parsing, no records, no checks, no agent, no log. The same client as ``load.py``. Figures are answers a second.
And ``waiters``: 1,000 connections that are answered at once with the same bytes, read by the client of many reports.
--serve: stay, as a server that ``beside.py`` sets beside another one: its ``register_c1`` and ``fanout_read`` are then
what the libraries allow, in that client's measure. A PUT is one question and one commit, whatever it says; a GET with
an index is held until the next PUT. --over uvicorn: behind uvicorn, with JSON read and written; it holds nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import anyio
import apsw
import msgspec
import uvicorn
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

# Each client is a fork, of which grpc would tell.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from client import drive, request

from moorage.csi.calls import CREATE_VOLUME, VALIDATE_VOLUME_CAPABILITIES
from moorage.csi.proto import csi_pb2 as csi
from moorage.rpc import Channel, call, unix_channel

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
ROW = b"x" * 900
SERVED_DOCUMENT = {"Volumes": [{"ExternalID": "any", "Context": {"filler": "x" * 840}}]}
SERVED_BODY = msgspec.json.encode(SERVED_DOCUMENT)
SERVED_ANSWER = b"HTTP/1.1 200 OK\r\nX-Nomad-Index: 12\r\nContent-Length: %d\r\n\r\n" % len(SERVED_BODY) + SERVED_BODY
# Waiters that are answered in one turn of the loop.
TURN = 128
CALL_S = 30.0
WAITERS = 1000
Write = Callable[[], Awaitable[None]]


class Store:
    """Rows in SQLite, in one thread; rows that wait for it share a commit."""

    def __init__(self, path: str) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._file = apsw.Connection(path)
        for text in ("journal_mode=WAL", "synchronous=FULL"):
            self._file.execute(f"pragma {text}")
        self._file.execute("create table rows (id integer primary key, value blob)")
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._writer: asyncio.Task[None] | None = None

    async def commit(self) -> None:
        """Until a row is on disk."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())  # noqa: TID251 - bare: who waits holds it
        await done

    async def _write(self) -> None:
        while self._waiting:
            taken = list(self._waiting)
            self._waiting.clear()
            await asyncio.get_running_loop().run_in_executor(self._thread, self._insert, len(taken))
            for each in taken:
                each.set_result(None)

    def _insert(self, count: int) -> None:
        self._file.execute("begin immediate")
        self._file.executemany("insert into rows (value) values (?)", [(ROW,)] * count)
        self._file.execute("commit")


class Writing(asyncio.Protocol):
    """One connection, with a request at a time that comes in one piece."""

    write: Write

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Do it; the answer comes when it is done."""
        self._task = asyncio.create_task(self._answer())  # noqa: TID251 - bare: the connection holds it

    async def _answer(self) -> None:
        await self.write()
        self._transport.write(ANSWER)


@contextlib.contextmanager
def driving(place: str) -> Iterator[str]:
    """The embedded driver; its socket."""
    path = f"{place}/d.sock"
    command = [
        sys.executable,
        "-m",
        "moorage",
        "driver",
        "local",
        "--endpoint",
        f"unix://{path}",
        "--data",
        f"{place}/d",
    ]
    # A server that stays is ended by a signal.
    command += ["--die-with-parent", str(os.getpid())]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not Path(path).exists():
            time.sleep(0.05)
        yield path
    finally:
        process.terminate()
        process.wait()


def make_writes(channel: Channel, store: Store) -> dict[str, Write]:
    """What is measured, by name."""
    capability = csi.VolumeCapability(
        mount=csi.VolumeCapability.MountVolume(),
        access_mode=csi.VolumeCapability.AccessMode(mode=csi.VolumeCapability.AccessMode.SINGLE_NODE_WRITER),
    )
    numbers = iter(range(10**9))
    made: list[str] = []

    async def create() -> None:
        await store.commit()
        asked = csi.CreateVolumeRequest(name=f"v{next(numbers)}", volume_capabilities=[capability])
        found = await call(channel, CREATE_VOLUME, asked, timeout_s=CALL_S)
        made[:] = [found.volume.volume_id]
        await store.commit()

    async def register() -> None:
        asked = csi.ValidateVolumeCapabilitiesRequest(volume_id=made[0], volume_capabilities=[capability])
        await call(channel, VALIDATE_VOLUME_CAPABILITIES, asked, timeout_s=CALL_S)
        await store.commit()

    return {"create": create, "register": register, "commit": store.commit}


async def measure(write: Write, *, connections: int, count: int) -> float:
    """Answers a second, to a client in a process of its own."""
    kind = type("Bound", (Writing,), {"write": staticmethod(write)})
    server = await asyncio.get_running_loop().create_server(kind, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    command = [sys.executable, __file__, "--count", str(count), "--ask", str(port), "--connections", str(connections)]
    client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    out, _ = await client.communicate()
    server.close()
    return float(out)


async def ask(port: int, *, connections: int, count: int) -> None:
    """Be the client; print how many answers a second came."""
    left, body = iter(range(count)), request("PUT", "/", ROW)

    def make() -> bytes | None:
        return body if next(left, None) is not None else None

    got = await drive("127.0.0.1", port, make, connections=connections)
    print(got.per_s)


class Held(asyncio.Protocol):
    """A connection that waits."""

    waiting: list[asyncio.Transport]
    all_wait: asyncio.Event

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Note it."""
        self.waiting.append(self._transport)
        if len(self.waiting) == WAITERS:
            self.all_wait.set()


async def wake_waiters() -> float:
    """Milliseconds from the first answer's write until 1,000 stream readers in this process have read it, each 1 kB."""
    loop = asyncio.get_running_loop()
    kind = type("Bound", (Held,), {"waiting": [], "all_wait": asyncio.Event()})
    server = await loop.create_server(kind, "127.0.0.1", 0, backlog=WAITERS)
    port = server.sockets[0].getsockname()[1]
    ended_s: list[float] = []

    async def wait() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.partition("content-length: ")[2].split()[0]))
        ended_s.append(loop.time())
        writer.close()

    async with anyio.create_task_group() as group:
        for _ in range(WAITERS):
            group.start_soon(wait)
        await kind.all_wait.wait()  # type: ignore[attr-defined]
        began_s = loop.time()
        for transport in kind.waiting:  # type: ignore[attr-defined]
            transport.write(SERVED_ANSWER)
    server.close()
    return (max(ended_s) - began_s) * 1000


class Serving(Writing):
    """One connection of a server that stays: writes, and reads that wait for them."""

    held: list[asyncio.Transport]
    _body = b""

    def data_received(self, data: bytes) -> None:
        """Take a request's bytes; the answer comes when what it asks for is done."""
        if data.startswith(b"GET "):
            if b"index=" in data:
                self.held.append(self._transport)
            else:
                self._transport.write(SERVED_ANSWER)
            return
        # A head and its body come in several pieces where there are many volumes.
        self._body += data
        head, _, body = self._body.partition(b"\r\n\r\n")
        if len(body) < int(head.lower().partition(b"content-length: ")[2].split()[0]):
            return
        self._body = b""
        super().data_received(data)

    async def _answer(self) -> None:
        await self.write()
        self._transport.write(SERVED_ANSWER)
        waiting, self.held[:] = list(self.held), []
        for start in range(0, len(waiting), TURN):
            for transport in waiting[start : start + TURN]:
                transport.write(SERVED_ANSWER)
            await asyncio.sleep(0)


def make_app(write: Write) -> Callable[..., Awaitable[None]]:
    """The same writes as an application of uvicorn's, with the bodies read and written as JSON."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        answer = SERVED_BODY
        if scope["method"] == "PUT":
            document = msgspec.json.decode(body)
            await write()
            answer = msgspec.json.encode(document | SERVED_DOCUMENT)
        headers = [(b"x-nomad-index", b"12"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


async def serve(port: int, over: str) -> None:
    """Be that server until ended."""
    with tempfile.TemporaryDirectory(prefix="moorage-ceiling-") as place, driving(place) as path:
        writes = make_writes(unix_channel(path), Store(f"{place}/rows.db"))
        await writes["create"]()
        if over:
            config = uvicorn.Config(
                make_app(writes["register"]), port=port, http="httptools", lifespan="off", log_level="error",
                access_log=False,
            )  # fmt: skip
            await uvicorn.Server(config).serve()
            return
        kind = type("Bound", (Serving,), {"write": staticmethod(writes["register"]), "held": []})
        server = await asyncio.get_running_loop().create_server(kind, "127.0.0.1", port, backlog=WAITERS)
        await server.serve_forever()


async def main(count: int) -> None:
    """Measure all, print a line each."""
    with tempfile.TemporaryDirectory(prefix="moorage-ceiling-") as place, driving(place) as path:
        store, channel = Store(f"{place}/rows.db"), unix_channel(path)
        writes = make_writes(channel, store)
        await writes["create"]()
        for name, write in writes.items():
            for connections in (1, 16, 64):
                rate = await measure(write, connections=connections, count=count)
                print(f"{name:<10} {connections:>3} clients {rate:>8,.0f}/s", flush=True)
        await channel.close()
    print(f"waiters   {WAITERS} answers read in {min([await wake_waiters() for _ in range(5)]):.0f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--ask", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--connections", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=int, default=0, help="stay, at this port")
    parser.add_argument("--over", default="", choices=("", "uvicorn"))
    args = parser.parse_args()
    if args.serve:
        uvloop.run(serve(args.serve, args.over))
        sys.exit()
    asking = ask(args.ask, connections=args.connections, count=args.count) if args.ask else main(args.count)
    uvloop.run(asking)
