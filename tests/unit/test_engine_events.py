"""The ring of events: its readers, its end, its past, and the rules of what is told."""

from __future__ import annotations

import json

import anyio
import msgspec
import pytest
from app_asking import a_body, ask, read
from engine_kit import Kit, running_kit
from event_kit import a_volume, create, following, open_stream, put, release, running_events, use

from moorage.engine.events import EventSettings
from moorage.errors import Compacted, Unavailable
from moorage.model.claim import Allocation, Attached, Claim, Mounted, VolumeRequest
from moorage.model.ids import AllocationId, ClaimId, NamespaceName, NodeId, PluginId, VolumeId
from moorage.model.node import Node
from moorage.model.volume import Progress, Secrets, Volume
from moorage.rules import events as rules
from moorage.state import keys
from moorage.state.codec import Records
from moorage.state.memory import MemoryStore
from moorage.state.repo import Write

pytestmark = pytest.mark.anyio


# -- the ring and its readers ----------------------------------------------------------------------------------------


async def test_what_is_no_longer_kept_is_said() -> None:
    async with running_events(EventSettings(weight_max=3)) as ring:
        revisions = [await put(ring.repo, f"v{n}") for n in range(6)]
        assert ring.events.oldest == revisions[3]
        async with following(ring.app, f"index={revisions[2]}") as lines:
            await lines.until_over()
            assert [set(line) for line in lines.all] == [{"Error", "Index"}]
            assert lines.all[0]["Index"] == revisions[3]
            assert f"before index {revisions[3]} are no longer kept" in lines.all[0]["Error"]
        async with following(ring.app, f"index={revisions[3]}") as lines:
            assert [event["Key"] for event in lines.events] == ["v3", "v4", "v5"]
        async with following(ring.app) as lines:
            assert [event["Key"] for event in lines.events] == ["v3", "v4", "v5"]
        assert ring.events.readers == 0


async def test_a_slow_reader_is_cut_off_and_resumes_without_a_loss() -> None:
    async with (
        running_events(EventSettings(unread_max=5)) as ring,
        following(ring.app) as slow,
        following(ring.app) as quick,
    ):
        slow.take = anyio.Event()
        for number in range(12):
            await put(ring.repo, f"v{number}")
        await anyio.wait_all_tasks_blocked()
        slow.take.set()
        await slow.until_over()
        end = slow.all[-1]
        assert set(end) == {"Error", "Index"}
        assert "too slow: more than 5 revisions are unread" in end["Error"]
        before = [event["Key"] for event in slow.events]
        async with following(ring.app, f"index={end['Index']}") as resumed:
            after = [event["Key"] for event in resumed.events]
        assert before + after == [f"v{number}" for number in range(12)]
        assert [event["Key"] for event in quick.events] == [f"v{number}" for number in range(12)]
        # From the last index seen it repeats that one and loses none, too.
        async with following(ring.app, f"index={slow.events[-1]['Index']}") as resumed:
            assert [event["Key"] for event in resumed.events] == [before[-1], *after]


async def test_what_was_there_before_does_not_count_as_slow() -> None:
    async with running_events(EventSettings(unread_max=5)) as ring:
        for number in range(20):
            await put(ring.repo, f"v{number}")
        async with following(ring.app) as lines:
            await put(ring.repo, "last")
            await anyio.wait_all_tasks_blocked()
            assert [event["Key"] for event in lines.events][-1] == "last"
            assert len(lines.events) == 21
            # Once they are read, the limit is the usual one.
            lines.take = anyio.Event()
            for number in range(8):
                await put(ring.repo, f"w{number}")
            await anyio.wait_all_tasks_blocked()
            lines.take.set()
            await lines.until_over()
            assert "too slow" in lines.all[-1]["Error"]


async def test_json_is_made_once_for_all_readers() -> None:
    async with (
        running_events(EventSettings()) as ring,
        following(ring.app),
        following(ring.app, "topic=CSIVolume"),
        following(ring.app, "topic=CSIVolume:v1") as third,
    ):
        for number in range(3):
            await put(ring.repo, f"v{number}")
        await anyio.wait_all_tasks_blocked()
        assert ring.events.texts.made == 3
        assert len(third.events) == 1
    async with running_events(EventSettings(text_bytes_max=1)) as ring:
        for number in range(3):
            await put(ring.repo, f"v{number}")
        for _ in range(2):
            async with following(ring.app) as lines:
                assert len(lines.events) == 3
        assert ring.events.texts.made == 6


async def test_streams_are_counted() -> None:
    async with running_events(EventSettings(readers_max=2)) as ring:
        async with following(ring.app), following(ring.app):
            with pytest.raises(Unavailable, match="2 event streams are open"):
                ring.events.check_room()
            answer = await open_stream(ring.app)
            assert (answer.status, answer.headers["Retry-After"]) == (500, "5")
        assert (await open_stream(ring.app)).status == 200


