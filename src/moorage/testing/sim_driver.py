"""Simulated drivers: one on each host, all over one backend. A call goes on when its caller has given up.

A volume that has a call running answers ABORTED to another one, as the CSI specification wants it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import msgspec

from moorage.csi.status import judge
from moorage.errors import DriverUncertain
from moorage.model import steps
from moorage.model.ids import NodeId
from moorage.model.plugin import ControllerInfo, Instance, NodeInfo
from moorage.rules.explanations import get_method
from moorage.testing.sim_backend import Backend, failed

if TYPE_CHECKING:
    from moorage.testing.sim_hosts import Host
    from moorage.testing.sim_world import World

NODE_STEPS = (
    steps.StageVolume,
    steps.PublishVolume,
    steps.UnpublishVolume,
    steps.UnstageVolume,
    steps.ExpandNodeVolume,
    steps.GetVolumeStats,
)
FINALS = ("INTERNAL", "FAILED_PRECONDITION", "INVALID_ARGUMENT")


class Call:
    """A call on its way. ``is_left``: its caller was told that nothing is known of it, or is dead."""

    def __init__(self, number: int, step: steps.Step, host: Host, *, owner: int, key: str, begun_s: float) -> None:
        self.number = number
        self.step = step
        self.host = host
        self.owner = owner
        self.key = key
        self.begun_s = begun_s
        self.boot = host.boot
        self.is_node_step = isinstance(step, NODE_STEPS)
        self.is_left = False
        self.is_void = False
        self.outcome: steps.Outcome | None = None
        self.answered = anyio.Event()

    def answer(self, outcome: steps.Outcome) -> None:
        """Tell the caller, if it has not been told."""
        if self.outcome is None:
            self.outcome = outcome
            self.answered.set()

    def __str__(self) -> str:
        return f"call {self.number} {type(self.step).__name__} {self.key} on {self.host.name}"


def key_of(step: steps.Step, node: str) -> str:
    """What a driver keeps apart: a volume at the controller, or on a node."""
    if isinstance(step, steps.CreateVolume):
        return f"name:{step.name}"
    if isinstance(step, steps.CreateSnapshot):
        return f"vol:{step.external_source_id}"
    if isinstance(step, steps.DeleteSnapshot):
        return f"snap:{step.snapshot_id}"
    found: str = getattr(step, "external_id", "")
    return f"{node}/{found}" if isinstance(step, NODE_STEPS) else f"vol:{found}"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulated driver says about itself."""

    external_id: str
    is_staging: bool
    is_attaching: bool
    is_ready: bool = True
    health_description: str = "healthy"

    def to_instance(self, node_id: NodeId, *, now_ns: int, alloc_id: str = "") -> Instance:
        """As a record."""
        controller = ControllerInfo(
            supports_create_delete=True,
            supports_attach_detach=self.is_attaching,
            supports_list_volumes=True,
            supports_create_delete_snapshot=True,
            supports_expand=True,
        )
        return Instance(
            node_id=node_id,
            healthy=True,
            provider="sim.example",
            provider_version="1",
            requires_controller=True,
            controller=controller,
            node=NodeInfo(external_id=self.external_id, requires_stage=self.is_staging, supports_expand=True),
            updated_at_ns=now_ns,
            alloc_id=alloc_id,
        )


