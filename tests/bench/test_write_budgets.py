"""Budgets of work of a write: how many calls of functions a register or a create takes, from its bytes to the answer's.

A budget that fails is a regression of speed: find what does more, and do less; it is not raised to let a change in.
Counted are the server and the agent in its process, over a store in memory and a driver that answers at once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import anyio
import pytest
import structlog
from many_volumes import Line
from writing_kit import counted, writing

pytestmark = pytest.mark.anyio

ROUNDS = 10


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The log as servers have it: lines below ``info`` cost a call and no more."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO), processors=[_drop], logger_factory=_Silent
    )
    yield
    structlog.reset_defaults()


class _Silent:
    def __init__(self, *args: object) -> None:
        pass

    def info(self, **fields: object) -> None:
        pass

    warning = error = info


def _drop(logger: object, method: str, fields: object) -> object:
    return {}


async def measure(*, is_create: bool, clients: int = 1, count: int = 1) -> tuple[float, Counter[str]]:
    """Calls a request, and which."""
    async with writing() as site:
        lines = [Line(site.kit)]
        lines += [Line(site.kit, beside=lines[0]) for _ in range(clients - 1)]
        for line in lines:
            await site.send(line, site.make_request(is_create=is_create, count=count))

        async def work(line: Line) -> None:
            for _ in range(ROUNDS):
                await site.send(line, site.make_request(is_create=is_create, count=count))

        with counted() as calls:
            async with anyio.create_task_group() as group:
                for line in lines:
                    group.start_soon(work, line)
        return sum(calls.values()) / ROUNDS / clients, calls


@pytest.mark.parametrize(
    ("clients", "count", "budget"),
    [(1, 1, 1080), (16, 1, 820), (1, 100, 24_700)],
)
async def test_a_register(clients: int, count: int, budget: float) -> None:
    calls, which = await measure(is_create=False, clients=clients, count=count)
    assert calls <= budget, which.most_common(60)


@pytest.mark.parametrize(("clients", "budget"), [(1, 1690), (16, 1540)])
async def test_a_create(clients: int, budget: float) -> None:
    calls, which = await measure(is_create=True, clients=clients)
    assert calls <= budget, which.most_common(60)
