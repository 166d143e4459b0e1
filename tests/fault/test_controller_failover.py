"""Two controllers of one plugin, one killed in the middle of a call: nothing is lost, nothing is doubled, and no second
controller is at a volume while the first may be. Server and agents are the real ones; time is virtual."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.abc import TaskGroup

from moorage.agent import main as agent
from moorage.agent.ports import Driver, DriverSpec
from moorage.engine.ports import EngineSettings
from moorage.engine.service import Service
from moorage.model import steps
from moorage.model.claim import Allocation, VolumeRequest
from moorage.model.ids import AllocationId, NamespaceName, NodeId, PluginId, VolumeId
from moorage.model.node import Node
from moorage.model.plugin import ControllerInfo, Instance, NodeInfo
from moorage.model.volume import Capability, Volume
from moorage.rules.nodes import FencingSettings
from moorage.rules.plugins import choose_controller
from moorage.state.feed import Feed
from moorage.state.memory import MemoryStore
from moorage.state.repo import Repo
from moorage.testing import virtual_loop
from moorage.testing.agent_world import MemoryMounter
from moorage.testing.clock import SeededChance
from moorage.testing.sim_network import connect_directly

PLUGIN = PluginId("two")
WRITER = Capability(access_mode="single-node-writer", attachment_mode="file-system")


class Clock:
    def now_ns(self) -> int:
        return 1_700_000_000_000_000_000 + self.monotonic_ns()

    def monotonic_ns(self) -> int:
        return int(anyio.current_time() * 1e9)


class Backend:
    """One storage. ``calls``: each controller call, with the host whose driver got it."""

    def __init__(self) -> None:
        self.volumes: dict[str, str] = {}
        self.attached: set[tuple[str, str]] = set()
        self.calls: list[tuple[str, steps.Step]] = []
        self.running: list[str] = []

    def apply(self, step: steps.Step) -> steps.Outcome:
        match step:
            case steps.CreateVolume():
                return steps.Created(external_id=self.volumes.setdefault(step.name, f"ext-{len(self.volumes)}"))
            case steps.AttachVolume():
                self.attached.add((step.external_id, step.external_node_id))
                return steps.Attached(publish_context={})
            case steps.DetachVolume():
                self.attached.discard((step.external_id, step.external_node_id))
        return steps.Done()


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    is_ready: bool = True
    health_description: str = "healthy"

    def to_instance(self, node_id: NodeId, *, now_ns: int, alloc_id: str = "") -> Instance:
        return Instance(
            node_id=node_id,
            healthy=True,
            requires_controller=True,
            controller=ControllerInfo(supports_create_delete=True, supports_attach_detach=True),
            node=NodeInfo(external_id=self.name),
            updated_at_ns=now_ns,
        )


class Host:
    """An agent with its driver. ``hang``: calls of this step hang, ``is_effective``: after they had their effect."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self.node_id = NodeId(f"{name * 8}-2222-3333-4444-555555555555")
        self.hang: type | None = None
        self.is_effective = False
        self._cluster = cluster
        self._scope = anyio.CancelScope()
        self._mounter = MemoryMounter()

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def is_connected(self) -> bool:
        return True

    async def probe(self, *, timeout_s: float) -> Facts:
        return Facts(name=self.name)

    async def run(self, step: steps.Step, *, timeout_s: float) -> steps.Outcome:
        backend = self._cluster.backend
        is_controller = isinstance(step, (steps.CreateVolume, steps.AttachVolume, steps.DetachVolume))
        if is_controller:
            backend.calls.append((self.name, step))
            backend.running.append(self.name)
        try:
            if isinstance(step, steps.PublishVolume):
                os.makedirs(step.target_path)
                self._mounter.bind(str(self._cluster.root), step.target_path, read_only=False)
            if self.hang is None or not isinstance(step, self.hang):
                await anyio.sleep(0.1)
                return backend.apply(step)
            if self.is_effective:
                backend.apply(step)
            await anyio.sleep_forever()
            raise AssertionError
        finally:
            if is_controller:
                backend.running.remove(self.name)

    async def start(self, group: TaskGroup) -> None:
        """Start the agent; until its driver is on record as healthy."""
        self.hang, self._scope = None, anyio.CancelScope()
        group.start_soon(self._run)
        await self._cluster.until(lambda: self._cluster.is_healthy(self))

    async def _run(self) -> None:
        def connect(plugin_id: PluginId, spec: DriverSpec) -> Driver:
            return self

        around = agent.Surroundings(
            connect=connect, mounter=self._mounter, clock=Clock().now_ns, ticks=anyio.current_time,
            hops=virtual_loop.VirtualHops(), random=random.Random(self.name).random,
        )  # fmt: skip
        with self._scope:
            await agent.run(
                connect_directly(self._cluster.service),
                {PLUGIN: DriverSpec(socket=f"{self._cluster.root}/no.sock")},
                state_dir=self._cluster.root / self.name,
                node=Node(id=self.node_id, name=self.name, boot_id="b1"),
                around=around,
            )

    def kill(self) -> None:
        """Agent and driver die at once."""
        self._scope.cancel()


