"""What a cluster of some size costs: the real server and all its agents in one process, in virtual time.

Stories, one after the other: *storm*: every volume is claimed at the same moment; *loss*: a tenth of the nodes falls
silent, a fence hook vouches for them, and their uses start anew on the others; *restart*: a tenth of the uses is
stopped, and the server is gone in the midst of it and comes back.
Counted are driver calls, commits, bytes between server and agents, and CPU seconds of this process, in which server,
store, agents and drivers all are. Virtual time is what calls and queues take, on a machine that is infinitely fast.
Never: real time, real mounts, threads.
"""

from __future__ import annotations

import logging
import os
import random
import resource
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.lowlevel
import msgspec
import structlog
from anyio.abc import TaskGroup

from moorage.agent import main as agent
from moorage.agent.ports import AgentSettings, Driver, DriverSpec
from moorage.engine.ports import EngineSettings
from moorage.engine.service import Service
from moorage.model.claim import Allocation, VolumeRequest
from moorage.model.ids import AllocationId, NamespaceName, NodeId, PluginId, Revision, VolumeId
from moorage.model.node import Node
from moorage.serve.collecting import Collector
from moorage.state.feed import Feed
from moorage.state.memory import MemoryStore
from moorage.state.repo import Repo
from moorage.testing import virtual_loop
from moorage.testing.agent_world import MemoryMounter
from moorage.testing.clock import SeededChance
from moorage.testing.quiet_storage import put_volumes
from moorage.testing.scale_parts import Clock, Facts, Hook, Line, QuickDriver, name_controller
from moorage.testing.sim_hosts import NO_PROCESSES
from moorage.testing.sim_network import SimClient

PLUGIN = PluginId("many")
LOST_PART = STOPPED_PART = 10
BATCH = 100
CONTROLLERS = 3
# What an agent looks at again and again, without any news, is paid on its own host and not here; the whole list of its
# claims, of which it asks once a minute if there is any news, is a cost of time and not of changes.
AGENT = AgentSettings(socket_look_s=60.0, mount_probe_s=3600.0, rescan_s=3600.0, whole_list_s=3600.0)
LOOK_S = 0.25
IDLE_S = 20.0
HISTORY_KEPT = 2000
STORY_MAX_S = 100_000.0


Around = Callable[[str], AbstractContextManager[object]]


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How many nodes, and how many volumes each of them uses."""

    nodes: int
    per_node: int
    seed: int = 1


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What a story took. ``changes``: uses that it began or ended; ``queue_max``: the most records that waited for a
    driver's answer or a write; ``controller_calls``: of each controller, the busiest first; ``sent_bytes``: answers to
    agents; ``virtual_s``: until all was as it should be; ``idle_cpu_s``, ``idle_sent_bytes``: what leases and
    looks at nothing cost in that time, by the story *idle*."""

    story: str
    nodes: int
    volumes: int
    changes: int
    calls: int
    controller_calls: tuple[int, ...] = ()
    commits: int
    answers: int
    sent_bytes: int
    queue_max: int
    virtual_s: float
    cpu_s: float
    memory_mb: int
    idle_cpu_s: float = 0.0
    idle_sent_bytes: int = 0


