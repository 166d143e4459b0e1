"""Kill the embedded driver at random moments of a seeded workload; what it answered must be there afterwards.

Each test is one seed and a chain of lives of one driver on one directory: a start checks what the previous life left
and is itself killed in the middle of its work. Checked: every answered create, clone, snapshot, expansion and
publication is there, every answered delete is done, no name exists twice, a replay of an unanswered call gives one
volume, copies are whole, nothing half-made is left.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest

from moorage.csi import calls
from moorage.csi.local.ledger import Ledger
from moorage.csi.proto import csi_pb2 as csi
from moorage.errors import DriverFault
from moorage.rpc import Channel, Request, Response, Rpc, call, unix_channel

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LIVES = 16
WORKERS = 6
FILES = 12
MIB = 1024 * 1024
CAPABILITY = csi.VolumeCapability(
    mount=csi.VolumeCapability.MountVolume(),
    access_mode=csi.VolumeCapability.AccessMode(mode="SINGLE_NODE_WRITER"),
)


class Thing:
    """A volume or snapshot as the client knows it. What is ``unsure`` was asked for and not answered."""

    def __init__(self, name: str, *, source: str = "", filled: bool = False) -> None:
        self.name = name
        self.source = source
        self.filled = filled
        self.id = ""
        self.size = MIB
        self.size_unsure = 0
        self.published: bool | None = False
        self.deletion_unsure = False
        self.busy = False


class World:
    """All that one directory should hold."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place = place
        self.random = random.Random(seed)
        self.volumes: list[Thing] = []
        self.snapshots: list[Thing] = []
        self.count = 0
        self.answered = 0

    def new_name(self) -> str:
        self.count += 1
        return f"n{self.count}"

    def data(self, kind: str, thing: Thing) -> Path:
        return self.place / "data" / kind / thing.id / "data"

    def idle(self, things: list[Thing], *, known: bool = True) -> list[Thing]:
        return [thing for thing in things if not thing.busy and not thing.deletion_unsure and (thing.id or not known)]


class DriverGoneError(Exception):
    """The driver went away during the call."""


