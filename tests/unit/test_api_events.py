"""The event stream without a socket: what is told, to whom, and from where on."""

from __future__ import annotations

import anyio
import pytest
from app_asking import a_body, ask, read
from engine_kit import NODE, PLUGIN, running_kit
from event_kit import create, following, open_stream, release, running_events, use, wait_for

from moorage.engine.events import EventSettings
from moorage.errors import BadRequest
from moorage.model import steps
from moorage.rules import events as rules
from moorage.testing.scripted import fault

pytestmark = pytest.mark.anyio


# -- what is told ----------------------------------------------------------------------------------------------------


async def test_first_a_heartbeat_then_the_past() -> None:
    async with running_kit() as kit, following(kit.app) as lines:
        events = await lines.until("NodeRegistration", "NodeRegistration")
        assert lines.raw[0] == b"{}\n"
        assert [e["Topic"] for e in events] == ["Node", "CSIPlugin"]


async def test_life_of_a_volume() -> None:
    async with running_kit() as kit, following(kit.app, "topic=CSIVolume") as lines:
        secret = {"password": "hunter2"}
        await create(kit, "web", Secrets=secret, MountOptions={"FSType": "ext4", "MountFlags": ["key=hunter2"]})
        await lines.until("CSIVolumeRegistered")
        assert lines.types == ["CSIVolumeRegistered"], "one event, and none before the driver had it"
        allocation = await use(kit, "web")
        await lines.until("CSIVolumeRegistered", "CSIVolumeClaim")
        assert set(lines.types[1:]) == {"CSIVolumeClaim"}
        await release(kit, allocation)
        await ask(kit, "DELETE", "/v1/volume/csi/web/delete")
        events = await lines.until("CSIVolumeRegistered", "CSIVolumeClaim", "CSIVolumeDeregistered")
        assert lines.types[-1] == "CSIVolumeDeregistered"
        assert set(lines.types[1:-1]) == {"CSIVolumeClaim"}
        indexes = [line["Index"] for line in lines.all[1:]]
        assert indexes == sorted(set(indexes))
        assert indexes[0] > 0
        for event in events:
            assert (event["Topic"], event["Key"], event["Namespace"]) == ("CSIVolume", "web", "default")
            assert event["FilterKeys"] == ["web", "web", PLUGIN]
            assert event["Index"] in indexes
            assert event["Payload"]["Volume"]["Secrets"] is None
            assert event["Payload"]["Volume"]["MountOptions"]["MountFlags"] == ["[REDACTED]"]
        assert b"hunter2" not in b"".join(lines.raw)


async def test_payloads_are_what_reads_answer() -> None:
    async with running_kit() as kit, following(kit.app, "namespace=*") as lines:
        await create(kit, "web")
        volume = await read(kit, "GET", "/v1/volume/csi/web")
        events = await lines.until("CSIVolumeRegistered")
        assert events[-1]["Payload"]["Volume"] == volume
        allocation_id = await use(kit, "web")
        await anyio.wait_all_tasks_blocked()
        last = {event["Topic"]: event["Payload"] for event in lines.events}
        assert last["CSIVolume"]["Volume"] == await read(kit, "GET", "/v1/volume/csi/web") | {
            # The allocation's own later changes are its own events.
            "Allocations": last["CSIVolume"]["Volume"]["Allocations"],
            "ModifyIndex": last["CSIVolume"]["Volume"]["ModifyIndex"],
        }
        assert list(last["CSIVolume"]["Volume"]["WriteAllocs"]) == [allocation_id]
        assert last["Allocation"]["Allocation"] == await read(kit, "GET", f"/v1/allocation/{allocation_id}")
        assert last["CSIPlugin"]["Plugin"] == await read(kit, "GET", f"/v1/plugin/csi/{PLUGIN}")
        node = await read(kit, "GET", f"/v1/node/{NODE}")
        assert last["Node"]["Node"] == node | {"CSIControllerPlugins": {}, "CSINodePlugins": {}}


async def test_a_failed_create_tells_nothing() -> None:
    async with running_kit() as kit, following(kit.app, "topic=CSIVolume") as lines:
        kit.driver.fail(steps.CreateVolume, fault("OUT_OF_RANGE", final=True))
        assert (await ask(kit, "PUT", "/v1/volume/csi/bad/create", a_body("bad"))).status == 500
        await wait_for(lambda: len(kit.repo.view.volumes) == 0)
        await create(kit, "good")
        assert [event["Key"] for event in await lines.until("CSIVolumeRegistered")] == ["good"]