def measure(size: Size, around: Around = nullcontext) -> tuple[Cost, ...]:
    """Run all stories at a size. ``around``: a context for the time of each story, by its name."""
    root = tempfile.mkdtemp(prefix="msc-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    with _quiet():
        try:
            return virtual_loop.run(lambda: _Run(size, root, around).run(), seed=size.seed)
        finally:
            shutil.rmtree(root, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


def _with_idle(cost: Cost, idle: Cost) -> Cost:
    share = cost.virtual_s / idle.virtual_s
    return msgspec.structs.replace(
        cost, idle_cpu_s=round(idle.cpu_s * share, 2), idle_sent_bytes=int(idle.sent_bytes * share)
    )


def _name_outside(node_id: NodeId) -> str:
    """The driver's name for a node."""
    return f"x{node_id[:8]}"


class _Run:
    def __init__(self, size: Size, root: str, around: Around) -> None:
        self._size = size
        self._around = around
        self._root = root
        self._counts: Counter[str] = Counter()
        self._store = MemoryStore()
        self._line = Line(self._counts)
        self._repo = Repo(self._store, Feed(self._store))
        # As a server does: looking through all that stays, again and again, would cost more the more there is.
        self._collector = Collector(lambda: self._repo.view.count)
        self._server = anyio.CancelScope()
        self._started_s = 0.0
        self._agents: dict[NodeId, anyio.CancelScope] = {}
        self._queue_max = 0
        self._nodes = [NodeId(f"{n:08d}-2222-3333-4444-555555555555") for n in range(size.nodes)]
        # The node of each volume's use, and the use.
        self._places = {f"v-{n:05d}-{i:05d}": node for n, node in enumerate(self._nodes) for i in range(size.per_node)}
        self._uses: dict[str, str] = {}
        self._costs: list[Cost] = []
        os.mkdir(f"{root}/data")

    @property
    def _service(self) -> Service:
        assert self._line.service is not None
        return self._line.service

    async def run(self) -> tuple[Cost, ...]:
        """All stories."""
        with self._collector.open():
            self._collector.freeze()
            await self._run_stories()
        idle = next(c for c in self._costs if c.story == "idle")
        return tuple(_with_idle(cost, idle) for cost in self._costs)

    async def _run_stories(self) -> None:
        async with anyio.create_task_group() as group:
            await group.start(self._run_server)
            group.start_soon(self._forget_history)
            group.start_soon(self._watch_queues)
            group.start_soon(self._collector.run)
            with self._costing("start", len(self._nodes)):
                for node_id in self._nodes:
                    group.start_soon(self._run_agent, node_id)
                await self._until(self._are_all_known)
            await put_volumes(self._repo, list(self._places), PLUGIN, batch=BATCH)
            with self._costing("storm", len(self._places)):
                await self._start(list(self._places))
                await self._until_running(self._places)
            with self._costing("idle", len(self._nodes)):
                await anyio.sleep(IDLE_S)
            await self._lose(self._nodes[::LOST_PART])
            await self._restart(group)
            group.cancel_scope.cancel()

    # -- stories -----------------------------------------------------------------------------------------------------

    async def _lose(self, lost: Sequence[NodeId]) -> None:
        gone = frozenset(lost)
        names = [n for n, node in self._places.items() if node in gone]
        left = [n for n in self._nodes if n not in gone]
        with self._costing("loss", 2 * len(names)):
            for node_id in lost:
                self._agents[node_id].cancel()
            await self._until(lambda: not any(self._repo.view.claims.of_node(n) for n in lost))
            for number, name in enumerate(names):
                self._places[name] = left[number % len(left)]
            await self._start(names)
            await self._until_running(names)

    async def _restart(self, group: TaskGroup) -> None:
        stopped = list(self._places)[::STOPPED_PART]
        with self._costing("restart", len(stopped)):
            for name in stopped:
                await self._service.allocations.stop(self._uses[name])
            await anyio.sleep(0.2)
            self._line.cut()
            self._server.cancel()
            await anyio.sleep(1.0)
            await group.start(self._run_server)
            await self._until(lambda: len(self._repo.view.claims) == len(self._places) - len(stopped))
            await self._until(lambda: all(map(self._is_heard, self._agents)))

    # -- parts -------------------------------------------------------------------------------------------------------

    async def _run_server(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.CancelScope() as self._server:
            self._repo = Repo(self._store, Feed(self._store))
            self._started_s = anyio.current_time()
            service = Service(self._repo, Clock(), SeededChance(self._size.seed), EngineSettings(), hook=Hook())
            async with anyio.create_task_group() as group:
                await group.start(service.run)
                self._line.service = service
                task_status.started()

    async def _run_agent(self, node_id: NodeId) -> None:
        mounter, name = MemoryMounter(), node_id[:8]
        facts = Facts(external_id=_name_outside(node_id), is_controller=node_id in self._nodes[:CONTROLLERS])
        driver = QuickDriver(facts, mounter, f"{self._root}/data", self._counts)

        def connect(plugin_id: PluginId, spec: DriverSpec) -> Driver:
            return driver

        with anyio.CancelScope() as self._agents[node_id]:
            await agent.run(
                SimClient(self._line, cast(Any, SimpleNamespace(lie=""))),
                {PLUGIN: DriverSpec(socket=f"{self._root}/no.sock")},
                state_dir=Path(self._root, name),
                node=Node(id=node_id, name=f"n{name}", boot_id="b1"),
                settings=AGENT,
                around=agent.Surroundings(
                    connect=connect, mounter=mounter, clock=Clock().now_ns, ticks=anyio.current_time,
                    hops=virtual_loop.VirtualHops(), random=random.Random(f"{self._size.seed}/{node_id}").random,
                    proc=NO_PROCESSES,
                ),
            )  # fmt: skip
        del self._agents[node_id]

    async def _forget_history(self) -> None:
        while True:
            await anyio.sleep(0.05)
            revision = await self._store.revision()
            await self._store.compact(Revision(max(0, revision - HISTORY_KEPT)))

    async def _watch_queues(self) -> None:
        while True:
            if self._line.service is not None:
                found = self._line.service.reconciler.measure_queues()
                self._queue_max = max(self._queue_max, found["to_write"], found["assigned"])
            await anyio.sleep(0.02)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        with anyio.fail_after(STORY_MAX_S):
            while not is_so():  # noqa: ASYNC110 - virtual time passes for nothing
                await anyio.sleep(LOOK_S)

    def _are_all_known(self) -> bool:
        found = self._service.reads.find_plugin(PLUGIN)
        return found is not None and sum(i.healthy for i in found.value.instances.values()) == len(self._nodes)

    def _is_heard(self, node_id: NodeId) -> bool:
        """Whether the server of now has heard of the node."""
        return self._service.leases.silent_s(node_id) < anyio.current_time() - self._started_s

    async def _start(self, names: Sequence[str]) -> None:
        """Ask for a use of each volume, all at this moment or nearly so: the loop wants time to move on at times."""
        for start in range(0, len(names), BATCH):
            async with anyio.create_task_group() as group:
                for name in names[start : start + BATCH]:
                    group.start_soon(self._start_one, name)
            await anyio.sleep(0.0001)

    async def _start_one(self, name: str) -> None:
        request = VolumeRequest(name="data", source=VolumeId(name), access_mode="single-node-writer")
        use = Allocation(
            id=AllocationId(""), namespace=NamespaceName("default"), node_id=self._places[name], volumes=(request,)
        )
        self._uses[name] = (await self._service.allocations.start(use)).value.id

    async def _until_running(self, names: Iterable[str]) -> None:
        """Until the use of each volume runs. One that runs goes on: each is looked at until then, and the rest once."""
        left = deque(names)

        def are_running() -> bool:
            while left and self._is_running(left[0]):
                left.popleft()
            return not left

        await self._until(are_running)

    def _is_running(self, name: str) -> bool:
        found = self._service.reads.find_allocation(self._uses[name])
        return found is not None and found.value.status == "running"

    def _count_controllers(self, before: Counter[str]) -> tuple[int, ...]:
        names = [name_controller(_name_outside(node_id)) for node_id in self._nodes[:CONTROLLERS]]
        return tuple(sorted((self._counts[name] - before[name] for name in names), reverse=True))

    @contextmanager
    def _costing(self, story: str, changes: int) -> Iterator[None]:
        before, revision = self._counts.copy(), self._repo.view.revision
        began_s, cpu_s = anyio.current_time(), time.process_time()
        self._queue_max = 0
        with self._around(story):
            yield
        virtual_s, spent_s = anyio.current_time() - began_s, time.process_time() - cpu_s
        self._costs.append(
            Cost(
                story=story,
                nodes=self._size.nodes,
                volumes=len(self._places),
                changes=changes,
                calls=self._counts["calls"] - before["calls"],
                controller_calls=self._count_controllers(before),
                commits=self._repo.view.revision - revision,
                answers=self._counts["answers"] - before["answers"],
                sent_bytes=self._counts["sent_bytes"] - before["sent_bytes"],
                queue_max=self._queue_max,
                virtual_s=round(virtual_s, 2),
                cpu_s=round(spent_s, 2),
                memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            )
        )
