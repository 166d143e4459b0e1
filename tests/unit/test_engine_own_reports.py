"""A node tells of its own claims, and of steps of drivers that it has; whatever else it tells changes nothing."""

from __future__ import annotations

import anyio
import pytest
from engine_kit import NODE, PLUGIN, running_kit
from lost_node_kit import OTHER, start_use, status_of, wait_for

from moorage.model.assignment import MountedReport, MountFailedReport, Report, StepReport, UnmountedReport
from moorage.model.claim import Mounted
from moorage.model.ids import NodeId
from moorage.model.node import Node
from moorage.model.steps import Created, Done
from moorage.model.volume import Fault

pytestmark = pytest.mark.anyio


async def test_nobody_tells_of_another_nodes_mounts() -> None:
    async with running_kit() as kit:
        allocation_id = await start_use(kit)
        await wait_for(lambda: status_of(kit, allocation_id) == "running")
        await kit.service.nodes.register(Node(id=OTHER, name="n2", boot_id="b2"))
        await kit.service.nodes.report_plugins(OTHER, {PLUGIN: kit.driver.instance(OTHER)})
        [record] = kit.repo.view.claims.of_node(NODE)
        told = {"claim_id": record.value.id, "revision": record.modified}
        lies: tuple[Report, ...] = (
            UnmountedReport(**told),
            MountedReport(**told, path="/elsewhere", publish_path="/elsewhere"),
            MountFailedReport(**told, fault=Fault(method="m", status="INTERNAL", message="x", final=True)),
        )
        for lie in lies:
            await kit.service.nodes.report(OTHER, (lie,))
        assert kit.repo.view.claims.of_node(NODE) == [record]
        assert isinstance(record.value.state, Mounted)
        # Its own node may say it.
        kit.is_mounting = False
        await kit.service.allocations.stop(allocation_id)
        [record] = kit.repo.view.claims.of_node(NODE)
        await kit.service.nodes.report(OTHER, (UnmountedReport(claim_id=record.value.id, revision=record.modified),))
        assert kit.repo.view.claims.of_node(NODE)[0].modified == record.modified
        await kit.service.nodes.report(NODE, (UnmountedReport(claim_id=record.value.id, revision=record.modified),))
        await wait_for(lambda: not kit.repo.view.claims.of_node(NODE))


async def test_nobody_tells_of_steps_of_a_driver_that_it_has_not() -> None:
    async with running_kit() as kit:
        kit.is_calling = False
        await kit.service.nodes.register(Node(id=OTHER, name="n2", boot_id="b2"))

        async def tell(node_id: NodeId, key: str) -> None:
            found = kit.repo.view.volumes.find(key)
            assert found is not None
            outcome = Created(external_id="stolen", capacity_bytes=1)
            await kit.service.nodes.report(node_id, (StepReport(key=key, revision=found.modified, outcome=outcome),))

        async with anyio.create_task_group() as group:
            group.start_soon(start_use, kit)
            await wait_for(lambda: len(kit.repo.view.volumes) == 1)
            await tell(OTHER, "volumes/default/web")
            assert [r.value.external_id for r in kit.repo.view.volumes] == [""]
            await tell(NODE, "volumes/default/web")
            await wait_for(lambda: [r.value.external_id for r in kit.repo.view.volumes] == ["stolen"])
            group.cancel_scope.cancel()
        for key in ("volumes/none/x", "nodes/x", "strange", ""):
            await kit.service.nodes.report(OTHER, (StepReport(key=key, revision=1, outcome=Done()),))