async def test_a_revision_is_one_object() -> None:
    async with running_events(EventSettings()) as ring, following(ring.app) as lines:
        write = Write()
        for volume_id in ("b", "a"):
            write.put(keys.volume_key(NamespaceName("default"), VolumeId(volume_id)), a_volume(volume_id), revision=0)
        node = Node(id=NodeId("n"), name="n")
        write.put(keys.node_key(node.id), node, revision=0)
        revision = await ring.repo.commit(write)
        await anyio.wait_all_tasks_blocked()
        assert [line["Index"] for line in lines.all[1:]] == [revision]
        assert [event["Key"] for event in lines.events] == ["b", "a", "n"]


async def test_a_feed_that_fell_behind_ends_the_readers() -> None:
    """The feed lost its place in the store's log: what it missed is not known, and readers are told so."""
    store = MemoryStore()
    async with running_events(EventSettings(), store) as ring, following(ring.app) as lines:
        await put(ring.repo, "v0")
        key = keys.volume_key(NamespaceName("default"), VolumeId("v1"))
        # As when so much comes while it loads that the store drops its place.
        (watch,) = store._hub._by_prefix[""]
        store._hub.leave(watch)
        watch._finish(Compacted)
        for _ in range(10):
            store._apply(Write().put(key, a_volume("v1"), revision=0).make_ops(Records()))
        await lines.until_over()
        assert "no longer kept" in lines.all[-1]["Error"]
        assert lines.all[-1]["Index"] == ring.events.oldest
        await put(ring.repo, "v2")
        async with following(ring.app, f"index={ring.events.oldest}") as resumed:
            assert [event["Key"] for event in resumed.events] == ["v2"]


# -- the past --------------------------------------------------------------------------------------------------------


async def live_a_little(kit: Kit) -> None:
    """Volumes come, are used, grow and go; some of it is under way at the end."""
    await create(kit, "web", RequestedCapacityMin=1 << 30, RequestedCapacityMax=1 << 31)
    first = await use(kit, "web")
    await create(kit, "db", Secrets={"password": "hunter2"})
    await release(kit, first)
    await use(kit, "db")
    await read(kit, "PUT", "/v1/volume/csi/web/create", a_body("web", RequestedCapacityMin=1 << 32))
    # A volume changes while a claim on it stays as it was.
    await read(kit, "PUT", "/v1/volume/csi/db", a_body("db", ExternalID="vol-2"))
    await create(kit, "gone")
    assert (await ask(kit, "DELETE", "/v1/volume/csi/gone/delete")).status == 200
    await use(kit, "web")


async def test_a_restart_tells_the_same_again() -> None:
    store = MemoryStore()
    async with running_kit(store) as kit, following(kit.app, "namespace=*") as before:
        await live_a_little(kit)
        await anyio.wait_all_tasks_blocked()
    assert len(before.events) > 20
    async with running_events(EventSettings(), store) as ring, following(ring.app, "namespace=*") as after:
        assert after.raw == before.raw
        assert ring.events.oldest == 1


async def test_a_restart_goes_as_far_back_as_it_is_told() -> None:
    store = MemoryStore()
    async with running_kit(store) as kit, following(kit.app) as before:
        await live_a_little(kit)
        await anyio.wait_all_tasks_blocked()
    newest = await store.revision()
    for span in (*range(1, 12), *range(12, newest, 9)):
        first = newest - span + 1
        async with running_events(EventSettings(past_revisions=span), store) as ring:
            assert ring.events.oldest == first
            async with following(ring.app) as after:
                assert after.raw[1:] == [raw for raw in before.raw[1:] if json.loads(raw)["Index"] >= first]
            async with following(ring.app, f"index={first - 1}") as lost:
                await lost.until_over()
                assert lost.all[0]["Index"] == first


async def test_a_retold_allocation_has_the_claims_that_stayed_as_they_were() -> None:
    store = MemoryStore()
    async with running_events(EventSettings(), store) as ring, following(ring.app, "topic=Allocation") as before:
        allocation = Allocation(
            id=AllocationId("a"),
            namespace=NamespaceName("default"),
            node_id=NodeId("n"),
            volumes=(VolumeRequest(name="data", source=VolumeId("web")),),
        )
        key = keys.allocation_key(allocation.id)
        write = Write().put(key, allocation, revision=0).put(keys.claim_key(CLAIM.id), CLAIM, revision=0)
        revision = await ring.repo.commit(write)
        changed = msgspec.structs.replace(allocation, description="a word")
        await ring.repo.commit(Write().put(key, changed, revision=revision))
        await before.until("AllocationUpdated", "AllocationUpdated")
        assert before.events[-1]["Payload"]["Allocation"]["Mounts"][0]["State"] == "attached"
    async with running_events(EventSettings(past_revisions=1), store) as ring, following(ring.app) as after:
        assert after.raw[1:] == before.raw[2:]


