"""A whole agent for tests: against a server in this process, a scripted driver, and mounts in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from moorage.agent import main
from moorage.agent.lane import Hops
from moorage.agent.main import Surroundings
from moorage.agent.ports import AgentSettings, Driver, DriverSpec
from moorage.agent.probes import ask_mount
from moorage.client.api import Client
from moorage.client.transport import Answer, CallTransport
from moorage.errors import Unavailable
from moorage.model.assignment import NodeRegistered, NodeRegistration
from moorage.model.claim import Attached, Claim
from moorage.model.ids import AllocationId, ClaimId, NamespaceName, NodeId, PluginId, VolumeId
from moorage.model.node import Node
from moorage.testing.agent_world import MemoryMounter, Pages, ScriptedDriver

replace = msgspec.structs.replace

NAS = PluginId("nas")
A, B = ClaimId("a"), ClaimId("b")
NODE = Node(id=NodeId("3c1b7a52-0000-4000-8000-000000000001"), name="one", boot_id="boot-1")
FAST = AgentSettings(
    probe_young_s=0.02,
    probe_old_s=0.05,
    probe_timeout_s=0.2,
    retry_cap_s=0.05,
    rescan_s=0.1,
    first_probe_s=0.2,
    mount_probe_s=0.02,
    mount_hang_s=0.2,
    plugins_look_s=0.02,
    fence_look_s=0.01,
)


class LosingPages(Pages):
    """A server that may lose a node: then it takes it back only clean, and not while it ``is_refusing``. ``ahead``: by
    how much the node's record, as a registration leaves it, is ahead of the list of claims.
    ``registrations``: how each one came, clean or not; ``empty``: whether the agent said that it holds nothing."""

    def __init__(self, *, lease_s: float = 3.0, grace_s: float = 30.0) -> None:
        super().__init__(lease_s=lease_s)
        self.grace_s = grace_s
        self.lost: set[NodeId] = set()
        self.registrations: list[bool] = []
        self.empty: list[bool] = []
        self.are_claims_kept_back = False
        self.is_refusing = False
        self.ahead = 0
        self.is_losing_answers = False

    async def handle(self, method: str, path: str, query: Any, body: bytes | None) -> Answer:
        """Answer one request."""
        if path.endswith("/register") and not self.is_down:
            sent = msgspec.json.decode(body or b"", type=NodeRegistration)
            is_clean = bool(sent.clean_by) and sent.clean_by == self.node_revision
            self.registrations.append(is_clean)
            self.empty.append(sent.is_empty)
            if sent.node.id in self.lost and (not is_clean or self.is_refusing):
                self.requests.append("PUT register")
                self.change()
                return Answer(409, {}, b"the node was lost: register as clean")
            self.lost.discard(sent.node.id)
            await super().handle(method, path, query, body)
            if self.is_losing_answers:
                self.lost.add(sent.node.id)
                self.node_revision += 1
                raise Unavailable("connection broken")
            answer = NodeRegistered(
                lease_s=self.lease_s, grace_s=self.grace_s, node_revision=self.node_revision + self.ahead
            )
            return Answer(200, {}, msgspec.json.encode(answer))
        if not self.is_down and NodeId(path.split("/")[3]) in self.lost and not path.endswith("/claims"):
            self.change()
            return Answer(404, {}, b"the node is not registered")
        if self.are_claims_kept_back and path.endswith("/claims"):
            self.requests.append("GET claims")
            raise Unavailable("the claims are not loaded yet")
        return await super().handle(method, path, query, body)


class World:
    """What outlives an agent: the server, the driver, the mounts, the state directory."""

    def __init__(self, path: Path) -> None:
        self.pages = LosingPages()
        self.mounter = MemoryMounter()
        self.state_dir = path / "state"
        self.data_dir = path / "data"
        self.target = path / "srv" / "data"
        for name in ("ext-1", "ext-2"):
            (self.data_dir / name).mkdir(parents=True)
        self.driver = ScriptedDriver(self.mounter, str(self.data_dir))
        self.drivers: dict[PluginId, Driver] = {NAS: self.driver}
        self.node = NODE
        self.settings = FAST
        self.specs: dict[PluginId, DriverSpec] = {}
        self.now_s = 1000.0
        self.ask = ask_mount
        self.hops: Hops | None = None

    @asynccontextmanager
    async def agent(self, *, is_awaited: bool = True) -> AsyncIterator[None]:
        """An agent that runs for a while and then is stopped."""
        around = Surroundings(
            connect=lambda plugin_id, spec: self.drivers[plugin_id],
            mounter=self.mounter,
            clock=lambda: 42,
            random=lambda: 0.0,
            ticks=lambda: self.now_s,
            ask_mount=self._ask,
            hops=self.hops,
        )
        specs = {p: self.specs.get(p, DriverSpec(socket=f"/nowhere/{p}.sock")) for p in self.drivers}

        async def run(*, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
            await main.run(
                Client(CallTransport(self.pages.handle)),
                specs,
                state_dir=self.state_dir,
                node=self.node,
                settings=self.settings,
                around=around,
                task_status=task_status,
            )

        async with anyio.create_task_group() as group:
            if is_awaited:
                assert await group.start(run) == self.node.id
            else:
                group.start_soon(run)
            yield
            group.cancel_scope.cancel()

    def _ask(self, path: str) -> None:
        self.ask(path)

    async def until(self, is_so: Callable[[], object]) -> None:
        await self.pages.until(is_so)

    async def ask_again(self) -> None:
        """Let the agent have the page of steps once more."""
        asked = self.pages.requests.count("GET steps")
        self.pages.change()
        await self.until(lambda: self.pages.requests.count("GET steps") > asked)

    def claim(self, claim_id: ClaimId = A, **more: Any) -> Claim:
        return Claim(
            **{
                "id": claim_id,
                "allocation_id": AllocationId("alloc"),
                "name": "data",
                "namespace": NamespaceName("default"),
                "volume_id": VolumeId("vol"),
                "plugin_id": NAS,
                "external_id": "ext-1",
                "external_node_id": "n",
                "node_id": self.node.id,
                "read_only": False,
                "access_mode": "single-node-multi-writer",
                "attachment_mode": "file-system",
                "state": Attached(publish_context={"lun": "7"}),
                **more,
            }
        )

    def journal(self) -> list[str]:
        return sorted(p.name for p in (self.state_dir / "u").iterdir())

    async def mount(self, claim_id: ClaimId = A, **more: Any) -> str:
        self.pages.put_claim(self.claim(claim_id, **more))
        await self.until(lambda: self.pages.path_of(claim_id))
        return self.pages.path_of(claim_id)

    async def release(self, claim_id: ClaimId = A) -> None:
        self.pages.release(claim_id)
        await self.until(lambda: claim_id not in self.pages.claims)
