"""The embedded driver as a process: signals, its socket, its directory; and how its operations exclude each other."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import msgspec
import pytest
from local_storage_kit import keeper_on

from moorage.csi import calls
from moorage.csi.local.ledger import Ledger
from moorage.csi.local.program import main
from moorage.csi.local.records import VolumeRecord
from moorage.csi.local.server import parse_endpoint, serve, status_of
from moorage.csi.local.storage import Change, Storage
from moorage.csi.proto import csi_pb2 as csi
from moorage.errors import BadRequest, DriverFault, Rejected, Unavailable
from moorage.rpc import Request, Response, Rpc, call, unix_channel

pytestmark = pytest.mark.anyio

PROGRAM = (sys.executable, "-m", "moorage.csi.local")
CAPABILITY = csi.VolumeCapability(
    mount=csi.VolumeCapability.MountVolume(), access_mode=csi.VolumeCapability.AccessMode(mode="SINGLE_NODE_WRITER")
)


async def ask(path: Path, rpc: Rpc[Request, Response], request: Request) -> Response:
    channel = unix_channel(str(path))
    try:
        return await call(channel, rpc, request, timeout_s=20)
    finally:
        await channel.close()


def wait_until_ready(process: subprocess.Popen[bytes]) -> str:
    """The line by which the driver says that it serves."""
    assert process.stderr is not None
    line = process.stderr.readline().decode()
    if "may not mount" in line:  # an ordinary user is told so first
        line = process.stderr.readline().decode()
    assert "ready" in line, line
    return line


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are killed at the end of the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def start(processes: list[subprocess.Popen[bytes]], place: Path, *more: str) -> subprocess.Popen[bytes]:
    arguments = ("--endpoint", f"unix://{place}/run/csi.sock", "--data", f"{place}/data", *more)
    processes.append(subprocess.Popen((*PROGRAM, *arguments), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL))
    return processes[-1]


async def test_sigterm_ends_it_cleanly(started: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    process = start(started, tmp_path, "--node-id", "node-1")
    line = wait_until_ready(process)
    path = tmp_path / "run" / "csi.sock"
    assert str(path) in line
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    info = await ask(path, calls.NODE_GET_INFO, csi.NodeGetInfoRequest())
    assert info.node_id == "node-1"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert not path.exists()
    assert process.stderr is not None
    assert process.stderr.read() == b""


async def test_a_killed_drivers_socket_is_taken_over(started: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    path = tmp_path / "run" / "csi.sock"
    process = start(started, tmp_path, "--node-id", "node-1")
    wait_until_ready(process)
    request = csi.CreateVolumeRequest(name="one", volume_capabilities=[CAPABILITY])
    volume = (await ask(path, calls.CREATE_VOLUME, request)).volume
    publish = csi.ControllerPublishVolumeRequest(
        volume_id=volume.volume_id, node_id="node-1", volume_capability=CAPABILITY
    )
    await ask(path, calls.CONTROLLER_PUBLISH_VOLUME, publish)
    process.kill()
    process.wait()
    assert path.exists()
    wait_until_ready(start(started, tmp_path, "--node-id", "node-2"))
    again = await ask(path, calls.CREATE_VOLUME, request)
    assert again.volume.volume_id == volume.volume_id
    publish.node_id = "node-2"
    with pytest.raises(DriverFault) as caught:
        await ask(path, calls.CONTROLLER_PUBLISH_VOLUME, publish)
    assert caught.value.status == "FAILED_PRECONDITION"
    assert "node-1" in caught.value.message


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    arguments = ["--endpoint", f"unix://{tmp_path}/run/csi.sock", "--data", f"{tmp_path}/data", "--die-with-parent"]
    program = (
        f"import subprocess, time; print(subprocess.Popen({[*PROGRAM, *arguments]!r}).pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen((sys.executable, "-c", program), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    socket_path = tmp_path / "run" / "csi.sock"
    try:
        wait_for(socket_path.exists)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    wait_for(lambda: not Path(f"/proc/{child}").exists() or "\nState:\tZ" in Path(f"/proc/{child}/status").read_text())
    assert not socket_path.exists()


def wait_for(condition: object) -> None:
    assert callable(condition)
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        ("tcp://127.0.0.1:1", "absolute/path.sock"),
        ("unix://relative.sock", "absolute/path.sock"),
        (f"unix:///{'x' * 120}", "107 bytes"),
    ],
)
def test_endpoints_that_cannot_be_served(endpoint: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=text):
        parse_endpoint(endpoint)
    assert (
        subprocess.run(
            (*PROGRAM, "--endpoint", endpoint, "--data", tmp_path), capture_output=True, check=False
        ).returncode
        == 2
    )


async def test_node_ids_that_cannot_be_topology_values(tmp_path: Path) -> None:
    for node_id in ("", "-a", "a b", "x" * 64, "é"):
        with pytest.raises(BadRequest, match="node id"):
            await serve(endpoint=f"unix://{tmp_path}/csi.sock", data_dir=tmp_path / "data", node_id=node_id)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (errno.ENOSPC, "RESOURCE_EXHAUSTED"),
        (errno.EDQUOT, "RESOURCE_EXHAUSTED"),
        (errno.ECANCELED, "UNAVAILABLE"),
        (errno.EBUSY, "UNAVAILABLE"),
        (errno.EIO, "INTERNAL"),
        (errno.EACCES, "INTERNAL"),
    ],
)
def test_statuses_of_the_kernels_errors(number: int, status: str) -> None:
    assert status_of(OSError(number, "text")).name == status


def test_endpoint_forms() -> None:
    assert parse_endpoint("unix:///a/b.sock") == parse_endpoint("unix:/a/b.sock") == parse_endpoint("/a/b.sock")


def test_the_program_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "recorded, not enforced" in " ".join(capsys.readouterr().out.split())


async def test_a_served_socket_and_a_plain_file_are_left_alone(tmp_path: Path) -> None:
    async def refused(kind: type[Exception]) -> None:
        with pytest.raises(ExceptionGroup) as caught:
            await serve(endpoint=str(path), data_dir=tmp_path / "data", node_id="n")
        assert caught.group_contains(kind, depth=None)

    path = tmp_path / "csi.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        await refused(Unavailable)
        assert path.exists()
    path.unlink()
    path.write_text("precious")
    await refused(BadRequest)
    assert path.read_text() == "precious"


def test_one_process_per_directory(tmp_path: Path) -> None:
    first, second = Storage(tmp_path), Storage(tmp_path, lock_wait_s=0.1)
    first.open()
    with pytest.raises(Unavailable, match="another process uses"):
        second.open()
    first.close()
    second.open()
    second.close()


def volume(number: int, **fields: object) -> VolumeRecord:
    record = VolumeRecord(id=f"id-{number}", name=f"name-{number}", serial=number, capacity_bytes=1000, created_at_ns=1)
    return msgspec.structs.replace(record, **fields)


def test_a_group_of_changes_fails_one_by_one(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.open()
    good, bad = volume(1), volume(2, id="missing/parent")
    errors = storage.commit([Change(action="create", record=one) for one in (good, bad, volume(3))])
    assert [error is None for error in errors] == [True, False, True]
    errors = storage.commit(
        [
            Change(action="rewrite", record=msgspec.structs.replace(good, capacity_bytes=2000)),
            Change(action="remove", record=volume(3)),
        ]
    )
    assert errors == [None, None]
    storage.close()
    volumes, snapshots = Storage(tmp_path).open()
    assert [(one.id, one.capacity_bytes) for one in volumes.ordered()] == [("id-1", 2000)]
    assert len(snapshots) == 0


def test_leftovers_go_and_unreadable_records_stay(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.open()
    storage.commit([Change(action="create", record=volume(number)) for number in (1, 2)])
    (tmp_path / "temp" / "half" / "data").mkdir(parents=True)
    (tmp_path / "temp" / "id-1.json").write_text("{")
    storage.close()
    ledger = Ledger(str(tmp_path / "records.db"))
    ledger.write([("volumes/id-2", b"{"), ("volumes/id-3", msgspec.json.encode(volume(4)))])
    ledger.close()
    (tmp_path / "volumes" / "id-5" / "data").mkdir(parents=True)
    volumes, _ = storage.open()
    assert [one.id for one in volumes.ordered()] == ["id-1"]
    assert storage.sweep() == 2
    assert os.listdir(tmp_path / "temp") == os.listdir(tmp_path / "trash") == []
    for name in ("id-2", "id-5"):
        assert (tmp_path / "volumes" / name / "data").is_dir()
    storage.close()


async def test_operations_of_one_key_exclude_each_other(tmp_path: Path) -> None:
    release = anyio.Event()
    order: list[str] = []

    async def long() -> str:
        await release.wait()
        order.append("long")
        return "done"

    async def short() -> str:
        order.append("short")
        return "done"

    async with keeper_on(Storage(tmp_path)) as keeper, anyio.create_task_group() as group:
        group.start_soon(keeper.run, "name:a", long)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(Rejected) as caught:
            await keeper.run("name:a", short)
        assert (caught.value.code, order) == ("ABORTED", [])
        assert await keeper.run("name:b", short) == "done"
        group.start_soon(keeper.run, "name:a", short)
        await anyio.wait_all_tasks_blocked()
        release.set()
    assert order == ["short", "long", "short"]


async def test_an_operation_outlives_its_caller(tmp_path: Path) -> None:
    release, ended = anyio.Event(), anyio.Event()

    async def operation() -> None:
        await release.wait()
        ended.set()

    async with keeper_on(Storage(tmp_path)) as keeper:
        with anyio.move_on_after(0.05) as scope:
            await keeper.run("name:a", operation)
        assert scope.cancelled_caught
        assert not ended.is_set()
        release.set()
        with anyio.fail_after(5):
            await ended.wait()


async def test_what_is_being_copied_is_not_deleted(tmp_path: Path) -> None:
    async with keeper_on(Storage(tmp_path)) as keeper:
        async with keeper.copying_from("id"), keeper.copying_from("id"):
            with pytest.raises(Rejected) as caught:
                keeper.check_not_copied("id")
            assert caught.value.code == "ABORTED"
        keeper.check_not_copied("id")


async def test_a_failed_copy_leaves_nothing(tmp_path: Path) -> None:
    async with keeper_on(Storage(tmp_path)) as keeper:
        with pytest.raises(FileNotFoundError):
            await keeper.run("name:a", partial(keeper.copy, tmp_path / "missing", volume(1)))
        assert os.listdir(tmp_path / "temp") == []