async def test_a_log_that_was_cut_is_used_from_there() -> None:
    store = MemoryStore()
    async with running_events(EventSettings(), store) as ring:
        for number in range(40):
            await put(ring.repo, f"v{number}")
    await store.compact(30)  # type: ignore[arg-type]
    async with running_events(EventSettings(past_revisions=36), store) as ring:
        assert ring.events.oldest == 32, "36 back is gone, a quarter of it is there"
        async with following(ring.app, "index=32") as lines:
            assert [event["Key"] for event in lines.events] == [f"v{number}" for number in range(31, 40)]
            await put(ring.repo, "new")
            await anyio.wait_all_tasks_blocked()
            assert lines.events[-1]["Key"] == "new"
        async with following(ring.app, "index=31") as lines:
            await lines.until_over()


async def test_no_log_at_all() -> None:
    store = MemoryStore()
    async with running_events(EventSettings(), store) as ring:
        await put(ring.repo, "v0")
    await store.compact(1)  # type: ignore[arg-type]
    async with running_events(EventSettings(), store) as ring:
        assert ring.events.oldest == 2
        async with following(ring.app) as lines:
            assert lines.raw == [b"{}\n"]
            await put(ring.repo, "v1")
            await anyio.wait_all_tasks_blocked()
            assert [event["Index"] for event in lines.events] == [2]


# -- the rules -------------------------------------------------------------------------------------------------------

VOLUME = a_volume("web", modified_at_ns=1)
CLAIM = Claim(
    id=ClaimId("a/data"),
    allocation_id=AllocationId("a"),
    name="data",
    namespace=NamespaceName("default"),
    volume_id=VolumeId("web"),
    plugin_id=PluginId("p"),
    external_id="e",
    node_id=NodeId("n"),
    external_node_id="n",
    read_only=False,
    access_mode="",
    attachment_mode="",
    state=Attached(),
)
HIDDEN = msgspec.structs.replace(VOLUME, state="absent")


@pytest.mark.parametrize(
    ("before", "after", "moved", "kind"),
    [
        (None, HIDDEN, False, ""),
        (HIDDEN, None, False, ""),
        (HIDDEN, VOLUME, False, "CSIVolumeRegistered"),
        (None, VOLUME, False, "CSIVolumeRegistered"),
        (VOLUME, None, False, "CSIVolumeDeregistered"),
        (VOLUME, None, True, "CSIVolumeDeregistered"),
        (VOLUME, HIDDEN, False, "CSIVolumeDeregistered"),
        (VOLUME, VOLUME, False, ""),
        (VOLUME, VOLUME, True, "CSIVolumeClaim"),
        (VOLUME, msgspec.structs.replace(VOLUME, capacity_bytes=5), False, "CSIVolumeRegistered"),
        (VOLUME, msgspec.structs.replace(VOLUME, capacity_bytes=5), True, "CSIVolumeRegistered"),
        (VOLUME, msgspec.structs.replace(VOLUME, modified_at_ns=2), False, "CSIVolumeRegistered"),
        (VOLUME, msgspec.structs.replace(VOLUME, modified_at_ns=2, access_mode="x"), True, "CSIVolumeClaim"),
        (VOLUME, msgspec.structs.replace(VOLUME, progress=Progress(attempts=3)), False, ""),
        (VOLUME, msgspec.structs.replace(VOLUME, wanted="absent", delete_secrets=Secrets({"a": "b"})), False, ""),
        (VOLUME, msgspec.structs.replace(VOLUME, expand_min_bytes=9), False, ""),
    ],
)
def test_types_of_volume_events(before: Volume | None, after: Volume | None, moved: bool, kind: str) -> None:
    assert rules.choose_volume_type(before, after, is_claim_moved=moved) == kind


def test_claims_move_by_state_and_intent_only() -> None:
    claim = CLAIM
    replace = msgspec.structs.replace
    assert rules.is_claim_moved(None, claim)
    assert rules.is_claim_moved(claim, None)
    assert rules.is_claim_moved(claim, replace(claim, wanted="released"))
    assert rules.is_claim_moved(claim, replace(claim, state=Mounted(path="/x")))
    assert not rules.is_claim_moved(claim, replace(claim, progress=Progress(attempts=2)))
    assert not rules.is_claim_moved(claim, claim)


def test_types_of_node_events() -> None:
    node = Node(id=NodeId("n"), name="n", status="ready")
    replace = msgspec.structs.replace
    assert rules.choose_node_type(None, node) == "NodeRegistration"
    assert rules.choose_node_type(node, replace(node, boot_id="b2")) == "NodeRegistration"
    assert rules.choose_node_type(node, replace(node, status="down")) == "NodeStreamEvent"
    assert rules.choose_node_type(node, replace(node, status_updated_at_ns=9)) == ""
    assert rules.choose_node_type(node, None) == "NodeDeregistration"
