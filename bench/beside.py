"""Two running servers that speak the volumes API, side by side: item by item in turns, so that drift hits both alike.

usage: python bench/beside.py OURS_URL PEER_URL [--volumes N] [--rounds R] [--seconds S] [--waiters W] [--plugin P]
           [--writes N] [--pause S] [--ours-pid P --peer-pid P] [--only NAME,…] [--out FILE] [--reader epoll|streams]

Both are freshly started, have a healthy plugin of that name, and have nothing else to do. Each item is measured in
rounds (ours, peer, peer, ours, …): its line has the median of either, and the median, the lowest and the highest of the
rounds' ratios, ours to the peer's. Reads are by ``wrk`` if it is there; writes by ``streams.py`` and waiters by
``waking.py``, each time in a process of its own (--reader streams: waiters by ``streams.py`` too, which takes longer to
read than a server to answer). The volumes are always loaded, in slices that take turns. An error in an answer ends the
run.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from client import Got, Refused, call, drive, request
from work import BATCH, DRAWN, GOALS, PAGE, READ_ONE, Read, a_member, a_volume, is_met, list_reads, resident_mb

HERE = Path(__file__).parent
# So many volumes are loaded to one server before it is the other's turn.
SLICE = 2000
# What an item may take over its time, and one program of writes or waiters.
SPARE_S = 90.0
JOB_S = 660.0
# Greater than any range of drawn numbers, and prime: so many steps further, all numbers come before one comes again.
STRIDE = 1_000_003
# What a round's numbers begin after, times the round.
ROUND_STRIDE = 7001
WRK = shutil.which("wrk")
SETTING = ("volumes", "rounds", "seconds", "waiters", "writes", "plugin", "reader")


@dataclass
class Site:
    """One of the two servers. ``call``: one request to it that must succeed."""

    name: str
    url: str
    plugin: str
    pid: int | None = None
    external_id: str = ""
    loaded: int = 0

    def __post_init__(self) -> None:
        found = urlsplit(self.url)
        if found.scheme != "http" or not found.hostname or found.port is None:
            raise Refused(f"{self.url}: a URL like http://127.0.0.1:4646 is needed")
        self.url, self.host, self.port = f"http://{found.hostname}:{found.port}", found.hostname, found.port

    def call(self, method: str, target: str, body: object = None) -> bytes:
        """One request that must succeed: its body. Raises Refused."""
        return call(self.host, self.port, (method, target), body)[1]

    def create_base(self) -> None:
        """Create the volume whose disk the registers are of."""
        made = self.call("PUT", "/v1/volume/csi/base/create", {"Volumes": [a_volume("base", plugin=self.plugin)]})
        self.external_id = json.loads(made)["Volumes"][0]["ExternalID"]

    def register(self, *numbers: int, **members: object) -> None:
        """Register these of the loaded volumes in one request."""
        volumes = [a_member(n, self.external_id, plugin=self.plugin, **members) for n in numbers]
        self.call("PUT", "/v1/volume/csi/x", {"Volumes": volumes})

    def load(self, count: int) -> float:
        """Register so many more in batches: volumes a second."""
        began_s, end = time.perf_counter(), self.loaded + count
        for low in range(self.loaded, end, BATCH):
            self.register(*range(low, min(low + BATCH, end)))
        self.loaded = end
        return count / (time.perf_counter() - began_s)

    def memory_mb(self) -> float:
        """Resident memory of the server's process, without its driver's. Raises Refused."""
        assert self.pid is not None
        try:
            return resident_mb(self.pid)
        except OSError as error:
            raise Refused(f"{self.url}: no process {self.pid}: {error}") from error


@dataclass(frozen=True)
class Item:
    """What is measured. ``measure`` takes the server and the number of the round."""

    name: str
    unit: str
    measure: Callable[[Site, int], float]
    rounds: int


@dataclass
class Compared:
    """An item's figures of all rounds so far. ``ratios``: ours to the peer's."""

    unit: str
    goal: float
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """One of each round."""
        return [ours / peer for ours, peer in zip(self.ours, self.peer, strict=True)]

    @property
    def is_met(self) -> bool:
        """Whether the median ratio is as good as the goal."""
        return is_met(statistics.median(self.ratios), self.goal, self.unit)

    def tell(self, name: str) -> str:
        """The item's line of the table."""
        ours, peer = (f"{statistics.median(found):,.5g}{self.unit}" for found in (self.ours, self.peer))
        ratios = (statistics.median(self.ratios), min(self.ratios), max(self.ratios))
        goal = f"{'>=' if self.unit == '/s' else '<='}{self.goal:g}"
        row = " ".join(f"{ratio:>8.3g}" for ratio in ratios)
        return f"{name:18} {ours:>12} {peer:>12} {row} {goal:>7} {'met' if self.is_met else 'MISSED'}"

    def as_json(self) -> dict[str, Any]:
        """Everything, with rounded figures."""
        return {
            "unit": self.unit,
            "ours": [round(value, 2) for value in self.ours],
            "peer": [round(value, 2) for value in self.peer],
            "ours_median": round(statistics.median(self.ours), 2),
            "peer_median": round(statistics.median(self.peer), 2),
            "ratio": round(statistics.median(self.ratios), 4),
            "lowest": round(min(self.ratios), 4),
            "highest": round(max(self.ratios), 4),
            "goal": self.goal,
            "is_met": self.is_met,
        }


