"""The agent against real processes on real mounts: a release that waits for them, and a fence that ends them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from agent_kit import FAST, NAS, NODE, A, LosingPages, World
from served_driver import serving_judged

from moorage.agent import main
from moorage.agent.host_mounts import HostMounter
from moorage.agent.main import Surroundings
from moorage.agent.ports import AgentSettings, DriverSpec
from moorage.client.api import Client
from moorage.client.transport import CallTransport
from moorage.csi import mounting
from moorage.model.claim import Attached
from moorage.testing.agent_world import ScriptedDriver

pytestmark = [pytest.mark.anyio, pytest.mark.root]
replace = msgspec.structs.replace
WRITER = """
import os, signal, sys, time
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(sys.argv[1] + "/log", "a") as log:
    print("ready", flush=True)
    number = 0
    while True:
        number += 1
        print(number, file=log, flush=True)
        os.fsync(log.fileno())
        time.sleep(0.005)
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    if not mounting.can_mount():
        pytest.skip("this process may not mount")
    (tmp_path / "data" / "ext-1").mkdir(parents=True)
    yield tmp_path
    for mount in reversed(mounting.read_mounts()):
        if mount.target.startswith(f"{tmp_path}/"):
            mounting.unmount(mount.target, lazy=True)


class Node:
    """A node with a real mount table, a clock that the test sets, and writers."""

    def __init__(self, root: Path, settings: AgentSettings) -> None:
        self.root = root
        self.settings = replace(settings, probe_timeout_s=5.0)
        self.pages = LosingPages(lease_s=0.06, grace_s=30.0)
        self.driver = ScriptedDriver(HostMounter(), str(root / "data"))
        self.now_s = 0.0
        self.writers: list[subprocess.Popen[bytes]] = []

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[None]:
        async def run(*, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
            around = Surroundings(ticks=lambda: self.now_s)
            await main.run(
                Client(CallTransport(self.pages.handle)),
                {NAS: DriverSpec(socket=socket)},
                state_dir=self.root / "state",
                node=NODE,
                settings=self.settings,
                around=around,
                task_status=task_status,
            )

        try:
            judged = serving_judged(self.driver, self.root / "calls")
            async with judged as socket, anyio.create_task_group() as group:
                await group.start(run)
                yield
                group.cancel_scope.cancel()
        finally:
            for writer in self.writers:
                writer.kill()
                writer.communicate()

    async def mount(self, **more: Any) -> str:
        self.pages.put_claim(World(self.root / "other").claim(A, state=Attached(), **more))
        await self.pages.until(lambda: self.pages.path_of(A))
        return self.pages.path_of(A)

    def write(self, path: str, manner: str = "polite") -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", WRITER, path, manner], stdout=subprocess.PIPE)
        self.writers.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    def read_log(self, place: str | Path) -> list[str]:
        return (Path(place) / "log").read_text().splitlines()

    def list_mounts(self) -> list[str]:
        return [m.target for m in mounting.read_mounts() if m.target.startswith(f"{self.root}/")]


async def test_a_release_waits_for_who_uses_the_volume_and_names_them(root: Path) -> None:
    node = Node(root, FAST)
    async with node.agent():
        target = await node.mount(target=str(root / "srv"))
        writer = node.write(target)
        calls, mounts = len(node.driver.calls), node.list_mounts()
        node.pages.release(A)
        await node.pages.until(lambda: len(node.pages.faults()) >= 3)
        fault = node.pages.faults()[-1]
        assert (fault.status, fault.final) == ("in_use", False)
        assert f"in use by pid {writer.pid} (python" in fault.message
        assert f": {target}/log" in fault.message
        assert node.list_mounts() == mounts
        assert writer.poll() is None
        assert len(node.driver.calls) == calls
        writer.terminate()
        writer.wait()
        await node.pages.until(lambda: A not in node.pages.claims)
        assert node.list_mounts() == []


async def test_a_lazy_driver_is_not_asked_while_the_path_is_in_use(root: Path) -> None:
    """Such a driver would take the volume from under its user."""
    node = Node(root, FAST)
    node.driver._unmount = lambda path: mounting.unmount(path, lazy=True)  # type: ignore[method-assign]
    async with node.agent():
        path = await node.mount()
        writer = node.write(path)
        node.pages.release(A)
        await node.pages.until(lambda: len(node.pages.faults()) >= 2)
        assert "Unpublish" not in node.driver.names()
        assert path in node.list_mounts()
        writer.terminate()
        writer.wait()
        await node.pages.until(lambda: A not in node.pages.claims)


@pytest.mark.parametrize(("manner", "code"), [("polite", signal.SIGTERM), ("stubborn", signal.SIGKILL)])
async def test_a_fence_ends_the_writers_and_unmounts_everything(root: Path, manner: str, code: signal.Signals) -> None:
    node = Node(root, replace(FAST, is_self_fencing=True))
    async with node.agent():
        target = await node.mount(target=str(root / "srv"))
        writer = node.write(target, manner)
        node.pages.is_down = True
        node.pages.change()
        node.now_s = 8.0
        asked = len(node.pages.requests)
        await node.pages.until(lambda: len(node.pages.requests) > asked + 3)
        assert writer.poll() is None
        node.now_s = 12.0
        if manner == "stubborn":
            with anyio.move_on_after(0.5):
                await node.pages.until(lambda: writer.poll() is not None)
            assert writer.poll() is None
            assert target in node.list_mounts()
            node.now_s = 20.0
        await node.pages.until(lambda: writer.poll() is not None)
        assert writer.returncode == -code
        await node.pages.until(lambda: node.list_mounts() == [])
        lines = node.read_log(root / "data" / "ext-1")
        assert lines == [str(n) for n in range(1, len(lines) + 1)]
        node.pages.is_down = False
        await node.pages.until(lambda: target in node.list_mounts())
        assert node.read_log(target) == lines


async def test_a_fence_ends_no_reader(root: Path) -> None:
    node = Node(root, replace(FAST, is_self_fencing=True))
    async with node.agent():
        path = await node.mount(read_only=True)
        reader = await anyio.open_process(["sleep", "60"], cwd=path, stdin=None, stdout=None, stderr=None)
        try:
            node.pages.is_down = True
            node.pages.change()
            node.now_s = 35.0
            await anyio.sleep(0.5)
            assert reader.returncode is None
            assert path in node.list_mounts()
        finally:
            reader.kill()
            await reader.wait()
        node.pages.is_down = False
