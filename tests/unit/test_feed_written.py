"""A record that was just written is the one that readers see: it is not read out of its own bytes again."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import msgspec
import pytest
from engine_kit import Kit, running_kit
from many_volumes import a_volume

from moorage.errors import StateConflict
from moorage.model.volume import Secrets, Volume
from moorage.state import keys
from moorage.state.keyring import make_key
from moorage.state.repo import Write
from moorage.state.store import Put
from moorage.testing.key_sources import FixedKeys
from moorage.testing.store_use import DEADLINE_S

pytestmark = pytest.mark.anyio

VOLUME = msgspec.structs.replace(a_volume(1), secrets=Secrets({"password": "hunter2"}))
KEY = keys.volume_key(VOLUME.namespace, VOLUME.id)


def find(kit: Kit) -> Volume | None:
    found = kit.repo.view.volumes.find(KEY)
    return found.value if found else None


async def commit(kit: Kit, volume: Volume, revision: int = 0) -> int:
    return await kit.repo.commit(Write().put(KEY, volume, revision=revision))


@pytest.mark.parametrize("is_sealed", [False, True])
async def test_readers_see_the_writers_record(*, is_sealed: bool) -> None:
    async with running_kit(keys=FixedKeys(make_key(bytes(32))) if is_sealed else None) as kit:
        revision = await commit(kit, VOLUME)
        assert find(kit) is VOLUME
        changed = msgspec.structs.replace(VOLUME, context={"zone": "z"}, parameters=dict(VOLUME.parameters))
        await commit(kit, changed, revision)
        assert find(kit) is changed
        assert changed.parameters is VOLUME.parameters, "what is equal is one object all the same"
        # Who starts on the same store reads what was meant.
        entry = await kit.store.get(KEY)
        assert entry is not None
        assert kit.repo.feed.records.decode(KEY, entry.value) == changed
        assert not kit.repo.feed._written


async def test_what_somebody_else_wrote_is_read() -> None:
    async with running_kit() as kit:
        data = kit.repo.feed.records.encode(KEY, VOLUME)
        result = await kit.store.transact((), [Put(KEY, data)])
        await kit.repo.feed.reach(result.revision)
        assert find(kit) == VOLUME
        assert find(kit) is not VOLUME


async def test_of_writers_at_once_the_one_who_won_is_seen() -> None:
    async with running_kit() as kit:
        volumes = [msgspec.structs.replace(VOLUME, name=f"n{number}") for number in range(20)]
        won: list[Volume] = []

        async def write(volume: Volume) -> None:
            try:
                await commit(kit, volume)
            except StateConflict:
                return
            won.append(volume)

        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as group:
                for volume in volumes:
                    group.start_soon(write, volume)
        assert len(won) == 1
        assert find(kit) is won[0]
        assert not kit.repo.feed._written


async def test_a_write_that_is_given_up_leaves_nothing() -> None:
    async with running_kit() as kit:
        async with anyio.create_task_group() as group:
            group.start_soon(commit, kit, VOLUME)
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert not kit.repo.feed._written
