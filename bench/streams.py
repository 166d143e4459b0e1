"""A client of plain asyncio streams, in a process of its own: writes, and waiters woken by one write.

usage: python bench/streams.py URL write NAMES [--clients C] [--count N] [--plugin P] [--external-id E]
       python bench/streams.py URL wake TARGET [--waiters W] [--plugin P] --external-id E

write: registers volumes NAMES-00000 and on, one a request; creates them without an external ID. wake: waiters at TARGET
until volume vol-000042 changes. The figures are one JSON object on stdout. An answer that is an error ends it: code 1,
and what it was on stderr. For any server: the default loop, one request at a time on each connection.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent))

from client import Refused, allow_files, choose_source, find_percentile_ms, tell_refusal
from work import READ_ONE, a_volume, tell_woken, waiting_target, waking_body

JOB_S = 600.0
BODY_BYTES_MAX = 1 << 26
HEAD_END = b"\r\n\r\n"


class Connection:
    """One connection to a server, for one request at a time."""

    def __init__(self, site: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._site, self._reader, self._writer = site, reader, writer

    @classmethod
    async def open(cls, host: str, port: int, *, source: tuple[str, int] | None = None) -> Connection:
        """Connect."""
        reader, writer = await asyncio.open_connection(host, port, limit=BODY_BYTES_MAX, local_addr=source)
        return cls(f"{host}:{port}", reader, writer)

    async def ask(self, method: str, target: str, body: bytes = b"") -> tuple[bytes, bytes]:
        """The head of a 200, in small letters, and its body. Raises Refused."""
        head = f"{method} {target} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        await self._writer.drain()
        try:
            got = (await self._reader.readuntil(HEAD_END)).lower()
            data = await self._read_body(got)
        except asyncio.IncompleteReadError as error:
            raise Refused(f"{self._site} ended a connection instead of answering {method} {target}") from error
        status = int(got[9:12])
        if status != 200:
            raise Refused(tell_refusal(self._site, (method, target), status, data))
        return got, data

    async def _read_body(self, head: bytes) -> bytes:
        length = find_header(head, b"content-length")
        if length is not None:
            return await self._reader.readexactly(int(length))
        parts = []
        while find_header(head, b"transfer-encoding") == b"chunked":
            size = int((await self._reader.readuntil(b"\r\n")).partition(b";")[0], 16)
            parts.append((await self._reader.readexactly(size + 2))[:-2])
            if not size:
                break
        return b"".join(parts)

    def close(self) -> None:
        """End it."""
        self._writer.close()


def find_header(head: bytes, name: bytes) -> bytes | None:
    """A header's value; ``head`` and ``name`` in small letters."""
    _, found, rest = head.partition(b"\r\n" + name + b": ")
    return rest.partition(b"\r\n")[0] if found else None


async def write(host: str, port: int, args: argparse.Namespace) -> dict[str, float]:
    """Register or create volumes with so many clients: how many a second, and what each took."""
    numbers, times_s = iter(range(args.count)), []
    tail = "" if args.external_id else "/create"

    async def one() -> None:
        connection = await Connection.open(host, port)
        for number in numbers:
            volume_id, began_s = f"{args.what}-{number:05d}", time.perf_counter()
            volume = a_volume(volume_id, args.external_id, plugin=args.plugin)
            body = json.dumps({"Volumes": [volume]}).encode()
            await connection.ask("PUT", f"/v1/volume/csi/{volume_id}{tail}", body)
            times_s.append(time.perf_counter() - began_s)
        connection.close()

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(args.clients):
            group.create_task(one())
    took_s = time.perf_counter() - began_s
    return {
        "per_s": round(args.count / took_s, 1),
        "p50_ms": round(find_percentile_ms(times_s, 0.5), 2),
        "p99_ms": round(find_percentile_ms(times_s, 0.99), 2),
    }


async def wake(host: str, port: int, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds from the write until it, the median and the last of the waiters are answered, and how many were
    answered before it."""
    first = await Connection.open(host, port)
    index = find_header((await first.ask("GET", args.what))[0], b"x-nomad-index")
    if index is None:
        raise Refused(f"{host}:{port} said no X-Nomad-Index with {args.what}")
    target = waiting_target(args.what, index)
    waiters = [
        await Connection.open(host, port, source=choose_source(number, args.waiters)) for number in range(args.waiters)
    ]
    ended_s: list[float] = []

    async def wait(connection: Connection) -> None:
        await connection.ask("GET", target)
        ended_s.append(time.perf_counter())

    body = waking_body(args.external_id, args.plugin)
    async with asyncio.TaskGroup() as group:
        for connection in waiters:
            group.create_task(wait(connection))
        await asyncio.sleep(1.0 + args.waiters / 500)
        early, writer = len(ended_s), await Connection.open(host, port)
        began_s = time.perf_counter()
        await writer.ask("PUT", READ_ONE, body)
        written_s = time.perf_counter()
    if early == args.waiters:
        raise Refused(f"{host}:{port} answered all who waited at {args.what} before anything was written")
    for connection in (first, writer, *waiters):
        connection.close()
    return tell_woken(began_s, written_s, ended_s, early=early)


def find_first(error: BaseException) -> BaseException:
    """What failed first, of a group of failures."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def run(args: argparse.Namespace) -> dict[str, float]:
    """Do the one or the other, within the time."""
    site = urlsplit(args.url)
    assert site.hostname is not None
    assert site.port is not None
    async with asyncio.timeout(JOB_S):
        return await (wake if args.job == "wake" else write)(site.hostname, site.port, args)


def main() -> int:
    """Do it, and print."""
    parser = argparse.ArgumentParser(description="a client of plain asyncio streams")
    parser.add_argument("url")
    parser.add_argument("job", choices=("write", "wake"))
    parser.add_argument("what", help="the beginning of the volumes' names; or the target to wait at")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--waiters", type=int, default=1000)
    parser.add_argument("--plugin", default="hostpath")
    parser.add_argument("--external-id", default="")
    args = parser.parse_args()
    allow_files(max(args.waiters, args.clients))
    failed: BaseException | None = None
    try:
        print(json.dumps(asyncio.run(run(args))))
    except* (Refused, OSError) as group:  # a deadline is an OSError too
        failed = find_first(group)
    if failed is not None:
        print(failed if isinstance(failed, Refused) else f"{args.url}: {failed!r}", file=sys.stderr)
    return int(failed is not None)


if __name__ == "__main__":
    sys.exit(main())
