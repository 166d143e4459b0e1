"""Explanations over a running engine, by the API: stuck creates, steps in flight, uses, plugins that went away."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from app_asking import a_body, ask, read
from engine_kit import NODE, PLUGIN, Kit, running_kit

from moorage.model import steps
from moorage.testing.scripted import fault

pytestmark = pytest.mark.anyio


async def wait_for(what: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not what():
            await anyio.sleep(0.01)


def state_of(kit: Kit, volume_id: str) -> str:
    found = kit.service.why.explain_volume("default", volume_id)
    return found.state if found else ""


async def test_a_stuck_create_is_found_though_no_list_shows_it() -> None:
    async with running_kit(request_s=0.2) as kit:
        kit.driver.fail(steps.CreateVolume, *[fault("UNAVAILABLE", final=False, message="backend is away")] * 50)
        assert (await ask(kit, "PUT", "/v1/volume/csi/web/create", a_body("web"))).status == 500
        assert (await ask(kit, "GET", "/v1/volume/csi/web")).status == 404
        found = await read(kit, "GET", "/v1/volume/csi/web/why")
        assert (found["Kind"], found["State"], found["Namespace"]) == ("volume", "creating", "default")
        assert found["LastCall"]["Status"] == "UNAVAILABLE"
        assert found["LastCall"]["Message"] == "backend is away"
        assert found["LastCall"]["Attempts"] >= 1
        assert "backend is away" in found["Summary"]
        assert "moorage volume delete web" in [c["Command"] for c in found["Commands"]]
        plugin = await read(kit, "GET", f"/v1/plugin/csi/{PLUGIN}/why")
        assert plugin["State"] == "ready"
        assert "web (creating)" in plugin["Blocks"][0]


async def test_a_step_in_flight_has_its_place_in_the_queue() -> None:
    async with running_kit(request_s=0.2) as kit:
        kit.is_calling = False
        for name in ("first", "second"):
            assert (await ask(kit, "PUT", f"/v1/volume/csi/{name}/create", a_body(name))).status >= 500
        found = await read(kit, "GET", "/v1/volume/csi/second/why")
        queue = found["Queue"]
        assert (queue["Position"], queue["Length"], queue["Step"]) == (2, 2, "CreateVolume")
        assert (queue["NodeID"], queue["NodeName"], queue["Ahead"]) == (NODE, "n1", [])
        assert queue["InFlightSince"] is not None
        assert found["LastCall"] is None
        assert "in flight" in found["Blocks"][0]


async def test_a_use_and_its_volume_tell_the_same_story() -> None:
    async with running_kit() as kit:
        await read(kit, "PUT", "/v1/volume/csi/web/create", a_body("web"))
        assert (await read(kit, "GET", "/v1/volume/csi/web/why"))["State"] == "ready"
        kit.is_mounting = False
        asked = {"Allocation": {"Name": "db[0]", "NodeID": NODE, "Volumes": [{"Name": "data", "Source": "web"}]}}
        allocation_id = (await read(kit, "PUT", "/v1/allocations", asked))["ID"]
        await wait_for(lambda: state_of(kit, "web") == "mounting")
        use = await read(kit, "GET", f"/v1/allocation/{allocation_id}/why")
        assert use["State"] == "mounting"
        assert 'volume "web"' in use["Summary"]
        assert use["Holders"][0]["AllocationID"] == allocation_id
        node = await read(kit, "GET", f"/v1/node/{NODE}/why")
        assert (node["State"], node["Holders"][0]["VolumeID"]) == ("ready", "web")
        refused = await ask(kit, "PUT", "/v1/allocations", asked)
        text = refused.body.decode()
        assert all(part in text for part in ('"web"', allocation_id, NODE, "since 20", "`moorage why web`"))


async def test_a_plugin_that_went_away_is_explained_as_long_as_a_volume_names_it() -> None:
    async with running_kit() as kit:
        await read(kit, "PUT", "/v1/volume/csi/web/create", a_body("web"))
        await kit.service.nodes.report_plugins(NODE, {})
        found = await read(kit, "GET", f"/v1/plugin/csi/{PLUGIN}/why")
        assert found["State"] == "unhealthy"
        assert (await read(kit, "GET", "/v1/volume/csi/web/why"))["State"] == "unhealthy"
        for path in ("volume/csi/none", "allocation/none", "plugin/csi/none", "node/none"):
            assert (await ask(kit, "GET", f"/v1/{path}/why")).status == 404
