"""Supervised drivers: real processes that print, end, hang, or cannot be started."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog.testing

from moorage.serve.drivers import RestartPolicy, SupervisedDriver, supervise

pytestmark = pytest.mark.anyio
Logs = list[Any]


def driver(path: Path, *command: str, **policy: float) -> SupervisedDriver:
    restart = RestartPolicy(**{"first_s": 0.01, "cap_s": 0.04, "steady_s": 30.0, "stop_s": 5.0, **policy})
    return SupervisedDriver(
        name="disk", command=command, socket=path / "csi.sock", environment={"OWN": "yes"}, restart=restart
    )


async def run_until(made: SupervisedDriver, logs: Logs, event: str, count: int) -> Logs:
    """The entries of an event, once there are so many."""
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(supervise, made)
            while sum(e["event"] == event for e in logs) < count:
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
    return [e for e in logs if e["event"] == event]


async def test_what_it_prints_is_logged_with_its_name_and_it_knows_its_socket(tmp_path: Path) -> None:
    script = 'echo "at $CSI_ENDPOINT"; echo "own $OWN" >&2; printf "no end"; exit 3'
    with structlog.testing.capture_logs() as logs:
        await run_until(driver(tmp_path, "sh", "-c", script), logs, "driver.ended", 1)
    said = {(e["stream"], e["text"]) for e in logs if e["event"] == "driver.said"}
    assert {("stdout", f"at unix://{tmp_path}/csi.sock"), ("stderr", "own yes"), ("stdout", "no end")} <= said
    assert {e["driver"] for e in logs} == {"disk"}
    assert next(e["code"] for e in logs if e["event"] == "driver.ended") == 3


async def test_pauses_grow_to_a_cap(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        ended = await run_until(driver(tmp_path, "false"), logs, "driver.ended", 5)
    assert [e["restart_in_s"] for e in ended][:5] == [0.01, 0.02, 0.04, 0.04, 0.04]


async def test_after_a_steady_run_the_pause_is_the_first_again(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        ended = await run_until(driver(tmp_path, "sleep", "0.05", steady_s=0.01), logs, "driver.ended", 3)
    assert [e["restart_in_s"] for e in ended][:3] == [0.01, 0.01, 0.01]


async def test_a_program_that_is_not_there_is_tried_again(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        await run_until(driver(tmp_path, "/nowhere/driver"), logs, "driver.ended", 2)
    assert any("/nowhere/driver: No such file" in e["text"] for e in logs if e["event"] == "driver.said")


async def test_a_driver_that_does_not_end_is_ended(tmp_path: Path) -> None:
    script = "trap '' TERM; echo up; while :; do sleep 0.05; done"
    with structlog.testing.capture_logs() as logs:
        await run_until(driver(tmp_path, "sh", "-c", script, stop_s=0.1), logs, "driver.said", 1)
    pid = next(e["pid"] for e in logs if e["event"] == "driver.started")
    assert not await anyio.Path(f"/proc/{pid}").exists()


async def test_a_long_line_is_cut_and_a_daemon_that_keeps_the_pipe_does_not_hold_the_restart(tmp_path: Path) -> None:
    script = "head -c 9000 /dev/zero | tr '\\0' x; echo; sleep 5 & exit 0"
    with structlog.testing.capture_logs() as logs:
        await run_until(driver(tmp_path, "sh", "-c", script), logs, "driver.ended", 1)
    said = [e["text"] for e in logs if e["event"] == "driver.said"]
    assert sum(len(text) for text in said) == 9000
    assert max(len(text) for text in said) <= 9000


async def test_a_socket_that_a_dead_driver_left_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    with closing(socket.socket(socket.AF_UNIX)) as made:
        made.bind(str(path))
        made.listen()
        with structlog.testing.capture_logs() as logs:
            await run_until(driver(tmp_path, "true"), logs, "driver.ended", 1)
        assert path.is_socket()
    with structlog.testing.capture_logs() as logs:
        await run_until(driver(tmp_path, "true"), logs, "driver.ended", 1)
    assert not path.exists()
