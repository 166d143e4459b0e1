"""Lost nodes: what frees their claims and what does not; draining. Promise 1: no second writer without evidence."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import pytest
from engine_kit import NODE, Kit, join, running_kit
from lost_node_kit import (
    OTHER,
    QUICK,
    claim,
    is_down,
    keep_alive,
    losing_node,
    run_controller_of,
    silence,
    start_use,
    status_of,
    wait_for,
)

from moorage.api.http import Request
from moorage.engine import leases
from moorage.errors import Conflict
from moorage.model import steps
from moorage.model.assignment import MountedReport, NodeRegistration, UnmountedReport
from moorage.model.claim import Allocation
from moorage.model.ids import AllocationId
from moorage.model.node import Node
from moorage.rules.nodes import FencingSettings
from moorage.state.view import Record

pytestmark = pytest.mark.anyio

FREEING = FencingSettings(lease_s=0.2, grace_s=0.2, is_freeing_on_reboot=True)


async def test_a_writer_on_a_lost_node_keeps_its_volume_without_evidence() -> None:
    async with losing_node() as (kit, (use,)):
        await anyio.sleep(1.0)
        assert status_of(kit, use) == "running"
        assert not [c for c in kit.driver.calls if isinstance(c, steps.DetachVolume)]
        with pytest.raises(Conflict, match=f"held by allocation {use} on node {NODE}"):
            await claim(kit, OTHER)


async def test_a_reader_on_a_lost_node_is_freed_after_the_grace() -> None:
    async with losing_node(read_only=True, has_controller=True) as (kit, (use,)):
        await wait_for(lambda: status_of(kit, use) == "lost")
        await wait_for(lambda: not len(kit.repo.view.claims))


async def test_an_operators_word_frees_a_writer_and_is_kept() -> None:
    async with running_kit(fencing=QUICK) as kit, anyio.create_task_group() as group:
        use = await start_use(kit)
        await wait_for(lambda: status_of(kit, use) == "running")
        with pytest.raises(Conflict, match="is alive"):
            await kit.service.nodes.register(Node(id=NODE, name="n1", boot_id="b1"))
            await kit.service.leases.fence(NODE, reason="r", by="op", is_forced=False)
        await silence(kit)
        group.start_soon(keep_alive, kit, OTHER)
        group.start_soon(run_controller_of, kit, OTHER)
        with pytest.raises(Conflict, match="a reason is needed"):
            await kit.service.leases.fence(NODE, reason=" ", by="op", is_forced=False)
        await kit.service.leases.fence(NODE, reason="power is off", by="op", is_forced=False)
        await wait_for(lambda: not len(kit.repo.view.claims))
        assert status_of(kit, use) == "lost"
        node = kit.service.reads.find_node(NODE)
        assert node is not None
        assert node.value.fence is not None
        assert (node.value.fence.kind, node.value.fence.reason, node.value.fence.by) == (
            "operator",
            "power is off",
            "op",
        )
        second = await claim(kit, OTHER)
        assert status_of(kit, second) == "pending"
        group.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("settings", "self_fencing", "kind"),
    [
        (FencingSettings(lease_s=0.2, grace_s=0.2, is_takeover_timed=True), False, "timeout"),
        (QUICK, True, "self_fence"),
    ],
)
async def test_evidence_that_time_brings(settings: FencingSettings, self_fencing: bool, kind: str) -> None:
    async with running_kit(fencing=settings) as kit, anyio.create_task_group() as group:
        await kit.service.nodes.register(Node(id=NODE, name="n1", boot_id="b1", is_self_fencing=self_fencing))
        use = await start_use(kit)
        await silence(kit)
        group.start_soon(keep_alive, kit, OTHER)
        group.start_soon(run_controller_of, kit, OTHER)
        await wait_for(lambda: status_of(kit, use) == "lost")
        node = kit.service.reads.find_node(NODE)
        assert node is not None
        assert node.value.fence is not None
        assert node.value.fence.kind == kind
        group.cancel_scope.cancel()


REBOOTED = Node(id=NODE, name="n1", boot_id="b-after")


async def read_revision(kit: Kit) -> int:
    """The revision of the node's record as the list of its claims names it."""
    return (await kit.service.nodes.wait_claims(NODE, index=0, wait_s=0)).node_revision


async def test_another_boot_alone_frees_nothing_the_agent_tells() -> None:
    async with losing_node(FREEING, has_controller=True) as (kit, (use,)):
        with pytest.raises(Conflict, match="was lost"):
            await kit.service.nodes.register(REBOOTED, is_empty=True)
        await kit.service.allocations.stop(use)
        await kit.service.nodes.register(REBOOTED, clean_by=await read_revision(kit))
        assert len(kit.repo.view.claims) == 1
        left = kit.repo.view.claims.of_allocation(AllocationId(use))[0]
        told = UnmountedReport(claim_id=left.value.id, revision=left.modified)
        await kit.service.nodes.report(NODE, (told,))
        await wait_for(lambda: not len(kit.repo.view.claims))
        assert status_of(kit, use) == "complete"