async def test_updates_growth_and_deregistration() -> None:
    async with running_kit() as kit, following(kit.app, "topic=CSIVolume") as lines:
        await create(kit, "web", RequestedCapacityMin=1 << 30, RequestedCapacityMax=1 << 31)
        await read(kit, "PUT", "/v1/volume/csi/web", a_body("web", ExternalID="vol-1"))
        larger = a_body("web", RequestedCapacityMin=1 << 32, RequestedCapacityMax=1 << 33)
        await read(kit, "PUT", "/v1/volume/csi/web/create", larger)
        assert (await ask(kit, "DELETE", "/v1/volume/csi/web")).status == 200
        events = await lines.until("CSIVolumeDeregistered")
        assert set(lines.types[:-1]) == {"CSIVolumeRegistered"}
        assert events[-2]["Payload"]["Volume"]["Capacity"] >= 1 << 32
        assert events[-1]["Payload"]["Volume"]["Capacity"] >= 1 << 32
        assert events[-1]["Payload"]["Volume"]["CreateIndex"] == events[0]["Payload"]["Volume"]["CreateIndex"]


# -- what is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "seen"),
    [
        ("", {"web", "db", PLUGIN, NODE}),
        ("topic=*", {"web", "db", PLUGIN, NODE}),
        ("topic=*:web", {"web"}),
        ("topic=CSIVolume", {"web", "db"}),
        ("topic=CSIVolume:*", {"web", "db"}),
        ("topic=CSIVolume:web", {"web"}),
        ("topic=CSIVolume:name%20of%20db", {"db"}),
        ("topic=CSIVolume:name+of+db", {"db"}),
        (f"topic=CSIVolume:{PLUGIN}", {"web", "db"}),
        ("topic=CSIVolume:web&topic=CSIVolume:db", {"web", "db"}),
        ("topic=CSIVolume:web&topic=CSIPlugin", {"web", PLUGIN}),
        (f"topic=Node:{NODE}", {NODE}),
        ("topic=CSIVolume:none", set()),
        ("topic=Job&topic=Evaluation", set()),
        ("topic=CSIVolume&namespace=other", set()),
        ("namespace=other", {PLUGIN, NODE}),
        ("topic=CSIVolume&namespace=*", {"web", "db"}),
    ],
)
async def test_filters(query: str, seen: set[str]) -> None:
    async with running_kit() as kit:
        await create(kit, "web")
        await create(kit, "db", Name="name of db")
        async with following(kit.app, query) as lines:
            assert {event["Key"] for event in lines.events} == seen


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("topic=", "Invalid topic ''"),
        ("topic=csivolume", "Invalid topic 'csivolume': there are *, CSIVolume, CSIPlugin, Node, Allocation"),
        ("topic=CSIVolume&topic=Nonsense", "Invalid topic 'Nonsense'"),
        ("topic=CSIVolume:", "after the colon comes a key"),
        ("index=-1", "Invalid index '-1'"),
        ("index=x", "Invalid index 'x'"),
        ("index=1.5", "Invalid index"),
        ("index=99999999999999999999", "Invalid index"),
    ],
)
async def test_bad_requests(query: str, text: str) -> None:
    async with running_kit() as kit:
        answer = await open_stream(kit.app, query)
        assert answer.status == 400
        assert text in answer.body.decode()
        assert answer.stream is None


async def test_region_is_checked() -> None:
    async with running_kit() as kit:
        answer = await open_stream(kit.app, "region=elsewhere")
        assert (answer.status, answer.body) == (500, b"No path to region")


def test_topic_texts() -> None:
    assert rules.parse_topics([]) == {"*": {"*"}}
    assert rules.parse_topics(["CSIVolume:a:b", "CSIVolume", "Node"]) == {"CSIVolume": {"a:b", "*"}, "Node": {"*"}}
    with pytest.raises(BadRequest):
        rules.parse_topics(["*:"])


# -- indexes ---------------------------------------------------------------------------------------------------------


async def test_from_an_index_on() -> None:
    async with running_kit() as kit:
        for name in ("a", "b", "c"):
            await create(kit, name)
        async with following(kit.app, "topic=CSIVolume") as lines:
            indexes = [event["Index"] for event in lines.events]
        for start in range(indexes[0], indexes[-1] + 2):
            async with following(kit.app, f"topic=CSIVolume&index={start}") as lines:
                assert [e["Index"] for e in lines.events] == [i for i in indexes if i >= start], start
        async with following(kit.app, f"topic=CSIVolume&index={indexes[-1] + 2}") as lines:
            await create(kit, "d")
            assert all(event["Index"] >= indexes[-1] + 2 for event in lines.events)


async def test_heartbeats() -> None:
    async with running_events(EventSettings(heartbeat_s=0.02)) as ring, following(ring.app) as lines:
        with anyio.fail_after(5):
            while len(lines.raw) < 4:
                await anyio.sleep(0.01)
        assert lines.raw[:4] == [b"{}\n"] * 4
