"""The orphan finder: the comparison as a table, and over an engine with creates under way and drivers that fail."""

from __future__ import annotations

import anyio
import pytest
from app_asking import a_body, ask, read, text_of
from engine_kit import NODE, PLUGIN, Kit, running_kit
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.engine.orphans import PAGES_MAX, Orphans
from moorage.model import steps
from moorage.model.assignment import StepReport
from moorage.model.claim import Claim
from moorage.model.ids import AllocationId, ClaimId, NamespaceName, NodeId, PluginId, VolumeId
from moorage.model.snapshot import ExternalVolume
from moorage.model.volume import Volume, VolumeState, VolumeWanted
from moorage.rules.orphans import Comparison, Known, compare
from moorage.testing.scripted import BackendVolume, fault


def a_volume(
    name: str, external_id: str = "", *, state: VolumeState = "ready", wanted: VolumeWanted = "present"
) -> Volume:
    return Volume(
        id=VolumeId(name),
        namespace=NamespaceName("default"),
        plugin_id=PluginId("p"),
        state=state,
        wanted=wanted,
        external_id=external_id,
    )


def a_claim(external_id: str, node: str) -> Claim:
    return Claim(
        id=ClaimId(f"a/{external_id}"),
        allocation_id=AllocationId("a"),
        name="data",
        namespace=NamespaceName("default"),
        volume_id=VolumeId("web"),
        plugin_id=PluginId("p"),
        external_id=external_id,
        node_id=NodeId("n"),
        external_node_id=node,
        read_only=False,
        access_mode="single-node-writer",
        attachment_mode="file-system",
    )


def listed(*external_ids: str, nodes: tuple[str, ...] | None = None) -> list[ExternalVolume]:
    return [ExternalVolume(external_id=i, published_node_ids=nodes) for i in external_ids]


def still(*volumes: Volume, claims: tuple[Claim, ...] = ()) -> tuple[Known, Known]:
    """Records that do not change while the driver is asked."""
    known = Known(volumes=volumes, claims=claims)
    return known, known


def names(found: Comparison) -> tuple[list[str], list[str]]:
    return [u.volume.external_id for u in found.unknown], [v.id for v in found.lost]


# -- the comparison ----------------------------------------------------------------------------------------------------


def test_what_nobody_registered_is_an_orphan_and_what_the_driver_lacks_is_lost() -> None:
    found = compare(listed("e1", "e2", "e2"), *still(a_volume("web", "e1"), a_volume("old", "e9")))
    assert names(found) == (["e2"], ["old"])
    assert not found.unknown[0].may_be_creating


def test_while_a_create_is_under_way_an_unknown_volume_may_be_it() -> None:
    found = compare(listed("e2"), *still(a_volume("new", state="absent")))
    assert [(u.volume.external_id, u.may_be_creating) for u in found.unknown] == [("e2", True)]
    assert [v.id for v in found.creating] == ["new"]


def test_a_volume_made_or_deleted_during_the_listing_is_no_finding() -> None:
    made = compare(listed("e1"), Known(), Known(volumes=(a_volume("web", "e1"),)))
    deleted = compare(listed("e1"), Known(volumes=(a_volume("web", "e1"),)), Known())
    late = compare(listed(), Known(), Known(volumes=(a_volume("web", "e1"),)))
    assert names(made) == names(deleted) == names(late) == ([], [])


def test_a_volume_that_is_being_deleted_is_not_lost() -> None:
    assert names(compare(listed(), *still(a_volume("web", "e1", wanted="absent")))) == ([], [])


def test_records_of_one_disk_are_doubles() -> None:
    found = compare(listed("e1"), *still(a_volume("web", "e1"), a_volume("twin", "e1"), a_volume("other", "e1x")))
    assert [(d.external_id, [v.id for v in d.volumes]) for d in found.doubles] == [("e1", ["twin", "web"])]


def test_an_attachment_without_a_claim_is_leaked() -> None:
    volumes = (a_volume("web", "e1"), a_volume("twin", "e1"))
    found = compare(listed("e1", nodes=("n1", "n2")), *still(*volumes, claims=(a_claim("e1", "n1"),)))
    assert [(leak.external_id, leak.external_node_id, leak.volume.id) for leak in found.leaks] == [("e1", "n2", "twin")]
    claimed_meanwhile = Known(volumes=volumes, claims=(a_claim("e1", "n2"), a_claim("e1", "n1")))
    assert not compare(listed("e1", nodes=("n1", "n2")), Known(volumes=volumes), claimed_meanwhile).leaks


ids = st.sampled_from(("e1", "e2", "e3", "e4"))
records = st.lists(st.builds(a_volume, st.sampled_from("abc"), ids), unique_by=lambda v: v.id)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(there=st.lists(ids), before=records, after=records)
def test_nothing_known_is_an_orphan_and_nothing_listed_is_lost(
    there: list[str], before: list[Volume], after: list[Volume]
) -> None:
    found = compare(listed(*there), Known(volumes=tuple(before)), Known(volumes=tuple(after)))
    unknown, _ = names(found)
    assert set(unknown) == set(there) - {v.external_id for v in (*before, *after)}
    assert all(v.external_id not in there and v in before and v in after for v in found.lost)


