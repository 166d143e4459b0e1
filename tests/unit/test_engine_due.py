"""Keys that are due: order, replacement, and what is held for keys that are dropped before their time."""

from __future__ import annotations

from random import Random

import pytest

from moorage.engine.due import STALE_MIN, DueKeys


def test_the_earliest_is_due_first() -> None:
    due = DueKeys()
    for key, at_ns in (("b", 20), ("a", 10), ("c", 30)):
        due.set(key, at_ns)
    assert due.next_ns() == 10
    assert due.pop_due(20) == ["a", "b"]
    assert due.next_ns() == 30
    assert len(due) == 1


@pytest.mark.parametrize(("later", "popped_at_20"), [(30, []), (5, ["a"])], ids=["later", "earlier"])
def test_a_new_time_replaces_the_old_one(later: int, popped_at_20: list[str]) -> None:
    due = DueKeys()
    due.set("a", 20)
    due.set("a", later)
    assert due.pop_due(20) == popped_at_20
    assert due.pop_due(100) == ([] if popped_at_20 else ["a"])


def test_keys_that_are_dropped_long_before_their_time_are_not_held() -> None:
    """A listing's record is due in ten minutes and gone in a millisecond; a million of them may come meanwhile."""
    due = DueKeys()
    due.set("stays", 1)
    held = []
    for number in range(10_000):
        due.set(f"operation/{number}", 600_000_000_000 + number)
        due.drop(f"operation/{number}")
        held.append(due.entries)
    assert max(held) <= 2 * 2 + STALE_MIN
    assert due.pop_due(1) == ["stays"]
    assert due.next_ns() is None


def test_a_key_that_is_moved_again_and_again_is_held_few_times() -> None:
    due = DueKeys()
    held = []
    for at_ns in range(10_000):
        due.set("a", at_ns)
        held.append(due.entries)
    assert max(held) <= 2 + STALE_MIN
    assert due.pop_due(9_998) == []
    assert due.pop_due(9_999) == ["a"]


@pytest.mark.parametrize("seed", range(20))
def test_it_is_as_a_plain_table_of_times(seed: int) -> None:
    """Any sequence of calls gives what a table without a heap gives, and holds no more than it promises."""
    random = Random(seed)
    due, times = DueKeys(), dict[str, int]()
    for _ in range(2000):
        key, at_ns = f"k{random.randrange(50)}", random.randrange(1000)
        match random.randrange(5):
            case 0 | 1 | 2:
                due.set(key, at_ns)
                times[key] = at_ns
            case 3:
                due.drop(key)
                times.pop(key, None)
            case _:
                found = due.pop_due(at_ns // 4)
                expected = sorted((at, k) for k, at in times.items() if at <= at_ns // 4)
                assert found == [k for _, k in expected]
                for _, k in expected:
                    del times[k]
        assert len(due) == len(times)
        assert due.next_ns() == min(times.values(), default=None)
        assert due.entries <= 2 * len(times) + STALE_MIN
