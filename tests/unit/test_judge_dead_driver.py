"""A driver that ends, behind a judge: its orchestrator sees what it would see without one."""

from __future__ import annotations

import errno
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from scripted_csi import Driver

from moorage.csi.client import DriverClient
from moorage.errors import DriverFault
from moorage.model import steps
from moorage.testing.driver_judge import judge_log, running_judge
from moorage.testing.judge_records import Ended, read_log

pytestmark = pytest.mark.anyio
SOON_S = 5.0


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="judge-", dir="/tmp") as directory:
        yield Path(directory)


def knock(path: Path) -> int:
    """The error that a connect to a socket ends with, or 0."""
    with socket.socket(socket.AF_UNIX) as one:
        return one.connect_ex(str(path))


async def until(is_so: Callable[[], object]) -> None:
    with anyio.fail_after(SOON_S):
        while not is_so():
            await anyio.sleep(0.01)


@asynccontextmanager
async def running_driver(place: Path) -> AsyncIterator[Process]:
    """The embedded driver as a process, when its socket answers."""
    words = ["--endpoint", f"unix://{place}/driver.sock", "--data", str(place / "data"), "--node-id", "n1"]
    process = await anyio.open_process([sys.executable, "-m", "moorage.csi.local", *words], stderr=None)
    try:
        await until(lambda: knock(place / "driver.sock") == 0)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.fail_after(SOON_S, shield=True):
            await process.wait()
            await process.aclose()


async def test_a_killed_driver_takes_the_judges_connections_with_it_and_brings_them_back(place: Path) -> None:
    front = place / "csi.sock"
    async with running_judge(listen=front, driver=place / "driver.sock", log=place / "calls"):
        assert knock(front) == errno.ENOENT, "without a driver there is no socket"
        async with DriverClient(str(front)) as client:
            async with running_driver(place) as process:
                await until(lambda: knock(front) == 0)
                assert (await client.probe(timeout_s=5)).is_ready
                before = front.stat().st_ino
                process.kill()
                await until(lambda: not client.is_connected())
                await until(lambda: knock(front) == errno.ECONNREFUSED)
                assert front.stat().st_ino == before, "a killed driver leaves its socket's file, and so does the judge"
            async with running_driver(place) as process:
                await until(lambda: knock(front) == 0)
                assert front.stat().st_ino != before, "a restarted driver has a new socket"
                with anyio.fail_after(SOON_S):
                    while not await _answers(client):
                        await anyio.sleep(0.05)
                process.terminate()
                await until(lambda: not client.is_connected())
                await until(lambda: knock(front) == errno.ENOENT)
    assert judge_log(place / "calls") == []


async def _answers(client: DriverClient) -> bool:
    try:
        return (await client.probe(timeout_s=5)).is_ready
    except DriverFault:
        return False


async def test_a_call_in_flight_ends_as_unknown_when_its_driver_ends(place: Path) -> None:
    driver, front, log = Driver(DeleteVolume="hang"), place / "csi.sock", place / "calls"
    outcomes: list[steps.Outcome] = []

    async def delete(client: DriverClient) -> None:
        outcomes.append(await client.run(steps.DeleteVolume(external_id="v"), timeout_s=20))

    async with (
        running_judge(listen=front, driver=place / "driver.sock", log=log),
        DriverClient(str(front)) as client,
        anyio.create_task_group() as group,
    ):
        async with driver.serve(place / "driver.sock"):
            await until(lambda: knock(front) == 0)
            group.start_soon(delete, client)
            with anyio.fail_after(SOON_S):
                await driver.hanging.wait()
        await until(lambda: outcomes)
    (outcome,) = outcomes
    assert isinstance(outcome, steps.Failed)
    assert not outcome.fault.final
    assert [line.status for line in read_log(log) if isinstance(line, Ended)][-1] == outcome.fault.status
