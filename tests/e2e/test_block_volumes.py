"""Raw block volumes from the API to a real device: data written through it is there again on the next use."""

from __future__ import annotations

import os
import stat
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
from asking import ask, delete, describe_volume, get, list_external, put
from dev_server import Fleet, Program, wait_until
from left_behind import find_mounts

from moorage.csi.local import loop

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _loops() -> None:
    if not loop.can_attach():
        pytest.skip("no loop devices here")


def list_loops(place: Path) -> list[str]:
    """Lines of losetup about files below the place."""
    found = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if str(place) in line]


def describe_block(volume_id: str, *, size: int = 8 * MIB, **more: str) -> dict[str, Any]:
    """The body of a create of one block volume."""
    body = describe_volume(volume_id, size=size)
    body["Volumes"][0]["RequestedCapabilities"] = [
        {"AccessMode": "single-node-writer", "AttachmentMode": "block-device"},
        {"AccessMode": "single-node-reader-only", "AttachmentMode": "block-device"},
    ]
    body["Volumes"][0] |= more
    return body


class Used:
    """A block volume in use, its device at ``target``."""

    def __init__(self, url: str, volume_id: str, target: Path, *, read_only: bool = False) -> None:
        self.url = url
        self.target = target
        self.id = str(uuid.uuid4())
        request = {
            "Name": "disk",
            "Source": volume_id,
            "ReadOnly": read_only,
            "AccessMode": "single-node-reader-only" if read_only else "single-node-writer",
            "AttachmentMode": "block-device",
            "Target": str(target),
        }
        node_id = get(url, "/v1/nodes")[0]["ID"]
        allocation = {"ID": self.id, "Name": "dd", "NodeID": node_id, "Volumes": [request]}
        put(url, "/v1/allocations", {"Allocation": allocation})
        wait_until(lambda: self.read()["ClientStatus"] == "running", f"the use runs: {self.read()}")
        assert stat.S_ISBLK(target.stat().st_mode)

    def read(self) -> Any:
        """The allocation."""
        return get(self.url, f"/v1/allocation/{self.id}")

    def stop(self) -> None:
        """End the use."""
        put(self.url, f"/v1/allocation/{self.id}/stop")
        wait_until(lambda: self.read()["ClientStatus"] == "complete", f"the use is over: {self.read()}")
        assert not os.path.lexists(self.target)


def write(device: Path, content: bytes, *, at_mib: int) -> None:
    command = ["dd", f"of={device}", "bs=1M", f"seek={at_mib}", "conv=fsync,notrunc", "status=none"]
    subprocess.run(command, input=content, check=True, timeout=20)


def read(device: Path, *, at_mib: int) -> bytes:
    command = ["dd", f"if={device}", "bs=1M", f"skip={at_mib}", "count=1", "status=none"]
    return subprocess.run(command, capture_output=True, check=True, timeout=20).stdout


def size_of(device: Path) -> int:
    found = subprocess.run(["blockdev", "--getsize64", str(device)], capture_output=True, text=True, check=True)
    return int(found.stdout)


def check_nothing_left(fleet: Fleet, url: str) -> None:
    assert get(url, "/v1/volumes?type=csi") == []
    assert list_external(url) == []
    assert list_loops(fleet.place) == []
    assert find_mounts(fleet.place) == {}


def test_a_block_volume_from_create_to_delete(fleet: Fleet) -> None:
    server = fleet.start_dev()
    url, target = server.url, fleet.mounts / "dev" / "xvda"
    put(url, "/v1/volume/csi/disk/create", describe_block("disk"))
    content = os.urandom(MIB)
    used = Used(url, "disk", target)
    assert len(list_loops(fleet.place)) == 1
    write(target, content, at_mib=3)
    used.stop()
    assert list_loops(fleet.place) == []
    used = Used(url, "disk", target)
    assert read(target, at_mib=3) == content
    put(url, "/v1/volume/csi/disk/create", describe_block("disk", size=32 * MIB))
    assert get(url, "/v1/volume/csi/disk")["Capacity"] == 32 * MIB
    wait_until(lambda: size_of(target) == 32 * MIB, "the device in use has grown")
    write(target, content, at_mib=31)
    assert read(target, at_mib=3) == content
    refused = ask(url, "DELETE", "/v1/volume/csi/disk/delete")
    assert refused.status == 500
    assert "volume in use" in refused.text
    used.stop()
    used = Used(url, "disk", target, read_only=True)
    assert read(target, at_mib=31) == content
    with pytest.raises(PermissionError), target.open("r+b", buffering=0) as device:
        device.write(b"x")
    used.stop()
    delete(url, "/v1/volume/csi/disk/delete")
    check_nothing_left(fleet, url)


def test_copies_of_a_block_volume(fleet: Fleet) -> None:
    server = fleet.start_dev()
    url, target = server.url, fleet.mounts / "xvda"
    put(url, "/v1/volume/csi/disk/create", describe_block("disk"))
    used = Used(url, "disk", target)
    first, later = os.urandom(MIB), os.urandom(MIB)
    write(target, first, at_mib=1)
    volume = get(url, "/v1/volume/csi/disk")
    snapshot = {"SourceVolumeID": "disk", "Name": "snap", "PluginID": volume["PluginID"]}
    made = put(url, "/v1/volumes/snapshot", {"Snapshots": [snapshot]})["Snapshots"][0]
    write(target, later, at_mib=1)
    used.stop()
    put(url, "/v1/volume/csi/old/create", describe_block("old", SnapshotID=made["ID"]))
    put(url, "/v1/volume/csi/copy/create", describe_block("copy", CloneID=volume["ExternalID"]))
    for volume_id, content in (("old", first), ("copy", later)):
        used = Used(url, volume_id, target)
        assert read(target, at_mib=1) == content, volume_id
        used.stop()
    for volume_id in ("disk", "old", "copy"):
        delete(url, f"/v1/volume/csi/{volume_id}/delete")
    delete(url, f"/v1/volumes/snapshot?plugin_id={volume['PluginID']}&snapshot_id={made['ID']}")
    check_nothing_left(fleet, url)


@pytest.mark.guarded
def test_a_filesystem_on_a_block_volume_lives_through_kills(fleet: Fleet) -> None:
    server, driver = fleet.start_server(), fleet.start_driver()
    agent = fleet.start_agent(server)
    url, target, parts = server.url, fleet.mounts / "xvda", (server, driver, agent)
    wait_until(lambda: get(url, "/v1/plugins?type=csi"), "the driver is known")
    put(url, "/v1/volume/csi/disk/create", describe_block("disk", size=16 * MIB))
    used = Used(url, "disk", target)
    before = find_mounts(fleet.place)
    number = target.stat().st_rdev
    subprocess.run(["mke2fs", "-q", "-F", str(target)], check=True, timeout=20)
    kill_each(parts, lambda: write(target, b"x" * MIB, at_mib=12))
    wait_until(lambda: _is_healthy(url), "the driver is healthy")
    assert (find_mounts(fleet.place), target.stat().st_rdev) == (before, number)
    assert len(list_loops(fleet.place)) == 1
    assert read(target, at_mib=12) == b"x" * MIB
    used.stop()
    delete(url, "/v1/volume/csi/disk/delete")
    check_nothing_left(fleet, url)


def kill_each(parts: tuple[Program, ...], work: Any) -> None:
    for part in parts:
        part.kill()
        work()
        part.restart()


def _is_healthy(url: str) -> bool:
    plugin = get(url, "/v1/plugin/csi/hostpath")
    return bool(plugin["NodesHealthy"] and plugin["ControllersHealthy"])
