"""One call to a driver: its deadline, its slot, and its outcome with the time of a failure."""

from __future__ import annotations

import anyio
import msgspec

from moorage.agent.ports import Clock, Driver
from moorage.errors import DriverFault, MoorageError
from moorage.model.steps import Failed, Outcome, Step
from moorage.model.volume import Fault

# A driver client keeps the deadline itself; this is how long it may be late before it is cut off.
LATE_MAX_S = 2.0


async def call_driver(
    driver: Driver | None, step: Step, *, timeout_s: float, clock: Clock, late_s: float = LATE_MAX_S
) -> Outcome:
    """The outcome of a step; every failure is a Failed one. ``driver`` None: this node has no such driver."""
    if driver is None:
        text = "this node has no driver for the plugin; configure its socket, or stop it elsewhere"
        return failed(step, "plugin_unavailable", text, at_ns=clock())
    outcome: Outcome | None = None
    with anyio.move_on_after(timeout_s + late_s):
        try:
            outcome = await driver.run(step, timeout_s=timeout_s)
        except DriverFault as e:
            outcome = failed(step, e.status, e.message, at_ns=0, is_final=e.final)
        except MoorageError as e:
            outcome = failed(step, e.code, e.message, at_ns=0)
    if outcome is None:
        outcome = failed(step, "DEADLINE_EXCEEDED", f"no answer within {timeout_s:g} s", at_ns=0)
    if isinstance(outcome, Failed) and not outcome.fault.at_ns:
        return Failed(fault=msgspec.structs.replace(outcome.fault, at_ns=clock()))
    return outcome


def failed(step: Step, status: str, message: str, *, at_ns: int, is_final: bool = False) -> Failed:
    """A failure that no driver told."""
    method = type(step).__name__
    return Failed(fault=Fault(method=method, status=status, message=message, final=is_final, at_ns=at_ns))
