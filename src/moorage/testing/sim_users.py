"""What people and their programs do in a simulated run: create, use, write, expand, snapshot, drain, fence, delete."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from moorage.engine.checks import Written
from moorage.engine.listings import SnapshotRequest
from moorage.engine.service import Service
from moorage.errors import MoorageError
from moorage.model.claim import Allocation, VolumeRequest
from moorage.model.ids import AllocationId, NamespaceName, NodeId, PluginId, VolumeId
from moorage.model.node import Node
from moorage.model.volume import (
    FILE_SYSTEM,
    READER_MODES,
    SINGLE_NODE_WRITER,
    Capability,
    Secrets,
    Volume,
)
from moorage.state import keys
from moorage.testing.sim_backend import GIB
from moorage.testing.sim_schedule import PLUGIN
from moorage.testing.sim_validators import SECRET

if TYPE_CHECKING:
    from moorage.testing.sim_world import World

NAMESPACE = NamespaceName("default")
ASK_TIMEOUT_S = 12.0


async def _create_one(volume: Volume, service: Service) -> Written:
    return await service.registrations.create([volume])


class Users:
    """Everybody who uses the server. ``volumes``: the specs, by ID."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = random.Random(f"users/{world.seed}")
        self._count = 0
        self.volumes = [self._draw_volume(number) for number in range(world.schedule.volumes)]
        self._acts: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (6, self._create),
            (30, self._start),
            (10, self._stop),
            (2, self._expand),
            (3, self._delete),
            (1, self._snapshot),
            (1, self._drain),
            (6, self._fence),
            (1, self._detach),
        ]

    def _draw_volume(self, number: int) -> Volume:
        known = self._world.schedule.modes
        modes = self._random.sample(known, min(len(known), self._random.choice((1, 1, 2))))
        if SINGLE_NODE_WRITER in known and self._random.random() < 0.4:
            modes = [SINGLE_NODE_WRITER, *modes[1:]]
        return Volume(
            id=VolumeId(f"v{number}"),
            namespace=NAMESPACE,
            plugin_id=PluginId(PLUGIN),
            name=f"v{number}",
            requested_min_bytes=GIB,
            capabilities=tuple(Capability(access_mode=m, attachment_mode=FILE_SYSTEM) for m in modes),
            secrets=Secrets({"password": SECRET}),
        )

    async def run(self, until_s: float) -> None:
        """One user, until a time."""
        weights = [weight for weight, _ in self._acts]
        await anyio.sleep(1.0)
        for volume in self.volumes:
            await self.ask(f"create {volume.id}", partial(_create_one, volume))
        while self._world.now_s < until_s:
            act = self._random.choices(self._acts, weights)[0][1]
            await act()
            await anyio.sleep(self._random.uniform(0.0, 2 * self._world.schedule.user_pause_s))

    async def ask(self, what: str, act: Callable[[Service], Awaitable[Any]]) -> Any:
        """Ask the server for something; None when it says no or does not answer."""
        self._world.history.note("user", what)
        try:
            return await self._world.network.ask(None, act, timeout_s=ASK_TIMEOUT_S)
        except MoorageError as error:
            self._world.history.note("user", f"{what}: {type(error).__name__} {error.message}")
            return None

    # -- volumes -----------------------------------------------------------------------------------------------------

    async def _create(self) -> None:
        volume = self._random.choice(self.volumes)
        if keys.volume_key(NAMESPACE, volume.id) not in self._world.validators.records:
            await self.ask(f"create {volume.id}", lambda s: s.registrations.create([volume]))

    async def _expand(self) -> None:
        known = self._world.validators.records.get(keys.volume_key(NAMESPACE, self._random.choice(self.volumes).id))
        if isinstance(known, Volume) and known.state == "ready":
            spec = next(v for v in self.volumes if v.id == known.id)
            size = known.capacity_bytes + GIB

            asked = msgspec.structs.replace(spec, requested_min_bytes=size)
            await self.ask(f"expand {known.id}", lambda s: s.registrations.create([asked]))

    async def _delete(self) -> None:
        volume = self._random.choice(self.volumes)
        await self.delete(volume.id)

    async def delete(self, volume_id: str) -> None:
        """Ask for a volume's end."""
        await self.ask(
            f"delete {volume_id}", lambda s: s.removals.delete(NAMESPACE, volume_id, secrets=Secrets({"p": SECRET}))
        )

    async def _snapshot(self) -> None:
        self._count += 1
        request = SnapshotRequest(source_volume_id=self._random.choice(self.volumes).id, name=f"snap{self._count}")
        await self.ask("snapshot", lambda s: s.listings.create_snapshots(NAMESPACE, [request]))

    async def _detach(self) -> None:
        volume, host = self._random.choice(self.volumes), self._random.choice(self._world.hosts)
        await self.ask(
            f"detach {volume.id} from {host.name}", lambda s: s.removals.detach(NAMESPACE, volume.id, host.node_id)
        )

    # -- allocations -------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        draw = self._random
        ready = [v for v in self.volumes if self._is_ready(v)] if draw.random() < 0.95 else self.volumes
        hosts = [h for h in self._world.hosts if self._world.validators.is_well(h.node_id)]
        if not ready:
            await self._create()
            return
        self._count += 1
        host = draw.choice(hosts or self._world.hosts)
        chosen = draw.sample(ready, min(len(ready), draw.choice((1, 1, 1, 2))))
        allocation = Allocation(
            id=AllocationId(f"a{self._count}"),
            namespace=NAMESPACE,
            node_id=NodeId(host.node_id),
            volumes=tuple(self._request(v, f"a{self._count}", host.target_dir) for v in chosen),
        )
        for _ in range(draw.choice((1, 3))):
            if await self.ask(f"start {allocation.id} on {host.name}", lambda s: s.allocations.start(allocation)):
                return
            await anyio.sleep(draw.uniform(0.0, 1.0))
        if draw.random() < 0.3:
            await self._stop()

    def _is_ready(self, volume: Volume) -> bool:
        known = self._world.validators.records.get(keys.volume_key(NAMESPACE, volume.id))
        return isinstance(known, Volume) and known.state == "ready" and known.wanted == "present"

    def _request(self, volume: Volume, allocation_id: str, target_dir: str) -> VolumeRequest:
        draw = self._random
        mode = draw.choice(volume.capabilities or ()).access_mode
        target = f"{target_dir}/{allocation_id}/{volume.id}" if self._world.schedule.has_targets else ""
        return VolumeRequest(
            name=volume.id,
            source=volume.id,
            read_only=mode in READER_MODES or draw.random() < 0.25,
            access_mode=mode,
            target=target if draw.random() < 0.5 else "",
        )

    def list_live(self) -> list[str]:
        """Allocations on record that nobody has stopped yet."""
        records = self._world.validators.records
        return [r.id for k, r in records.items() if k.startswith(keys.ALLOCATIONS) and r.wanted == "run"]

    async def _stop(self) -> None:
        live = self.list_live()
        running = [a for a in live if self._world.validators.records[f"{keys.ALLOCATIONS}{a}"].status == "running"]
        if live and (not running or self._random.random() < 0.2):
            running = live if self._random.random() < 0.25 else []
        if running:
            await self.stop(self._random.choice(running))

    async def stop(self, allocation_id: str) -> None:
        """Stop a use."""
        await self.ask(f"stop {allocation_id}", lambda s: s.allocations.stop(allocation_id))

    # -- nodes -------------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        host = self._random.choice(self._world.hosts)
        await self.ask(f"drain {host.name}", lambda s: s.nodes.set_wanted(host.node_id, "draining"))
        await anyio.sleep(self._random.uniform(1.0, 8.0))
        await self.open(host.node_id)

    async def open(self, node_id: str) -> None:
        """Let a node take uses."""
        await self.ask(f"open {node_id}", lambda s: s.nodes.set_wanted(node_id, "active"))

    async def _fence(self) -> None:
        """Say that a lost node holds nothing: after its power was cut, or by word alone."""
        down = [r for r in self._world.validators.records.values() if isinstance(r, Node) and r.status == "down"]
        if not down:
            return
        node = self._random.choice(down)
        host = self._world.find_host(node.id)
        if not self._world.schedule.is_fencing_by_word or self._random.random() < 0.5:
            host.power_off("by the operator", pause_s=self._random.uniform(1.0, 20.0))
        await self.ask(
            f"fence {host.name}",
            lambda s: s.leases.fence(node.id, reason="it is off", by="operator", is_forced=False),
        )

    # -- consumers ---------------------------------------------------------------------------------------------------

    async def write(self) -> None:
        """Consumers write through every path that lets them, wherever it is, for ever."""
        backend = self._world.backend
        while True:
            await anyio.sleep(self._random.uniform(0.1, 2 * self._world.schedule.write_pause_s))
            for disk in list(backend.disks.values()):
                for host, path in self._world.find_writers(disk.external_id):
                    is_attached = not backend.is_attaching or host.external_id in disk.attached
                    self._world.validators.check_write(disk, host, path, is_attached=is_attached)
                    if is_attached:
                        disk.writes += 1
                        disk.last_writer = f"{host.name}:{path}"
