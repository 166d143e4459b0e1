"""A whole cluster in one seed: server, store, hosts with their agents, drivers, network, users, and everything that
goes wrong between them; afterwards everything is healed, and what is left is compared.

The engine and the agents are the real ones. Only time, threads, the network, mounts and drivers are simulated.
Shapes: ``run(seed)`` → Result. Files: agents keep their journals in a directory of the run, in memory where the host
has one for that; it is removed at the end.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import tempfile
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import msgspec
import structlog
from anyio.abc import TaskGroup

from moorage.engine.ports import EngineSettings
from moorage.engine.reconciler import Parts
from moorage.engine.service import Service
from moorage.model.claim import Allocation, Claim, Mounted
from moorage.model.ids import NodeId, PluginId
from moorage.model.volume import Volume
from moorage.rules.volumes import is_expanding
from moorage.state import keys
from moorage.state.repo import Repo
from moorage.testing import virtual_loop
from moorage.testing.clock import SeededChance
from moorage.testing.sim_backend import Backend, origin_of
from moorage.testing.sim_driver import Calls
from moorage.testing.sim_history import History, Violation
from moorage.testing.sim_hosts import Host
from moorage.testing.sim_network import Lie, Network
from moorage.testing.sim_schedule import PLUGIN, Schedule, calm, draw_schedule
from moorage.testing.sim_server import PowerSwitch, Server, SimStore, make_settings
from moorage.testing.sim_troubles import Troubles
from moorage.testing.sim_users import Users
from moorage.testing.sim_validators import Validators

EPOCH_NS = 1_700_000_000_000_000_000
LOOK_S = 2.0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run. ``digest``: the same for two runs of the same seed."""

    seed: int
    violations: tuple[Violation, ...]
    digest: str
    events: int
    commits: int
    calls: int
    virtual_s: float
    tail: tuple[str, ...]


class Clock:
    """The loop's time as the server's clocks."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return EPOCH_NS + self.monotonic_ns()

    def monotonic_ns(self) -> int:
        """Nanoseconds of virtual time."""
        return int(anyio.current_time() * 1e9)


def make_service(
    repo: Repo, world: World, *, parts: Parts | None = None, settings: EngineSettings | None = None
) -> Service:
    """The engine as it is, but for what is named."""
    chance = SeededChance(world.random.getrandbits(64))
    hook = PowerSwitch(world) if world.schedule.has_hook else None
    settings = settings or make_settings(is_freeing_on_reboot=world.schedule.is_freeing_on_reboot)
    return Service(repo, world.clock, chance, settings, hook=hook, parts=parts)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How to build a world: ``make`` builds the engine; ``lie``: what agents' clients say that is not so (see
    ``sim_network.SimClient``); ``adjust`` changes the schedule that the seed drew."""

    make: Callable[[Repo, World], Service] = make_service
    lie: Lie = ""
    adjust: Callable[[Schedule], Schedule] = lambda schedule: schedule


