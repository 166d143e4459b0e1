"""Kill server, agents and drivers at random moments while volumes are created, used, moved and deleted.

    python tools/kill_loop.py --kills 1000 --seed 1

Four users work at the same time, each with a volume at a time: create it, use it on one node after the other with a
writer whose lines are forced to disk, delete it. They repeat a request whose answer did not come, and do nothing else
about a fault. Each program that was killed is started again, as a service manager would.
Returns 0 when no line was lost, nothing leaked, nothing was doubled, no judge found anything and no hand was needed.
Needs root.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import shutil
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from asking import describe_volume
from cluster import Cluster, Use, Writer, check_lines
from namespaces import Host, Lan, running_lan

USERS = 4
MOVES = 3
STEP_S = 120.0
QUIET_S = 90.0


class Fault(Exception):
    """Something that must not be."""


class Worker(threading.Thread):
    """One user. ``faults`` is what went wrong."""

    def __init__(self, cluster: Cluster, number: int, *, seed: int, stop: threading.Event) -> None:
        super().__init__(name=f"user-{number}")
        self.cluster = cluster
        self.number = number
        self.stop = stop
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self._chance = random.Random(f"{seed} {number}")
        self._volumes = 0

    def run(self) -> None:
        """Work until told to stop, and end with nothing in hand."""
        try:
            while not self.stop.is_set():
                self._use_a_volume()
        except (Fault, AssertionError) as error:
            self.faults.append(f"{self.name}: {error}")

    def _use_a_volume(self) -> None:
        volume_id = f"u{self.number}-{self._volumes}"
        self._volumes += 1
        path = f"/v1/volume/csi/{volume_id}"
        self._until(lambda: self._create(path, volume_id), f"{volume_id} is created")
        data = str(self.cluster.nas / "volumes" / self._get(path)["ExternalID"] / "data")
        writers: list[Writer] = []
        for move in range(MOVES):
            host = self._chance.choice(self.cluster.hosts)
            use = self._start(volume_id, host)
            writers.append(Writer(use, f"{volume_id}-{move}"))
            writers[-1].wait_more(1 + self._chance.randrange(200))
            writers[-1].end()
            self._until(lambda use=use: self._ask("PUT", f"/v1/allocation/{use.id}/stop")[0] == 200, "a stop is taken")
            self._until(lambda use=use: self._status(use) == "complete", f"{volume_id} is released on {host.name}")
            self.counts["uses"] += 1
        check_lines(data, writers)
        self.counts["lines"] += sum(writer.said() for writer in writers)
        self._until(lambda: self._delete_volume(path), f"{volume_id} is deleted")
        self.counts["volumes"] += 1

    def _create(self, path: str, volume_id: str) -> bool:
        self._ask("PUT", f"{path}/create", describe_volume(volume_id))
        return self._ask("GET", path)[0] == 200

    def _delete_volume(self, path: str) -> bool:
        self._ask("DELETE", f"{path}/delete")
        return self._ask("GET", path)[0] == 404

    def _start(self, volume_id: str, host: Host) -> Use:
        target = host.place / "mnt" / volume_id
        node_id = self._until(lambda: self._find_node(host), f"{host.name} is known")
        request = {
            "Name": "data",
            "Source": volume_id,
            "AccessMode": "single-node-writer",
            "AttachmentMode": "file-system",
            "Target": str(target),
        }
        allocation = {"ID": str(uuid.uuid4()), "Name": self.name, "NodeID": node_id, "Volumes": [request]}
        body = {"Allocation": allocation}
        use = Use(self.cluster, str(allocation["ID"]), host, target)
        self._until(lambda: self._ask("PUT", "/v1/allocations", body)[0] == 200, f"a use of {volume_id} is admitted")
        self._until(lambda: self._is_running(use), f"{volume_id} is mounted on {host.name}")
        return use

    def _is_running(self, use: Use) -> bool:
        status = self._status(use)
        if status in ("failed", "lost", "complete"):
            raise Fault(f"a use became {status}: {json.dumps(self._get(f'/v1/allocation/{use.id}'))[:1500]}")
        return status == "running"

    def _status(self, use: Use) -> str:
        status, answer = self._ask("GET", f"/v1/allocation/{use.id}")
        return str(answer["ClientStatus"]) if status == 200 else ""

    def _find_node(self, host: Host) -> str:
        status, rows = self._ask("GET", "/v1/nodes")
        return next((str(row["ID"]) for row in rows if row["Name"] == host.name), "") if status == 200 else ""

    def _get(self, path: str) -> Any:
        return self._until(lambda: (found := self._ask("GET", path))[0] == 200 and found[1], f"{path} is there")

    def _ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """An answer; (0, None) when none came."""
        try:
            return self.cluster.lan.ask(method, path, body)
        except (OSError, http.client.HTTPException, TimeoutError):
            self.counts["unanswered"] += 1
            return 0, None

    def _explain(self, what: str) -> str:
        """What the server says of the volume at the moment."""
        status, why = self._ask("GET", f"/v1/volume/csi/{what.split()[0]}/why")
        _, uses = self._ask("GET", "/v1/allocations")
        return f"; why: {status} {json.dumps(why)[:3000]}; uses: {json.dumps(uses)[:3000]}"

    def _until(self, find: Callable[[], Any], what: str) -> Any:
        ends_s = time.monotonic() + STEP_S
        while True:
            found = find()
            if found:
                return found
            if time.monotonic() > ends_s:
                raise Fault(f"not within {STEP_S:g} s, though only repeating: {what}{self._explain(what)}")
            time.sleep(0.1)


class Killer:
    """Kills programs and starts them again."""

    def __init__(self, cluster: Cluster, *, seed: int) -> None:
        self.cluster = cluster
        self.counts: Counter[str] = Counter()
        self._chance = random.Random(seed)

    def kill_one(self) -> None:
        """Kill one program at a random moment; it is started again after a while."""
        time.sleep(self._chance.uniform(0.0, 0.8))
        kind = self._chance.choice(("server", "agent", "agent", "driver", "driver"))
        host = self._chance.choice(self.cluster.hosts)
        if kind == "server":
            self.cluster.restart_server(pause_s=self._chance.uniform(0.0, 0.5))
        else:
            host.jobs[kind].kill()
            time.sleep(self._chance.uniform(0.0, 0.5))
            (self.cluster.start_agent if kind == "agent" else self.cluster.start_driver)(host)
        self.counts[kind] += 1


def find_remains(cluster: Cluster) -> list[str]:
    """What is left although every user has deleted what it made."""
    left = [f"volume {row['ID']} is registered" for row in cluster.lan.get("/v1/volumes?type=csi")]
    state = json.loads((cluster.nas / "state.json").read_text())
    left += [f"volume {v['name']} is at the backend" for v in state["volumes"].values()]
    left += [f"data of {path.name} is at the backend" for path in (cluster.nas / "volumes").iterdir()]
    for host in cluster.hosts:
        left += [f"{point} is mounted on {host.name}" for point in host.list_mounts(host.place)]
    return left


def keep_logs(lan: Lan, keep: Path | None) -> None:
    """Copy what tells how a finding came about: each host's calls and its agent's log, and the server's."""
    if keep is None:
        return
    for file in (*lan.place.glob("*.log"), *lan.place.glob("*.jsonl"), *lan.place.glob("*/calls.jsonl")):
        shutil.copy(file, _make(keep / file.parent.name) / file.name)
    for file in lan.place.glob("*/agent.log"):
        shutil.copy(file, _make(keep / file.parent.name) / file.name)