class Calls:
    """All calls in flight, and what becomes of them."""

    def __init__(self, world: World, backend: Backend) -> None:
        self._world = world
        self._backend = backend
        self._random = random.Random(f"driver/{world.seed}")
        self._health = random.Random(f"health/{world.seed}")
        self._running: dict[str, Call] = {}
        self.count = 0

    async def run(self, step: steps.Step, host: Host, *, owner: int, timeout_s: float) -> steps.Outcome:
        """The outcome as the caller gets it, at the latest after ``timeout_s``."""
        if host.is_driver_down:
            return failed(step, "UNAVAILABLE", "connection refused", is_final=False)
        self.count += 1
        key = key_of(step, host.external_id)
        call = Call(self.count, step, host, owner=owner, key=key, begun_s=anyio.current_time())
        self._world.history.note(host.name, f"{call} begins")
        self._world.validators.check_call(step)
        earlier = self._running.get(key)
        if earlier is not None:
            self._check_overlap(earlier, call)
            return failed(step, "ABORTED", "an operation on this volume is in progress", is_final=False)
        self._running[key] = call
        self._world.spawn(lambda: self._carry_out(call, timeout_s))
        if self._world.roll(self._random, self._world.schedule.crashes.agent_at_call):
            host.kill("at a call")
        try:
            with anyio.move_on_after(timeout_s):
                await call.answered.wait()
        finally:
            call.is_left = call.is_left or call.outcome is None
        return call.outcome or failed(step, "DEADLINE_EXCEEDED", "no answer in time", is_final=False)

    def _check_overlap(self, earlier: Call, call: Call) -> None:
        """Two calls for one volume: the earlier one's caller must have given up, or have been lost since."""
        if earlier.is_left:
            return
        is_away = self._world.validators.was_away(earlier.host.node_id, earlier.begun_s - self._world.started_s)
        if earlier.owner == call.owner or not is_away:
            self._world.history.violate("one_in_flight", f"{call} while {earlier} runs since {earlier.begun_s:.3f}")

    async def _carry_out(self, call: Call, timeout_s: float) -> None:
        trouble, draw = self._world.schedule.driver, self._random
        roll = self._world.roll
        before_s = draw.uniform(0.0, trouble.delay_s)
        if roll(draw, trouble.slow):
            before_s = draw.uniform(timeout_s * 0.5, timeout_s + trouble.slow_s)
        after_s = draw.uniform(0.0, trouble.delay_s)
        is_lost = roll(draw, trouble.answer_lost)
        refusal = self._draw_refusal(call)
        try:
            await anyio.sleep(before_s)
            if call.is_void:
                return
            outcome = refusal or self._apply(call)
            await anyio.sleep(after_s)
        finally:
            del self._running[call.key]
        status = outcome.fault.status if isinstance(outcome, steps.Failed) else "OK"
        if is_lost:
            outcome = failed(call.step, "UNAVAILABLE", "the connection broke", is_final=False)
        self._world.history.note(call.host.name, f"{call} ends {status}{' (answer lost)' if is_lost else ''}")
        call.answer(outcome)

    def _draw_refusal(self, call: Call) -> steps.Failed | None:
        trouble, draw = self._world.schedule.driver, self._random
        if self._world.roll(draw, trouble.unavailable):
            return failed(call.step, "UNAVAILABLE", "the backend is busy", is_final=False)
        if not self._world.roll(draw, trouble.final):
            return None
        if self._backend.is_done(call.step):
            return None  # an honest driver does not refuse what is so already
        return failed(call.step, draw.choice(FINALS), "refused by the schedule", is_final=True)

    def _apply(self, call: Call) -> steps.Outcome:
        outcome = self._backend.apply(call.step, call.host.external_id, call.host.mounts)
        self._world.history.note(call.host.name, f"{call} takes effect: {type(outcome).__name__}")
        if isinstance(outcome, steps.Failed):
            verdict = judge(get_method(call.step), outcome.fault.status)
            if verdict == "done":
                return steps.Done()
            return failed(call.step, outcome.fault.status, outcome.fault.message, is_final=verdict == "final")
        return outcome

    def cut(self, is_hit: Callable[[Call], bool], *, is_void: Callable[[Call], bool]) -> None:
        """Break off calls: their callers are told that the connection broke; some are never carried out."""
        for call in list(self._running.values()):
            if is_hit(call):
                call.is_left = True
                call.is_void = call.is_void or is_void(call)
                call.answer(failed(call.step, "UNAVAILABLE", "the connection broke", is_final=False))

    def is_deaf(self) -> bool:
        """Whether a probe has no answer now."""
        return self._world.roll(self._health, self._world.schedule.driver.deaf)

    def flip(self) -> bool:
        """Heads or tails."""
        return self._random.random() < 0.5


class SimDriver:
    """The driver of a host as one process of its agent sees it. ``owner`` numbers that process."""

    def __init__(self, calls: Calls, host: Host, facts: Facts, *, owner: int) -> None:
        self._calls = calls
        self._host = host
        self._facts = facts
        self._owner = owner

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    def is_connected(self) -> bool:
        """It has no connection that could break."""
        return True

    async def probe(self, *, timeout_s: float) -> Facts:
        """What the driver is. Raises DriverUncertain while it is down or deaf."""
        await anyio.lowlevel.checkpoint()
        if self._calls.is_deaf():
            text = "no answer in time"
            raise DriverUncertain(text, method="GetPluginInfo", status="DEADLINE_EXCEEDED", final=False)
        if self._host.is_driver_down:
            text = "connection refused"
            raise DriverUncertain(text, method="GetPluginInfo", status="UNAVAILABLE", final=False)
        return self._facts

    async def run(self, step: steps.Step, *, timeout_s: float) -> steps.Outcome:
        """Carry out a step."""
        return await self._calls.run(step, self._host, owner=self._owner, timeout_s=timeout_s)
