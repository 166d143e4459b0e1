"""How long uses of volumes take beside others whose driver calls hang: the real server and agent, in virtual time.

All uses are asked for at the same moment, on one node, and stopped at the same moment once those that can run do. The
driver takes a time of its own for each call, drawn for the volume; calls of the chosen step about hung volumes never
end. Times are exact: no machine is slow here, only calls and queues count.
Never: real time, real mounts, threads.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import anyio
import msgspec
import structlog
from anyio.abc import TaskStatus

from moorage.agent import main as agent
from moorage.agent.ports import AgentSettings, Driver, DriverSpec
from moorage.engine.service import Service
from moorage.model import steps
from moorage.model.claim import Allocation, VolumeRequest
from moorage.model.ids import AllocationId, NamespaceName, NodeId, PluginId, VolumeId
from moorage.model.node import Node
from moorage.model.plugin import ControllerInfo, Instance, NodeInfo
from moorage.model.volume import Fault
from moorage.rules.plugins import measure_health
from moorage.state.feed import Feed
from moorage.state.memory import MemoryStore
from moorage.state.repo import Repo
from moorage.testing import virtual_loop
from moorage.testing.agent_world import MemoryMounter
from moorage.testing.clock import SeededChance
from moorage.testing.quiet_storage import carry_out, put_volumes
from moorage.testing.sim_network import connect_directly

NODE = NodeId("11111111-2222-3333-4444-555555555555")
PLUGIN = PluginId("hung")
STEPS: dict[str, type[steps.Step]] = {
    "attach": steps.AttachVolume,
    "detach": steps.DetachVolume,
    "stage": steps.StageVolume,
    "publish": steps.PublishVolume,
    "unstage": steps.UnstageVolume,
}
EPOCH_NS = 1_700_000_000_000_000_000
BATCH = 100
CALL_S = (0.05, 0.15)


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """``good`` volumes whose calls end, and ``hung`` ones whose calls of ``step`` do not. ``history_s``: for how long
    the hung ones have been tried before the others come."""

    good: int
    hung: int = 0
    step: str = "attach"
    history_s: float = 0.0
    agent: AgentSettings = AgentSettings()
    seed: int = 1


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Virtual seconds of each good use: from asked to running, and from stopped to gone. ``calls_max``: the most that
    the driver had at a time."""

    start_s: tuple[float, ...]
    stop_s: tuple[float, ...]
    calls_max: int


