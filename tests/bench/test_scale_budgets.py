"""Budgets of a growing cluster: what one change costs at two sizes. It may not grow with the size.

The real server and agents in virtual time (``moorage.testing.scale``): work is counted, not timed.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import pytest

from moorage.testing.scale import Cost, Size, measure

SMALL, MORE_CLAIMS, MORE_NODES = Size(nodes=5, per_node=10), Size(nodes=5, per_node=40), Size(nodes=20, per_node=10)
# Some work is shared by those that are under way together, so that a larger run may be cheaper by the piece.
GROWTH_MAX = 1.15


@cache
def run(size: Size) -> dict[str, Cost]:
    return {cost.story: cost for cost in measure(size)}


@cache
def count_calls(size: Size) -> int:
    """Calls of Python functions in a whole run."""
    found = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal found
        found += event == "call"

    sys.setprofile(note)
    try:
        measure(size)
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("larger", [MORE_CLAIMS, MORE_NODES], ids=["claims", "nodes"])
@pytest.mark.parametrize("story", ["storm", "loss", "restart"])
def test_a_change_costs_alike_at_any_size(story: str, larger: Size) -> None:
    small, large = run(SMALL)[story], run(larger)[story]
    assert large.changes >= 4 * small.changes or story == "loss"
    for member in ("calls", "commits", "sent_bytes"):
        before, after = getattr(small, member) / small.changes, getattr(large, member) / large.changes
        assert after <= before * GROWTH_MAX, (member, before, after)


def test_what_is_sent_to_agents_does_not_grow_with_their_lists() -> None:
    assert run(MORE_CLAIMS)["storm"].sent_bytes / run(MORE_CLAIMS)["storm"].changes <= 4000


@pytest.mark.parametrize("larger", [MORE_CLAIMS, MORE_NODES], ids=["claims", "nodes"])
def test_a_use_takes_as_many_function_calls_at_any_size(larger: Size) -> None:
    uses = larger.nodes * larger.per_node / (SMALL.nodes * SMALL.per_node)
    assert count_calls(larger) <= count_calls(SMALL) * uses * GROWTH_MAX


def test_agents_that_start_together_report_together() -> None:
    """Each write of a plugin's record costs as much as there are nodes."""
    assert run(MORE_NODES)["start"].commits <= MORE_NODES.nodes * 1.5
