"""The whole server at work: a fresh ``moorage dev``, many volumes, and the figures beside a peer's.

usage: python bench/load.py [--volumes N] [--seconds S] [--peer FILE] [--out FILE] [--only NAME,…]

Wall-clock rates hang on what else the machine does and on this client, which needs a core of its own. The server's CPU
time per request hangs on neither as much: 1,000,000 / that is what one core could give. Both are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from client import Got, call, drive, request
from work import BATCH, GOALS, PAGE, READ_ONE, Read, a_member, a_volume, is_met, list_reads, resident_mb

HERE = Path(__file__).parent
# A process's clock by the scheduler, in clock_getcpuclockid(3).
_CPU_SCHEDULED = 2


class Server:
    """``moorage dev`` in a directory of its own."""

    def __init__(self, place: str, *more: str) -> None:
        log = open(Path(place) / "log", "a")  # noqa: SIM115 - open as long as the program
        command = [
            sys.executable,
            "-m",
            "moorage",
            "dev",
            "--data-dir",
            f"{place}/data",
            "--bind",
            "127.0.0.1:0",
            *more,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        found = re.search(r"ready http://127\.0\.0\.1:(\d+)", ready)
        if found is None:
            raise SystemExit(f"moorage dev did not start: see {place}/log")
        self.port = int(found[1])

    def cpu_s(self) -> float:
        """CPU seconds of the server's process, without its driver's."""
        return cpu_of(self.process.pid)

    def memory_mb(self, *, is_all: bool = False) -> int:
        """Resident memory of the server's process, which is its agent's too; with its children's (the driver's)."""
        return int(resident_mb(self.process.pid, *(_children(self.process.pid) if is_all else ())))

    def call(self, method: str, path: str, body: object = None) -> tuple[dict[str, str], bytes]:
        """One request that must succeed."""
        return call("127.0.0.1", self.port, (method, path), body)


def cpu_of(pid: int) -> float:
    """CPU seconds of a process, threads that have ended since included. The kernel makes the clock's number so."""
    return time.clock_gettime(~pid << 3 | _CPU_SCHEDULED)


