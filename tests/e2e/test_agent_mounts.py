"""The agent on this host's own mount table: real bind mounts by the agent and by the driver."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
from served_driver import check_log, serving_judged

from moorage.agent import main
from moorage.agent.host_mounts import HostMounter
from moorage.agent.ports import AgentSettings, DriverSpec
from moorage.client.api import Client
from moorage.client.transport import CallTransport
from moorage.csi import mounting
from moorage.model import steps
from moorage.model.assignment import StepAssignment, StepReport
from moorage.model.claim import Attached, Claim
from moorage.model.ids import AllocationId, ClaimId, NamespaceName, NodeId, PluginId, Revision, VolumeId
from moorage.model.node import Node
from moorage.model.volume import Capability
from moorage.testing.agent_world import Pages, ScriptedDriver
from moorage.testing.driver_judge import running_judge

pytestmark = [pytest.mark.anyio, pytest.mark.root]
replace = msgspec.structs.replace

NAS = PluginId("nas")
A, B = ClaimId("a"), ClaimId("b")
NODE = Node(id=NodeId("3c1b7a52-0000-4000-8000-000000000001"), name="one", boot_id="boot-1")
SETTINGS = AgentSettings(probe_young_s=0.05, retry_cap_s=0.1, rescan_s=0.1)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A directory; whatever a failed test left mounted below it is taken away."""
    if not mounting.can_mount():
        pytest.skip("this process may not mount")
    (tmp_path / "data" / "ext-1").mkdir(parents=True)
    (tmp_path / "data" / "ext-1" / "hello").write_text("from the volume")
    yield tmp_path
    for mount in reversed(mounting.read_mounts()):
        if mount.target.startswith(f"{tmp_path}/"):
            mounting.unmount(mount.target, lazy=True)


def below(root: Path) -> list[str]:
    return [m.target for m in mounting.read_mounts() if m.target.startswith(f"{root}/")]


def claim(**more: Any) -> Claim:
    return Claim(
        **{
            "id": A,
            "allocation_id": AllocationId("alloc"),
            "name": "data",
            "namespace": NamespaceName("default"),
            "volume_id": VolumeId("vol"),
            "plugin_id": NAS,
            "external_id": "ext-1",
            "external_node_id": "n",
            "node_id": NODE.id,
            "read_only": False,
            "access_mode": "single-node-multi-writer",
            "attachment_mode": "file-system",
            "state": Attached(),
            **more,
        }
    )


