"""A node whose driver takes a limited number of volumes, and many uses that are asked for at the same moment."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec
import pytest
from engine_kit import NODE, PLUGIN, Kit, running_kit

from moorage.errors import Conflict
from moorage.model.claim import Allocation, VolumeRequest
from moorage.model.ids import AllocationId, NamespaceName, VolumeId
from moorage.model.volume import Capability, Volume
from moorage.state.memory import MemoryStore
from moorage.state.sqlite import SqliteStore
from moorage.state.store import Store

pytestmark = pytest.mark.anyio
SPACE = NamespaceName("default")
SHARED = Capability(access_mode="multi-node-multi-writer", attachment_mode="file-system")


async def limit(kit: Kit, volumes_max: int) -> None:
    told = kit.driver.instance(NODE)
    assert told.node is not None
    limited = msgspec.structs.replace(told, node=msgspec.structs.replace(told.node, max_volumes=volumes_max))
    await kit.service.nodes.report_plugins(NODE, {PLUGIN: limited})


async def create(kit: Kit, names: list[str]) -> None:
    for name in names:
        volume = Volume(id=VolumeId(name), namespace=SPACE, plugin_id=PLUGIN, name=name, capabilities=(SHARED,))
        await kit.service.registrations.create([volume])


async def start(kit: Kit, name: str) -> int:
    """Start a use; the revision at which it was admitted."""
    request = VolumeRequest(name="data", source=VolumeId(name), access_mode=SHARED.access_mode)
    use = Allocation(id=AllocationId(""), namespace=SPACE, node_id=NODE, volumes=(request,))
    return (await kit.service.allocations.start(use)).created


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_no_more_volumes_get_onto_a_node_than_its_driver_takes(kind: str, tmp_path: Path) -> None:
    store: Store = MemoryStore() if kind == "memory" else await SqliteStore.open(tmp_path / "state.db")
    try:
        async with running_kit(store, request_s=20.0) as kit:
            await limit(kit, 25)
            names = [f"v{number}" for number in range(40)]
            await create(kit, names)
            refusals: list[str] = []
            admitted: list[int] = []

            async def try_start(name: str) -> None:
                try:
                    admitted.append(await start(kit, name))
                except Conflict as refusal:
                    refusals.append(refusal.code)

            async with anyio.create_task_group() as group:
                for name in names:
                    group.start_soon(try_start, name)
            assert len(kit.repo.view.claims) == 25
            assert refusals == ["node_full"] * 15
            (turnstile,) = kit.repo.view.turnstiles
            assert turnstile.modified == max(admitted), "it is written by the admission itself"
    finally:
        if isinstance(store, SqliteStore):
            await store.close()


async def test_a_volume_that_is_on_the_node_already_and_a_driver_without_a_limit_wait_for_nobody() -> None:
    async with running_kit() as kit:
        await create(kit, ["one", "two"])
        await start(kit, "two")
        assert list(kit.repo.view.turnstiles) == []
        await limit(kit, 2)
        await start(kit, "one")
        (passed,) = kit.repo.view.turnstiles
        await start(kit, "one")
        assert list(kit.repo.view.turnstiles) == [passed]