def _children(pid: int) -> list[int]:
    try:
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@contextmanager
def running() -> Iterator[Server]:
    """A fresh server that is stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="moorage-bench-") as place:
        server = Server(place)
        try:
            yield server
        finally:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(30)


def _fill(read: Read, chance: random.Random) -> str:
    return read.fill(chance.randint(*read.draw)) if read.draw else read.target


class Bench:
    """The work, one method a kind. ``figures``: name → what was measured."""

    def __init__(self, server: Server, volumes: int, seconds: float, only: frozenset[str]) -> None:
        self.server, self.volumes, self.seconds, self.only = server, volumes, seconds, only
        self.figures: dict[str, dict[str, float]] = {}
        _, data = server.call("PUT", "/v1/volume/csi/base/create", {"Volumes": [a_volume("base")]})
        self.external_id = json.loads(data)["Volumes"][0]["ExternalID"]
        self._serial = 0

    def load(self) -> None:
        """Register the volumes in batches of 100."""
        cpu_s, began_s = self.server.cpu_s(), time.perf_counter()
        for low in range(0, self.volumes, BATCH):
            batch = [a_member(n, self.external_id) for n in range(low, min(low + BATCH, self.volumes))]
            self.server.call("PUT", "/v1/volumes", {"Volumes": batch})
        took_s = time.perf_counter() - began_s
        cpu_us = (self.server.cpu_s() - cpu_s) / self.volumes * 1e6
        self.figures["register_batched"] = {"per_s": round(self.volumes / took_s), "cpu_us": round(cpu_us, 1)}
        self.figures["memory"] = {"mb": self.server.memory_mb(), "with_driver_mb": self.server.memory_mb(is_all=True)}
        print(f"loaded: {self.figures}", file=sys.stderr, flush=True)

    def _note(self, name: str, got: Got, cpu_s: float) -> None:
        self.figures[name] = {
            "per_s": round(got.per_s, 1),
            "p99_ms": round(got.percentile_ms(0.99), 2),
            "cpu_us": round(cpu_s / max(got.count, 1) * 1e6, 1),
        }
        if got.bad:
            self.figures[name]["bad"] = got.bad

    def _drive(
        self, name: str, make: Callable[[], bytes | None], connections: int, *, seconds: float | None = None
    ) -> None:
        if self.only and name not in self.only:
            return
        cpu_s = self.server.cpu_s()
        got = uvloop.run(drive("127.0.0.1", self.server.port, make, connections=connections, seconds=seconds))
        self._note(name, got, self.server.cpu_s() - cpu_s)
        print(f"{name}: {self.figures[name]}", file=sys.stderr, flush=True)

    def ceiling(self) -> None:
        """What this client, this loop and this kernel give with a server that only writes bytes: the rest is ours."""
        command = [sys.executable, str(HERE / "ceiling.py")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            cpu_s = cpu_of(process.pid)
            sent = request("GET", "/")
            got = uvloop.run(drive("127.0.0.1", port, lambda: sent, connections=32, seconds=self.seconds))
            self._note("ceiling", got, cpu_of(process.pid) - cpu_s)
            process.terminate()

    def reads(self) -> None:
        """Reads and lists."""
        chance = random.Random(1)
        for read in list_reads(self.volumes):
            self._read(read, partial(_fill, read, chance))
            if read.name == "read":
                self._read(
                    replace(read, name="read_varied"),
                    lambda: f"/v1/volume/csi/vol-{chance.randrange(self.volumes):06d}",
                )

    def _read(self, read: Read, find_target: Callable[[], str]) -> None:
        def make() -> bytes:
            return request("GET", find_target(), is_gzip=read.is_gzip)

        self._drive(read.name, make, read.connections, seconds=self.seconds)

    def writes(self, name: str, *, connections: int, count: int, is_create: bool) -> None:
        """Register or create new volumes, one a request."""
        left = iter(range(count))

        def make() -> bytes | None:
            if next(left, None) is None:
                return None
            self._serial += 1
            volume_id = f"w-{self._serial:06d}"
            path = f"/v1/volume/csi/{volume_id}/create" if is_create else f"/v1/volume/csi/{volume_id}"
            volume = a_volume(volume_id) if is_create else a_volume(volume_id, self.external_id)
            return request("PUT", path, json.dumps({"Volumes": [volume]}).encode())

        self._drive(name, make, connections)

    def fanout(self, name: str, path: str, waiters: int) -> None:
        """Wake so many waiters by one write."""
        if self.only and name not in self.only:
            return
        headers, _ = self.server.call("GET", path)
        target = f"{path}{'&' if '?' in path else '?'}index={headers['x-nomad-index']}&wait=60s"
        self.figures[name] = uvloop.run(self._wake(target, waiters))

    async def _wake(self, target: str, waiters: int) -> dict[str, float]:
        left = iter(range(waiters))
        before_mb = self.server.memory_mb()
        ended: list[tuple[Got, float]] = []

        async def one() -> None:
            got = await drive(
                "127.0.0.1",
                self.server.port,
                lambda: sent if next(left, None) is not None else None,
                connections=waiters,
                is_closing_last=True,
            )
            ended.append((got, time.perf_counter()))

        sent = request("GET", target)
        task = asyncio.ensure_future(one())  # noqa: TID251 - a client of one script
        await asyncio.sleep(2.0 + waiters / 2000)
        waiting_mb, cpu_s = self.server.memory_mb(), self.server.cpu_s()
        began_s = time.perf_counter()
        self._serial += 1
        changed = a_member(42, self.external_id, MountOptions={"FSType": f"ext{self._serial}"})
        body = json.dumps({"Volumes": [changed]}).encode()
        one_put = iter([request("PUT", READ_ONE, body)])
        await drive("127.0.0.1", self.server.port, lambda: next(one_put, None), connections=1)
        written_s = time.perf_counter()
        await task
        got, ended_s = ended[0]
        assert (got.count, got.bad) == (waiters, 0), got
        return {
            "last_ms": round((ended_s - began_s) * 1e3, 1),
            "write_ms": round((written_s - began_s) * 1e3, 1),
            "cpu_us": round((self.server.cpu_s() - cpu_s) / waiters * 1e6, 1),
            "waiter_kb": round((waiting_mb - before_mb) * 1024 / waiters, 1),
        }


# Where a peer's file has the same figure: its key, and the key inside.
PEER_KEYS = {
    "register_batched": ("register_batched_per_s", ""),
    "memory": ("rss_loaded_mb", ""),
    "fanout_read": ("fanout_read", "last_answer_ms"),
    "fanout_page50": ("fanout_page50", "last_answer_ms"),
}


def find_peer(peer: dict[str, Any], name: str) -> float | None:
    """The peer's figure of the same work."""
    key, inner = PEER_KEYS.get(name, (name, ""))
    found = peer.get(key)
    if isinstance(found, dict):
        found = found.get(inner) if inner else found.get("rps", found.get("per_s"))
    return float(found) if found is not None else None


