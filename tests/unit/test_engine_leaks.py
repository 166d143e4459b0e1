"""A detach where no claim is on record: what leaked is undone, and never under somebody who may still use it."""

from __future__ import annotations

import anyio
import pytest
from engine_kit import NODE, PLUGIN, Kit, running_kit
from lost_node_kit import OTHER, QUICK, claim, is_down, start_use, status_of, wait_for

from moorage.errors import Conflict
from moorage.model import steps
from moorage.model.node import Node

pytestmark = pytest.mark.anyio


def find_detached(kit: Kit) -> list[str]:
    return [c.external_node_id for c in kit.driver.calls if isinstance(c, steps.DetachVolume)]


async def end_use(kit: Kit, use: str) -> None:
    await kit.service.allocations.stop(use)
    await wait_for(lambda: not len(kit.repo.view.claims))


async def test_what_no_claim_is_on_record_for_is_detached() -> None:
    async with running_kit() as kit:
        use = await start_use(kit)
        await wait_for(lambda: status_of(kit, use) == "running")
        await end_use(kit, use)
        before = find_detached(kit)
        await kit.service.removals.detach("default", "web", NODE)
        external_id = kit.driver.instance(NODE).node
        assert external_id is not None
        assert find_detached(kit) == [*before, external_id.external_id]
        assert not len(kit.repo.view.claims)
        # The volume is as free as before.
        again = await claim(kit, NODE)
        await wait_for(lambda: status_of(kit, again) == "running")


async def test_a_live_use_is_never_detached() -> None:
    async with running_kit() as kit:
        use = await start_use(kit)
        await wait_for(lambda: status_of(kit, use) == "running")
        with pytest.raises(Conflict):
            await kit.service.removals.detach("default", "web", NODE)
        assert find_detached(kit) == []
        assert status_of(kit, use) == "running"


async def test_a_lost_node_may_still_show_it_until_it_is_fenced() -> None:
    async with running_kit(fencing=QUICK) as kit:
        use = await start_use(kit)
        await wait_for(lambda: status_of(kit, use) == "running")
        await end_use(kit, use)
        before = find_detached(kit)
        await wait_for(lambda: is_down(kit))
        with pytest.raises(Conflict, match=f"moorage node fence {NODE} --reason"):
            await kit.service.removals.detach("default", "web", NODE)
        assert find_detached(kit) == before
        assert not len(kit.repo.view.claims)
        await kit.service.leases.fence(NODE, reason="off", by="me", is_forced=False)
        async with anyio.create_task_group() as group:
            group.start_soon(kit.service.removals.detach, "default", "web", NODE)
            await wait_for(lambda: len(kit.repo.view.claims))
            group.cancel_scope.cancel()


async def test_a_node_that_nobody_knows_has_nothing_to_detach() -> None:
    async with running_kit() as kit:
        use = await start_use(kit)
        await end_use(kit, use)
        before = find_detached(kit)
        await kit.service.removals.detach("default", "web", OTHER)
        # Known, but without a driver of the plugin.
        await kit.service.nodes.register(Node(id=OTHER, name="n2", boot_id="b2"))
        await kit.service.removals.detach("default", "web", OTHER)
        assert find_detached(kit) == before
        assert kit.service.reads.find_plugin(PLUGIN) is not None
