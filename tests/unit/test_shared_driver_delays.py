"""The shared driver's switches that make calls slow."""

from __future__ import annotations

import anyio
import pytest

from moorage.testing.shared_driver import Slow, main
from moorage.testing.virtual_loop import run


class Part:
    """Says what it did."""

    def __init__(self) -> None:
        self.done_at_s = -1.0

    async def create_volume(self, request: str) -> str:
        self.done_at_s = _now_s()
        return f"created {request}"


def _now_s() -> float:
    return anyio.current_time()


@pytest.mark.parametrize(("before_s", "after_s"), [(0.0, 0.0), (7.0, 0.0), (0.0, 7.0), (2.0, 3.0)])
def test_a_call_waits_before_its_work_or_before_its_answer(before_s: float, after_s: float) -> None:
    async def measure() -> tuple[float, float]:
        part = Part()
        slow = Slow(part, {"CreateVolume": before_s}, {"CreateVolume": after_s})
        began_s = _now_s()
        assert await slow.create_volume("x") == "created x"
        return part.done_at_s - began_s, _now_s() - began_s

    assert run(measure, seed=1) == pytest.approx((before_s, before_s + after_s))


def test_what_the_part_does_not_serve_is_not_served() -> None:
    assert getattr(Slow(Part(), {}, {}), "delete_volume", None) is None


@pytest.mark.parametrize(
    ("text", "words"), [("Create=1", "is no method of CSI"), ("CreateVolume=soon", "is no number of seconds")]
)
def test_a_mistake_in_the_switch_is_named(text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--endpoint", "unix:///x.sock", "--data", "/x", "--node-id", "n", "--delay", text])
    assert words in capsys.readouterr().err