def _make(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def run(kills: int, seed: int, *, keep: Path | None = None) -> int:
    """The loop, and a report of it."""
    started_s = time.monotonic()
    with running_lan() as lan:
        cluster = Cluster(lan)
        stop = threading.Event()
        users = [Worker(cluster, number, seed=seed, stop=stop) for number in range(USERS)]
        for user in users:
            user.start()
        killer = Killer(cluster, seed=seed)
        for number in range(1, kills + 1):
            killer.kill_one()
            if number % 50 == 0:
                print(f"{number} kills after {time.monotonic() - started_s:.0f} s", flush=True)
            if any(user.faults for user in users):
                break
        stop.set()
        for user in users:
            user.join()
        faults = [fault for user in users for fault in user.faults]
        counts: Counter[str] = Counter()
        for user in users:
            counts += user.counts
        ends_s = time.monotonic() + QUIET_S
        while (remains := find_remains(cluster)) and not faults and time.monotonic() < ends_s:
            time.sleep(0.5)
        findings = cluster.find_faults()
        doubles = cluster.find_doubles()
        print(f"seed {seed}: kills {dict(killer.counts)}, work {dict(counts)}, {time.monotonic() - started_s:.0f} s")
        for title, rows in (("faults", faults), ("leaks", remains), ("doubles", doubles), ("findings", findings)):
            print(f"{title}: {len(rows)}")
            for row in rows[:20]:
                print(f"  {row}")
        is_good = not (faults or remains or doubles or findings)
        if not is_good:
            print(f"logs of the run follow; its directory was {lan.place}")
            keep_logs(lan, keep)
        else:
            lan.is_quiet = True
    return 0 if is_good else 1


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a directory for all calls and logs of a run that found something")
    args = parser.parse_args()
    return run(args.kills, args.seed, keep=args.keep)


if __name__ == "__main__":
    sys.exit(main())
