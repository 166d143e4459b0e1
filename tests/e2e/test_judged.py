"""Each way by which tests bring a judge before a driver really judges: a planted breach fails the test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anyio
import pytest
from dev_server import IS_JUDGED, Fleet, running_fleet, wait_until
from served_driver import serving_judged

from moorage.agent.host_mounts import HostMounter
from moorage.csi.client import DriverClient
from moorage.model import steps
from moorage.model.volume import Capability
from moorage.testing.agent_world import ScriptedDriver

pytestmark = pytest.mark.skipif(not IS_JUDGED, reason="judges are left out")
FOUND = "publish_without_stage: NodePublishVolume 'never-staged'"


async def breach(socket: str) -> None:
    """Publish what was never staged, by the way that an agent takes."""
    place = Path(socket).parent / "breach"
    step = steps.PublishVolume(
        external_id="never-staged",
        target_path=f"{place}/target",
        staging_path=f"{place}/staging",
        capability=Capability(access_mode="single-node-writer", attachment_mode="file-system"),
    )
    async with DriverClient(socket) as client:
        await client.probe(timeout_s=10)
        await client.run(step, timeout_s=10)


def breach_later(socket: Path) -> None:
    wait_until(socket.is_socket, f"{socket} is there")
    anyio.run(breach, str(socket))


def start_dev(fleet: Fleet) -> Path:
    fleet.start_dev()
    return fleet.place / "dev" / "run" / "hostpath.sock"


def start_driver(fleet: Fleet) -> Path:
    fleet.start_driver()
    return fleet.driver_socket


def start_supervised(fleet: Fleet) -> Path:
    socket = fleet.place / "d" / "csi.sock"
    command = [sys.executable, "-m", "moorage", "driver", "local", "--endpoint", f"unix://{socket}"]
    command += ["--data", str(fleet.place / "volumes"), "--node-id", "one"]
    words = json.dumps(fleet.judge_command(command, socket=socket))
    settings = fleet.place / "moorage.toml"
    settings.write_text(f'[[driver]]\nname = "disk"\ncommand = {words}\nsocket_dir = "{socket.parent}"\n')
    server = fleet.start_server()
    words = ["agent", "--config", str(settings), "--server", server.url, "--data-dir", str(fleet.place / "agent")]
    fleet._start(words, "agent")
    return socket


@pytest.mark.parametrize("start", [start_dev, start_driver, start_supervised], ids=lambda one: one.__name__)
def test_a_breach_at_a_driver_of_a_fleet_fails_the_test(start: object) -> None:
    assert callable(start)
    with pytest.raises(AssertionError, match=FOUND), running_fleet() as fleet:
        breach_later(start(fleet))


@pytest.mark.anyio
async def test_a_breach_at_a_driver_that_is_an_object_fails_the_test(tmp_path: Path) -> None:
    (tmp_path / "data" / "never-staged").mkdir(parents=True)
    driver = ScriptedDriver(HostMounter(), str(tmp_path / "data"))
    with pytest.raises(AssertionError, match=FOUND):
        async with serving_judged(driver, tmp_path / "calls") as socket:
            await breach(socket)
    assert driver.names() == ["Publish"]
