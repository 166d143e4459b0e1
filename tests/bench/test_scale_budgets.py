"""Budgets of a growing cluster: what one change costs at several sizes. It may not grow with the size.

The real server and agents in virtual time (``moorage.testing.scale``): work is counted, not timed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from moorage.testing.scale import Cost, Size, measure

# Each size is twice the one before, so that what a run costs whatever its size is in none of the differences.
GROWING_CLAIMS = tuple(Size(nodes=10, per_node=n) for n in (5, 10, 20))
GROWING_NODES = tuple(Size(nodes=n, per_node=5) for n in (10, 20, 40))
SMALL, MORE_CLAIMS, MORE_NODES = GROWING_CLAIMS[0], GROWING_CLAIMS[-1], GROWING_NODES[-1]
# Some work is shared by those that are under way together, so that a larger run may be cheaper by the piece.
GROWTH_MAX = 1.15
STORIES = ("storm", "loss", "restart")


@cache
def measure_counted(size: Size) -> tuple[dict[str, Cost], Counter[str]]:
    """Costs, and calls of Python functions, by story; a generator counts once for each thing that it makes."""
    found: Counter[str] = Counter()

    @contextmanager
    def counting(story: str) -> Iterator[None]:
        def note(frame: Any, event: str, argument: Any) -> None:
            # Python's loop compares its timers in a heap: n log n of them, and none of ours.
            found[story] += event == "call" and frame.f_code.co_name != "__lt__"

        sys.setprofile(note)
        try:
            yield
        finally:
            sys.setprofile(None)

    costs = measure(size, around=counting)
    return {cost.story: cost for cost in costs}, found


def run(size: Size) -> dict[str, Cost]:
    return measure_counted(size)[0]


def count_function_calls(size: Size) -> Counter[str]:
    return measure_counted(size)[1]


@pytest.mark.parametrize("larger", [MORE_CLAIMS, MORE_NODES], ids=["claims", "nodes"])
@pytest.mark.parametrize("story", STORIES)
def test_a_change_costs_alike_at_any_size(story: str, larger: Size) -> None:
    small, large = run(SMALL)[story], run(larger)[story]
    assert large.changes == 4 * small.changes
    for member in ("calls", "commits", "sent_bytes"):
        before, after = getattr(small, member) / small.changes, getattr(large, member) / large.changes
        assert after <= before * GROWTH_MAX, (member, before, after)


def test_what_is_sent_to_agents_does_not_grow_with_their_lists() -> None:
    assert run(MORE_CLAIMS)["storm"].sent_bytes / run(MORE_CLAIMS)["storm"].changes <= 4000


@pytest.mark.parametrize("sizes", [GROWING_CLAIMS, GROWING_NODES], ids=["claims", "nodes"])
@pytest.mark.parametrize("story", STORIES)
def test_the_next_changes_take_as_many_function_calls_as_the_ones_before(story: str, sizes: tuple[Size, ...]) -> None:
    counts = [count_function_calls(size)[story] for size in sizes]
    first, second = (more - less for less, more in pairwise(counts))
    assert second <= first * 2 * GROWTH_MAX, counts


def test_leases_of_nodes_that_are_well_cost_alike_for_each_node() -> None:
    counts = [count_function_calls(size)["idle"] for size in GROWING_NODES]
    first, second = (more - less for less, more in pairwise(counts))
    assert second <= first * 2 * GROWTH_MAX, counts


@pytest.mark.parametrize("size", [MORE_CLAIMS, MORE_NODES], ids=["claims", "nodes"])
def test_controllers_share_the_calls_evenly(size: Size) -> None:
    """Or else a storm takes as long as one of them needs for all of it."""
    found = run(size)["storm"].controller_calls
    assert max(found) <= sum(found) / len(found) * 1.35, found


def test_agents_that_start_together_report_together() -> None:
    """Each write of a plugin's record costs as much as there are nodes."""
    assert run(MORE_NODES)["start"].commits <= MORE_NODES.nodes * 1.5
