"""Figures that have no peer: each is one row (docs/performance.md, "Alone").

usage: python bench/alone.py [--only hundred,beside,attach,idle] [--volumes N] [--seconds S]

hundred: reads and pages with many volumes against a fifth of them, and how long a start with them takes; beside: small
reads while two clients list all volumes; attach: from the request for a use to its path, with a driver that does
nothing (needs the right to mount); idle: what server and agent take while nothing happens.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

import load
from client import drive, find_percentile_ms, request
from work import a_volume

HERE = Path(__file__).parent
RATE_PER_S = 100
CLIENTS = 32


@contextmanager
def serving(place: str, *more: str) -> Iterator[load.Server]:
    """A server over a directory that outlives it."""
    server = load.Server(place, *more)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)


def get_rates(server: load.Server, volumes: int, seconds: float) -> dict[str, float]:
    """CPU microseconds of one read, one page, one page in the middle."""
    middle = f"/v1/volumes?type=csi&per_page=50&next_token=default.vol-{volumes // 2:06d}"
    targets = {"read": "/v1/volume/csi/vol-000042", "page": "/v1/volumes?type=csi&per_page=50", "middle": middle}
    found: dict[str, float] = {}
    for name, target in targets.items():
        sent = request("GET", target)
        cpu_s = server.cpu_s()
        got = uvloop.run(drive("127.0.0.1", server.port, lambda sent=sent: sent, connections=32, seconds=seconds))  # type: ignore[misc]
        found[name] = (server.cpu_s() - cpu_s) / got.count * 1e6
        found[f"{name} p99 ms"] = got.percentile_ms(0.99)
    return found


def measure_hundred(volumes: int, seconds: float) -> str:
    """Many volumes against a fifth of them, and a start."""
    with tempfile.TemporaryDirectory(prefix="moorage-bench-") as place:
        with serving(place) as server:
            bench = load.Bench(server, volumes // 5, seconds, frozenset())
            bench.load()
            few = get_rates(server, volumes // 5, seconds)
            bench.volumes = volumes
            bench.load()
            many = get_rates(server, volumes, seconds)
            memory_mb = server.memory_mb()
        began_s = time.perf_counter()
        with serving(place) as server:
            start_s = time.perf_counter() - began_s
    ratios = ", ".join(f"{name} x {many[name] / few[name]:.2f}" for name in ("read", "page", "middle"))
    return f"{volumes:,} against {volumes // 5:,} volumes, CPU: {ratios}; {memory_mb} MB; started in {start_s:.1f} s"


def measure_beside(volumes: int, seconds: float) -> str:
    """Small reads while two clients list all."""
    with tempfile.TemporaryDirectory(prefix="moorage-bench-") as place, serving(place) as server:
        load.Bench(server, volumes, seconds, frozenset()).load()
        listing, reading = request("GET", "/v1/volumes?type=csi"), request("GET", "/v1/volume/csi/vol-000042")

        async def both() -> tuple[Any, Any]:
            async with asyncio.TaskGroup() as group:
                lists = group.create_task(
                    drive("127.0.0.1", server.port, lambda: listing, connections=2, seconds=seconds)
                )
                reads = group.create_task(
                    drive("127.0.0.1", server.port, lambda: reading, connections=8, seconds=seconds)
                )
            return lists.result(), reads.result()

        lists, reads = uvloop.run(both())
    return (
        f"{volumes:,} volumes, 2 listing ({lists.per_s:.1f}/s), 8 reading: {reads.per_s:.0f}/s, "
        f"p50 {reads.percentile_ms(0.5):.1f} ms, p99 {reads.percentile_ms(0.99):.1f} ms (goal 60)"
    )


class Uses:
    """Starts and stops uses of volumes over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session, self._base = session, base
        self.ids: list[str] = []

    async def start(self, volume: str) -> float:
        """Seconds from the request until its path is there."""
        began_s = time.perf_counter()
        wanted = {"Name": "data", "Source": volume, "AccessMode": "single-node-writer"}
        body = {"Allocation": {"Volumes": [wanted | {"AttachmentMode": "file-system"}]}}
        async with self._session.put(f"{self._base}/v1/allocations", json=body) as answer:
            assert answer.status == 200, await answer.text()
            found, index = await answer.json(), answer.headers["X-Nomad-Index"]
        while found["ClientStatus"] != "running":
            assert found["ClientStatus"] == "pending", found
            url = f"{self._base}/v1/allocation/{found['ID']}?index={index}&wait=30s"
            async with self._session.get(url) as answer:
                found, index = await answer.json(), answer.headers["X-Nomad-Index"]
        self.ids.append(found["ID"])
        return time.perf_counter() - began_s

    async def stop(self) -> None:
        """Stop all, and wait until no claim is left."""
        for allocation_id in self.ids:
            async with self._session.put(f"{self._base}/v1/allocation/{allocation_id}/stop") as answer:
                assert answer.status == 200
        for allocation_id in self.ids:
            while True:
                async with self._session.get(f"{self._base}/v1/allocation/{allocation_id}") as answer:
                    if (await answer.json())["ClientStatus"] in ("complete", "failed"):
                        break
                await asyncio.sleep(0.05)
        self.ids.clear()


