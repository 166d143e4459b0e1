"""`moorage mount` and `umount` against a stand-in of the server: what they ask for, wait for and print."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_stand_in import NODE, Server, last_write, running_stand_in

from moorage.cli.main import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running stand-in, found through MOORAGE_ADDR."""
    with running_stand_in(monkeypatch) as running:
        yield running


def test_mount_asks_and_waits_until_it_runs(server: Server, tmp_path: Path, capsys: Captured) -> None:
    server.add("data")
    target = str(tmp_path / "here")
    assert main(["mount", "data", target]) == 0
    asked = last_write(server)[3]["Allocation"]
    assert asked["NodeID"] == NODE["ID"]
    assert asked["Name"] == "mount.data"
    assert asked["Volumes"] == [
        {
            "Name": "data",
            "Source": "data",
            "Target": target,
            "ReadOnly": False,
            "AccessMode": "single-node-writer",
            "AttachmentMode": "file-system",
        }
    ]
    blocking = [query for method, path, query, _, _ in server.requests if "index" in query]
    assert blocking
    assert blocking[0]["wait"] == "10000ms"
    assert capsys.readouterr().out == target + "\n"


def test_mount_again_is_the_same_mount(server: Server, tmp_path: Path) -> None:
    server.add("data")
    assert main(["mount", "data", str(tmp_path)]) == 0
    assert main(["mount", "data", str(tmp_path)]) == 0
    assert len(server.allocations) == 1


def test_mount_that_fails_says_why(server: Server, tmp_path: Path, capsys: Captured) -> None:
    def fail(allocation: dict[str, Any]) -> None:
        allocation.update(ClientStatus="failed", ClientDescription="the driver refused: bad flag")

    server.settle = fail
    server.add("data")
    assert main(["mount", "data", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error mounting volume data: the driver refused: bad flag" in err


def test_mount_gives_up_after_its_time_and_says_id_and_error(server: Server, tmp_path: Path, capsys: Captured) -> None:
    server.settle = lambda allocation: allocation["Mounts"][0].update(LastError="no such device", Attempts=3)
    server.add("data")
    assert main(["mount", "data", str(tmp_path), "-timeout", "0.1"]) == 1
    [allocation_id] = server.allocations
    err = capsys.readouterr().err
    assert allocation_id in err
    assert "no such device (tried 3 times)" in err


# Tests that run in the background of a shell have SIGINT ignored, and so have their children.
INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("moorage", run_name="__main__", alter_sys=True)
"""


def test_an_interrupted_mount_says_its_id_and_goes_on(server: Server, tmp_path: Path) -> None:
    waiting = threading.Event()
    server.settle = lambda allocation: waiting.set()
    server.add("data")
    words = [sys.executable, "-c", INTERRUPTIBLE, "mount", "data", str(tmp_path)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as child:
        assert waiting.wait(30)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    [allocation_id] = server.allocations
    assert f"goes on without us as allocation {allocation_id}" in err
    assert "Traceback" not in err
    assert server.allocations[allocation_id]["DesiredStatus"] == "run"


def test_mount_needs_a_choice_between_nodes(server: Server, tmp_path: Path, capsys: Captured) -> None:
    server.nodes = [{**NODE, "Name": "alpha"}, {**NODE, "ID": "7", "Name": "beta"}]
    server.add("data")
    assert main(["mount", "data", str(tmp_path)]) == 1
    assert "-node: alpha, beta" in capsys.readouterr().err
    assert main(["mount", "data", str(tmp_path), "-node", "beta"]) == 0
    assert last_write(server)[3]["Allocation"]["NodeID"] == "7"


@pytest.mark.parametrize("means", ["path", "volume", "id", "prefix"])
def test_umount_finds_what_is_meant(server: Server, tmp_path: Path, capsys: Captured, means: str) -> None:
    server.add("data")
    server.add("other")
    assert main(["mount", "other", str(tmp_path / "o")]) == 0
    assert main(["mount", "data", str(tmp_path / "d")]) == 0
    [wanted] = [row["ID"] for row in server.allocations.values() if row["Name"] == "mount.data"]
    word = {"path": str(tmp_path / "d"), "volume": "data", "id": wanted, "prefix": wanted[:13]}[means]
    assert main(["umount", word]) == 0
    assert server.allocations[wanted]["ClientStatus"] == "complete"
    assert sum(row["DesiredStatus"] == "stop" for row in server.allocations.values()) == 1
    assert "Unmounted data at" in capsys.readouterr().out


def test_umount_of_nothing_is_an_error(server: Server, capsys: Captured) -> None:
    assert main(["umount", "/nowhere"]) == 1
    assert "nothing is mounted" in capsys.readouterr().err
