"""A server and the agent in its process, with a driver that answers at once: a write is all there is to count."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
from engine_kit import NODE, PLUGIN, Kit
from many_volumes import Line

from moorage.agent.budget import Budget
from moorage.agent.link import Link
from moorage.agent.ports import AgentSettings
from moorage.agent.reporter import Reporter
from moorage.agent.steps import StepGate, Steps
from moorage.agent.worker import StepWorkers
from moorage.engine.ports import EngineSettings
from moorage.model.assignment import Report
from moorage.model.identity import Peer
from moorage.model.steps import ControllerStep, Outcome, Step
from moorage.rules.nodes import FencingSettings
from moorage.serve.embedded import EmbeddedClient
from moorage.state.memory import MemoryStore

LEASE_S = 3600.0
SECRET = f"moorage-node-{'a' * 43}"
CAPABILITY = {"AccessMode": "single-node-writer", "AttachmentMode": "file-system"}


class Writing:
    """The server's parts, and a connection to it. ``made``: IDs given so far."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.made = 0

    async def run(self, step: Step, *, timeout_s: float) -> Outcome:
        """The driver's answer."""
        await anyio.lowlevel.checkpoint()
        return self.kit.driver.run(step)  # type: ignore[arg-type]  # only controller calls come here

    async def report(self, reports: tuple[Report, ...]) -> None:
        """The reporter's sink."""
        await self.pages.report(NODE, reports)

    async def follow_steps(self, group: anyio.abc.TaskGroup) -> None:
        """The part of an agent that makes controller calls."""
        settings = AgentSettings()
        kit = self.kit
        self.pages = EmbeddedClient(kit.app, kit.service, SECRET)
        reporter = Reporter(self, settings, random=lambda: 0.5)
        group.start_soon(reporter.run)
        budgets = {PLUGIN: Budget(32, slow_max=8, slow_after_s=10.0)}
        drivers: Any = {PLUGIN: self}
        gate = StepGate(lambda: 0.0)
        gate.renew(0.0, LEASE_S)
        gate.note_well([PLUGIN])
        clock = kit.service.clock.now_ns
        workers = StepWorkers(group, drivers, reporter, clock=clock, budgets=budgets, gate=gate)
        steps = Steps(self.pages, NODE, Link(), gate=gate, settings=settings, random=lambda: 0.5)
        steps.note_run(kit.service.reconciler.epoch)
        self.pages.offer(NODE, workers)
        await steps.run(workers, random=lambda: 0.5)

    def make_request(self, *, is_create: bool, external_id: str = "ext-1", count: int = 1) -> bytes:
        """The bytes of a request for new volumes."""
        bodies = []
        for _ in range(count):
            self.made += 1
            volume_id = f"w-{self.made:06d}"
            body = {
                "ID": volume_id,
                "Name": volume_id,
                "Namespace": "default",
                "PluginID": PLUGIN,
                "RequestedCapacityMin": 1 << 20,
                "RequestedCapacityMax": 4 << 20,
                "RequestedCapabilities": [CAPABILITY],
            }
            bodies.append(body if is_create else body | {"ExternalID": external_id})
        data = msgspec.json.encode({"Volumes": bodies})
        verb = "/create" if is_create else ""
        head = f"PUT /v1/volume/csi/x{verb} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        return head.encode() + data

    async def send(self, line: Line, data: bytes) -> None:
        """Send a request and wait for its answer, which must be a 200."""
        wire = line.wire
        wire.writes.clear()
        wire.moved = anyio.Event()
        line.protocol.data_received(data)
        await wire.moved.wait()
        assert b"".join(wire.writes).startswith(b"HTTP/1.1 200 "), wire.writes


@asynccontextmanager
async def writing() -> AsyncIterator[Writing]:
    """A server with one node, one driver and no volume."""
    # Nobody renews its lease here.
    found = Writing(Kit(MemoryStore(), EngineSettings(fencing=FencingSettings(lease_s=LEASE_S))))
    service = found.kit.service
    async with anyio.create_task_group() as group:
        await group.start(service.run)
        await service.identities.join(NODE, SECRET, name="n1", join_token="", peer=Peer(is_embedded=True))
        await found.kit.register()
        group.start_soon(found.follow_steps, group)
        yield found
        group.cancel_scope.cancel()


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often each function, of ours or built-in, is called on this thread while the block runs."""
    found: Counter[str] = Counter()

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            found[frame.f_code.co_qualname] += 1
        elif event == "c_call":
            found[getattr(argument, "__qualname__", "?")] += 1

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)


__all__ = ["ControllerStep", "Writing", "counted", "writing"]
