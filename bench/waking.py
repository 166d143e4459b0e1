"""Waiters that one write wakes, and a reader that does little else than read, in a process of its own.

usage: python bench/waking.py URL TARGET --external-id E [--waiters W] [--plugin P]

Waiters at TARGET until volume vol-000042 changes; the figures are one JSON object on stdout. An answer that is an error
ends it: code 1, and what it was on stderr. ``streams.py wake`` does the same by asyncio streams and a task for each
waiter, which take three times as long for an answer as the kernel and this one do: then the reader is measured, not
the server. Here one epoll has all connections, and of an answer only its head's length is looked at before it is whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent))

from client import Refused, allow_files, call, choose_source, request, tell_refusal
from work import READ_ONE, tell_woken, waiting_target, waking_body

JOB_S = 600.0
PIECE_BYTES = 1 << 16
HEAD_END = b"\r\n\r\n"
# The end of a body in chunks.
LAST_CHUNK = b"\r\n0\r\n\r\n"


class Waiter:
    """One connection with one request. ``ended_s``: when the answer's last byte was there."""

    __slots__ = ("_head", "_left", "_site", "_tail", "_what", "ended_s", "socket")

    def __init__(self, host: str, port: int, source: tuple[str, int] | None = None) -> None:
        self.socket = socket.create_connection((host, port), timeout=JOB_S, source_address=source)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._site, self._what = f"{host}:{port}", ("", "")
        # The head, in small letters once it is whole; the body's last bytes.
        self._head, self._tail, self.ended_s = b"", b"", 0.0
        # Bytes of the body to come; -1: unknown, as with chunks.
        self._left = -1

    def ask(self, method: str, target: str, body: bytes = b"") -> None:
        """Send the request."""
        self._what = method, target
        self.socket.sendall(request(method, target, body))

    def take(self) -> bool:
        """Read what is there; whether the answer is whole. Raises Refused, OSError."""
        data = self.socket.recv(PIECE_BYTES)
        if not data:
            raise Refused(f"{self._site} ended a connection instead of answering {' '.join(self._what)}")
        if self._left >= 0:
            self._left -= len(data)
        elif self._head.endswith(HEAD_END):
            self._tail = (self._tail + data)[-len(LAST_CHUNK) :]
        else:
            self._take_head(self._head + data)
        if self._left > 0 or (self._left < 0 and self._tail != LAST_CHUNK):
            return False
        self.ended_s = time.perf_counter()
        return True

    def check(self) -> None:
        """Raise Refused if the answer is an error."""
        if not self._head.startswith(b"http/1.1 200 "):
            raise Refused(tell_refusal(self._site, self._what, int(self._head[9:12]), self._tail))

    def _take_head(self, data: bytes) -> None:
        end = data.find(HEAD_END) + len(HEAD_END)
        if end < len(HEAD_END):
            self._head = data
            return
        self._head = data[:end].lower()
        _, found, rest = self._head.partition(b"\r\ncontent-length: ")
        if found:
            self._left = int(rest.partition(b"\r\n")[0]) - len(data) + end
            self._tail = data[end:]
        else:
            # The line's end before the first chunk is the head's.
            self._tail = data[end - 2 :][-len(LAST_CHUNK) :]


def read_all(waiters: list[Waiter], epoll: select.epoll, within_s: float) -> int:
    """Read until all answers are whole, or for so long; how many are. Raises Refused, OSError."""
    by_file = {waiter.socket.fileno(): waiter for waiter in waiters}
    ends_s, whole = time.perf_counter() + within_s, 0
    while whole < len(waiters) and (left_s := ends_s - time.perf_counter()) > 0:
        for file, _ in epoll.poll(left_s):
            if by_file[file].take():
                whole += 1
                by_file[file].check()
    return whole


def wake(host: str, port: int, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds from the write until it, the median and the last of the waiters are answered, and how many were
    answered before it. Raises Refused, OSError."""
    site = f"{host}:{port}"
    headers, _ = call(host, port, ("GET", args.target))
    if "x-nomad-index" not in headers:
        raise Refused(f"{site} said no X-Nomad-Index with {args.target}")
    target = waiting_target(args.target, headers["x-nomad-index"])
    body = waking_body(args.external_id, args.plugin)
    with contextlib.ExitStack() as stack, select.epoll() as epoll:
        waiters = [Waiter(host, port, choose_source(number, args.waiters)) for number in range(args.waiters)]
        for waiter in waiters:
            stack.callback(waiter.socket.close)
            epoll.register(waiter.socket, select.EPOLLIN)
            waiter.ask("GET", target)
        early = read_all(waiters, epoll, 1.0 + args.waiters / 500)
        if early == args.waiters:
            raise Refused(f"{site} answered all who waited at {args.target} before anything was written")
        writer = Waiter(host, port)
        stack.callback(writer.socket.close)
        epoll.register(writer.socket, select.EPOLLIN)
        left = [writer, *(waiter for waiter in waiters if not waiter.ended_s)]
        began_s = time.perf_counter()
        writer.ask("PUT", READ_ONE, body)
        if read_all(left, epoll, JOB_S) != len(left):
            raise Refused(f"{site} did not answer all who waited at {args.target} within {JOB_S:g} s")
    return tell_woken(began_s, writer.ended_s, (waiter.ended_s for waiter in waiters), early=early)


def main() -> int:
    """Do it, and print."""
    parser = argparse.ArgumentParser(description="waiters that one write wakes")
    parser.add_argument("url")
    parser.add_argument("target", help="where they wait")
    parser.add_argument("--waiters", type=int, default=1000)
    parser.add_argument("--plugin", default="hostpath")
    parser.add_argument("--external-id", required=True)
    args = parser.parse_args()
    site = urlsplit(args.url)
    assert site.hostname is not None
    assert site.port is not None
    allow_files(args.waiters)
    try:
        print(json.dumps(wake(site.hostname, site.port, args)))
    except (Refused, OSError) as error:
        print(error if isinstance(error, Refused) else f"{args.url}: {error!r}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
