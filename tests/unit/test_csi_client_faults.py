"""The driver client when things go wrong: secrets in a driver's words, deadlines, death, cancelling."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel
import grpc
import grpc.aio
import pytest
from scripted_csi import Driver, run_once, running

from moorage.csi.client import DriverClient, scrub
from moorage.model import steps
from moorage.model.volume import Capability, MountOptions, Secrets

pytestmark = pytest.mark.anyio

FILES = Capability(access_mode="single-node-writer", attachment_mode="file-system")
CREATE = steps.CreateVolume(name="x", capabilities=(FILES,), secrets=Secrets({"password": "hunter2"}))

# -- secrets ---------------------------------------------------------------------------------------------------------


async def test_secrets_are_taken_out_of_the_drivers_text(tmp_path: Path) -> None:
    text = "login with hunter2 failed at http://h/?p=hunter2"
    got = await run_once(tmp_path, CREATE, CreateVolume=(grpc.StatusCode.UNAUTHENTICATED, text))
    assert isinstance(got, steps.Failed)
    assert got.fault.message == "login with [REDACTED] failed at http://h/?p=[REDACTED]"
    assert "hunter2" not in repr(got)


def test_scrubbing_of_escaped_and_overlapping_secrets_and_of_flags() -> None:
    step = steps.StageVolume(
        external_id="v",
        staging_path="/s",
        capability=FILES,
        secrets=Secrets({"a": "pa", "b": "pass", "c": 'q"/z', "d": ""}),
        mount_options=MountOptions(mount_flags=("ro", "uid=5", "password=flagged", "credentials=/etc/c")),
    )
    assert (
        scrub("a RED b", steps.DeleteVolume(external_id="v", secrets=Secrets({"a": "RED", "b": "E"}))).count("[") == 1
    )
    text = r'pass pa q"/z q\"/z q%22%2Fz flagged ro uid=5 /etc/c'
    assert scrub(text, step) == " ".join(["[REDACTED]"] * 6) + " ro uid=5 [REDACTED]"


# -- death, deadlines, cancelling --------------------------------------------------------------------------------------


async def test_deadline_is_uncertain(tmp_path: Path) -> None:
    async with running(Driver(CreateVolume="hang"), tmp_path) as client:
        got = await client.run(CREATE, timeout_s=0.5)
    assert isinstance(got, steps.Failed)
    assert (got.fault.method, got.fault.status, got.fault.final) == ("CreateVolume", "DEADLINE_EXCEEDED", False)


async def test_deadline_covers_the_questions_before_the_step(tmp_path: Path) -> None:
    async with running(Driver(GetPluginCapabilities="hang"), tmp_path) as client:
        got = await client.run(CREATE, timeout_s=0.3)
    assert isinstance(got, steps.Failed)
    assert (got.fault.method, got.fault.status) == ("CreateVolume", "DEADLINE_EXCEEDED")


async def test_driver_that_dies_during_the_call_then_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    outcomes: list[steps.Outcome] = []

    async def create(client: DriverClient) -> None:
        outcomes.append(await client.run(CREATE, timeout_s=10))

    async with DriverClient(str(path)) as client:
        async with anyio.create_task_group() as group:
            driver = Driver(CreateVolume="hang")
            async with driver.serve(path):
                group.start_soon(create, client)
                await driver.hanging.wait()
        [got] = outcomes
        assert isinstance(got, steps.Failed)
        assert (got.fault.status, got.fault.final) == ("UNAVAILABLE", False)

        path.unlink(missing_ok=True)
        got = await client.run(CREATE, timeout_s=1)
        assert isinstance(got, steps.Failed)
        assert (got.fault.status, got.fault.final) == ("UNAVAILABLE", False)

        async with Driver(CreateVolume='volume { volume_id: "v" }').serve(path):
            for _ in range(50):
                got = await client.run(CREATE, timeout_s=1)
                if isinstance(got, steps.Created):
                    break
                await anyio.sleep(0.05)
            assert got == steps.Created(external_id="v")


async def test_cancellation_passes_through(tmp_path: Path) -> None:
    driver = Driver(CreateVolume="hang")
    outcomes: list[steps.Outcome] = []
    async with running(driver, tmp_path) as client:
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.5):
                outcomes.append(await client.run(CREATE, timeout_s=10))
        with anyio.move_on_after(0.2) as scope:
            outcomes.append(await client.run(CREATE, timeout_s=10))
        assert scope.cancelled_caught
        await anyio.lowlevel.checkpoint()
        driver.answers["CreateVolume"] = 'volume { volume_id: "v" }'
        assert isinstance(await client.run(CREATE, timeout_s=5), steps.Created)
    assert outcomes == []


async def test_closed_client_fails_uncertain(tmp_path: Path) -> None:
    client = DriverClient(str(tmp_path / "csi.sock"))
    got = await client.run(CREATE, timeout_s=1)
    assert isinstance(got, steps.Failed)
    assert (got.fault.status, got.fault.final) == ("UNAVAILABLE", False)
    await client.close()
    await client.close()