def compare(item: Item, sites: tuple[Site, Site], pause_s: float) -> Compared:
    """Measure an item in turns: ours, peer, peer, ours, …

    There is a pause before each: what one server still writes to the disk must not be the other's trouble.
    """
    found = Compared(item.unit, GOALS[item.name])
    for number in range(item.rounds):
        for site in sites if number % 2 == 0 else sites[::-1]:
            time.sleep(pause_s)
            (found.ours if site is sites[0] else found.peer).append(item.measure(site, number))
    return found


def fill(read: Read, first: int, asked: int) -> str:
    """The target of that request of a round: all numbers of the range before one comes again, and that with one more
    space at its end, so that no target is asked for twice. The script for wrk says the same."""
    assert read.draw is not None
    low, high = read.draw
    span = high - low + 1
    return read.fill(low + (first + asked) * STRIDE % span) + "%20" * (asked // span)


def write_script(read: Read, first: int) -> str:
    """What makes wrk's requests, each with a target of its own (``fill``)."""
    assert read.draw is not None
    before, after = (json.dumps(part) for part in read.target.split(DRAWN))
    low, high = read.draw
    span = high - low + 1
    return (
        "local asked = -1\n"
        "request = function()\n"
        "  asked = asked + 1\n"
        f"  local drawn = string.format('%d', {low} + ({first} + asked) * {STRIDE} % {span})\n"
        f"  local spaces = string.rep('%20', math.floor(asked / {span}))\n"
        f"  return wrk.format('GET', {before} .. drawn .. {after} .. spaces)\n"
        "end\n"
    )


def run_wrk(site: Site, read: Read, first: int, seconds: float) -> float:
    """Answers a second by wrk, which counts whole seconds only."""
    whole_s = max(1, math.ceil(seconds))
    command = [str(WRK), "-t", "1", "-c", str(read.connections), "-d", f"{whole_s}s", "--timeout", "30s"]
    command += ["-H", "Accept-Encoding: gzip"] if read.is_gzip else []
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if read.draw:
            script.write(write_script(read, first))
            script.flush()
            command += ["-s", script.name]
        done = run(site, [*command, site.url + ("/" if read.draw else read.target)], whole_s + SPARE_S)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done)
    bad = re.search(r"Non-2xx.*|Socket errors.*", done)
    if bad or rate is None or not float(rate[1]):
        raise Refused(f"{site.url} does not do well at {read.name}: {bad[0] if bad else done.strip() or 'no answer'}")
    return float(rate[1])


def run_drive(site: Site, read: Read, first: int, seconds: float) -> float:
    """Answers a second by our own client."""
    asked = itertools.count()
    plain = request("GET", read.target, is_gzip=read.is_gzip)

    def make() -> bytes:
        return request("GET", fill(read, first, next(asked))) if read.draw else plain

    async def ask() -> Got:
        async with asyncio.timeout(seconds + SPARE_S):
            return await drive(site.host, site.port, make, connections=read.connections, seconds=seconds)

    try:
        got = uvloop.run(ask())
    except OSError as error:  # a deadline is one too
        raise Refused(f"{site.url} does not answer {read.name}: {error!r}") from error
    if got.bad or not got.count:
        raise Refused(f"{site.url} does not do well at {read.name}: {got.bad} bad answers of {got.count}")
    return got.per_s