@pytest.mark.parametrize("is_freeing", [True, False])
async def test_a_lost_node_that_booted_anew_and_holds_nothing_is_evidence(is_freeing: bool) -> None:
    fencing = FREEING if is_freeing else QUICK
    async with losing_node(fencing, has_controller=True) as (kit, (use,)):
        await kit.service.nodes.register(REBOOTED, clean_by=await read_revision(kit), is_empty=True)
        node = kit.service.reads.find_node(NODE)
        assert node is not None
        assert node.value.status == "ready"
        if is_freeing:
            await wait_for(lambda: not len(kit.repo.view.claims))
            found = kit.service.reads.find_allocation(use)
            assert found is not None
            assert found.value.status == "lost"
            assert "node lost (reboot): the node booted anew" in found.value.description
        else:
            assert [r.value.wanted for r in kit.repo.view.claims.of_node(NODE)] == ["held"]
            assert status_of(kit, use) == "running"


async def test_a_reboot_ends_what_was_being_released_there() -> None:
    async with losing_node(has_controller=True) as (kit, (use,)):
        await kit.service.allocations.stop(use)
        await kit.service.nodes.register(REBOOTED, clean_by=await read_revision(kit), is_empty=True)
        await wait_for(lambda: not len(kit.repo.view.claims))


async def test_many_claims_are_freed_by_a_reboot_before_the_node_is_taken_back(monkeypatch: Any) -> None:
    monkeypatch.setattr(leases, "CLAIMS_AT_ONCE", 1)
    async with losing_node(FREEING, uses=4, read_only=True) as (kit, _):
        await kit.service.nodes.register(REBOOTED, clean_by=await read_revision(kit), is_empty=True)
        assert {status_of(kit, a.value.id) for a in uses_of(kit)} == {"lost"}
        node = kit.service.reads.find_node(NODE)
        assert node is not None
        assert (node.value.status, node.value.fence) == ("ready", None)


def uses_of(kit: Kit) -> list[Record[Allocation]]:
    return list(kit.service.reads.list_allocations("*", "", NODE))


async def test_a_node_is_not_taken_back_clean_by_an_older_list() -> None:
    """Simulation, seeds 209 and 726: a claim freed after the list was read was missed."""
    async with losing_node() as (kit, (use,)):
        page = await kit.service.nodes.wait_claims(NODE, index=0, wait_s=0)
        assert len(page.claims) == 1
        await kit.service.leases.fence(NODE, reason="cut off", by="op", is_forced=False)
        await wait_for(lambda: status_of(kit, use) == "lost")
        same = Node(id=NODE, name="n1", boot_id="b1")
        with pytest.raises(Conflict, match="by the newest list"):
            await kit.service.nodes.register(same, clean_by=page.node_revision)
        newer = await kit.service.nodes.wait_claims(NODE, index=page.index, wait_s=5)
        assert newer.node_revision > page.node_revision
        await kit.service.nodes.register(same, clean_by=newer.node_revision)


async def test_each_freeing_moves_the_nodes_record(monkeypatch: Any) -> None:
    monkeypatch.setattr(leases, "CLAIMS_AT_ONCE", 1)
    async with losing_node(uses=2, read_only=True) as (kit, _):
        lost = await read_revision(kit)
        await wait_for(lambda: {status_of(kit, a.value.id) for a in uses_of(kit)} == {"lost"})
        node = kit.service.reads.find_node(NODE)
        assert node is not None
        assert node.value.freed_at_ns
        assert node.modified >= lost + 2


async def test_a_late_report_of_a_lost_node_is_dropped() -> None:
    async with running_kit(fencing=QUICK) as kit:
        use = await start_use(kit)
        await wait_for(lambda: status_of(kit, use) == "running")
        before = kit.repo.view.claims.of_allocation(AllocationId(use))[0]
        await silence(kit)
        await kit.service.leases.fence(NODE, reason="cut off", by="op", is_forced=False)
        await wait_for(lambda: status_of(kit, use) == "lost")
        late = MountedReport(claim_id=before.value.id, revision=before.modified, path="/x", publish_path="/x")
        await kit.service.reconciler.outcomes.fold_reports([late])
        left = kit.repo.view.claims.of_allocation(AllocationId(use))
        assert all(r.value.wanted == "released" for r in left)


async def test_draining_takes_no_new_uses_and_releases_the_running_ones() -> None:
    async with running_kit() as kit:
        use = await start_use(kit)
        await wait_for(lambda: status_of(kit, use) == "running")
        await kit.service.nodes.set_wanted(NODE, "draining")
        await wait_for(lambda: status_of(kit, use) == "complete")
        with pytest.raises(Conflict, match=r"is (draining|closed)"):
            await claim(kit, NODE)
        await wait_for(lambda: kit.service.reads.list_nodes()[0].value.wanted == "closed")
        await kit.service.nodes.set_wanted(NODE, "active")
        kit.is_mounting = False
        assert status_of(kit, await claim(kit, NODE)) == "pending"


async def test_an_agent_hears_by_the_status_that_its_node_was_lost() -> None:
    async with running_kit(fencing=QUICK) as kit:
        await wait_for(lambda: is_down(kit))
        body = msgspec.json.encode(NodeRegistration(node=Node(id=NODE, name="n1", boot_id="b1")))
        path = f"/v1/node/{NODE}/register"
        headers = await join(kit)
        request = Request(method="PUT", path=path, parts=tuple(path.split("/")[1:]), headers=headers, body=body)
        assert (await kit.app.answer(request)).status == 409
