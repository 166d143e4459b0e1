"""A hung driver call delays no other volume: p99 of the good uses with it is at most 1.1 x that without it.

Server and agent are the real ones, time is virtual and exact (``moorage.testing.hung_calls``). With 999 good ones:
``tools/hung_calls.py``.
"""

from __future__ import annotations

from functools import cache

import msgspec
import pytest

from moorage.agent.ports import AgentSettings
from moorage.testing.hung_calls import Load, Times, measure, p99

BAR = 1.1
LOAD = Load(good=80)
SMALL = Load(good=40, agent=AgentSettings(controller_calls_max=4, node_calls_max=4))
replace = msgspec.structs.replace


@cache
def measure_alone(load: Load) -> Times:
    return measure(load)


@pytest.mark.parametrize("step", ["attach", "stage", "unstage", "detach"])
def test_one_hung_call_delays_nobody(step: str) -> None:
    alone, beside = measure_alone(LOAD), measure(replace(LOAD, hung=1, step=step))
    assert len(beside.start_s) == len(beside.stop_s) == LOAD.good
    assert p99(beside.start_s) <= BAR * p99(alone.start_s)
    assert p99(beside.stop_s) <= BAR * p99(alone.stop_s)


@pytest.mark.parametrize("step", ["attach", "stage"])
def test_more_hung_calls_than_slots_delay_nobody_once_they_are_known(step: str) -> None:
    """Six hung volumes at a driver that gets four calls at a time, since five minutes."""
    alone, beside = measure_alone(SMALL), measure(replace(SMALL, hung=6, step=step, history_s=300.0))
    assert p99(beside.start_s) <= BAR * p99(alone.start_s)
    assert p99(beside.stop_s) <= BAR * p99(alone.stop_s)


def test_more_hung_calls_than_slots_are_told_apart_within_seconds() -> None:
    """The same from the first moment: two rounds of ``slow_after_s``, not of the calls' deadline of two minutes."""
    alone, beside = measure_alone(SMALL), measure(replace(SMALL, hung=6))
    assert p99(beside.start_s) <= p99(alone.start_s) + 2 * SMALL.agent.slow_after_s


def test_with_a_hard_limit_they_keep_the_others_waiting() -> None:
    """What the slow slots are for: without them the measurement shows the delay."""
    hard = replace(SMALL, good=4, agent=replace(SMALL.agent, slow_calls_max=0))
    alone, beside = measure_alone(hard), measure(replace(hard, hung=4))
    assert p99(beside.start_s) > p99(alone.start_s) + 60.0