def p99(times: Iterable[float]) -> float:
    """The time within which 99 of 100 were done."""
    ordered = sorted(times)
    return ordered[max(0, -(-len(ordered) * 99 // 100) - 1)]


def measure(load: Load) -> Times:
    """Run the load from its beginning to its end."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    root = tempfile.mkdtemp(prefix="mh-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    try:
        return virtual_loop.run(lambda: _Run(load, root).run(), seed=load.seed)
    finally:
        structlog.configure(**before)
        shutil.rmtree(root, ignore_errors=True)


class _Clock:
    def now_ns(self) -> int:
        return EPOCH_NS + self.monotonic_ns()

    def monotonic_ns(self) -> int:
        return int(anyio.current_time() * 1e9)


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    is_ready: bool = True
    health_description: str = "healthy"

    def to_instance(self, node_id: NodeId, *, now_ns: int, alloc_id: str = "") -> Instance:
        return Instance(
            node_id=node_id,
            healthy=True,
            requires_controller=True,
            controller=ControllerInfo(supports_create_delete=True, supports_attach_detach=True),
            node=NodeInfo(external_id="x1", requires_stage=True),
            updated_at_ns=now_ns,
            alloc_id=alloc_id,
        )


class _Driver:
    """Each call takes the time of its volume; some never end."""

    def __init__(self, load: Load, mounter: MemoryMounter, root: str) -> None:
        self._load = load
        self._mounter = mounter
        self._data = f"{root}/data"
        os.mkdir(self._data)
        self._running = 0
        self.running_max = 0

    def is_connected(self) -> bool:
        """Always."""
        return True

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def probe(self, *, timeout_s: float) -> _Facts:
        """Always well."""
        return _Facts()

    async def run(self, step: steps.Step, *, timeout_s: float) -> steps.Outcome:
        """Carry out a step."""
        external_id: str = getattr(step, "external_id", "")
        draw = random.Random(f"{self._load.seed}/{external_id}/{type(step).__name__}")
        self._running += 1
        self.running_max = max(self.running_max, self._running)
        try:
            if external_id.startswith("hung") and isinstance(step, STEPS[self._load.step]):
                await anyio.sleep(timeout_s)
                fault = Fault(method="", status="DEADLINE_EXCEEDED", message="no answer", final=False)
                return steps.Failed(fault=fault)
            await anyio.sleep(draw.uniform(*CALL_S))
            return carry_out(step, self._mounter, self._data)
        finally:
            self._running -= 1


class _Run:
    def __init__(self, load: Load, root: str) -> None:
        self._load = load
        self._root = root
        self._mounter = MemoryMounter()
        self._driver = _Driver(load, self._mounter, root)
        self._store = MemoryStore()
        self._repo = Repo(self._store, Feed(self._store))
        self._service = Service(self._repo, _Clock(), SeededChance(load.seed))
        self._good = [f"good-{number:04}" for number in range(load.good)]
        self._hung = [f"hung-{number:04}" for number in range(load.hung)]

    async def run(self) -> Times:
        """Start everything, ask for the uses, stop them."""
        async with anyio.create_task_group() as group:
            await group.start(self._service.run)
            await group.start(self._run_agent)
            await self._until(self._is_healthy)
            # The agent begins calls from when it has heard that its report of the driver was taken.
            await anyio.sleep(1.0)
            await put_volumes(self._repo, [*self._good, *self._hung], PLUGIN, batch=BATCH)
            # Those that hang come first, so that they have slots of the first hour.
            is_early = self._load.step in ("attach", "stage", "publish")
            hung = await self._start(self._hung)
            if not is_early:
                await self._until(lambda: all(self._status(i) == "running" for i in hung.values()))
                for allocation_id in hung.values():
                    await self._service.allocations.stop(allocation_id)
            await anyio.sleep(self._load.history_s)
            began_s = anyio.current_time()
            good = await self._start(self._good)
            start_s = await self._time(good, lambda i: self._status(i) == "running", began_s)
            began_s = anyio.current_time()
            for allocation_id in good.values():
                await self._service.allocations.stop(allocation_id)
            stop_s = await self._time(good, lambda i: not self._has_claims(i), began_s)
            group.cancel_scope.cancel()
        return Times(start_s=start_s, stop_s=stop_s, calls_max=self._driver.running_max)

    async def _run_agent(self, *, task_status: TaskStatus[NodeId]) -> None:
        def connect(plugin_id: PluginId, spec: DriverSpec) -> Driver:
            return self._driver

        await agent.run(
            connect_directly(self._service),
            {PLUGIN: DriverSpec(socket=f"{self._root}/no.sock")},
            state_dir=Path(self._root, "node"),
            node=Node(id=NODE, name="n1", boot_id="b1"),
            settings=self._load.agent,
            around=agent.Surroundings(
                connect=connect, mounter=self._mounter, clock=_Clock().now_ns, ticks=anyio.current_time,
                hops=virtual_loop.VirtualHops(), random=random.Random(self._load.seed).random,
            ),
            task_status=task_status,
        )  # fmt: skip

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():  # noqa: ASYNC110 - virtual time passes for nothing
            await anyio.sleep(0.01)

    def _is_healthy(self) -> bool:
        found = self._service.reads.find_plugin(PLUGIN)
        return found is not None and measure_health(found.value).is_schedulable

    async def _start(self, names: list[str]) -> dict[str, str]:
        """Ask for a use of each volume, all at this moment; their allocations' IDs."""
        started: dict[str, str] = {}
        for name in names:
            request = VolumeRequest(name="data", source=VolumeId(name), access_mode="single-node-writer")
            use = Allocation(id=AllocationId(""), namespace=NamespaceName("default"), node_id=NODE, volumes=(request,))
            started[name] = (await self._service.allocations.start(use)).value.id
        return started

    def _status(self, allocation_id: str) -> str:
        found = self._service.reads.find_allocation(allocation_id)
        return found.value.status if found else "gone"

    def _has_claims(self, allocation_id: str) -> bool:
        return bool(self._repo.view.claims.of_allocation(AllocationId(allocation_id)))

    async def _time(self, uses: dict[str, str], is_done: Callable[[str], bool], began_s: float) -> tuple[float, ...]:
        """How long each took until it was done, by looks 10 ms apart."""
        found: dict[str, float] = {}
        while len(found) < len(uses):
            await anyio.sleep(0.01)
            for name, allocation_id in uses.items():
                if name not in found and is_done(allocation_id):
                    found[name] = anyio.current_time() - began_s
        return tuple(found.values())