class Cluster:
    """Hosts a and b, both with a controller, and the server."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.backend = Backend()
        store = MemoryStore()
        self.repo = Repo(store, Feed(store))
        fencing = FencingSettings(lease_s=3.0, grace_s=5.0)
        self.service = Service(self.repo, Clock(), SeededChance(), EngineSettings(fencing=fencing))
        self.a, self.b = Host(self, "a"), Host(self, "b")

    async def until(self, is_so: Callable[[], object], *, within_s: float = 60.0) -> None:
        with anyio.fail_after(within_s):
            while not is_so():
                await anyio.sleep(0.05)

    def is_healthy(self, host: Host) -> bool:
        found = self.service.reads.find_plugin(PLUGIN)
        instance = found.value.instances.get(host.node_id) if found else None
        return instance is not None and instance.healthy

    async def create(self) -> None:
        volume = Volume(
            id=VolumeId("web"), namespace=NamespaceName("default"), plugin_id=PLUGIN, name="web", capabilities=(WRITER,)
        )
        await self.service.registrations.create([volume])

    async def use(self, host: Host) -> str:
        request = VolumeRequest(name="data", source=VolumeId("web"), access_mode="single-node-writer")
        use = Allocation(
            id=AllocationId(""), namespace=NamespaceName("default"), node_id=host.node_id, volumes=(request,)
        )
        return (await self.service.allocations.start(use)).value.id

    def status(self, allocation_id: str) -> str:
        found = self.service.reads.find_allocation(allocation_id)
        return found.value.status if found else "gone"

    def order(self, serial: str) -> tuple[Host, Host]:
        """The host whose controller is called for a serial key while both are healthy, and the other one."""
        chosen = choose_controller((self.a.node_id, self.b.node_id), f"volume/{PLUGIN}/{serial}")
        return (self.a, self.b) if chosen == self.a.node_id else (self.b, self.a)

    def callers(self, kind: type) -> list[str]:
        """Whose driver got calls of a kind, in order."""
        return [host for host, step in self.backend.calls if isinstance(step, kind)]


def run(root: Path, test: Callable[[Cluster, TaskGroup], Awaitable[None]]) -> None:
    async def main() -> None:
        cluster = Cluster(root)
        async with anyio.create_task_group() as group:
            await group.start(cluster.service.run)
            await cluster.b.start(group)
            await cluster.a.start(group)
            await test(cluster, group)
            group.cancel_scope.cancel()

    virtual_loop.run(main, seed=1)


CREATED, ATTACHED = "name:web", "ext-0"


@pytest.mark.parametrize("is_effective", [False, True], ids=["before its effect", "after its effect"])
def test_a_create_is_repeated_by_the_other_controller(tmp_path: Path, is_effective: bool) -> None:
    async def test(cluster: Cluster, group: TaskGroup) -> None:
        first, second = cluster.order(CREATED)
        first.hang, first.is_effective = steps.CreateVolume, is_effective
        group.start_soon(cluster.create)
        await cluster.until(lambda: cluster.backend.running == [first.name])
        first.kill()
        await cluster.until(lambda: cluster.service.reads.find_volume("default", "web"))
        assert cluster.callers(steps.CreateVolume) == [first.name, second.name]
        one, other = (step for _, step in cluster.backend.calls)
        assert one == other, "the repeat is another call"
        assert cluster.backend.volumes == {"web": "ext-0"}
        found = cluster.service.reads.find_volume("default", "web")
        assert found is not None
        assert found.record.value.external_id == "ext-0"

    run(tmp_path, test)


@pytest.mark.parametrize("is_effective", [False, True], ids=["before its effect", "after its effect"])
def test_an_attachment_is_repeated_and_undone_by_the_other_controller(tmp_path: Path, is_effective: bool) -> None:
    async def test(cluster: Cluster, group: TaskGroup) -> None:
        await cluster.create()
        first, second = cluster.order(ATTACHED)
        first.hang, first.is_effective = steps.AttachVolume, is_effective
        use = await cluster.use(second)
        await cluster.until(lambda: cluster.backend.running == [first.name])
        first.kill()
        await cluster.until(lambda: cluster.status(use) == "running")
        assert cluster.callers(steps.AttachVolume) == [first.name, second.name]
        assert cluster.backend.attached == {("ext-0", second.name)}

    run(tmp_path, test)


def test_a_controller_that_is_back_waits_until_the_other_is_done_with_the_volume(tmp_path: Path) -> None:
    async def test(cluster: Cluster, group: TaskGroup) -> None:
        first, second = cluster.order(CREATED)
        cluster.a.hang = cluster.b.hang = steps.CreateVolume
        group.start_soon(cluster.create)
        await cluster.until(lambda: cluster.backend.running == [first.name])
        first.kill()
        await cluster.until(lambda: cluster.backend.running == [second.name])
        await first.start(group)  # the first choice, and healthy: yet the second may be at the volume
        await anyio.sleep(30.0)
        assert cluster.backend.running == [second.name]
        assert cluster.callers(steps.CreateVolume) == [first.name, second.name]
        second.kill()
        await cluster.until(lambda: cluster.service.reads.find_volume("default", "web"))
        assert cluster.callers(steps.CreateVolume) == [first.name, second.name, first.name]
        assert cluster.backend.volumes == {"web": "ext-0"}

    run(tmp_path, test)
