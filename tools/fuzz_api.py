"""Make very many requests of a real server and see that it stays well: answers, memory, records.

    tools/fuzz_api.py --requests 200000                     starts `moorage dev` with a temporary directory
    tools/fuzz_api.py --requests 200000 --address URL --pid PID

Prints the time, the answers by status, the memory after the first part and at the end, and every finding; exit code 1
with one. A finding: a status outside the contract, a fault of ours ("incident"), a secret in an answer, a connection
that ends without an answer, memory that grew by more than a tenth after the first part, a traceback in the log.
"""

from __future__ import annotations

import argparse
import http.client
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from fuzz_requests import Made, Maker
from left_behind import take_away

from moorage.client.sync import Client, Endpoint

STATUSES = {200, 307, 400, 403, 404, 405, 409, 414, 431, 500, 503}
FIRST_PART = 20_000
GROWTH_MAX = 0.10
ANSWER_S = 60.0
READY_S = 30.0
STOP_S = 30.0
FINDINGS_MAX = 20
# What http.client or the server's parser refuses before the application sees it.
_UNSENDABLE = ("", "get")


class Tally:
    """What the clients saw."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.statuses: Counter[int] = Counter()
        self.findings: list[str] = []
        self.slowest: tuple[float, str] = (0.0, "")

    def note(self, made: Made, status: int, body: bytes, seconds: float) -> None:
        """Count an answer and judge it."""
        text = body.decode("utf-8", "replace")
        is_agent_page = made.target.startswith("/v1/node/") and made.target.endswith(("/steps", "/claims"))
        with self.lock:
            self.statuses[status] += 1
            if seconds > self.slowest[0]:
                self.slowest = (seconds, str(made)[:300])
            if status not in STATUSES:
                self.findings.append(f"status {status} to {made}")
            if "incident" in text:
                self.findings.append(f"{text[:300]} to {made}")
            if "canary-secret" in text and not is_agent_page:
                self.findings.append(f"a secret came back to {made}")

    def fail(self, made: Made, error: BaseException) -> None:
        """No answer."""
        with self.lock:
            self.findings.append(f"{type(error).__name__}: {error} to {made}")


def run_client(address: str, maker: Maker, count: int, tally: Tally) -> None:
    """Make ``count`` requests on one connection, which is opened anew when it ends."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_S)
    for _ in range(count):
        made = maker.make()
        while made.method in _UNSENDABLE:
            made = maker.make()
        target = f"{made.target}?{made.query}" if made.query else made.target
        began_s = time.perf_counter()
        try:
            connection.request(made.method, target, body=made.body or None, headers=made.headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            tally.fail(made, error)
            connection.close()
            continue
        tally.note(made, answer.status, body, time.perf_counter() - began_s)
    connection.close()


def find_memory_kib(pid: int) -> int:
    """The resident memory of a process and of its children, in KiB."""
    total = 0
    for name in (pid, *find_children(pid)):
        for line in Path(f"/proc/{name}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total


def find_children(pid: int) -> list[int]:
    """The direct children of a process."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


@contextmanager
def own_server() -> Iterator[tuple[str, int, Path]]:
    """A `moorage dev` of our own: its address, process ID and log."""
    with tempfile.TemporaryDirectory(prefix="moor-") as place:
        log = Path(place) / "log"
        out = Path(place) / "out"
        words = [sys.executable, "-m", "moorage", "dev", "--bind", "127.0.0.1:0", "--data-dir", f"{place}/data"]
        with log.open("wb") as to_log, out.open("wb") as to_out:
            server = subprocess.Popen(
                [*words, "--plugin-id", "hostpath", "--log-level", "error"], stdout=to_out, stderr=to_log
            )
        try:
            ends_s = time.monotonic() + READY_S
            while not (line := out.read_text()).startswith("ready "):
                if server.poll() is not None or time.monotonic() > ends_s:
                    raise SystemExit(f"the server did not start:\n{log.read_text()}")
                time.sleep(0.05)
            yield line.split()[1], server.pid, log
        finally:
            server.terminate()
            server.wait(STOP_S)
            take_away(Path(place))


def fuzz(address: str, pid: int, args: argparse.Namespace) -> list[str]:
    """Run all clients in two parts, print the figures, and return the findings."""
    client = Client(Endpoint(address=address))
    node_id = client.get("/v1/nodes").json()[0]["ID"]
    tally = Tally()
    # Four clients share their volumes' names and so get in each other's way; the others go on meanwhile.
    makers = [
        Maker(random=Random(args.seed * args.clients + n), node_id=node_id, prefix=f"c{n // 4}-")
        for n in range(args.clients)
    ]
    memory: list[int] = []
    began_s = time.perf_counter()
    first = min(FIRST_PART, args.requests)
    for part in (first, args.requests - first):
        threads = [
            threading.Thread(target=run_client, args=(address, maker, part // args.clients, tally)) for maker in makers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"{time.perf_counter() - began_s:.0f} s", end=": ")
        memory.append(find_memory_kib(pid))
        print(f"{sum(tally.statuses.values())} requests, {memory[-1] / 1024:.1f} MiB resident", flush=True)
    seconds = time.perf_counter() - began_s
    count = sum(tally.statuses.values())
    print(f"{count} requests in {seconds:.1f} s ({count / seconds:.0f}/s) by {args.clients} clients, seed {args.seed}")
    print("answers by status: " + ", ".join(f"{s}: {n}" for s, n in sorted(tally.statuses.items())))
    print(f"slowest: {tally.slowest[0] * 1e3:.0f} ms: {tally.slowest[1]}")
    growth = memory[1] / memory[0] - 1
    print(f"memory: {memory[0] / 1024:.1f} MiB after {first}, {memory[1] / 1024:.1f} MiB at the end ({growth:+.1%})")
    if growth > GROWTH_MAX:
        tally.findings.append(f"memory grew by {growth:.1%} after the first {first} requests")
    return tally.findings


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000, help="how many requests")
    parser.add_argument("--clients", type=int, default=32, help="how many at a time")
    parser.add_argument("--seed", type=int, default=1, help="one seed makes the same requests again")
    parser.add_argument("--address", help="a server that runs already; with --pid")
    parser.add_argument("--pid", type=int, help="its process ID, to read its memory")
    args = parser.parse_args()
    if args.address:
        if not args.pid:
            parser.error("--address needs --pid")
        findings = fuzz(args.address, args.pid, args)
    else:
        with own_server() as (address, pid, log):
            findings = fuzz(address, pid, args)
            _, traceback, rest = log.read_text(errors="replace").partition("Traceback")
            if traceback:
                findings.insert(0, f"a traceback in the log: {rest[:6000]}")
    for finding in findings[:FINDINGS_MAX]:
        print(f"FINDING {finding}")
    print(f"{len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