class Life:
    """One process of the driver, from its start to its kill."""

    def __init__(self, world: World, channel: Channel) -> None:
        self.world = world
        self.channel = channel

    async def ask(self, rpc: Rpc[Request, Response], request: Request) -> Response:
        try:
            answer = await call(self.channel, rpc, request, timeout_s=20)
        except DriverFault as fault:
            if fault.status not in ("UNAVAILABLE", "CANCELLED", "UNKNOWN"):
                raise
            raise DriverGoneError from fault
        self.world.answered += 1
        return answer

    async def create(self, thing: Thing) -> None:
        request = csi.CreateVolumeRequest(name=thing.name, volume_capabilities=[CAPABILITY])
        if thing.source:
            request.volume_content_source.volume.volume_id = thing.source
        else:
            request.capacity_range.required_bytes = MIB
        volume = (await self.ask(calls.CREATE_VOLUME, request)).volume
        thing.id, thing.size = volume.volume_id, volume.capacity_bytes

    async def snapshot(self, thing: Thing) -> None:
        request = csi.CreateSnapshotRequest(name=thing.name, source_volume_id=thing.source)
        thing.id = (await self.ask(calls.CREATE_SNAPSHOT, request)).snapshot.snapshot_id

    async def delete(self, thing: Thing, things: list[Thing]) -> None:
        thing.deletion_unsure = True
        if things is self.world.volumes:
            unpublish = csi.ControllerUnpublishVolumeRequest(volume_id=thing.id)
            thing.published = None
            await self.ask(calls.CONTROLLER_UNPUBLISH_VOLUME, unpublish)
            await self.ask(calls.DELETE_VOLUME, csi.DeleteVolumeRequest(volume_id=thing.id))
        else:
            await self.ask(calls.DELETE_SNAPSHOT, csi.DeleteSnapshotRequest(snapshot_id=thing.id))
        things.remove(thing)

    async def expand(self, thing: Thing) -> None:
        thing.size_unsure = thing.size + MIB
        request = csi.ControllerExpandVolumeRequest(
            volume_id=thing.id, capacity_range=csi.CapacityRange(required_bytes=thing.size_unsure)
        )
        thing.size = (await self.ask(calls.CONTROLLER_EXPAND_VOLUME, request)).capacity_bytes
        thing.size_unsure = 0

    async def publish(self, thing: Thing) -> None:
        wanted = not thing.published
        thing.published = None
        if wanted:
            publish = csi.ControllerPublishVolumeRequest(
                volume_id=thing.id, node_id="node-1", volume_capability=CAPABILITY
            )
            await self.ask(calls.CONTROLLER_PUBLISH_VOLUME, publish)
        else:
            unpublish = csi.ControllerUnpublishVolumeRequest(volume_id=thing.id, node_id="node-1")
            await self.ask(calls.CONTROLLER_UNPUBLISH_VOLUME, unpublish)
        thing.published = wanted

    async def work(self) -> None:
        """Ask for one thing after the other until the driver is gone."""
        try:
            while True:
                await self.choose()
        except DriverGoneError:
            return

    async def choose(self) -> None:
        world = self.world
        idle = world.idle(world.volumes)
        kind = world.random.choice(
            ("create", "create", "clone", "snapshot", "delete", "unsnapshot", "expand", "publish")
        )
        if kind == "create" or len(idle) < 4:
            thing = Thing(world.new_name())
            world.volumes.append(thing)
            await self.alone(thing, lambda: self.create(thing))
            fill(world.data("volumes", thing))
            thing.filled = True
        elif kind in ("clone", "snapshot"):
            source = world.random.choice(idle)
            thing = Thing(world.new_name(), source=source.id, filled=source.filled)
            (world.volumes if kind == "clone" else world.snapshots).append(thing)
            thing.busy = True
            await self.alone(source, lambda: self.create(thing) if kind == "clone" else self.snapshot(thing))
            thing.busy = False
        elif kind == "unsnapshot" and world.idle(world.snapshots):
            thing = world.random.choice(world.idle(world.snapshots))
            await self.alone(thing, lambda: self.delete(thing, world.snapshots))
        elif kind == "delete":
            thing = world.random.choice(idle)
            await self.alone(thing, lambda: self.delete(thing, world.volumes))
        else:
            thing = world.random.choice(idle)
            await self.alone(thing, lambda: self.expand(thing) if kind == "expand" else self.publish(thing))

    async def alone(self, thing: Thing, action: Callable[[], Awaitable[None]]) -> None:
        thing.busy = True
        await action()
        thing.busy = False

    async def check(self) -> None:
        """Compare with the world, resolve what was unsure by asking again, and compare once more."""
        world = self.world
        for thing in (*world.volumes, *world.snapshots):
            thing.busy = False
        await self.compare()
        for thing in [one for one in world.volumes if not one.id]:
            await self.resolve(thing, world.volumes, self.create)
        for thing in [one for one in world.snapshots if not one.id]:
            await self.resolve(thing, world.snapshots, self.snapshot)
        for things in (world.volumes, world.snapshots):
            for thing in [one for one in things if one.deletion_unsure]:
                await self.delete(thing, things)
        for thing in world.volumes:
            if thing.size_unsure:
                await self.expand(thing)
        assert set(await self.listed_volumes()) == {thing.id for thing in world.volumes}
        assert await self.listed_snapshots() == {thing.id for thing in world.snapshots}
        check_disk(world)

    async def resolve(self, thing: Thing, things: list[Thing], again: Callable[[Thing], Awaitable[None]]) -> None:
        """Ask again for what was not answered."""
        await again(thing)
        if things is self.world.volumes and not thing.source:
            fill(self.world.data("volumes", thing))
            thing.filled = True

    async def compare(self) -> None:
        world = self.world
        volumes = await self.listed_volumes()
        for thing in world.volumes:
            if not thing.id or thing.deletion_unsure:
                continue
            assert thing.id in volumes, f"answered volume {thing.name} is lost"
            size, nodes = volumes[thing.id]
            assert size in (thing.size, thing.size_unsure), f"the size of {thing.name} is lost"
            if thing.published is not None:
                assert nodes == (["node-1"] if thing.published else []), f"the publication of {thing.name} is lost"
            thing.published = bool(nodes)
        unsure = sum(not thing.id for thing in world.volumes)
        assert len(set(volumes) - {thing.id for thing in world.volumes}) <= unsure
        snapshots = await self.listed_snapshots()
        for thing in world.snapshots:
            assert not thing.id or thing.deletion_unsure or thing.id in snapshots, f"snapshot {thing.name} is lost"
        unsure = sum(not thing.id for thing in world.snapshots)
        assert len(snapshots - {thing.id for thing in world.snapshots}) <= unsure

    async def listed_volumes(self) -> dict[str, tuple[int, list[str]]]:
        answer = await self.ask(calls.LIST_VOLUMES, csi.ListVolumesRequest())
        assert len({entry.volume.volume_id for entry in answer.entries}) == len(answer.entries)
        return {
            entry.volume.volume_id: (entry.volume.capacity_bytes, list(entry.status.published_node_ids))
            for entry in answer.entries
        }

    async def listed_snapshots(self) -> set[str]:
        answer = await self.ask(calls.LIST_SNAPSHOTS, csi.ListSnapshotsRequest())
        return {entry.snapshot.snapshot_id for entry in answer.entries}