# -- over an engine ----------------------------------------------------------------------------------------------------


def put_behind(kit: Kit, external_id: str) -> None:
    """A volume at the backend that nobody here made."""
    kit.driver.volumes[external_id] = BackendVolume(external_id=external_id, name=external_id, capacity_bytes=7)


@pytest.mark.anyio
async def test_findings_by_the_api() -> None:
    async with running_kit() as kit:
        await read(kit, "PUT", "/v1/volume/csi/web/create", a_body("web"))
        await read(kit, "PUT", "/v1/volume/csi/gone/create", a_body("gone"))
        put_behind(kit, "stray")
        del kit.driver.volumes["vol-2"]
        await read(kit, "PUT", "/v1/volumes", a_body("twin", ExternalID="vol-1"))
        for query in ("", f"?plugin_id={PLUGIN}"):
            [found] = (await read(kit, "GET", f"/v1/volumes/orphans{query}"))["Plugins"]
            assert (found["PluginID"], found["Error"], found["VolumesListed"]) == (PLUGIN, "", 2)
            assert [(o["ExternalID"], o["CapacityBytes"], o["MayBeCreating"]) for o in found["Orphans"]] == [
                ("stray", 7, False)
            ]
            assert found["Lost"] == [{"ID": "gone", "Namespace": "default", "ExternalID": "vol-2"}]
            assert [v["ID"] for v in found["Doubles"][0]["Volumes"]] == ["twin", "web"]
            assert found["LeakedAttachments"] == []
        assert "no such plugin" in text_of(await ask(kit, "GET", "/v1/volumes/orphans?plugin_id=none"))


@pytest.mark.anyio
async def test_a_driver_that_fails_says_so_in_its_entry() -> None:
    async with running_kit() as kit:
        await read(kit, "PUT", "/v1/volumes", a_body("one", ExternalID="e1"))
        await read(kit, "PUT", "/v1/volumes", a_body("two", ExternalID="e1"))
        kit.driver.fail(steps.ListVolumes, fault("INTERNAL", final=True, message="backend is away"))
        [found] = (await read(kit, "GET", "/v1/volumes/orphans"))["Plugins"]
        assert "backend is away" in found["Error"]
        assert [d["ExternalID"] for d in found["Doubles"]] == ["e1"]
        assert found["Lost"] == found["Orphans"] == []


@pytest.mark.anyio
async def test_the_listing_waits_for_a_create_that_ends_soon() -> None:
    async with running_kit() as kit, anyio.create_task_group() as group:
        kit.driver.fail(steps.CreateVolume, fault("UNAVAILABLE", final=False), after_effect=True)
        group.start_soon(read, kit, "PUT", "/v1/volume/csi/web/create", a_body("web"))
        with anyio.fail_after(5):
            while not kit.driver.volumes:
                await anyio.sleep(0.01)
        # The backend has it, the answer was lost, and the record does not know its ID yet.
        [found] = (await read(kit, "GET", "/v1/volumes/orphans"))["Plugins"]
        assert found["Orphans"] == []
        assert found["Creating"] == []


class TurningPages:
    """Listings of a driver that hands out one volume a page; ``stuck``: the same page for ever."""

    def __init__(self, kit: Kit, *, is_stuck: bool) -> None:
        self.kit = kit
        self.is_stuck = is_stuck
        self.calls = 0

    def run(self, step: steps.Step) -> steps.Outcome:
        assert isinstance(step, steps.ListVolumes)
        self.calls += 1
        at = int(step.starting_token or "0")
        if at == 2 and self.calls == 3:
            return steps.Failed(fault=fault("ABORTED", final=True, method="ListVolumes", message="token is too old"))
        token = str(1 if self.is_stuck else at + 1) if at < 3 else ""
        return steps.VolumesListed(volumes=(ExternalVolume(external_id=f"e{at}"),), next_token=token)


async def answer_pages(kit: Kit, pages: TurningPages) -> None:
    """Make the list calls of the kit's node by these pages."""
    index = 0
    while True:
        found = await kit.service.nodes.wait_steps(NODE, index=index, wait_s=60)
        index = found.index
        reports = tuple(StepReport(key=a.key, revision=a.revision, outcome=pages.run(a.step)) for a in found.steps)
        if reports:
            await kit.service.nodes.report(NODE, reports)


@pytest.mark.anyio
@pytest.mark.parametrize("is_stuck", [False, True])
async def test_all_pages_are_read_from_the_start_again_when_a_token_is_refused(is_stuck: bool) -> None:
    async with running_kit() as kit, anyio.create_task_group() as group:
        kit.is_calling = False
        pages = TurningPages(kit, is_stuck=is_stuck)
        group.start_soon(answer_pages, kit, pages)
        finder: Orphans = kit.service.orphans
        [found] = await finder.find()
        if is_stuck:
            assert "again and again" in found.error
            assert pages.calls < PAGES_MAX
        else:
            assert names(found.found)[0] == ["e0", "e1", "e2", "e3"]
            assert pages.calls == 3 + 4
        group.cancel_scope.cancel()
