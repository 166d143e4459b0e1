"""Killing and restarting any part of ours disturbs no mounted volume.

A writer appends numbered lines to a file in a mounted volume, each forced to disk, while server, agent and driver are
killed and started again in turn. Afterwards the file is what was written, the mount is the one it was, and releasing
the volume leaves nothing. As root volumes are bind mounts; for an ordinary user they are links.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import ask, delete, describe_volume, get, list_external, put
from dev_server import (
    IS_JUDGED,
    Fleet,
    Program,
    running_fleet,
    wait_until,
)
from left_behind import find_mounts
from who_runs import Identity, find_ordinary_identity

LINES = 1000

# Says each line's number when it is on disk; opens the file anew for every fiftieth, as programs do that rotate.
WRITER = """
import os, sys, time
path, count = sys.argv[1], int(sys.argv[2])
for first in range(0, count, 50):
    with open(path, "ab", buffering=0) as file:
        for number in range(first, min(first + 50, count)):
            file.write(b"line %06d of a file that nothing may disturb\\n" % number)
            os.fsync(file.fileno())
            print(number, flush=True)
            sys.stdin.readline()
"""


class Writer:
    """The writer process. It writes a line when it is told to, so that work, not time, spreads the restarts."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self._process = subprocess.Popen(
            [identity.interpreter, "-c", WRITER, str(path), str(LINES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            **identity.popen_options(),
        )

    def write(self, count: int) -> None:
        """Let it write so many lines more, and see each of them on disk."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for _ in range(count):
            line = self._process.stdout.readline()
            assert line, f"the writer ended with code {self._process.wait()}"
            self._process.stdin.write("\n")

    def close(self) -> int:
        """Its exit code, when its work is done."""
        with self._process:
            return self._process.wait(20)

    def kill(self) -> None:
        """After a failure."""
        with self._process:
            self._process.kill()


class Mounted:
    """A volume that is mounted at ``target`` through the API."""

    def __init__(self, url: str, target: Path) -> None:
        self.url = url
        self.target = target
        self.allocation_id = str(uuid.uuid4())
        put(url, "/v1/volume/csi/data/create", describe_volume("data"))
        request = {
            "Name": "data",
            "Source": "data",
            "AccessMode": "single-node-writer",
            "AttachmentMode": "file-system",
            "Target": str(target),
        }
        node_id = get(url, "/v1/nodes")[0]["ID"]
        allocation = {"ID": self.allocation_id, "Name": "writer", "NodeID": node_id, "Volumes": [request]}
        put(url, "/v1/allocations", {"Allocation": allocation})
        wait_until(lambda: self.read()["ClientStatus"] == "running", "the allocation runs")

    def read(self) -> Any:
        """The allocation."""
        return get(self.url, f"/v1/allocation/{self.allocation_id}")

    def release(self) -> None:
        """End the use and delete the volume; nothing of it may be left."""
        put(self.url, f"/v1/allocation/{self.allocation_id}/stop")
        wait_until(lambda: self.read()["ClientStatus"] == "complete", "the allocation is over")
        wait_until(lambda: not get(self.url, "/v1/volume/csi/data")["Allocations"], "the volume is free")
        assert not os.path.lexists(self.target) or not any(self.target.iterdir())
        delete(self.url, "/v1/volume/csi/data/delete")
        assert get(self.url, "/v1/volumes?type=csi") == []
        assert list_external(self.url) == []


def expected_file() -> bytes:
    return b"".join(b"line %06d of a file that nothing may disturb\n" % number for number in range(LINES))


def find_way(target: Path, mounts: Path) -> object:
    """What makes the volume appear at its path: the mount's ID, or the link with its inode."""
    if target.is_symlink():
        return os.readlink(target), target.lstat().st_ino
    found = find_mounts(mounts)
    assert str(target) in found, f"{target} is neither a mount nor a link; there are {found}"
    return found[str(target)]


def write_through_restarts(fleet: Fleet, url: str, parts: list[Program]) -> None:
    """The scenario: mount, write while each part is killed and restarted twice, compare, release."""
    mounted = Mounted(url, fleet.mounts / "data")
    way = find_way(mounted.target, fleet.mounts)
    mounts_before = find_mounts(fleet.place)
    writer = Writer(mounted.target / "log", fleet.identity)
    try:
        share = LINES // (4 * len(parts) + 1)
        written = 0
        for part in [*parts, *parts]:
            part.kill()
            writer.write(share)  # while it is away
            part.restart()
            writer.write(share)  # while it finds its feet
            written += 2 * share
            assert find_way(mounted.target, fleet.mounts) == way, f"after the restart of {part.name}"
        writer.write(LINES - written)
        assert writer.close() == 0
    except BaseException:
        writer.kill()
        raise
    wait_until(lambda: is_schedulable(url), "the plugin is healthy again")
    assert mounted.read()["ClientStatus"] == "running"
    assert (mounted.target / "log").read_bytes() == expected_file()
    assert find_mounts(fleet.place) == mounts_before
    mounted.release()
    assert find_mounts(fleet.place) == {}


def is_schedulable(url: str) -> bool:
    plugin = get(url, "/v1/plugin/csi/hostpath")
    return bool(plugin["NodesHealthy"] == 1 and plugin["ControllersHealthy"] == 1)


def start_parts(fleet: Fleet) -> tuple[str, list[Program]]:
    """Server, driver and agent, in processes of their own; they work together."""
    server = fleet.start_server()
    driver = fleet.start_driver()
    agent = fleet.start_agent(server)
    wait_until(lambda: is_known(server.url), "the plugin is healthy")
    return server.url, [server, agent, driver]


def is_known(url: str) -> bool:
    return ask(url, "GET", "/v1/plugin/csi/hostpath").status == 200 and is_schedulable(url)


@pytest.fixture
def ordinary_fleet() -> Iterator[Fleet]:
    """A fleet that runs as an ordinary user."""
    identity = find_ordinary_identity()
    if identity is None:
        pytest.skip("nobody, the ordinary user of root's tests, may not run this installation")
    with running_fleet(identity) as running:
        yield running


# -- the tests -------------------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.guarded
def test_no_bind_mount_is_lost_when_any_part_is_killed(fleet: Fleet) -> None:
    url, parts = start_parts(fleet)
    write_through_restarts(fleet, url, parts)


@pytest.mark.slow
def test_no_link_is_lost_when_any_part_is_killed(ordinary_fleet: Fleet) -> None:
    url, parts = start_parts(ordinary_fleet)
    write_through_restarts(ordinary_fleet, url, parts)


@pytest.mark.root
@pytest.mark.slow
def test_no_bind_mount_is_lost_when_dev_is_killed(fleet: Fleet) -> None:
    server = fleet.start_dev()
    write_through_restarts(fleet, server.url, [server])


@pytest.mark.slow
def test_no_link_is_lost_when_dev_is_killed(ordinary_fleet: Fleet) -> None:
    server = ordinary_fleet.start_dev()
    write_through_restarts(ordinary_fleet, server.url, [server])


def test_the_driver_does_not_outlive_a_killed_dev(fleet: Fleet) -> None:
    server = fleet.start_dev()
    assert len(fleet.find_processes()) == 2 + IS_JUDGED, "the program, its driver, and a judge between them"
    server.kill()
    wait_until(lambda: not fleet.find_processes(), "no process of ours remains", within_s=5)


def test_a_driver_whose_parent_is_gone_ends_at_once(fleet: Fleet) -> None:
    """The parent may end before its child is far enough to ask who it was."""
    words = ["driver", "local", "--endpoint", f"unix://{fleet.driver_socket}", "--data", str(fleet.place / "volumes")]
    orphan = Program([*words, "--die-with-parent", "1"], fleet.place, name="driver", identity=fleet.identity)
    fleet.programs.append(orphan)
    orphan.start()
    wait_until(lambda: not fleet.find_processes() or fleet.driver_socket.exists(), "it ends, or serves")
    assert not fleet.driver_socket.exists()


def test_a_stopped_dev_ends_cleanly(fleet: Fleet) -> None:
    server = fleet.start_dev()
    assert server.stop() == 0
    assert fleet.find_processes() == []
    assert "Traceback" not in server.log
