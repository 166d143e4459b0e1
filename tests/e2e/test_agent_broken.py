"""Mounts whose server dies: a real FUSE mount, the real kernel, the real mount table."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
from agent_kit import FAST, NAS, NODE, A, LosingPages, World
from served_driver import serving_judged
from tiny_fuse import TinyFuse

from moorage.agent import main
from moorage.agent.host_mounts import HostMounter
from moorage.agent.ports import DriverSpec
from moorage.agent.probes import HUNG, MountProbes
from moorage.client.api import Client
from moorage.client.transport import CallTransport
from moorage.csi import mounting
from moorage.model import steps
from moorage.model.claim import Attached
from moorage.testing.agent_world import ScriptedDriver, ScriptedFacts

pytestmark = [pytest.mark.anyio, pytest.mark.root]
replace = msgspec.structs.replace
FOUND_S = 5.0


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    if not mounting.can_mount() or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("this process may not mount FUSE filesystems")
    yield tmp_path
    for mount in reversed(mounting.read_mounts()):
        if mount.target.startswith(f"{tmp_path}/"):
            mounting.unmount(mount.target, lazy=True)


class FuseDriver(ScriptedDriver):
    """Publishes by a FUSE server of its own for each path."""

    def __init__(self, root: Path) -> None:
        super().__init__(HostMounter(), str(root / "data"))
        self.facts = ScriptedFacts(requires_stage=False)
        self.servers: dict[str, TinyFuse] = {}

    def _publish(self, step: steps.PublishVolume) -> None:
        os.makedirs(step.target_path, exist_ok=True)
        if not self._mounter.find_mounted([step.target_path]):
            self.servers[step.target_path] = TinyFuse(step.target_path)

    def _unmount(self, path: str) -> None:
        super()._unmount(path)
        if path in self.servers:
            self.servers.pop(path).kill()

    async def close(self) -> None:
        for server in self.servers.values():
            server.kill()


@asynccontextmanager
async def agent(root: Path, pages: LosingPages, driver: FuseDriver) -> AsyncIterator[None]:
    async def run(*, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
        await main.run(
            Client(CallTransport(pages.handle)),
            {NAS: DriverSpec(socket=socket)},
            state_dir=root / "state",
            node=NODE,
            settings=replace(FAST, probe_timeout_s=5.0, mount_probe_s=1.0, mount_hang_s=2.5, rescan_s=600.0),
            task_status=task_status,
        )

    async with serving_judged(driver, root / "calls") as socket, anyio.create_task_group() as group:
        await group.start(run)
        yield
        group.cancel_scope.cancel()


async def mount(root: Path, pages: LosingPages, **more: Any) -> str:
    pages.put_claim(World(root).claim(A, state=Attached(), **more))
    await pages.until(lambda: pages.path_of(A))
    return pages.path_of(A)


async def answers(path: str) -> bool:
    try:
        await anyio.to_thread.run_sync(os.statvfs, path)
    except OSError as e:
        return e.errno != errno.ENOTCONN
    return True


async def test_a_dead_fuse_mount_is_told_and_mounted_again_in_time(root: Path) -> None:
    pages, driver, target = LosingPages(), FuseDriver(root), root / "srv" / "data"
    async with agent(root, pages, driver):
        path = await mount(root, pages, target=str(target))
        assert await answers(path)
        (server,) = driver.servers.values()
        server.kill()
        assert not await answers(path)
        with anyio.fail_after(FOUND_S):
            # Between unbinding and binding the bare directory answers too: what counts is the second mount.
            while len(driver.names()) < 3 or not [m for m in mounting.read_mounts() if m.target == str(target)]:
                await anyio.sleep(0.05)
        assert await answers(path)
        fault = pages.faults()[0]
        assert fault.status == "ENOTCONN"
        assert str(target) in fault.message
        assert not fault.final
        assert driver.names() == ["Publish", "Unpublish", "Publish"]
        assert len([m for m in mounting.read_mounts() if m.target == str(target)]) == 1
        pages.release(A)
        await pages.until(lambda: A not in pages.claims)


async def test_a_dead_mount_that_is_in_use_is_told_with_its_holders_and_stays(root: Path) -> None:
    pages, driver = LosingPages(), FuseDriver(root)
    async with agent(root, pages, driver):
        path = await mount(root, pages)
        process = await anyio.open_process(["sleep", "60"], cwd=path, stdin=None, stdout=None, stderr=None)
        try:
            (server,) = driver.servers.values()
            server.kill()
            await pages.until(lambda: any(f.status == "in_use" for f in pages.faults()))
            text = next(f.message for f in pages.faults() if f.status == "in_use")
            assert f"pid {process.pid} (sleep" in text
            assert "Unpublish" not in driver.names()
        finally:
            process.kill()
            await process.wait()
        await pages.until(lambda: driver.names() == ["Publish", "Unpublish", "Publish"])
        assert await answers(path)


async def test_a_hung_mount_is_found_and_costs_nobody_else_anything(root: Path) -> None:
    point = root / "point"
    point.mkdir()
    server = TinyFuse(str(point))
    server.stop()
    probes = MountProbes(pause_s=0.1, hang_s=0.5)
    try:
        with anyio.fail_after(FOUND_S):
            assert await probes.find_dead([str(point), str(root)]) == {str(point): HUNG}
            assert await probes.find_dead([str(root)]) == {}
    finally:
        server.kill()
    with anyio.fail_after(FOUND_S):
        while await probes.find_dead([str(point)]) != {str(point): "ENOTCONN"}:
            await anyio.sleep(0.05)
