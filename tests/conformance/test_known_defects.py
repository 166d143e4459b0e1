"""The defects that the recorded server still has, each as a test: it fails when the defect is planted.

F1 to F18 are numbered as in the list that the project was given; those of the node's side (F3, F4, F5, F12) are in
tests/unit/test_agent_main.py and tests/property/test_mounts.py, and are repeated here at the level of the rules.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import anyio
import msgspec
import pytest
from engine_kit import NODE, PLUGIN, Kit, running_kit

from moorage.api.http import Request
from moorage.api.params import find_query
from moorage.csi.client import DriverClient
from moorage.csi.convert import CONVERSIONS, Features
from moorage.errors import BadRequest, Conflict
from moorage.model import steps
from moorage.model.claim import Allocation, Attached, VolumeRequest
from moorage.model.ids import AllocationId, NamespaceName, NodeId, VolumeId
from moorage.model.node import Node
from moorage.model.snapshot import ExternalVolume
from moorage.model.volume import Capability, Secrets, Topology, Volume
from moorage.rules.plugins import choose_controller
from moorage.testing.scripted import fault

pytestmark = pytest.mark.anyio

WRITER = Capability(access_mode="single-node-writer", attachment_mode="file-system")
READER = Capability(access_mode="multi-node-reader-only", attachment_mode="file-system")
OTHER = NodeId("00000000-2222-3333-4444-555555555555")


def a_volume(volume_id: str = "web", **fields: object) -> Volume:
    base: dict[str, object] = {
        "id": VolumeId(volume_id),
        "namespace": NamespaceName("default"),
        "plugin_id": PLUGIN,
        "name": volume_id,
        "capabilities": (WRITER, READER),
        "secrets": Secrets({"user": "canary"}),
    }
    return Volume(**base | fields)  # type: ignore[arg-type]


async def start_use(kit: Kit, *, read_only: bool = False, node_id: NodeId = NODE, mode: str = "") -> str:
    chosen = mode or (READER if read_only else WRITER).access_mode
    request = VolumeRequest(name="data", source=VolumeId("web"), read_only=read_only, access_mode=chosen)
    use = Allocation(id=AllocationId(""), namespace=NamespaceName("default"), node_id=node_id, volumes=(request,))
    return (await kit.service.allocations.start(use)).value.id


async def wait_for(what: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not what():
            await anyio.sleep(0.005)


def status_of(kit: Kit, allocation_id: str) -> str:
    found = kit.service.reads.find_allocation(allocation_id)
    return found.value.status if found else "gone"


def calls_of(kit: Kit, kind: type) -> list[steps.Step]:
    return [c for c in kit.driver.calls if isinstance(c, kind)]


async def ask(kit: Kit, target: str) -> tuple[object, dict[str, str]]:
    path, _, query = target.partition("?")
    request = Request(method="GET", path=path, parts=tuple(path.split("/")[1:]), query=find_query(query.encode()))
    answer = await kit.app.answer(request)
    return json.loads(answer.body), dict(answer.headers)


async def test_f1_claims_are_checked_before_the_driver_deletes() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume()])
        await start_use(kit)
        with pytest.raises(Conflict, match="volume in use"):
            await kit.service.removals.delete("default", "web", secrets=Secrets())
        assert calls_of(kit, steps.DeleteVolume) == []


async def test_f2_a_sick_controller_delays_a_detach_and_never_skips_it() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume()])
        use = await start_use(kit)
        await wait_for(lambda: status_of(kit, use) == "running")
        sick = msgspec.structs.replace(kit.driver.instance(NODE, healthy=False), controller=None, node=None)
        await kit.service.nodes.report_plugins(NODE, {PLUGIN: sick})
        await kit.service.allocations.stop(use)
        await anyio.sleep(0.2)
        assert len(kit.repo.view.claims) == 1
        assert calls_of(kit, steps.DetachVolume) == []
        await kit.service.nodes.report_plugins(NODE, {PLUGIN: kit.driver.instance(NODE)})
        await wait_for(lambda: status_of(kit, use) == "complete")
        assert len(calls_of(kit, steps.DetachVolume)) == 1
        assert kit.driver.volumes["vol-1"].nodes == set()


async def test_f4_nothing_is_detached_while_the_node_still_has_it() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume()])
        use = await start_use(kit)
        await wait_for(lambda: status_of(kit, use) == "running")
        kit.is_mounting = False
        await kit.service.allocations.stop(use)
        await anyio.sleep(0.2)
        assert calls_of(kit, steps.DetachVolume) == []
        assert kit.driver.volumes["vol-1"].nodes == {f"ext-{NODE}"}


async def test_f6_read_only_attach_only_where_it_is_advertised_and_alike_for_all_uses() -> None:
    attach = steps.AttachVolume(external_id="e", external_node_id="n", capability=READER, read_only=True)
    build = CONVERSIONS[steps.AttachVolume].build
    assert build(attach, Features()).readonly is False
    async with running_kit() as kit:
        multi = Capability(access_mode="multi-node-multi-writer", attachment_mode="file-system")
        await kit.service.registrations.create([a_volume(capabilities=(multi,))])
        for read_only in (True, False):
            use = await start_use(kit, read_only=read_only, mode=multi.access_mode)
            await wait_for(lambda use=use: status_of(kit, use) == "running")
        found = [c.read_only for c in calls_of(kit, steps.AttachVolume)]  # type: ignore[union-attr]
        assert set(found) == {False}


async def test_f7_detach_carries_the_secrets() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume()])
        use = await start_use(kit)
        await wait_for(lambda: status_of(kit, use) == "running")
        await kit.service.allocations.stop(use)
        await wait_for(lambda: status_of(kit, use) == "complete")
        detach = calls_of(kit, steps.DetachVolume)[0]
        assert isinstance(detach, steps.DetachVolume)
        assert detach.secrets.values == {"user": "canary"}
        assert dict(CONVERSIONS[steps.DetachVolume].build(detach, Features()).secrets) == {"user": "canary"}


async def test_f8_detach_of_what_is_not_attached_is_success() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume()])
        await kit.service.removals.detach("default", "web", NODE)
        use = await start_use(kit)
        with pytest.raises(Conflict, match="volume in use"):
            await kit.service.removals.detach("default", "web", NODE)
        await kit.service.allocations.stop(use)
        await kit.service.removals.detach("default", "web", NODE)
        assert len(kit.repo.view.claims) == 0


async def test_f9_ended_claims_go_without_any_other_write() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume()])
        use = await start_use(kit)
        await wait_for(lambda: status_of(kit, use) == "running")
        kit.driver.fail(steps.DetachVolume, fault("UNAVAILABLE", final=False))
        await kit.service.allocations.stop(use)
        await wait_for(lambda: len(kit.repo.view.claims) == 0)
        assert len(calls_of(kit, steps.DetachVolume)) == 2


async def test_f10_every_call_has_a_deadline_and_is_repeated() -> None:
    async with running_kit() as kit:
        kit.is_calling = False
        async with anyio.create_task_group() as group:
            group.start_soon(kit.service.registrations.create, [a_volume()])
            await wait_for(lambda: kit.service.reconciler.find_steps(NODE))
            assert all(a.timeout_s > 0 for a in kit.service.reconciler.find_steps(NODE))
            group.cancel_scope.cancel()
    with pytest.raises(TypeError):
        await DriverClient("/nowhere").run(steps.ListVolumes())  # type: ignore[call-arg]


async def test_f11_a_failed_step_keeps_all_that_the_next_try_needs() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume()])
        kit.driver.fail(steps.AttachVolume, fault("UNAVAILABLE", final=False))
        use = await start_use(kit)
        await wait_for(lambda: status_of(kit, use) == "running")
        first, second = calls_of(kit, steps.AttachVolume)
        assert first == second


async def test_f13_another_controller_takes_over() -> None:
    async with running_kit() as kit:
        await kit.service.nodes.register(Node(id=OTHER, name="n0", boot_id="b0"))
        await kit.service.nodes.report_plugins(OTHER, {PLUGIN: kit.driver.instance(OTHER)})
        names = (f"vol-{n}" for n in range(100))
        name = next(n for n in names if choose_controller((NODE, OTHER), f"volume/{PLUGIN}/name:{n}") == OTHER)
        async with anyio.create_task_group() as group:
            group.start_soon(kit.service.registrations.create, [a_volume(name)])
            # The other node's controller is asked; it never answers.
            await wait_for(lambda: kit.service.reconciler.find_steps(OTHER))
            await kit.service.nodes.report_plugins(OTHER, {PLUGIN: kit.driver.instance(OTHER, healthy=False)})
        assert len(kit.driver.volumes) == 1


async def test_f14_conditions_narrow_together_and_waiters_wake() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume("web")])
        await kit.service.registrations.create([a_volume("db")])
        for query in ("prefix=w", "prefix=w&namespace=*"):
            rows, _ = await ask(kit, f"/v1/volumes?type=csi&plugin_id={PLUGIN}&{query}")
            assert [r["ID"] for r in rows] == ["web"]  # type: ignore[union-attr]
        _, headers = await ask(kit, f"/v1/volumes?type=csi&plugin_id={PLUGIN}")
        seen: list[object] = []

        async def wait() -> None:
            index = headers["X-Nomad-Index"]
            seen.append((await ask(kit, f"/v1/volumes?type=csi&plugin_id={PLUGIN}&index={index}&wait=60s"))[0])

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await anyio.sleep(0.05)
                await kit.service.registrations.create([a_volume("new")])
        assert seen


class _Generous:
    """A driver that lists more than it was asked for, and has a next page."""

    def run(self, step: steps.Step) -> steps.Outcome:
        volumes = tuple(ExternalVolume(external_id=f"e{n}") for n in range(5))
        return steps.VolumesListed(volumes=volumes, next_token="5")


async def test_f15_nothing_that_a_driver_lists_is_lost() -> None:
    """What is beyond the page that was asked for comes with the pages after it, before the driver's own next page."""
    async with running_kit() as kit:
        kit.driver.run = _Generous().run  # type: ignore[method-assign]
        token, pages = "", []
        while token != "5":
            body, _ = await ask(kit, f"/v1/volumes/external?plugin_id={PLUGIN}&per_page=2&next_token={token}")
            pages.append([v["ExternalID"] for v in body["Volumes"]])  # type: ignore[index]
            token = body["NextToken"]  # type: ignore[index]
            assert token
        assert pages == [["e0", "e1"], ["e2", "e3"], ["e4"]]