class World:
    """All parts of a run; each part gets the others by way of it."""

    def __init__(self, seed: int, schedule: Schedule, root: str, plan: Plan) -> None:
        self.seed = seed
        self.schedule = schedule
        self.root = root
        self.random = random.Random(f"world/{seed}")
        self.clock = Clock()
        self.started_s = anyio.current_time()
        self.history = History(lambda: anyio.current_time() - self.started_s)
        self.owners = 0
        self.plugin_id = PluginId(PLUGIN)
        self.lie: Lie = plan.lie
        self.validators = Validators(self)
        self.store = SimStore(self)
        self.backend = Backend(self.validators, is_staging=schedule.is_staging, is_attaching=schedule.is_attaching)
        self.calls = Calls(self, self.backend)
        self.network = Network(self)
        self.server = Server(self, plan.make)
        self.hosts = [Host(self, number + 1) for number in range(schedule.nodes)]
        self._by_id = {h.node_id: h for h in self.hosts}
        self._by_name = {h.external_id: h for h in self.hosts}
        self.users = Users(self)
        self._group: TaskGroup | None = None

    @property
    def now_s(self) -> float:
        """Virtual seconds since the start of the run."""
        return anyio.current_time() - self.started_s

    def roll(self, draw: random.Random, rate: float) -> bool:
        """Whether something of this rate happens now."""
        return rate > 0 and draw.random() < rate

    def spawn(self, act: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something beside everything else; nobody's death ends it."""
        assert self._group is not None
        self._group.start_soon(act)

    def find_host(self, node_id: NodeId) -> Host:
        """The host with this node ID."""
        return self._by_id[node_id]

    def find_host_named(self, external_id: str) -> Host:
        """The host that the driver calls so."""
        return self._by_name[external_id]

    def find_writers(self, external_id: str) -> list[tuple[Host, str]]:
        """Paths through which somebody may write to a disk now."""
        origin = origin_of(external_id)
        return [
            (host, path)
            for host in self.hosts
            for path, mounts in host.mounts.table.items()
            if mounts[-1].origin == origin and not mounts[-1].read_only and "/s/" not in path
        ]

    def short(self, path: str) -> str:
        """A path without the run's directory."""
        return path.removeprefix(self.root)

    def violate_crash(self, who: str, error: BaseException) -> None:
        """Something of ours ended by an error of its own."""
        told = "".join(traceback.format_exception(error))
        self.history.violate("no_crash", f"{who}: {error!r}\n{told}".replace(self.root, ""))

    # -- the run -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Trouble, then calm, then the end of all uses; each is followed by a comparison."""
        async with anyio.create_task_group() as group:
            self._group = group
            group.start_soon(self.server.run)
            for host in self.hosts:
                group.start_soon(host.run)
            group.start_soon(self.users.write)
            async with anyio.create_task_group() as busy:
                for _ in range(self.schedule.users):
                    busy.start_soon(self.users.run, self.schedule.faults_s)
                troubles = Troubles(self)
                group.start_soon(troubles.run)
                await anyio.sleep(self.schedule.faults_s)
                await troubles.stop()
                self.history.note("world", "is healed")
                self.schedule = calm(self.schedule)
            if not self.history.violations:
                await self._settle()
            group.cancel_scope.cancel()

    async def _settle(self) -> None:
        while self.server.service is None:  # noqa: ASYNC110 - it comes back by itself
            await anyio.sleep(0.1)
        for host in self.hosts:
            await self.users.open(host.node_id)
        if not await self._wait(self._find_unsettled, "settles"):
            return
        self._compare()
        for allocation_id in self.users.list_live():
            await self.users.stop(allocation_id)
        if not await self._wait(self._find_unreleased, "released_in_time"):
            return
        for _ in range(5):
            for volume in self.users.volumes:
                await self.users.delete(volume.id)
        if await self._wait(self._find_undeleted, "settles"):
            self._compare()

    async def _wait(self, find: Callable[[], list[str]], validator: str) -> bool:
        until_s = self.now_s + self.schedule.settle_s
        while self.now_s < until_s and not self.history.violations:
            if not find():
                return True
            await anyio.sleep(LOOK_S)
        if not self.history.violations:
            self.history.violate(validator, f"after {self.schedule.settle_s:g} s of calm: {'; '.join(find())}")
        return False

    def _find_unsettled(self) -> list[str]:
        found: list[str] = []
        for key, record in self.validators.records.items():
            if isinstance(record, Claim) and (record.wanted == "released" or not isinstance(record.state, Mounted)):
                found.append(f"{key} {record.wanted} {type(record.state).__name__} {record.progress}")
            elif isinstance(record, Allocation) and record.wanted == "run" and record.status != "running":
                found.append(f"{key} {record.status}")
            elif isinstance(record, Volume) and (
                record.state == "absent" or record.wanted == "absent" or is_expanding(record)
            ):
                found.append(f"{key} {record.wanted} {record.state} {record.progress}")
        found += [f"{h.name} is not ready" for h in self.hosts if not self.validators.is_well(h.node_id)]
        return found + self._find_differences()

    def _find_unreleased(self) -> list[str]:
        return [k for k in self.validators.records if k.startswith(keys.CLAIMS)] + self._find_differences()

    def _find_undeleted(self) -> list[str]:
        return [k for k in self.validators.records if k.startswith(keys.VOLUMES)] + self._find_differences()

    def _find_differences(self) -> list[str]:
        """Attachments and mounts that do not follow from the claims."""
        records = self.validators.records.values()
        claims = [r for r in records if isinstance(r, Claim)]
        found: list[str] = []
        for disk in self.backend.disks.values():
            wanted = {self.find_host(c.node_id) for c in claims if c.external_id == disk.external_id}
            attached = {self.find_host_named(n) for n in disk.attached}
            if self.backend.is_attaching and wanted != attached:
                found.append(f"{disk.external_id} attached to {_names(attached)}, claimed on {_names(wanted)}")
            shown = {h for h in self.hosts if h.mounts.find_origin(origin_of(disk.external_id))}
            if shown != wanted:
                found.append(f"{disk.external_id} shown on {_names(shown)}, claimed on {_names(wanted)}")
        return found

    def _compare(self) -> None:
        """Backend volumes are the ready records, one each."""
        ready = sorted(r.external_id for r in self.validators.records.values() if isinstance(r, Volume))
        if len(set(ready)) < len(ready):
            self.history.violate("no_double", f"records share a disk: {ready}")
        leaked = sorted(set(self.backend.disks) - set(ready))
        if leaked:
            self.history.violate("no_leak", f"nobody knows of {leaked}")
        gone = sorted(set(ready) - set(self.backend.disks))
        if gone:
            self.history.violate("no_leak", f"the backend has lost {gone}")


def _names(hosts: set[Host]) -> list[str]:
    return sorted(h.name for h in hosts)


def run(seed: int, *, plan: Plan | None = None) -> Result:
    """Run a seed from its beginning to its end."""
    plan = plan or Plan()
    schedule = plan.adjust(draw_schedule(seed))
    root = tempfile.mkdtemp(prefix="ms-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    started: list[World] = []

    async def main() -> None:
        started.append(World(seed, schedule, root, plan))
        await started[0].run()

    stuck = ""
    try:
        virtual_loop.run(main, seed=seed)
    except (virtual_loop.NothingLeft, virtual_loop.Spinning) as error:
        stuck = repr(error)
    finally:
        structlog.configure(**before)
        shutil.rmtree(root, ignore_errors=True)
    return _tell(started[0], stuck)


def _tell(world: World, stuck: str) -> Result:
    history = world.history
    violations = tuple(history.violations)
    if stuck:
        at_s = history.events[-1].at_s if history.events else 0.0
        violations += (Violation("no_crash", at_s, stuck),)
    return Result(
        seed=world.seed,
        violations=violations,
        digest=history.digest,
        events=history.count,
        commits=world.validators.revision,
        calls=world.calls.count,
        virtual_s=history.events[-1].at_s if history.events else 0.0,
        tail=tuple(str(e) for e in history.events) if violations else (),
    )