@asynccontextmanager
async def agent(root: Path, pages: Pages, driver: ScriptedDriver, *, boot_id: str = "boot-1") -> AsyncIterator[None]:
    async def run(*, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
        await main.run(
            Client(CallTransport(pages.handle)),
            {NAS: DriverSpec(socket=socket)},
            state_dir=root / "state",
            node=replace(NODE, boot_id=boot_id),
            settings=SETTINGS,
            task_status=task_status,
        )

    async with serving_judged(driver, root / "calls") as socket, anyio.create_task_group() as group:
        await group.start(run)
        yield
        group.cancel_scope.cancel()


def driver_for(root: Path) -> ScriptedDriver:
    return ScriptedDriver(HostMounter(), str(root / "data"))


async def mount(pages: Pages, **more: Any) -> Path:
    wanted = claim(**more)
    pages.put_claim(wanted)
    await pages.until(lambda: pages.path_of(wanted.id))
    return Path(pages.path_of(wanted.id))


async def release(pages: Pages, claim_id: ClaimId = A) -> None:
    pages.release(claim_id)
    await pages.until(lambda: claim_id not in pages.claims)


async def ask_for(pages: Pages, step: steps.ControllerStep) -> steps.Outcome:
    """What comes of a controller's step."""
    number = len(pages.reports)
    key = f"step-{number}"
    pages.hand_out(
        StepAssignment(key=key, revision=Revision(1), plugin_id=NAS, serial_key="v", step=step, timeout_s=20)
    )
    await pages.until(lambda: any(isinstance(r, StepReport) and r.key == key for r in pages.reports[number:]))
    return next(r.outcome for r in pages.reports[number:] if isinstance(r, StepReport) and r.key == key)


def read(path: Path) -> str:
    return (path / "hello").read_text()


def is_refused(path: Path) -> bool:
    try:
        (path / "new").write_text("x")
    except OSError:
        return True
    return False


async def test_a_consumer_finds_its_data_and_a_release_leaves_nothing(root: Path) -> None:
    pages, driver = Pages(), driver_for(root)
    async with agent(root, pages, driver):
        path = await mount(pages, target=str(root / "srv" / "data"))
        assert read(path) == "from the volume"
        assert len(below(root)) == 3
        await release(pages)
    assert below(root) == []
    assert not (root / "srv").exists()
    assert (root / "data" / "ext-1" / "hello").exists()


async def test_a_read_only_claim_cannot_write_at_its_target(root: Path) -> None:
    pages, driver = Pages(), driver_for(root)
    async with agent(root, pages, driver):
        writer = await mount(pages, id=B)
        reader = await mount(pages, read_only=True, target=str(root / "ro"))
        assert is_refused(reader)
        assert not is_refused(writer)
        assert (reader / "new").read_text() == "x"
        await release(pages, A)
        assert read(writer) == "from the volume"
        await release(pages, B)
    assert below(root) == []


async def test_an_open_file_survives_a_restart_of_the_agent(root: Path) -> None:
    pages, driver = Pages(), driver_for(root)
    async with agent(root, pages, driver):
        path = await mount(pages, target=str(root / "srv"))
        before = below(root)
    with (path / "hello").open() as file:
        async with agent(root, pages, driver):
            assert below(root) == before
            pages.release(A)
            await pages.until(pages.faults)
            assert pages.faults()[0].status == "EBUSY"
            assert file.read() == "from the volume"
            file.close()
            await pages.until(lambda: A not in pages.claims)
    assert below(root) == []


async def test_after_a_reboot_the_target_is_mounted_again(root: Path) -> None:
    pages, driver = Pages(), driver_for(root)
    async with agent(root, pages, driver):
        path = await mount(pages, target=str(root / "srv"))
    for target in reversed(below(root)):
        mounting.unmount(target)
    async with agent(root, pages, driver, boot_id="boot-2"):
        await pages.until(lambda: len(below(root)) == 3)
        await pages.until((path / "hello").exists)
        await release(pages)
    assert below(root) == []
    assert not (root / "srv").exists()


async def test_orphans_go_at_start(root: Path) -> None:
    pages, driver = Pages(), driver_for(root)
    async with agent(root, pages, driver):
        await mount(pages, target=str(root / "srv"))
    pages.claims.clear()
    async with agent(root, pages, driver):
        assert below(root) == []
    assert driver.names()[-2:] == ["Unpublish", "Unstage"]


async def test_somebody_elses_mount_at_the_target_stays(root: Path) -> None:
    pages, driver = Pages(), driver_for(root)
    other, target = root / "other", root / "srv"
    other.mkdir()
    target.mkdir()
    mounting.bind(other, target)
    async with agent(root, pages, driver):
        pages.put_claim(claim(target=str(target)))
        await pages.until(lambda: A not in pages.claims)
    assert "another mount" in pages.faults()[0].message
    assert below(root) == [str(target)]


async def test_a_block_device_is_bound_onto_a_file(root: Path) -> None:
    pages, driver = Pages(), driver_for(root)
    device, target = root / "data" / "disk", root / "dev" / "xvda"
    device.write_bytes(b"blocks")

    def publish_file(step: steps.PublishVolume) -> None:
        assert step.capability.attachment_mode == "block-device"
        os.close(os.open(step.target_path, os.O_CREAT))
        mounting.bind(device, step.target_path)

    driver._publish = publish_file  # type: ignore[method-assign]
    driver.facts = replace(driver.facts, requires_stage=False)
    async with agent(root, pages, driver):
        path = await mount(pages, target=str(target), attachment_mode="block-device")
        assert await anyio.Path(path).read_bytes() == b"blocks"
        assert stat.S_ISREG((await anyio.Path(path).stat()).st_mode)
        await release(pages)
    assert below(root) == []
    assert not target.parent.exists()


async def test_a_target_below_a_symlink_is_found_again(root: Path) -> None:
    pages, driver = Pages(), driver_for(root)
    (root / "real").mkdir()
    (root / "alias").symlink_to(root / "real")
    async with agent(root, pages, driver):
        path = await mount(pages, target=str(root / "alias" / "data"))
        assert read(path) == "from the volume"
        assert str(root / "real" / "data") in below(root)
    async with agent(root, pages, driver):
        await release(pages)
    assert below(root) == []
    assert not (root / "real" / "data").exists()


async def test_with_the_embedded_driver_from_create_to_release(root: Path) -> None:
    pages = Pages()
    place = Path(tempfile.mkdtemp(prefix="served-", dir="/tmp"))
    socket, behind, log = place / "csi.sock", place / "driver.sock", root / "calls"
    arguments = ["--endpoint", f"unix://{behind}", "--data", str(root / "pool"), "--node-id", "n"]
    command = [sys.executable, "-m", "moorage.csi.local", *arguments]
    process = await anyio.open_process(command, stderr=subprocess.DEVNULL)
    client = Client(CallTransport(pages.handle))
    capability = Capability(access_mode="single-node-writer", attachment_mode="file-system")
    try:
        async with running_judge(listen=socket, driver=behind, log=log), anyio.create_task_group() as group:
            drivers = {NAS: DriverSpec(socket=str(socket))}
            await group.start(partial(main.run, client, drivers, state_dir=root / "state", settings=SETTINGS))
            await pages.until(lambda: NAS in pages.instances and pages.instances[NAS].healthy)
            step = steps.CreateVolume(name="fresh", capabilities=(capability,), required_bytes=1 << 20)
            made = await ask_for(pages, step)
            assert isinstance(made, steps.Created)
            external_id = made.external_id
            attached = await ask_for(
                pages,
                steps.AttachVolume(
                    external_id=external_id, external_node_id="n", capability=capability, context=made.context
                ),
            )
            assert isinstance(attached, steps.Attached)
            wanted = claim(
                external_id=external_id,
                access_mode="single-node-writer",
                target=str(root / "srv"),
                state=Attached(publish_context=attached.publish_context),
            )
            pages.put_claim(wanted, context=made.context)
            await pages.until(lambda: pages.path_of(A))
            await anyio.Path(root / "srv" / "file").write_text("kept")
            await release(pages)
            assert below(root) == []
            detach = steps.DetachVolume(external_id=external_id, external_node_id="n")
            assert await ask_for(pages, detach) == steps.Done()
            group.cancel_scope.cancel()
    finally:
        process.terminate()
        with anyio.fail_after(10, shield=True):
            await process.aclose()
        shutil.rmtree(place)
    check_log(log)
