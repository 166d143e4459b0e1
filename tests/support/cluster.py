"""A cluster in miniature: one server, three hosts with driver, judge and agent each; volumes in use, and their writers.

A writer on the host that holds a volume numbers its lines, forces each to disk, and only then says its number.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from asking import describe_volume
from canary_marks import MARKS, PUBLISH_CONTEXT
from dev_server import wait_until
from namespaces import Host, Job, Lan, now_ns

from moorage.testing.driver_judge import format_finding, judge_logs, note_gone
from moorage.testing.judge_records import Ended, Started, read_log
from moorage.testing.shared_state import CONTEXT_FILE

LEASE_S = 3.0
GRACE_S = 4.0
WRITER = """
import os, sys, time
path, name = sys.argv[1:]
with open(path, "ab", buffering=0) as file:
    number = 0
    while True:
        file.write(b"%s %06d\\n" % (name.encode(), number))
        os.fsync(file.fileno())
        print(number, flush=True)
        number += 1
        time.sleep(0.005)
"""


class Cluster:
    """The Lan with server, drivers behind judges, and agents."""

    def __init__(self, lan: Lan, *, hosts: int = 3, options: Sequence[str] = ()) -> None:
        self.lan = lan
        self.nas = lan.place / "nas"
        self.nas.mkdir()
        # The driver tells it every node that a volume is attached to.
        (self.nas / CONTEXT_FILE).write_text(json.dumps({"chap": MARKS.make_plain(PUBLISH_CONTEXT)}))
        self._options = ("--lease-s", str(LEASE_S), "--grace-s", str(GRACE_S), *options)
        lan.start_server(*self._options)
        for _ in range(hosts):
            lan.add_host()
        for host in lan.hosts:
            self.start_drivers(host)
        for host in lan.hosts:
            self.start_agent(host)
        wait_until(lambda: self.healthy_nodes() == hosts, f"{hosts} healthy nodes")

    # -- hosts -------------------------------------------------------------------------------------------------------

    @property
    def hosts(self) -> list[Host]:
        return self.lan.hosts

    def start_node(self, host: Host) -> None:
        """Driver, judge and agent on a host."""
        self.start_drivers(host)
        self.start_agent(host)

    def start_drivers(self, host: Host) -> None:
        """Driver and judge on a host; they come up meanwhile."""
        self.start_driver(host)
        driver, judge = f"unix://{host.place}/driver.sock", f"unix://{host.place}/csi.sock"
        words = ["moorage.testing.driver_judge", "--listen", judge, "--driver", driver, "--scope", "part"]
        host.start("judge", [sys.executable, "-m", *words, "--log", str(self.log(host))])

    def start_driver(self, host: Host, *options: str) -> None:
        """The driver on a host."""
        words = ["moorage.testing.shared_driver", "--endpoint", f"unix://{host.place}/driver.sock"]
        words += ["--data", str(self.nas), "--node-id", host.name, *options]
        host.start("driver", [sys.executable, "-m", *words])

    def start_agent(self, host: Host) -> None:
        """The agent on a host whose driver was started."""
        host.jobs["judge"].wait_ready()
        words = ["moorage", "agent", "--server", self.lan.url, "--data-dir", str(host.place / "agent")]
        words += ["--plugin", f"hostpath=unix://{host.place}/csi.sock", "--retry-cap-s", "1"]
        words += ["--ca-file", f"{self.lan.tls}/ca.pem", "--cert-file", f"{self.lan.tls}/agent-{host.name}.pem"]
        words += ["--key-file", f"{self.lan.tls}/agent-{host.name}-key.pem"]
        host.start("agent", [sys.executable, "-m", *words])

    def restart_server(self, *, pause_s: float = 0.0) -> None:
        """Kill the server, and start it again after a pause."""
        assert self.lan.server is not None
        self.lan.server.kill()
        time.sleep(pause_s)
        self.lan.start_server(*self._options)

    def log(self, host: Host) -> Path:
        return host.place / "calls.jsonl"

    def healthy_nodes(self) -> int:
        status, plugin = self.lan.ask("GET", "/v1/plugin/csi/hostpath")
        if status != 200:
            return 0
        return min(int(plugin["NodesHealthy"]), int(plugin["ControllersHealthy"]))

    def node(self, host: Host) -> dict[str, Any]:
        found = [row for row in self.lan.get("/v1/nodes") if row["Name"] == host.name]
        assert len(found) == 1, f"{host.name} is registered {len(found)} times"
        return dict(found[0])

    def wait_status(self, host: Host, status: str) -> None:
        wait_until(lambda: self.node(host)["Status"] == status, f"{host.name} is {status}")

    def fence(self, host: Host, reason: str) -> None:
        """An operator's word, which the judges get to know too."""
        note_gone(self.lan.place / "gone.jsonl", node_id=host.name, reason=reason, at_ns=now_ns())
        self.lan.run_cli("node", "fence", host.name, "--reason", reason)

    # -- volumes -----------------------------------------------------------------------------------------------------

    def create(self, volume_id: str) -> str:
        """A new volume; its directory at the NAS."""
        self.lan.put(f"/v1/volume/csi/{volume_id}/create", describe_volume(volume_id))
        return str(self.nas / "volumes" / self.lan.get(f"/v1/volume/csi/{volume_id}")["ExternalID"] / "data")

    def ask_use(self, volume_id: str, host: Host) -> tuple[str, int, Any]:
        """Ask for the volume on a host: the allocation's ID, and the answer."""
        request = {
            "Name": "data",
            "Source": volume_id,
            "AccessMode": "single-node-writer",
            "AttachmentMode": "file-system",
            "Target": str(host.place / "mnt" / volume_id),
        }
        allocation_id = str(uuid.uuid4())
        node_id = self.node(host)["ID"]
        allocation = {"ID": allocation_id, "Name": f"on-{host.name}", "NodeID": node_id, "Volumes": [request]}
        return allocation_id, *self.lan.ask("PUT", "/v1/allocations", {"Allocation": allocation})

    def use(self, volume_id: str, host: Host) -> Use:
        """The volume, mounted on a host."""
        wait_until(lambda: self.is_free(volume_id), f"{volume_id} is free")
        allocation_id, status, answer = self.ask_use(volume_id, host)
        assert status == 200, answer
        use = Use(self, allocation_id, host, host.place / "mnt" / volume_id)
        wait_until(lambda: use.status == "running", f"{volume_id} is mounted on {host.name}")
        return use

    def is_free(self, volume_id: str) -> bool:
        return not self.lan.get(f"/v1/volume/csi/{volume_id}")["Allocations"]

    def find_faults(self) -> list[str]:
        """What the judges find."""
        logs = [self.log(host) for host in self.hosts]
        gone = self.lan.place / "gone.jsonl"
        return [format_finding(finding) for finding in judge_logs([*logs, *([gone] if gone.exists() else [])])]

    def find_doubles(self) -> list[str]:
        """Names of which the backend was ever asked for more than one volume."""
        made: dict[str, set[str]] = {}
        for host in self.hosts:
            names: dict[int, str] = {}
            for line in read_log(self.log(host)):
                if isinstance(line, Started) and line.method == "CreateVolume":
                    names[line.id] = line.request["name"]
                elif isinstance(line, Ended) and "volume" in line.answer and line.id in names:
                    made.setdefault(names[line.id], set()).add(line.answer["volume"]["volume_id"])
        return [f"{name}: {sorted(ids)}" for name, ids in made.items() if len(ids) > 1]


