"""What thousands of half-open and slow connections do to everybody else: `tools/slow_clients.py --count 5000`.

Starts `moorage dev` on loopback, measures small reads of one ordinary client in turns: a quiet run, then one beside a
crowd. The crowd is a process of its own with four kinds of connections, from several loopback addresses: silent ones,
heads that never end, bodies of one byte a second, and readers that ask for much and never read. A connection that the
server ends is opened again, so that the crowd stays. Where it may (as root), it runs the server and the ordinary client
before everything else on the host: a real crowd has processors of its own, and waiting for this one's is not measured.
Prints p50 and p99 of each run and the ratio of crowd to quiet; exit code 1 when the p99's ratio is above `--ratio-max`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from urllib.parse import urlsplit

import uvloop

START_S = 60.0
CROWD_S = 120.0
PACE_S = 0.002
CALM_S = 2.0
KINDS = ("silent", "half", "drip", "deaf")
SENT = {
    "silent": b"",
    "half": b"GET /v1/volumes HTTP/1.1\r\nHost: x\r\nX-Half: ",
    "drip": b"PUT /v1/allocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{",
    "deaf": b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 8,
}


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=5000, help="connections of the crowd (default 5000)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="pairs of a quiet run and one beside the crowd (default 3)"
    )
    parser.add_argument("--reads", type=int, default=3000, help="reads of each run (default 3000)")
    parser.add_argument("--sources", type=int, default=10, help="addresses that the crowd comes from (default 10)")
    parser.add_argument("--ratio-max", type=float, default=2.0, help="the bar for p99 beside the crowd to quiet")
    parser.add_argument("--crowd", metavar="URL", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.crowd:
        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(Crowd(args.crowd, args.count, args.sources).run())
        return 0
    with tempfile.TemporaryDirectory(prefix="moor-") as place, contextlib.closing(Server(place)) as server:
        return compare(server, args)


def compare(server: Server, args: argparse.Namespace) -> int:
    """The rounds, and the verdict."""
    print("server and client run before everything else" if server.is_before_others else "beside everything else")
    measure(server.url, args.reads // 4)
    quiet: list[float] = []
    loud: list[float] = []
    for number in range(1, args.rounds + 1):
        calm = measure(server.url, args.reads)
        with contextlib.closing(CrowdProcess(server.url, args.count, args.sources)) as crowd:
            beside = measure(server.url, args.reads)
            counts = crowd.counts()
        quiet += calm
        loud += beside
        print(
            f"round {number}: quiet {show(calm)} | beside {args.count} {show(beside)} | "
            f"p50 x {percentile(beside, 50) / percentile(calm, 50):.2f}, "
            f"p99 x {percentile(beside, 99) / percentile(calm, 99):.2f} | open {counts['open']}, "
            f"opened {counts['opened']}, server {server.memory_mib()} MiB",
            flush=True,
        )
        time.sleep(CALM_S)
    ratio = percentile(loud, 99) / percentile(quiet, 99)
    print(
        f"all: quiet {show(quiet)} | beside {args.count} {show(loud)} | "
        f"p50 x {percentile(loud, 50) / percentile(quiet, 50):.2f}, p99 x {ratio:.2f} (at most {args.ratio_max:g})"
    )
    return 0 if ratio <= args.ratio_max else 1


def percentile(times_s: list[float], percent: int) -> float:
    """A percentile of times."""
    return statistics.quantiles(times_s, n=100, method="inclusive")[percent - 1]


def show(times_s: list[float]) -> str:
    """p50 and p99 in milliseconds."""
    return f"p50 {percentile(times_s, 50) * 1e3:.2f} p99 {percentile(times_s, 99) * 1e3:.2f} ms"


def measure(url: str, reads: int) -> list[float]:
    """Times of small reads on one connection, at a steady pace. A refusal is an error."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    times: list[float] = []
    for _ in range(reads):
        began_s = time.perf_counter()
        connection.request("GET", "/v1/plugins?type=csi")
        answer = connection.getresponse()
        answer.read()
        took_s = time.perf_counter() - began_s
        if answer.status != 200:
            raise SystemExit(f"an ordinary client got {answer.status}")
        times.append(took_s)
        time.sleep(PACE_S)
    connection.close()
    return times


