"""One call to a driver: its deadline, its slot, and its outcome with the time of a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from moorage.agent.budget import Budget
from moorage.agent.ports import Clock, Driver
from moorage.errors import DriverFault, MoorageError
from moorage.model.steps import Direction, Failed, Outcome, Step, direction_of
from moorage.model.volume import Fault

# A driver client keeps the deadline itself; this is how long it may be late before it is cut off.
LATE_MAX_S = 2.0
NO_ANSWER = "DEADLINE_EXCEEDED"


async def call_driver(
    driver: Driver | None, step: Step, *, timeout_s: float, clock: Clock, late_s: float = LATE_MAX_S
) -> Outcome:
    """The outcome of a step; every failure is a Failed one. ``driver`` None: this node has no such driver."""
    if driver is None:
        text = "this node has no driver for the plugin; configure its socket, or stop it elsewhere"
        return failed(step, "plugin_unavailable", text, at_ns=clock())
    outcome: Outcome
    try:
        # Not anyio's: with every call comes one, and a cancel scope costs more than all else here.
        async with asyncio.timeout(timeout_s + late_s):
            outcome = await driver.run(step, timeout_s=timeout_s)
    except DriverFault as e:
        outcome = failed(step, e.status, e.message, at_ns=0, is_final=e.final)
    except MoorageError as e:
        outcome = failed(step, e.code, e.message, at_ns=0)
    except TimeoutError:
        outcome = failed(step, NO_ANSWER, f"no answer within {timeout_s:g} s", at_ns=0)
    if isinstance(outcome, Failed) and not outcome.fault.at_ns:
        return Failed(fault=msgspec.structs.replace(outcome.fault, at_ns=clock()))
    return outcome


async def call_in_turn(
    budget: Budget | None, driver: Driver | None, step: Step, *, subject: str, timeout_s: float, clock: Clock
) -> Outcome:
    """``call_driver`` when the budget has a slot for it. ``subject`` names the volume; the deadline begins with the
    call."""
    call = partial(call_driver, driver, step, timeout_s=timeout_s, clock=clock)
    outcome = await take_turn(
        budget if driver is not None else None, call, direction=direction_of(step), subject=subject
    )
    assert outcome is not None
    return outcome


async def take_turn(
    budget: Budget | None,
    call: Callable[[], Awaitable[Outcome]],
    *,
    direction: Direction,
    subject: str,
    may_begin: Callable[[], bool] = lambda: True,
) -> Outcome | None:
    """The outcome of the call when its turn has come; None where it may not begin any more by then."""
    if budget is None:
        return await call() if may_begin() else None
    async with budget.slot(direction, subject) as ticket:
        if not may_begin():
            return None
        outcome = await call()
        ticket.no_answer = isinstance(outcome, Failed) and outcome.fault.status == NO_ANSWER
    return outcome


def failed(step: Step, status: str, message: str, *, at_ns: int, is_final: bool = False) -> Failed:
    """A failure that no driver told."""
    method = type(step).__name__
    return Failed(fault=Fault(method=method, status=status, message=message, final=is_final, at_ns=at_ns))
