"""A server with a fence hook, and two hosts: a host that is cut off is switched off by the hook, and its volume moves.

The hook is a real program: it kills every process of the host, or says that its outlet is jammed.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator

import pytest
from cluster import Cluster, check_lines
from dev_server import wait_until
from namespaces import Lan, running_lan

pytestmark = [pytest.mark.root, pytest.mark.slow]
HOOK = """
import os, pathlib, signal, sys, time
from moorage.testing.driver_judge import note_gone

place, name = pathlib.Path(sys.argv[1]), os.environ["MOORAGE_NODE_NAME"]
if (place / "jammed").exists():
    sys.exit("the outlet is jammed")
pid = int((place / f"{name}.pid").read_text())
if (place / f"{name}.boot").read_text().strip() != os.environ["MOORAGE_NODE_BOOT_ID"]:
    sys.exit("another boot")
os.kill(pid, signal.SIGKILL)
state = pathlib.Path(f"/proc/{pid}/stat")
while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
    time.sleep(0.01)
note_gone(place / "gone.jsonl", node_id=name, reason="switched off", at_ns=time.time_ns())
print(f"the outlet of {name} is off")
"""


@pytest.fixture
def lan() -> Iterator[Lan]:
    with running_lan() as lan:
        yield lan


def start(lan: Lan) -> Cluster:
    """The cluster, its hook's outlet jammed."""
    program = lan.place / "hook.py"
    program.write_text(HOOK)
    (lan.place / "jammed").touch()
    command = shlex.join([sys.executable, str(program), str(lan.place)])
    options = ["--hook", command, "--hook-timeout-s", "10", "--hook-retry-cap-s", "1"]
    cluster = Cluster(lan, hosts=2, options=options)
    for host in cluster.hosts:
        (lan.place / f"{host.name}.pid").write_text(str(host.pid))
        (lan.place / f"{host.name}.boot").write_text((host.place / "boot_id").read_text())
    return cluster


def read_server_log(lan: Lan, event: str) -> list[dict[str, object]]:
    lines = (lan.place / "server.log").read_text().splitlines()
    return [entry for line in lines if line.startswith("{") and (entry := json.loads(line))["event"] == event]


def test_the_hook_frees_the_volume_of_a_host_that_is_cut_off(lan: Lan) -> None:
    cluster = start(lan)
    first, second = cluster.hosts
    data = cluster.create("fenced")
    one = cluster.use("fenced", first)
    writers = [one.write("before")]
    node_id = cluster.node(first)["ID"]
    first.cut_off()
    cluster.wait_status(first, "down")

    def why() -> str:
        return " ".join(lan.get(f"/v1/node/{node_id}/why")["Blocks"])

    wait_until(lambda: "tried 2 times, failed with exit code 1: the outlet is jammed; the next try" in why(), "2 tries")
    assert "exit code 1: the outlet is jammed" in lan.run_cli("node", "status", first.name)
    assert "exit code 1: the outlet is jammed" in lan.run_cli("why", "fenced")
    _, status, _ = cluster.ask_use("fenced", second)
    assert status != 200, "a second writer was let in"
    writers[0].wait_more(20)
    (lan.place / "jammed").unlink()
    wait_until(lambda: one.status == "lost", "the hook's word has freed the claim")
    assert "the outlet of n1 is off" in why()
    assert "fenced (hook): the outlet of n1 is off" in cluster.node(first)["StatusDescription"]
    two = cluster.use("fenced", second)
    writers.append(two.write("elsewhere"))
    first.power_off()  # takes note that it is off
    first.boot()
    cluster.start_node(first)
    cluster.wait_status(first, "ready")
    assert first.list_mounts(first.place) == []
    writers[1].wait_more(20)
    writers[1].end()
    two.stop()
    two.wait_over()
    check_lines(data, writers)
    assert cluster.find_faults() == []


def test_the_hook_leaves_a_host_alone_that_holds_nothing(lan: Lan) -> None:
    cluster = start(lan)
    first, _ = cluster.hosts
    first.cut_off()
    cluster.wait_status(first, "down")
    time.sleep(2.0)  # several looks
    assert "hook" not in cluster.node(first)["StatusDescription"]
    first.join()
    cluster.wait_status(first, "ready")
    assert not read_server_log(lan, "fence_hook.started")
