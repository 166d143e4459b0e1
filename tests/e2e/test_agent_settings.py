"""Programs that read moorage.toml: a driver that the agent runs and starts again, one found by its socket, mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from asking import ask, describe_volume
from dev_server import IS_JUDGED, JUDGE, Fleet, Program, find_port, wait_until

HEALTHY_S = 10.0
NOTICED_S = 3.0


def write_settings(fleet: Fleet, server: Program, more: str = "") -> str:
    file = fleet.place / "moorage.toml"
    socket = fleet.place / "d" / "csi.sock"
    driver = [sys.executable, "-m", "moorage", "driver", "local", "--endpoint", f"unix://{socket}"]
    driver += ["--data", str(fleet.place / "volumes"), "--node-id", "one"]
    command = fleet.judge_command(driver, socket=socket)
    file.write_text(
        f"""
[agent]
server = "{server.url}"
data_dir = "{fleet.place}/agent"
plugin_dirs = ["{fleet.place}/plugins"]
{more}
[[driver]]
name = "disk"
command = {json.dumps(command)}
socket_dir = "{fleet.place}/d"
environment = {{ SOME_VARIABLE = "x" }}
"""
    )
    return str(file)


def start_agent(fleet: Fleet, server: Program, more: str = "") -> Program:
    return fleet._start(["agent", "--config", write_settings(fleet, server, more)], "agent")


def read_plugin(server: Program, name: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server.url}/v1/plugins?type=csi", timeout=10) as answer:
        plugins: list[dict[str, Any]] = json.load(answer)
    return next((p for p in plugins if p["ID"] == name), {})


def is_healthy(server: Program, name: str) -> bool:
    return read_plugin(server, name).get("NodesHealthy", 0) == 1


def find_driver(fleet: Fleet) -> int:
    """The process that the agent runs as the driver (the judge, which runs the driver), or 0."""
    module = JUDGE if IS_JUDGED else "moorage"
    for pid in fleet.find_processes():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"driver" in words and words[1:3] == [b"-m", module.encode()]:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            assert b"SOME_VARIABLE=x" in environment
            assert f"CSI_ENDPOINT=unix://{fleet.place}/d/csi.sock".encode() in environment
            return pid
    return 0


def test_a_driver_that_was_killed_is_started_again_and_healthy_in_time(fleet: Fleet) -> None:
    server = fleet.start_server()
    agent = start_agent(fleet, server)
    wait_until(lambda: is_healthy(server, "disk"), "the driver is healthy")
    first = find_driver(fleet)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: find_driver(fleet) not in (0, first), "it runs again", within_s=HEALTHY_S)
    wait_until(lambda: "code=-9" in agent.log, "its end is told")
    body = describe_volume("data")
    body["Volumes"][0]["PluginID"] = "disk"

    def is_created() -> bool:
        return ask(server.url, "PUT", "/v1/volume/csi/data/create", body=body).status == 200

    # What is on record as healthy may still be the driver that was killed: a call tells.
    wait_until(is_created, "it makes a volume again", within_s=HEALTHY_S)
    assert is_healthy(server, "disk")
    assert "event=driver.said driver=disk" in agent.log


def test_a_driver_ends_with_its_agent_even_when_that_is_killed(fleet: Fleet) -> None:
    server = fleet.start_server()
    agent = start_agent(fleet, server)
    wait_until(lambda: is_healthy(server, "disk"), "the driver is healthy")
    first = find_driver(fleet)
    agent.kill()
    wait_until(lambda: not Path(f"/proc/{first}").exists(), "the driver ended too", within_s=HEALTHY_S)
    agent.restart()
    wait_until(lambda: find_driver(fleet), "a new one runs")
    wait_until(lambda: is_healthy(server, "disk"), "it is healthy", within_s=HEALTHY_S * 2)


def test_a_driver_that_somebody_else_runs_is_found_by_its_socket(fleet: Fleet) -> None:
    server = fleet.start_server()
    start_agent(fleet, server, "plugin_gone_s = 0.5")
    driver = fleet.start_driver(fleet.place / "plugins" / "found" / "csi.sock")
    wait_until(lambda: is_healthy(server, "found"), "it is found", within_s=HEALTHY_S)
    driver.kill()
    wait_until(lambda: read_plugin(server, "found").get("NodesHealthy") == 0, "it is sick", within_s=HEALTHY_S * 2)
    driver.restart()
    wait_until(lambda: is_healthy(server, "found"), "it is well again", within_s=HEALTHY_S)
    driver.stop()
    (fleet.place / "plugins" / "found" / "csi.sock").unlink(missing_ok=True)
    wait_until(lambda: read_plugin(server, "found") == {}, "it is forgotten", within_s=HEALTHY_S * 2)
    assert is_healthy(server, "disk")


def test_a_dead_driver_is_noticed_at_once_though_its_socket_file_stays(fleet: Fleet) -> None:
    server = fleet.start_server()
    driver = fleet.start_driver()
    fleet.start_agent(server)
    wait_until(lambda: is_healthy(server, "hostpath"), "the driver is healthy")
    for _ in range(3):
        driver.kill()
        began = time.monotonic()
        assert fleet.driver_socket.is_socket()
        wait_until(lambda: not is_healthy(server, "hostpath"), "its end is noticed", within_s=NOTICED_S)
        noticed = time.monotonic()
        driver.restart()
        answers = time.monotonic()
        wait_until(lambda: is_healthy(server, "hostpath"), "it is healthy again", within_s=HEALTHY_S)
        healthy = time.monotonic()
        print(f"noticed {noticed - began:.2f} s after the kill, healthy {healthy - answers:.2f} s after it answers")


@pytest.mark.parametrize("program", ["server", "agent", "dev"])
def test_a_slip_in_the_settings_stops_every_program(fleet: Fleet, program: str) -> None:
    file = fleet.place / "moorage.toml"
    file.write_text("[fencing]\nleas_s = 3\n")
    found = subprocess.run(
        [sys.executable, "-m", "moorage", program, "--config", str(file)],
        check=False,
        capture_output=True,
        timeout=30,
        text=True,
    )
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1] == (
        f"moorage {program}: settings file {file}: unknown key fencing.leas_s; the nearest known one is fencing.lease_s"
    )


def test_dev_takes_its_settings_from_a_file(fleet: Fleet) -> None:
    port = find_port()
    file = fleet.place / "moorage.toml"
    file.write_text(
        f"[server]\nbind = '127.0.0.1:{port}'\ndata_dir = '{fleet.place}/dev'\n[agent]\nplugin_id = 'own'\n"
    )
    words, url = ["dev", "--config", str(file)], f"http://127.0.0.1:{port}"
    dev = fleet._start(words, "dev", url=url, module=fleet.dev_module("own"))
    assert is_healthy(dev, "own")