async def test_f16_topologies_have_no_nulls() -> None:
    async with running_kit() as kit:
        act = kit.driver.run

        def run(step: steps.Step) -> steps.Outcome:
            outcome = act(step)
            if isinstance(outcome, steps.Created):
                return msgspec.structs.replace(outcome, topologies=(Topology(segments={"zone": "a"}),))
            return outcome

        kit.driver.run = run  # type: ignore[method-assign]
        await kit.service.registrations.create([a_volume()])
        body, _ = await ask(kit, "/v1/volume/csi/web")
        assert body["Topologies"] == [{"Segments": {"zone": "a"}}]  # type: ignore[index]


async def test_f17_a_claim_must_fit_the_volumes_capabilities() -> None:
    async with running_kit() as kit:
        await kit.service.registrations.create([a_volume()])
        with pytest.raises(BadRequest, match="not among its capabilities"):
            await start_use(kit, mode="multi-node-multi-writer")


async def test_f18_a_plugin_that_goes_moves_the_index() -> None:
    async with running_kit() as kit:
        _, before = await ask(kit, "/v1/plugins?type=csi")
        await kit.service.nodes.report_plugins(NODE, {})
        rows, after = await ask(kit, "/v1/plugins?type=csi")
        assert rows == []
        assert int(after["X-Nomad-Index"]) > int(before["X-Nomad-Index"])


async def test_f5_all_uses_of_a_volume_on_a_node_attach_alike() -> None:
    async with running_kit() as kit:
        multi = Capability(access_mode="multi-node-multi-writer", attachment_mode="file-system")
        await kit.service.registrations.create([a_volume(capabilities=(multi,))])
        uses = [await start_use(kit, read_only=r, mode=multi.access_mode) for r in (True, False)]
        await wait_for(lambda: all(status_of(kit, u) == "running" for u in uses))
        assignments = await kit.service.nodes.wait_claims(NODE, index=0, wait_s=0)
        modes = {(a.claim.access_mode, a.claim.attachment_mode) for a in assignments.claims}
        assert modes == {(multi.access_mode, multi.attachment_mode)}
        assert all(isinstance(a.claim.state, Attached) or a.claim.state for a in assignments.claims)
