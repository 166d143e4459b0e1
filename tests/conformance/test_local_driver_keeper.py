"""Changes of the embedded driver: alone for their key, made although nobody waits, told when the driver stops; and the
thread that makes them."""

from __future__ import annotations

import threading
from pathlib import Path

import anyio
import pytest
from local_storage_kit import handed_out, keeper_on, volume

from moorage.csi.local.committing import GROUP_MAX
from moorage.csi.local.keeper import Keeper
from moorage.csi.local.storage import Change, Storage
from moorage.errors import Rejected

pytestmark = pytest.mark.anyio


class SlowStorage(Storage):
    """Writes when it may."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.may_write = threading.Event()
        self.groups: list[int] = []

    def commit(self, changes: list[Change]) -> list[OSError | None]:  # type: ignore[override]
        """Wait first."""
        self.groups.append(len(changes))
        assert self.may_write.wait(10)
        return super().commit(changes)


def create(keeper: Keeper, number: int) -> tuple[str, Change | None]:
    found = keeper.volumes.find_name(f"n-{number}")
    return ("there", None) if found is not None else ("made", Change(action="create", record=volume(number)))


async def test_a_change_is_made_once_also_when_its_caller_goes_away(tmp_path: Path) -> None:
    storage, answers = SlowStorage(tmp_path), list[str]()
    async with keeper_on(storage) as keeper:

        async def ask() -> None:
            answers.append(await keeper.change("name:n-1", lambda: create(keeper, 1)))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        async with anyio.create_task_group() as group:
            # It waits for the first one, which nobody waits for any more.
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            assert len(keeper.volumes) == 0
            storage.may_write.set()
    assert answers == ["there"]
    assert storage.groups == [1]


async def test_changes_that_wait_share_a_write(tmp_path: Path) -> None:
    storage = SlowStorage(tmp_path)
    async with keeper_on(storage) as keeper, anyio.create_task_group() as group:
        for number in range(1, 6):
            group.start_soon(keeper.change, f"name:n-{number}", lambda number=number: create(keeper, number))
            await anyio.wait_all_tasks_blocked()
        storage.may_write.set()
    assert storage.groups == [1, 4]
    assert len(Storage(tmp_path).open()[0]) == 5


async def test_a_refusal_lets_go_of_the_key(tmp_path: Path) -> None:
    def refuse() -> tuple[None, None]:
        raise Rejected("no", code="OUT_OF_RANGE")

    storage = SlowStorage(tmp_path)
    storage.may_write.set()
    async with keeper_on(storage) as keeper:
        with pytest.raises(Rejected):
            await keeper.change("name:n-1", refuse)
        assert await keeper.change("name:n-1", lambda: create(keeper, 1)) == "made"


async def test_who_waits_when_the_driver_stops_is_told_and_what_is_begun_is_written(tmp_path: Path) -> None:
    storage, told = SlowStorage(tmp_path), list[str]()

    async def ask(keeper: Keeper, number: int) -> None:
        try:
            await keeper.change(f"name:n-{number}", lambda: create(keeper, number))
        except Rejected as error:
            told.append(error.code)

    async with anyio.create_task_group() as asking, keeper_on(storage) as keeper:
        for number in (1, 2):
            asking.start_soon(ask, keeper, number)
            await anyio.wait_all_tasks_blocked()
        threading.Timer(0.1, storage.may_write.set).start()
    assert told == ["UNAVAILABLE"] * 2
    assert [one.id for one in Storage(tmp_path).open()[0].ordered()] == ["id-1"]


async def test_a_volume_is_handed_out_once(tmp_path: Path) -> None:
    storage = SlowStorage(tmp_path)
    storage.may_write.set()
    async with keeper_on(storage) as keeper:
        await keeper.commit(Change(action="create", record=volume(1)))
        for _ in range(2):
            record = keeper.volumes.find("id-1")
            assert record is not None
            assert await keeper.hand_out(record) == handed_out(volume(1))
    assert storage.groups == [1, 1]


async def test_changes_of_one_turn_are_one_write_up_to_a_bound(tmp_path: Path) -> None:
    storage, count = SlowStorage(tmp_path), 2 * GROUP_MAX + 3
    storage.may_write.set()
    async with keeper_on(storage) as keeper, anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(keeper.change, f"name:n-{number}", lambda number=number: create(keeper, number))
    assert storage.groups == [GROUP_MAX, GROUP_MAX, 3]
    assert len(Storage(tmp_path).open()[0]) == count


def check_no_thread_left() -> None:
    """The threads that write have ended, or are about to."""
    for thread in threading.enumerate():
        if thread.name == "moorage commit":
            thread.join(5)
            assert not thread.is_alive()


class FaultyStorage(Storage):
    """Fails by a fault of its own."""

    def commit(self, changes: list[Change]) -> list[OSError | None]:  # type: ignore[override]
        """Fail."""
        raise AssertionError("a fault")


async def test_a_fault_of_the_thread_ends_the_driver_and_is_told(tmp_path: Path) -> None:
    with pytest.raises(BaseExceptionGroup) as found:
        async with keeper_on(FaultyStorage(tmp_path)) as keeper:
            await keeper.change("name:n-1", lambda: create(keeper, 1))
    assert found.group_contains(AssertionError, match="a fault")
    check_no_thread_left()


async def test_a_fault_of_what_is_known_ends_the_driver_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BaseExceptionGroup) as found:
        async with keeper_on(Storage(tmp_path)) as keeper:
            monkeypatch.setattr(keeper, "volumes", None)
            await keeper.commit(Change(action="create", record=volume(1)))
    assert found.group_contains(AttributeError)
    assert [one.id for one in Storage(tmp_path).open()[0].ordered()] == ["id-1"]


async def test_what_comes_after_the_stop_is_refused_and_the_thread_is_gone(tmp_path: Path) -> None:
    async with keeper_on(Storage(tmp_path)) as keeper:
        await keeper.commit(Change(action="create", record=volume(1)))
    with pytest.raises(Rejected, match="the driver is stopping"):
        await keeper.commit(Change(action="create", record=volume(2)))
    check_no_thread_left()
    assert len(Storage(tmp_path).open()[0]) == 1
