"""Something that happens once."""

from __future__ import annotations

import anyio
import pytest

from moorage.api.once import Once

pytestmark = pytest.mark.anyio


async def test_who_waits_is_woken_and_who_is_to_be_called_is_called_once() -> None:
    once, called = Once(), []
    async with anyio.create_task_group() as group:
        group.start_soon(once.wait)
        with once.calling(lambda: called.append(1)), once.calling(lambda: called.append(2)):
            with once.calling(lambda: called.append(3)):
                assert len(once) == 3
            assert not once.is_set()
            once.set()
            assert called == [1, 2]
        once.set()
    assert once.is_set()
    assert called == [1, 2]
    assert len(once) == 0


async def test_one_that_comes_late_is_called_at_once() -> None:
    once, called = Once(), []
    once.set()
    with once.calling(lambda: called.append(1)):
        assert called == [1]
    assert len(once) == 0