def print_table(figures: dict[str, dict[str, float]], peer: dict[str, Any]) -> None:
    """The figures beside the peer's."""
    print(f"{'work':18} {'measured':>12} {'p99 ms':>8} {'CPU µs':>9} {'peer':>10} {'ratio':>7} {'goal':>7}")
    for name, found in figures.items():
        value = found.get("per_s", found.get("last_ms", found.get("mb", 0.0)))
        unit = "/s" if "per_s" in found else "ms" if "last_ms" in found else "MB"
        other, goal = find_peer(peer, name), GOALS.get(name)
        ratio = value / other if other else None
        met = "" if ratio is None or goal is None else " ok" if is_met(ratio, goal, unit) else " NO"
        print(
            f"{name:18} {value:>10,.0f}{unit:2} {found.get('p99_ms', ''):>8} {found.get('cpu_us', ''):>9}"
            f" {other if other is not None else '':>10} {f'{ratio:.2f}' if ratio else '':>7}"
            f" {f'{goal:g}' if goal else '':>6}{met}{' BAD ' + str(found['bad']) if 'bad' in found else ''}"
        )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description="the whole server at work, beside a peer's figures")
    parser.add_argument("--volumes", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each kind of read")
    parser.add_argument("--writes", type=int, default=600, help="of each kind")
    parser.add_argument("--creates", type=int, default=150, help="of each kind")
    parser.add_argument("--waiters", type=int, default=1000)
    parser.add_argument("--peer", default=str(HERE / "peers" / "nomad-2.0-20k.json"))
    parser.add_argument("--out", default="")
    parser.add_argument("--only", default="", help="names of figures, with commas; loading is always done")
    args = parser.parse_args()
    peer = json.loads(Path(args.peer).read_text())
    with running() as server:
        bench = Bench(server, args.volumes, args.seconds, frozenset(filter(None, args.only.split(","))))
        bench.load()
        bench.ceiling()
        bench.reads()
        for clients in (1, 16, 64):
            bench.writes(f"register_c{clients}", connections=clients, count=args.writes, is_create=False)
        for clients in (1, 16):
            bench.writes(f"create_c{clients}", connections=clients, count=args.creates, is_create=True)
        bench.fanout("fanout_read", READ_ONE, args.waiters)
        bench.fanout("fanout_page50", PAGE, args.waiters)
    machine = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }
    print(f"{args.volumes:,} volumes; {machine}; peer: {peer['peer']}")
    print_table(bench.figures, peer["figures"])
    if args.out:
        Path(args.out).write_text(json.dumps({"machine": machine, "figures": bench.figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