def fill(data: Path) -> None:
    for number in range(FILES):
        (data / f"{number}").write_text(str(number) * 1000)


def check_disk(world: World) -> None:
    """Each record once, whole data, nothing half-made."""
    assert os.listdir(world.place / "data" / "temp") == []
    records = read_ledger(world.place / "data")
    for kind, things in (("volumes", world.volumes), ("snapshots", world.snapshots)):
        names = []
        for name in os.listdir(world.place / "data" / kind):
            assert os.listdir(world.place / "data" / kind / name) == ["data"]
            names.append(records.pop(f"{kind}/{name}")["name"])
        assert sorted(names) == sorted(thing.name for thing in things), "a name is doubled or lost on disk"
        for thing in things:
            if thing.filled:
                data = world.data(kind, thing)
                assert len(os.listdir(data)) == FILES, f"{thing.name} is not whole"
                for number in range(FILES):
                    assert (data / f"{number}").read_text() == str(number) * 1000
    assert not records, "records without data"


def read_ledger(data: Path) -> dict[str, dict[str, object]]:
    """The records by key, from a copy: the driver keeps its file to itself."""
    copy = data.parent / "copy"
    copy.mkdir(exist_ok=True)
    for name in ("records.db", "records.db-wal"):
        shutil.copy(data / name, copy / name)
    ledger = Ledger(str(copy / "records.db"))
    found = {key: msgspec.json.decode(content) for key, content in ledger.read().items()}
    ledger.close()
    return found


def start(world: World) -> subprocess.Popen[bytes]:
    arguments = ("--endpoint", f"unix://{world.place}/csi.sock", "--data", f"{world.place}/data", "--node-id", "node-1")
    process = subprocess.Popen(
        (sys.executable, "-m", "moorage.csi.local", *arguments), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    if b"may not mount" in line:  # an ordinary user is told so first
        line = process.stderr.readline()
    assert b"ready" in line, line
    return process


async def live(world: World, *, last: bool) -> None:
    """One life: start, check what is there, work, be killed."""
    process = await anyio.to_thread.run_sync(start, world)
    assert process.stderr is not None
    channel = unix_channel(str(world.place / "csi.sock"))
    try:
        life = Life(world, channel)
        await life.check()
        if last:
            with anyio.fail_after(10):
                while os.listdir(world.place / "data" / "trash"):
                    await anyio.sleep(0.01)
            return
        async with anyio.create_task_group() as group:
            for _ in range(WORKERS):
                group.start_soon(life.work)
            await anyio.sleep(world.random.uniform(0.002, 0.25))
            process.kill()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        await channel.close()


@pytest.mark.parametrize("seed", range(5))
async def test_what_was_answered_survives_a_kill(seed: int, tmp_path: Path) -> None:
    world = World(tmp_path, seed)
    for number in range(LIVES + 1):
        await live(world, last=number == LIVES)
    assert world.answered > 20 * LIVES
