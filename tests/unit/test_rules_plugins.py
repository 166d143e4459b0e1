"""Which controller makes a call: an even share for each, and no change without need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from uuid import UUID, uuid5

import pytest

from moorage.model.ids import NodeId
from moorage.rules.plugins import choose_controller

SERIALS = [f"volume/plugin/vol-{i:05d}" for i in range(3000)]
# How far the largest and the smallest share may be from the mean.
UNEVEN = 0.25


def number_nodes(count: int) -> list[NodeId]:
    """IDs that differ in their last digits only."""
    return [NodeId(f"00000000-2222-3333-4444-{i:012d}") for i in range(count)]


def draw_nodes(count: int) -> list[NodeId]:
    return [NodeId(str(uuid5(UUID(int=1), str(i)))) for i in range(count)]


def choose_all(healthy: Sequence[NodeId]) -> dict[str, NodeId]:
    found = {serial: choose_controller(healthy, serial) for serial in SERIALS}
    return {serial: node_id for serial, node_id in found.items() if node_id is not None}


@pytest.mark.parametrize("name_nodes", [number_nodes, draw_nodes], ids=["alike", "unlike"])
@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_controllers_get_even_shares(name_nodes: Callable[[int], list[NodeId]], count: int) -> None:
    shares = Counter(choose_all(name_nodes(count)).values())
    mean = len(SERIALS) / count
    assert len(shares) == count
    assert max(shares.values()) <= mean * (1 + UNEVEN), shares
    assert min(shares.values()) >= mean * (1 - UNEVEN), shares


def test_the_choice_is_the_same_in_another_process_and_order() -> None:
    nodes = draw_nodes(5)
    assert choose_all(nodes) == choose_all(nodes[::-1])
    # Written down: a server that is started anew, or is a newer version, must not choose otherwise.
    assert [nodes.index(choose_all(nodes)[s]) for s in SERIALS[:8]] == [3, 3, 0, 2, 2, 0, 0, 0]


def test_one_that_goes_moves_its_own_share_only_and_one_that_comes_takes_its_own_only() -> None:
    nodes = draw_nodes(5)
    before, after = choose_all(nodes), choose_all(nodes[1:])
    moved = {serial for serial in SERIALS if before[serial] != after[serial]}
    assert moved == {serial for serial in SERIALS if before[serial] == nodes[0]}
    assert len({after[serial] for serial in moved}) == 4, "what it had goes to all the others"


def test_the_one_that_had_the_last_call_keeps_the_volume() -> None:
    nodes = draw_nodes(3)
    for serial in SERIALS[:20]:
        for busy in nodes:
            assert choose_controller(nodes, serial, busy=busy) == busy
    serial = SERIALS[0]
    gone = choose_controller(nodes, serial)
    left = [n for n in nodes if n != gone]
    assert choose_controller(left, serial, busy=gone) == choose_controller(left, serial)


def test_a_call_without_a_key_is_for_the_first_and_is_nobodys_where_none_is_healthy() -> None:
    nodes = draw_nodes(3)
    assert choose_controller(nodes, "") == nodes[0]
    assert choose_controller(nodes[:1], SERIALS[0]) == nodes[0]
    assert choose_controller((), SERIALS[0]) is None
    assert choose_controller((), SERIALS[0], busy=nodes[0]) is None
