"""An engine over a store in memory, with a scripted driver behind an agent of a few lines."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from moorage.api.app import App
from moorage.engine.ports import AclSettings, Clock, EngineSettings, FenceHook, ResetIndex
from moorage.engine.service import Service
from moorage.model.assignment import MountedReport, Report, StepReport, UnmountedReport
from moorage.model.claim import Attached, Mounted
from moorage.model.identity import Peer
from moorage.model.ids import NodeId, PluginId
from moorage.model.node import Node
from moorage.rules.nodes import FencingSettings
from moorage.state.codec import Records
from moorage.state.feed import Feed
from moorage.state.memory import MemoryStore
from moorage.state.repo import Repo
from moorage.state.resealing import KeySource, Resealing
from moorage.state.sealing import Sealer
from moorage.state.store import Store
from moorage.testing.clock import SeededChance
from moorage.testing.scripted import ScriptedDriver

NODE = NodeId("11111111-2222-3333-4444-555555555555")
PLUGIN = PluginId("hostpath")


class RunningClock:
    """The real time: back-off pauses are short enough to wait for."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()


class Kit:
    """What a test needs: the service, the app over it, the driver, the repo."""

    def __init__(
        self,
        store: Store,
        settings: EngineSettings,
        hook: FenceHook | None = None,
        *,
        clock: Clock | None = None,
        reset: ResetIndex | None = None,
        keys: KeySource | None = None,
    ) -> None:
        self.store = store
        records = Records(Sealer(keys.load(), keys.describe())) if keys else Records()
        self.repo = Repo(store, Feed(store, records))
        sealing = Resealing(store, records, keys) if keys else None
        self.service = Service(
            self.repo, clock or RunningClock(), SeededChance(), settings, hook=hook, reset=reset, sealing=sealing
        )
        self.app = App(self.service)
        self.driver = ScriptedDriver()
        self.is_mounting = True
        self.is_calling = True

    async def register(self) -> None:
        await self.service.nodes.register(Node(id=NODE, name="n1", boot_id="b1"))
        await self.service.nodes.report_plugins(NODE, {PLUGIN: self.driver.instance(NODE)})

    async def run_steps(self) -> None:
        index = 0
        while True:
            found = await self.service.nodes.wait_steps(NODE, index=index, wait_s=60)
            index = found.index
            reports: list[Report] = []
            for assignment in found.steps if self.is_calling else ():
                outcome = self.driver.run(assignment.step)
                reports.append(StepReport(key=assignment.key, revision=assignment.revision, outcome=outcome))
            if reports:
                await self.service.nodes.report(NODE, tuple(reports))

    async def run_claims(self) -> None:
        index = 0
        while True:
            found = await self.service.nodes.wait_claims(NODE, index=index, wait_s=60)
            index = found.index
            reports: list[Report] = []
            for assigned in found.claims if self.is_mounting else ():
                claim, revision = assigned.claim, assigned.revision
                if claim.wanted == "held" and isinstance(claim.state, Attached):
                    path = claim.target or f"/mnt/{claim.name}"
                    reports.append(MountedReport(claim_id=claim.id, revision=revision, path=path, publish_path=path))
                if claim.wanted == "released" and isinstance(claim.state, (Attached, Mounted)):
                    reports.append(UnmountedReport(claim_id=claim.id, revision=revision))
            if reports:
                await self.service.nodes.report(NODE, tuple(reports))


async def join(kit: Kit, node_id: NodeId = NODE) -> dict[str, str]:
    """Give a node a secret of its own; the headers with which its agent uses its pages."""
    secret = f"moorage-node-{node_id}"
    await kit.service.identities.join(node_id, secret, name=node_id, join_token="", peer=Peer())
    return {"x-nomad-token": secret}


@asynccontextmanager
async def running_kit(
    store: Store | None = None,
    *,
    request_s: float = 5.0,
    fencing: FencingSettings | None = None,
    hook: FenceHook | None = None,
    acl: AclSettings | None = None,
    clock: Clock | None = None,
    reset: ResetIndex | None = None,
    keys: KeySource | None = None,
) -> AsyncIterator[Kit]:
    """A kit whose engine and agent run until the block ends. ``keys``: secrets are sealed with them."""
    settings = EngineSettings(request_s=request_s, fencing=fencing or FencingSettings(), acl=acl or AclSettings())
    kit = Kit(store or MemoryStore(), settings, hook, clock=clock, reset=reset, keys=keys)
    async with anyio.create_task_group() as group:
        await group.start(kit.service.run)
        if kit.service.sealing is not None:
            await group.start(kit.service.sealing.run)
        await kit.register()
        group.start_soon(kit.run_steps)
        group.start_soon(kit.run_claims)
        yield kit
        group.cancel_scope.cancel()
