"""The network between agents, users and the server: delays, lost requests, lost answers, doubles, partitions."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import anyio
import anyio.lowlevel

from moorage.client.api import WAIT_SLACK, Client
from moorage.engine.service import Service
from moorage.errors import Unavailable
from moorage.model.assignment import (
    ClaimAssignments,
    NodeRegistered,
    PluginReport,
    PluginsReported,
    Report,
    StepAssignments,
)
from moorage.model.ids import NodeId
from moorage.model.node import Node

if TYPE_CHECKING:
    from moorage.testing.sim_hosts import Host
    from moorage.testing.sim_world import World

Result = TypeVar("Result")
Lie = Literal["", "unclean", "stale", "untaken", "overtaken"]
Act = Callable[[Service], Awaitable[Result]]
CALL_TIMEOUT_S = 3.0
# How old a list of claims is that a client with the lie "stale" hands on.
STALE_S = 4.0


class Network:
    """Carries requests to the server."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = random.Random(f"network/{world.seed}")

    def _roll(self, rate: float) -> bool:
        return self._world.roll(self._random, rate)

    async def ask(self, host: Host | None, act: Act[Result], *, timeout_s: float, is_write: bool = False) -> Result:
        """What the server answers. ``host`` None: a user, whom no partition cuts off. Raises Unavailable and what
        the server says; when it raises Unavailable the request may have been carried out, or may yet be."""
        trouble = self._world.schedule.network
        with anyio.move_on_after(timeout_s):
            await anyio.sleep(self._random.uniform(0.0, trouble.delay_s))
            if self._is_cut(host) or self._roll(trouble.request_lost):
                await self._fail_slowly("no route to the server")
            if is_write and self._roll(trouble.late):
                self._world.spawn(lambda: self._deliver_late(act, self._random.uniform(0.0, trouble.late_s)))
                await self._fail_slowly("connection broken")
            if is_write and self._roll(trouble.doubled):
                self._world.spawn(lambda: self._deliver_late(act, self._random.uniform(0.0, 0.5)))
            result = await self._world.server.ask(act)
            await anyio.sleep(self._random.uniform(0.0, trouble.delay_s))
            if self._is_cut(host) or self._roll(trouble.answer_lost):
                await self._fail_slowly("connection broken")
            return result
        raise Unavailable("the server does not answer")

    def _is_cut(self, host: Host | None) -> bool:
        return host is not None and host.is_cut

    async def _fail_slowly(self, text: str) -> None:
        """Some lost packets are noticed at once, others only by a timeout."""
        if self._random.random() < 0.5:
            await anyio.sleep_forever()
        raise Unavailable(text)

    async def _deliver_late(self, act: Act[Any], pause_s: float) -> None:
        await anyio.sleep(pause_s)
        try:
            await self._world.server.ask(act)
        except Exception as error:  # noqa: BLE001 - nobody waits for this answer
            self._world.history.note("network", f"late request: {error!r}")


class SimClient(Client):
    """The agent's client over the simulated network, which may lie for its host: a planted defect (``sim_defects``)."""

    def __init__(self, network: Network, host: Host) -> None:
        self._network = network
        self._host = host
        self._node_revision = 0
        self._has_asked = False

    async def register_node(
        self, node: Node, *, clean_by: int = 0, is_empty: bool = False, epoch: int = 0, calling: tuple[str, ...] = ()
    ) -> NodeRegistered:
        """See ``Client``."""
        lie = self._host.lie
        if lie == "untaken" and not self._has_asked:
            self._has_asked = True
            return NodeRegistered(lease_s=3.0)
        if lie == "unclean":
            clean_by = self._node_revision

        async def act(service: Service) -> NodeRegistered:
            found = service.reads.find_node(node_id=node.id)
            newest = found.modified if found and lie == "stale" and clean_by else clean_by
            is_new = is_empty or lie == "untaken"
            return await service.nodes.register(node, clean_by=newest, is_empty=is_new, epoch=epoch, calling=calling)

        return await self._network.ask(self._host, act, timeout_s=CALL_TIMEOUT_S, is_write=True)

    async def report_plugins(self, node_id: NodeId, report: PluginReport) -> PluginsReported:
        """See ``Client``."""
        told, calling = report.instances, report.calling

        async def act(service: Service) -> PluginsReported:
            after = service.nodes.find_report_count(node_id) if self._host.lie == "overtaken" else report.after
            return await service.nodes.report_plugins(node_id, told, calling=calling, after=after)

        return await self._network.ask(self._host, act, timeout_s=CALL_TIMEOUT_S, is_write=True)

    async def report(self, node_id: NodeId, reports: Iterable[Report]) -> None:
        """See ``Client``."""
        told = tuple(reports)
        await self._network.ask(
            self._host, lambda s: s.nodes.report(node_id, told), timeout_s=CALL_TIMEOUT_S, is_write=True
        )

    async def wait_steps(self, node_id: NodeId, index: int, wait_s: float, epoch: int = 0) -> StepAssignments:
        """See ``Client``."""
        return await self._network.ask(
            self._host,
            lambda s: s.nodes.wait_steps(node_id, index=index, wait_s=wait_s, epoch=epoch),
            timeout_s=wait_s * WAIT_SLACK + CALL_TIMEOUT_S,
        )

    async def wait_claims(self, node_id: NodeId, index: int, wait_s: float, epoch: int = 0) -> ClaimAssignments:
        """See ``Client``."""
        answer = await self._network.ask(
            self._host,
            lambda s: s.nodes.wait_claims(node_id, index=index, wait_s=wait_s, epoch=epoch),
            timeout_s=wait_s * WAIT_SLACK + CALL_TIMEOUT_S,
        )
        self._node_revision = answer.node_revision
        if self._host.lie == "stale":
            await anyio.sleep(STALE_S)
        return answer


class _Line(Network):
    """A way from an agent to a server on which nothing happens to a request."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ask(self, host: Host | None, act: Act[Result], *, timeout_s: float, is_write: bool = False) -> Result:
        await anyio.lowlevel.checkpoint()
        return await act(self._service)


def connect_directly(service: Service) -> Client:
    """An agent's client that asks an engine in the same process."""
    return SimClient(_Line(service), cast(Any, SimpleNamespace(lie="")))
