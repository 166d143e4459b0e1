"""The parts of a run of ``scale``: clock, fence hook, drivers, and the way between agents and server."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from moorage.engine.ports import HookAnswer
from moorage.engine.service import Service
from moorage.errors import Unavailable
from moorage.model import steps
from moorage.model.ids import NodeId
from moorage.model.node import Node
from moorage.model.plugin import ControllerInfo, Instance, NodeInfo
from moorage.testing.agent_world import MemoryMounter
from moorage.testing.quiet_storage import carry_out
from moorage.testing.sim_network import Act, Network

Result = TypeVar("Result")

EPOCH_NS = 1_700_000_000_000_000_000
CALL_S = (0.05, 0.15)


class Clock:
    """The loop's time as the server's clocks."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return EPOCH_NS + self.monotonic_ns()

    def monotonic_ns(self) -> int:
        """Nanoseconds of virtual time."""
        return int(anyio.current_time() * 1e9)


class Hook:
    """Vouches for every node."""

    async def fence(self, node: Node) -> HookAnswer:
        """After a second."""
        await anyio.sleep(1.0)
        return HookAnswer(is_fenced=True, text="switched off")


def name_controller(external_id: str) -> str:
    """Under what the calls of a node's controller are counted."""
    return f"controller calls of {external_id}"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver says about itself."""

    external_id: str
    is_controller: bool
    is_ready: bool = True
    health_description: str = "healthy"

    def to_instance(self, node_id: NodeId, *, now_ns: int, alloc_id: str = "") -> Instance:
        """As a record."""
        return Instance(
            node_id=node_id,
            healthy=True,
            requires_controller=True,
            controller=ControllerInfo(supports_create_delete=True, supports_attach_detach=True)
            if self.is_controller
            else None,
            node=NodeInfo(external_id=self.external_id, requires_stage=True),
            updated_at_ns=now_ns,
            alloc_id=alloc_id,
        )


class QuickDriver:
    """One node's driver; each call takes a time of its own, drawn for the volume."""

    def __init__(self, facts: Facts, mounter: MemoryMounter, data: str, counts: Counter[str]) -> None:
        self._facts = facts
        self._mounter = mounter
        self._data = data
        self._counts = counts

    def is_connected(self) -> bool:
        """Always."""
        return True

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def probe(self, *, timeout_s: float) -> Facts:
        """Always well."""
        return self._facts

    async def run(self, step: steps.Step, *, timeout_s: float) -> steps.Outcome:
        """Carry out a step."""
        self._counts["calls"] += 1
        if isinstance(step, steps.ControllerStep):
            self._counts[name_controller(self._facts.external_id)] += 1
        draw = random.Random(f"{getattr(step, 'external_id', '')}/{type(step).__name__}")
        await anyio.sleep(draw.uniform(*CALL_S))
        return carry_out(step, self._mounter, self._data)


class Line(Network):
    """The way from the agents to whichever server there is now; answers are made into bytes and read again."""

    def __init__(self, counts: Counter[str]) -> None:
        self.service: Service | None = None
        self._counts = counts
        self._open: dict[anyio.CancelScope, None] = {}

    async def ask(self, host: Any, act: Act[Result], *, timeout_s: float, is_write: bool = False) -> Result:
        """See ``Network.ask``; a server that goes breaks what is under way."""
        await anyio.lowlevel.checkpoint()
        if self.service is None:
            raise Unavailable("connection refused")
        with anyio.CancelScope() as scope:
            self._open[scope] = None
            try:
                return self._carry(await act(self.service))
            finally:
                del self._open[scope]
        raise Unavailable("connection reset")

    def _carry(self, answer: Result) -> Result:
        if not isinstance(answer, msgspec.Struct):
            return answer
        data = msgspec.json.encode(answer)
        self._counts["answers"] += 1
        self._counts["sent_bytes"] += len(data)
        return msgspec.json.decode(data, type=type(answer))

    def cut(self) -> None:
        """The server is gone."""
        self.service = None
        for scope in list(self._open):
            scope.cancel()