class Use:
    """An allocation that runs on a host, with writers in it."""

    def __init__(self, cluster: Cluster, allocation_id: str, host: Host, target: Path) -> None:
        self.cluster = cluster
        self.id = allocation_id
        self.host = host
        self.target = target

    @property
    def status(self) -> str:
        return str(self.cluster.lan.get(f"/v1/allocation/{self.id}")["ClientStatus"])

    def write(self, name: str) -> Writer:
        """Start a writer, and see its first lines on disk."""
        writer = Writer(self, name)
        writer.wait_more(5)
        return writer

    def stop(self) -> None:
        self.cluster.lan.put(f"/v1/allocation/{self.id}/stop")

    def wait_over(self, status: str = "complete") -> None:
        wait_until(lambda: self.status == status, f"the use on {self.host.name} is {status}")


class Writer:
    """A process in the host's namespaces that writes to the volume."""

    def __init__(self, use: Use, name: str) -> None:
        self.name = name
        words = [sys.executable, "-c", WRITER, str(use.target / "log"), name]
        self.job: Job = use.host.start(f"writer-{name}", words)

    def said(self) -> int:
        """How many lines it has said to be on disk."""
        return self.job.out_file.read_bytes().count(b"\n")

    def wait_more(self, count: int) -> None:
        """Return when so many more lines are on disk."""
        before = self.said()
        wait_until(lambda: self.said() >= before + count, f"{self.name} writes")

    def end(self) -> None:
        self.job.kill()


def check_lines(data: str, writers: list[Writer]) -> None:
    """Each writer's lines are there, in one piece, in the writers' order, and none that was said is missing."""
    content = (Path(data) / "log").read_bytes()
    assert content.endswith(b"\n")
    lines = [line.split() for line in content.decode().splitlines()]
    groups = [(name, [int(number) for _, number in group]) for name, group in groupby(lines, key=lambda line: line[0])]
    assert [name for name, _ in groups] == [writer.name for writer in writers], "lines of two holders are mixed"
    for writer, (name, numbers) in zip(writers, groups, strict=True):
        assert numbers == list(range(len(numbers))), f"a line of {name} is missing or doubled"
        assert writer.said() <= len(numbers) <= writer.said() + 1, f"a line that {name} said is lost"
