"""The collector of a server: silent while it loads, then without what was loaded."""

from __future__ import annotations

import gc

import anyio
import pytest

from moorage.serve import collecting
from moorage.serve.collecting import GROWN_MIN, THRESHOLDS, Collector

pytestmark = pytest.mark.anyio


def test_what_was_loaded_is_out_of_sight_until_the_end() -> None:
    before = gc.get_threshold()
    kept = []
    with Collector(lambda: 0).open() as _:
        assert not gc.isenabled()
        kept = [[] for _ in range(1000)]  # type: ignore[var-annotated]
        collector = Collector(lambda: 1000)
        collector.freeze()
        assert gc.isenabled()
        assert gc.get_threshold() == THRESHOLDS
        assert gc.get_freeze_count() >= len(kept)
    assert gc.isenabled()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


async def test_many_new_records_are_frozen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "LOOK_S", 0.001)
    count = 0
    with (collector := Collector(lambda: count)).open():
        collector.freeze()
        frozen = gc.get_freeze_count()
        async with anyio.create_task_group() as group:
            group.start_soon(collector.run)
            await anyio.sleep(0.02)
            assert gc.get_freeze_count() <= frozen
            kept = [[] for _ in range(5000)]  # type: ignore[var-annotated]
            count = GROWN_MIN
            with anyio.fail_after(10):
                while gc.get_freeze_count() < frozen + len(kept):
                    await anyio.sleep(0.001)
            group.cancel_scope.cancel()