def run(site: Site, command: Sequence[str], within_s: float) -> str:
    """What a client program prints. Raises Refused with what it says when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise Refused(f"{site.url} keeps a client for more than {within_s:.0f} s: {' '.join(command)}") from error
    if done.returncode:
        raise Refused(done.stderr.strip() or f"{command[0]} ended with code {done.returncode} at {site.url}")
    return done.stdout


def run_client(site: Site, program: str, *words: str) -> dict[str, float]:
    """The figures of a client that is a program of its own."""
    command = [sys.executable, str(HERE / program), site.url, *words, "--plugin", site.plugin]
    found: dict[str, float] = json.loads(run(site, command, JOB_S))
    return found


def make_read(read: Read, args: argparse.Namespace) -> Item:
    """An item of reads."""

    def measure(site: Site, number: int) -> float:
        if read.draw:
            # What was asked for in the round before would come from memory, were nothing written since.
            site.register(42, MountOptions={"FSType": f"ext{time.time_ns()}"})
        return (run_wrk if WRK else run_drive)(site, read, number * ROUND_STRIDE, args.seconds)

    return Item(read.name, "/s", measure, args.rounds)


def make_write(name: str, clients: int, count: int, args: argparse.Namespace) -> Item:
    """An item of writes: registers, or creates. The volumes of each round have names of their own."""
    stamp = f"{time.time_ns() // 10**6:x}"

    def measure(site: Site, number: int) -> float:
        external = ("--external-id", site.external_id) if name.startswith("register") else ()
        names = f"w{stamp}-{name.replace('_', '-')}-{number}"
        words = ("write", names, "--clients", str(clients), "--count", str(count), *external)
        return run_client(site, "streams.py", *words)["per_s"]

    return Item(name, "/s", measure, args.rounds)


def make_wake(name: str, target: str, args: argparse.Namespace) -> Item:
    """An item of waiters that one write wakes."""

    def measure(site: Site, number: int) -> float:
        program = ("waking.py",) if args.reader == "epoll" else ("streams.py", "wake")
        words = (target, "--waiters", str(args.waiters), "--external-id", site.external_id)
        got = run_client(site, *program, *words)
        if got["early"]:
            print(f"{name}: {site.name} answered {got['early']:.0f} waiters before the write", flush=True)
        return got["last_ms"]

    return Item(name, "ms", measure, args.rounds)


def make_load(args: argparse.Namespace) -> Item:
    """The item of batches: it leaves either server with all volumes."""

    def measure(site: Site, number: int) -> float:
        return site.load(min(SLICE, args.volumes - number * SLICE))

    return Item("register_batched", "/s", measure, math.ceil(args.volumes / SLICE))


def list_items(args: argparse.Namespace) -> list[Item]:
    """All that is measured, in its order, without the batches."""
    return [
        Item("memory", "MB", lambda site, _: site.memory_mb(), args.rounds),
        *(make_read(read, args) for read in list_reads(args.volumes, args.plugin)),
        make_write("register_c1", 1, args.writes, args),
        *(make_write(f"register_c{clients}", clients, 4 * args.writes, args) for clients in (16, 64)),
        *(make_write(f"create_c{clients}", clients, args.writes, args) for clients in (1, 16)),
        make_wake("fanout_read", READ_ONE, args),
        make_wake("fanout_page50", PAGE, args),
    ]


def compare_all(args: argparse.Namespace, sites: tuple[Site, Site]) -> dict[str, Any]:
    """Load, measure and print. Returns, and writes to ``--out`` after each item, everything so far."""
    only = set(filter(None, args.only.split(",")))
    machine = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "reads by": "wrk" if WRK else "bench/client.py",
    }
    setting = {name: getattr(args, name) for name in SETTING}
    items: dict[str, Any] = {}
    found = {"machine": machine, "setting": setting, "ours": sites[0].url, "peer": sites[1].url, "items": items}
    if not WRK:
        print("wrk is not on PATH: reads are by bench/client.py")
    print(f"{args.volumes:,} volumes; {machine}")
    print(f"{'work':18} {'ours':>12} {'peer':>12} {'ratio':>8} {'lowest':>8} {'highest':>8} {'goal':>7}", flush=True)
    for site in sites:
        site.create_base()
    for item in (make_load(args), *list_items(args)):
        is_load = item.name == "register_batched"
        if only and item.name not in only and not is_load:
            continue
        if item.name == "memory" and None in (sites[0].pid, sites[1].pid):
            print("memory: not measured without --ours-pid and --peer-pid", flush=True)
            continue
        compared = compare(item, sites, args.pause)
        if only and item.name not in only:
            continue
        print(compared.tell(item.name), flush=True)
        items[item.name] = compared.as_json()
        if args.out:
            Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> int:
    """Measure; code 1 with a text if a server does not answer as it must."""
    parser = argparse.ArgumentParser(description="two running servers side by side, in turns")
    parser.add_argument("ours", help="http://HOST:PORT")
    parser.add_argument("peer", help="http://HOST:PORT")
    parser.add_argument("--volumes", type=int, default=20_000, help="that are loaded; at least 100")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each read in each round; wrk: whole ones")
    parser.add_argument("--writes", type=int, default=300, help="of each kind; registers of many clients: four times")
    parser.add_argument("--waiters", type=int, default=1000)
    parser.add_argument("--reader", choices=("epoll", "streams"), default="epoll", help="how waiters are read")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds before each measurement")
    parser.add_argument("--plugin", default="hostpath", help="its name at either server")
    parser.add_argument("--ours-pid", type=int)
    parser.add_argument("--peer-pid", type=int)
    parser.add_argument("--only", default="", help=f"some of {','.join(GOALS)}; loading is always done")
    parser.add_argument("--out", default="", help="a file for the figures, as JSON")
    args = parser.parse_args()
    unknown = set(filter(None, args.only.split(","))) - set(GOALS)
    if unknown or args.volumes < BATCH or args.rounds < 1 or args.writes < 1 or args.waiters < 1:
        parser.error(
            f"unknown: {', '.join(sorted(unknown))}" if unknown else "too few volumes, rounds, writes, waiters"
        )
    try:
        ours = Site("ours", args.ours, args.plugin, args.ours_pid)
        compare_all(args, (ours, Site("peer", args.peer, args.plugin, args.peer_pid)))
    except Refused as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