class Server:
    """`moorage dev` on a free port."""

    def __init__(self, place: str, *options: str) -> None:
        words = ["dev", "--bind", "127.0.0.1:0", "--data-dir", place, "--log-level", "error", *options]
        self._process = subprocess.Popen([sys.executable, "-m", "moorage", *words], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ready "):
            raise SystemExit("the server did not start")
        self.url = line.split()[1]
        self.is_before_others = put_before_others(self._process.pid) and put_before_others(0)

    def memory_mib(self) -> int:
        """What the server holds."""
        with open(f"/proc/{self._process.pid}/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) >> 10

    def close(self) -> None:
        """Stop it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


def put_before_others(pid: int) -> bool:
    """Whether the process (0: this one) now runs as soon as it can, whatever else there is to run."""
    try:
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))
    except (PermissionError, OSError):
        return False
    return True


class CrowdProcess:
    """The crowd, in a process of its own; made when all its connections are open."""

    def __init__(self, url: str, count: int, sources: int) -> None:
        words = ["--crowd", url, "--count", str(count), "--sources", str(sources)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()

    def _read(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the crowd is gone")
        found: dict[str, int] = json.loads(line)
        return found

    def counts(self) -> dict[str, int]:
        """How many connections are open, and were opened so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


class Crowd:
    """Connections that harm; at most ``count``, for at most CROWD_S."""

    def __init__(self, url: str, count: int, sources: int) -> None:
        parts = urlsplit(url)
        self._place = (parts.hostname or "", parts.port or 0)
        self._count = count
        self._sources = sources
        self._counts: Counter[str] = Counter()
        self._is_full = asyncio.Event()

    async def run(self) -> None:
        """Fill up, say so, and answer each line with the counts, until there are no more lines."""
        # The hosts of a crowd would not take the server's processor.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.nice(19)
        soft_min = self._count + 200
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft_min, hard), hard))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CROWD_S), asyncio.TaskGroup() as group:
                kept = [group.create_task(self._keep(number)) for number in range(self._count)]
                async with asyncio.timeout(START_S):
                    await self._is_full.wait()
                self._say()
                loop = asyncio.get_running_loop()
                asked = asyncio.StreamReader()
                await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
                while await asked.readline():
                    self._say()
                for task in kept:
                    task.cancel()

    def _say(self) -> None:
        print(json.dumps({"open": self._counts["open"], "opened": self._counts["opened"]}), flush=True)

    async def _keep(self, number: int) -> None:
        kind = KINDS[number % len(KINDS)]
        source = f"127.7.{number % self._sources}.1"
        # Not all at once: a backlog that is full measures the kernel.
        await asyncio.sleep(number / 1000)
        while True:
            with contextlib.suppress(OSError):
                await self._hold(kind, source)
            await asyncio.sleep(0.5)

    async def _hold(self, kind: str, source: str) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as wire:
            wire.setblocking(False)
            if kind == "deaf":
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.bind((source, 0))
            await loop.sock_connect(wire, self._place)
            await loop.sock_sendall(wire, SENT[kind])
            self._counts["opened"] += 1
            self._counts["open"] += 1
            if self._counts["opened"] >= self._count * 0.99:
                self._is_full.set()
            try:
                await self._live(kind, wire)
            finally:
                self._counts["open"] -= 1

    async def _live(self, kind: str, wire: socket.socket) -> None:
        """Until the server ends it."""
        loop = asyncio.get_running_loop()
        if kind == "deaf":
            while True:
                await asyncio.sleep(5)
                if wire.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    return
        while kind == "drip":
            await asyncio.sleep(1)
            await loop.sock_sendall(wire, b" ")
        while await loop.sock_recv(wire, 4096):
            pass


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
