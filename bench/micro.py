"""Hot paths one by one, without a socket: pyperf measures each in processes of its own.

usage: python bench/micro.py [--volumes N] [--only NAME] [pyperf's own flags, such as --fast or -o FILE]
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pyperf
from anyio.from_thread import BlockingPortal, start_blocking_portal

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import anyio.lowlevel
from many_volumes import Kit, Line, a_volume, many_volumes, put_volumes

from moorage.log import configure_logging

LIST = "/v1/volumes?type=csi"
Ask = Callable[[int], Awaitable[object]]


def _targets(volumes: int) -> dict[str, Callable[[int], tuple[str, str]]]:
    """What each benchmark asks the n-th time: target and headers. A ``&x=`` is a question nobody has asked before."""
    gzip = "Accept-Encoding: gzip\r\n"
    pattern, page = quote('ID matches "NNN$"'), quote('Name == "vol-00NNN" and Capacity != 5')
    return {
        "read again": lambda n: ("/v1/volume/csi/vol-000042", ""),
        "read first": lambda n: (f"/v1/volume/csi/vol-{n % volumes:06d}?x={n}", ""),
        "page again": lambda n: (f"{LIST}&per_page=50", ""),
        "page first": lambda n: (f"{LIST}&per_page=50&x={n}&next_token=default.vol-{n * 7 % volumes:06d}", ""),
        "prefix first": lambda n: (f"{LIST}&prefix=vol-{n % (volumes // 10):05d}", ""),
        "list": lambda n: (LIST, ""),
        "list gzip": lambda n: (LIST, gzip),
        "filter": lambda n: (f"{LIST}&x={n}&filter={pattern.replace('NNN', str(100 + n % 900))}", ""),
        "filter page": lambda n: (f"{LIST}&per_page=10&filter={page.replace('NNN', str(1000 + n % 9000))}", ""),
    }


def _make(portal: BlockingPortal, kit: Kit, make: Callable[[int], tuple[str, str]]) -> Callable[[int], float]:
    """A function of a number of rounds that tells how long they take, in seconds."""
    numbers = itertools.count()
    line = portal.call(partial(Line, kit))

    async def run(loops: int) -> float:
        began_s = time.perf_counter()
        for _ in range(loops):
            target, head = make(next(numbers))
            await line.ask(target, head=head)
        return time.perf_counter() - began_s

    def measure(loops: int) -> float:
        portal.call(run, 1)
        return float(portal.call(run, loops))

    return measure


def _make_waking(portal: BlockingPortal, kit: Kit, target: str) -> Callable[[int], float]:
    """A function of a number of waiters that tells how long it takes to wake and answer them, in seconds."""
    numbers = itertools.count()

    async def run(count: int) -> float:
        first = Line(kit)
        index = kit.service.reads.volumes_index
        data = f"GET {target}{'&' if '?' in target else '?'}index={index}&wait=60s HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        lines = [Line(kit, beside=first, address=f"10.0.{n // 250_000}.{n // 1000 % 250}") for n in range(count)]
        for line in lines:
            line.protocol.data_received(data)
        began_s = time.perf_counter()
        await put_volumes(kit, [a_volume(42, name=f"new-{next(numbers)}")])
        while not lines[-1].wire.writes:
            await anyio.lowlevel.checkpoint()
        took_s = time.perf_counter() - began_s
        for line in lines:
            line.protocol.connection_lost(None)
        return took_s

    def measure(loops: int) -> float:
        return float(portal.call(run, loops))

    return measure


def _pass_on(command: list[str], args: Any) -> None:
    """Tell the workers what was asked for."""
    command += ["--volumes", str(args.volumes), "--only", args.only]


def main() -> None:
    """Measure."""
    configure_logging("error")
    runner = pyperf.Runner(processes=3, values=3, warmups=1, add_cmdline_args=_pass_on)
    parser: argparse.ArgumentParser = runner.argparser
    parser.add_argument("--volumes", type=int, default=5000)
    parser.add_argument("--only", default="")
    args = runner.parse_args()
    targets = {k: v for k, v in _targets(args.volumes).items() if args.only in ("", k)}
    wakings = {"wake read": "/v1/volume/csi/vol-000042", "wake page": f"{LIST}&per_page=50"}
    wakings = {k: v for k, v in wakings.items() if args.only in ("", k)}
    if not args.worker:
        # The parent only starts processes.
        for name in (*targets, *wakings):
            runner.bench_time_func(name, lambda loops: 0.0)
        return
    with (
        start_blocking_portal("asyncio", {"use_uvloop": True}) as portal,
        portal.wrap_async_context_manager(many_volumes(args.volumes)) as kit,
    ):
        for name, make in targets.items():
            runner.bench_time_func(name, _make(portal, kit, make))
        holding = portal.start_task_soon(kit.app.held.run)
        for name, target in wakings.items():
            runner.bench_time_func(name, _make_waking(portal, kit, target))
        holding.cancel()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