async def run_attach(server: load.Server, count: int) -> tuple[list[float], float, float, float]:
    """Times at a fixed rate, the rate that many clients reach, and CPU milliseconds of a start then and of a stop."""
    port = server.port
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        uses = Uses(session, f"http://127.0.0.1:{port}")
        tasks = []
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                tasks.append(group.create_task(uses.start(f"a-{number:05d}")))
                await asyncio.sleep(1 / RATE_PER_S)
        times_s = [task.result() for task in tasks]
        await uses.stop()
        left = iter(range(count))

        async def one() -> None:
            for number in left:
                await uses.start(f"a-{number:05d}")

        began_s, cpu_s = time.perf_counter(), server.cpu_s()
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(one())
        per_s = count / (time.perf_counter() - began_s)
        start_s = server.cpu_s() - cpu_s
        await uses.stop()
        stop_s = server.cpu_s() - cpu_s - start_s
    return times_s, per_s, start_s / count * 1e3, stop_s / count * 1e3


def measure_attach(seconds: float) -> str:
    """From the request for a use to its path, with a driver that does nothing."""
    count = int(seconds * RATE_PER_S)
    with tempfile.TemporaryDirectory(prefix="mb-") as place:
        socket = f"{place}/noop.sock"
        command = [sys.executable, str(HERE / "noop_driver.py"), socket]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline().startswith("ready")
            with serving(place, "--plugin", f"noop=unix://{socket}") as server:
                wait_healthy(server)
                for number in range(count):
                    volume = a_volume(f"a-{number:05d}", f"ext-{number:05d}", plugin="noop")
                    server.call("PUT", f"/v1/volume/csi/a-{number:05d}", {"Volumes": [volume]})
                times_s, per_s, start_ms, stop_ms = asyncio.run(run_attach(server, count))
            driver.terminate()
    return (
        f"{count} uses at {RATE_PER_S}/s: p50 {find_percentile_ms(times_s, 0.5):.1f} ms, "
        f"p99 {find_percentile_ms(times_s, 0.99):.1f} ms (goal 50); {CLIENTS} clients: {per_s:.0f}/s (goal 200); "
        f"CPU then: start {start_ms:.1f} ms, stop {stop_ms:.1f} ms"
    )


def wait_healthy(server: load.Server) -> None:
    """Until the driver is a plugin."""
    ends_s = time.monotonic() + 30
    while b'"noop"' not in server.call("GET", "/v1/plugins?type=csi")[1] and time.monotonic() < ends_s:
        time.sleep(0.1)


def measure_idle(seconds: float) -> str:
    """CPU and memory of server and agent in one process, and of an agent by itself."""
    with tempfile.TemporaryDirectory(prefix="moorage-bench-") as place, serving(place) as server:
        command = [sys.executable, "-m", "moorage", "agent", "--server", f"http://127.0.0.1:{server.port}"]
        with (
            open(f"{place}/agent.log", "w") as log,
            subprocess.Popen(
                [*command, "--data-dir", f"{place}/agent", "--plugin-id", "idle"], stdout=log, stderr=log
            ) as agent,
        ):
            time.sleep(3)
            assert agent.poll() is None, Path(f"{place}/agent.log").read_text()
            cpu_s, agent_cpu_s, began_s = server.cpu_s(), load.cpu_of(agent.pid), time.perf_counter()
            time.sleep(max(10.0, seconds))
            took_s = time.perf_counter() - began_s
            share, agent_share = (server.cpu_s() - cpu_s) / took_s, (load.cpu_of(agent.pid) - agent_cpu_s) / took_s
            pages = int(Path(f"/proc/{agent.pid}/statm").read_text().split()[1])
            agent_mb = pages * os.sysconf("SC_PAGE_SIZE") >> 20
            agent.terminate()
    return (
        f"server with an agent inside: {share:.2%} of a core (goal 1 %); agent alone: "
        f"{agent_share:.2%} of a core, {agent_mb} MB (goal 60)"
    )


def main() -> None:
    """Measure what was asked for, a row each."""
    parser = argparse.ArgumentParser(description="figures that have no peer")
    parser.add_argument("--only", default="hundred,beside,attach,idle", help="names, with commas")
    parser.add_argument("--volumes", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each kind")
    args = parser.parse_args()
    rows = {
        "hundred": lambda: measure_hundred(args.volumes, args.seconds),
        "beside": lambda: measure_beside(args.volumes, args.seconds),
        "attach": lambda: measure_attach(args.seconds),
        "idle": lambda: measure_idle(args.seconds),
    }
    for name in args.only.split(","):
        print(f"{name}: {rows[name]()}", flush=True)


if __name__ == "__main__":
    main()
