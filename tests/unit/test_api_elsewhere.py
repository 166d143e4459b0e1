"""The server's own pages, and those of things that moorage does not have."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import anyio
import pytest
from app_asking import a_body, ask, read, text_of
from engine_kit import NODE, running_kit

from moorage.model import steps
from moorage.model.ids import NodeId
from moorage.model.node import Node
from moorage.testing.scripted import fault

pytestmark = pytest.mark.anyio
HOSTS = [
    ("127.0.0.1:14700", "127.0.0.1:14700"),
    ("storage.example:80", "storage.example:80"),
    ("[::1]:4647", "[::1]:4647"),
    ("localhost", "localhost:4646"),
    ("", "127.0.0.1:4646"),
    ('bad"host', "127.0.0.1:4646"),
]


@pytest.mark.parametrize(("host", "address"), HOSTS)
async def test_leader_is_the_member(host: str, address: str) -> None:
    """`server members` joins a member's Addr and Tags.port and looks for the leader by that."""
    async with running_kit() as kit:
        leader = await read(kit, "GET", "/v1/status/leader?region=global", host=host)
        (member,) = (await read(kit, "GET", "/v1/agent/members", host=host))["Members"]
        addr = f"[{member['Addr']}]" if ":" in member["Addr"] else member["Addr"]
        assert leader == address
        assert leader == f"{addr}:{member['Tags']['port']}"
        assert await read(kit, "GET", "/v1/status/peers", host=host) == [leader]
        assert await read(kit, "GET", "/v1/agent/servers", host=host) == [leader]
        (server,) = (await read(kit, "GET", "/v1/operator/raft/configuration", host=host))["Servers"]
        assert (server["Address"], server["ID"], server["Leader"]) == (leader, member["Tags"]["id"], True)
        assert (member["Status"], member["Tags"]["region"]) == ("alive", "global")


async def test_leader_of_another_region() -> None:
    async with running_kit() as kit:
        answer = await ask(kit, "GET", "/v1/status/leader?region=mars")
        assert (answer.status, text_of(answer)) == (500, "No path to region")
        assert await read(kit, "GET", "/v1/regions") == ["global"]


async def test_agent_self() -> None:
    async with running_kit() as kit:
        found = await read(kit, "GET", "/v1/agent/self")
        assert found["config"]["UI"]["ShowCLIHints"] is False
        assert (found["config"]["Region"], found["config"]["Datacenter"]) == ("global", "dc1")
        assert found["stats"]["client"]["node_id"] == NODE
        assert all(isinstance(v, str) for part in found["stats"].values() for v in part.values())
        (member,) = (await read(kit, "GET", "/v1/agent/members"))["Members"]
        assert found["member"] == member


async def test_agent_self_does_not_guess_its_node() -> None:
    async with running_kit() as kit:
        await kit.service.nodes.register(Node(id=NodeId("2" + NODE[1:]), name="n2", boot_id="b"))
        found = await read(kit, "GET", "/v1/agent/self")
        assert "client" not in found["stats"]
        assert found["config"]["Client"] == {"Enabled": False}


async def test_health() -> None:
    async with running_kit() as kit:
        ok = {"message": "ok", "ok": True}
        assert await read(kit, "GET", "/v1/agent/health") == {"client": ok, "server": ok}
        assert await read(kit, "GET", "/v1/agent/health?type=server") == {"server": ok}
        assert await read(kit, "GET", "/v1/agent/health?type=client") == {"client": ok}


EMPTY = ["/v1/jobs?", "/v1/evaluations?", "/v1/deployments?", "/v1/volumes/claims?", "/v1/volumes?type=host&"]


@pytest.mark.parametrize("path", EMPTY)
async def test_empty_lists(path: str) -> None:
    async with running_kit() as kit:
        answer = await ask(kit, "GET", f"{path}prefix=x&namespace=*&filter=ID%20==%20x")
        assert (answer.status, answer.body, answer.headers["X-Nomad-Index"]) == (200, b"[]", "1")
        assert (await ask(kit, "GET", f"{path}wait=nonsense")).status == 400
        refused = await ask(kit, "GET", f"{path}filter=ID%20===")
        assert (refused.status, "failed to read filter expression: 1:" in text_of(refused)) == (400, True)


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/evaluations", "/v1/deployments"])
async def test_empty_lists_take_no_writes(path: str) -> None:
    async with running_kit() as kit:
        assert (await ask(kit, "PUT", path, {})).status == 405


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
async def test_the_method_of_host_claims_is_not_looked_at(method: str) -> None:
    async with running_kit() as kit:
        assert await read(kit, method, "/v1/volumes/claims?namespace=*") == []


@pytest.mark.parametrize("path", EMPTY)
async def test_an_empty_list_does_not_answer_a_waiting_client_at_once(path: str) -> None:
    async with running_kit() as kit:
        with anyio.move_on_after(0.2) as scope:
            await ask(kit, "GET", f"{path}index=1&wait=60s")
        assert scope.cancelled_caught


async def test_operator() -> None:
    async with running_kit() as kit:
        found = await read(kit, "GET", "/v1/operator/scheduler/configuration")
        assert found["SchedulerConfig"]["SchedulerAlgorithm"] == "binpack"
        assert found["SchedulerConfig"]["PreemptionConfig"]["SystemSchedulerEnabled"] is True
        for method in ("PUT", "POST"):
            answer = await ask(kit, method, "/v1/system/gc")
            assert (answer.status, answer.body, answer.content_type) == (200, b"", None)
        assert (await ask(kit, "GET", "/v1/system/gc")).status == 405


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/acl/bootstrap"),
        ("GET", "/v1/acl/policies"),
        ("GET", "/v1/acl/policy/self"),
        ("PUT", "/v1/acl/policy/x"),
        ("DELETE", "/v1/acl/policy/x"),
        ("GET", "/v1/acl/tokens"),
        ("PUT", "/v1/acl/token"),
        ("GET", "/v1/acl/token/00000000-0000-0000-0000-000000000000"),
    ],
)
async def test_access_control_is_off(method: str, path: str) -> None:
    async with running_kit() as kit:
        answer = await ask(kit, method, path)
        assert (answer.status, text_of(answer)) == (400, "ACL support disabled")


async def test_own_token_without_access_control() -> None:
    async with running_kit() as kit:
        found = await read(kit, "GET", "/v1/acl/token/self")
        assert (found["AccessorID"], found["Name"], found["Policies"]) == ("acls-disabled", "ACLs disabled token", None)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("GET", "/v1/volume/host/x", None, 404, "volume not found"),
        ("DELETE", "/v1/volume/host/x", None, 500, "no such volume: x"),
        ("DELETE", "/v1/volume/host/x?force=perhaps", None, 400, "invalid force value"),
        ("PUT", "/v1/volume/host/create", {}, 500, "missing volume definition"),
        ("PUT", "/v1/volume/host/create", {"Volume": {}}, 500, "volume validation failed: missing name"),
        ("POST", "/v1/volume/host/register", {"Volume": {"Name": "n"}}, 500, 'could not place volume "n": '),
        ("PATCH", "/v1/volume/host/x", None, 404, "resource not found"),
        ("GET", "/v1/volume/host/x/y", None, 404, "resource not found"),
        ("GET", "/v1/volume/host", None, 404, "resource not found"),
        ("DELETE", "/v1/volumes/claim/x", None, 500, "task group volume claim does not exist"),
        ("GET", "/v1/volumes/claim/x", None, 405, "Invalid method"),
        ("GET", "/v1/plugin/csi/a/b/c", None, 404, "resource not found"),
        ("GET", "/v1/plugin/csi/a/b", None, 404, "plugin not found"),
        ("POST", f"/v1/node/{NODE}/eligibility", {}, 400, "neither"),
        ("PUT", f"/v1/node/{NODE}/fence", {}, 500, "a reason is needed"),
        ("PUT", "/v1/node/none/drain", {}, 404, "no such node"),
        ("GET", f"/v1/node/{NODE}/drain", None, 405, "Invalid method"),
        ("GET", "/v1/client/stats?node_id=x", None, 404, ""),
    ],
)
async def test_refusals(method: str, path: str, body: object, status: int, text: str) -> None:
    async with running_kit() as kit:
        answer = await ask(kit, method, path, body)
        assert answer.status == status
        assert text_of(answer).startswith(text) or text in text_of(answer)


async def test_second_part_of_a_plugin_is_not_looked_at() -> None:
    async with running_kit() as kit:
        whole = await ask(kit, "GET", "/v1/plugin/csi/hostpath")
        part = await ask(kit, "GET", "/v1/plugin/csi/hostpath/anything")
        assert (part.status, part.body) == (200, whole.body)


# -- what register and create make of a request with more than one volume, or with more than they use -----------------


async def test_modes_of_a_register_are_shown_until_the_first_claim() -> None:
    async with running_kit() as kit:
        modes = {"AccessMode": "multi-node-multi-writer", "AttachmentMode": "file-system"}
        made = await read(kit, "PUT", "/v1/volume/csi/web/create", a_body("web", **modes))
        assert made["Volumes"][0]["AccessMode"] == "multi-node-multi-writer"
        # They have no say: an update with other capabilities, and a claim in another mode, are as free as before.
        await read(kit, "PUT", "/v1/volume/csi/web/create", a_body("web"))
        use = {"Allocation": {"Volumes": [{"Name": "d", "Source": "web"}]}}
        started = await read(kit, "PUT", "/v1/allocations", use)
        assert started["Volumes"][0]["AccessMode"] == "single-node-writer"
        assert (await read(kit, "GET", "/v1/volume/csi/web"))["AccessMode"] == "single-node-writer"
        assert (await ask(kit, "PUT", "/v1/allocations", use)).status == 500
        await read(kit, "PUT", f"/v1/allocation/{started['ID']}/stop")
        with anyio.fail_after(5):
            while (await read(kit, "GET", "/v1/volume/csi/web"))["AccessMode"]:
                await anyio.sleep(0.005)


async def test_the_same_volume_twice_in_one_create() -> None:
    async with running_kit() as kit:
        (volume,) = a_body("web")["Volumes"]  # type: ignore[misc]
        made = await read(kit, "PUT", "/v1/volume/csi/web/create", {"Volumes": [volume, volume]})
        assert [v["ID"] for v in made["Volumes"]] == ["web", "web"]
        assert len(kit.driver.volumes) == 1
        other = {"Volumes": [{**volume, "ID": "db"}, {**volume, "ID": "db", "Name": "other"}]}
        answer = await ask(kit, "PUT", "/v1/volume/csi/db/create", other)
        assert (answer.status, "volume identity cannot be updated: db" in text_of(answer)) == (500, True)
        assert len(kit.driver.volumes) == 1


async def test_a_disk_that_is_registered_already_is_named() -> None:
    async with running_kit() as kit:
        await read(kit, "PUT", "/v1/volume/csi/one/create", a_body("one", Name="same"))
        answer = await ask(kit, "PUT", "/v1/volume/csi/two/create", a_body("two", Name="same"))
        assert answer.status == 500
        assert 'registered already as volume "one"' in text_of(answer)


async def test_snapshots_beside_one_that_is_refused_are_made() -> None:
    async with running_kit() as kit:
        await read(kit, "PUT", "/v1/volume/csi/web/create", a_body("web"))
        asked = [{"SourceVolumeID": "none", "Name": "s1"}, {"SourceVolumeID": "web", "Name": "s2"}]
        answer = await ask(kit, "PUT", "/v1/volumes/snapshot", {"Snapshots": asked})
        assert (answer.status, text_of(answer)) == (500, '1 error occurred:\n\t* no such volume "none"\n\n')
        listed = await read(kit, "GET", "/v1/volumes/snapshot?plugin_id=hostpath")
        assert [s["ExternalSourceVolumeID"] for s in listed["Snapshots"]] == ["vol-1"]


async def test_refusals_come_in_the_order_of_the_request() -> None:
    async with running_kit() as kit:
        await read(kit, "PUT", "/v1/volume/csi/web/create", a_body("web"))
        unnamed, missing = {"SourceVolumeID": "web"}, {"SourceVolumeID": "none", "Name": "s"}
        answer = await ask(kit, "PUT", "/v1/volumes/snapshot", {"Snapshots": [unnamed, missing]})
        first, second = text_of(answer).split("\n\t* ")[1:]
        assert ("missing Name" in first, second) == (True, 'no such volume "none"\n\n')
        volumes = [a_body(i, CloneID=f"gone-{i}")["Volumes"][0] for i in ("z", "m", "a")]  # type: ignore[index]
        kit.driver.fail(steps.CreateVolume, *[fault("NOT_FOUND", final=True)] * 3)
        answer = await ask(kit, "PUT", "/v1/volume/csi/z/create", {"Volumes": volumes})
        assert re.findall(r'volume "(\w)" content source', text_of(answer)) == ["z", "m", "a"]


@pytest.mark.parametrize("path", ["/v1/volumes/snapshot", "/v1/volumes"])
@pytest.mark.parametrize(
    ("query", "body", "is_refused"),
    [
        ("", {"Region": "mars"}, True),
        ("?region=", {"Region": "mars"}, True),
        ("?region=global", {"Region": "mars"}, False),
        ("?region=mars", {"Region": "global"}, True),
        ("", {"Region": "global"}, False),
    ],
)
async def test_the_region_of_a_body_counts_where_the_query_has_none(
    path: str, query: str, body: dict[str, str], *, is_refused: bool
) -> None:
    async with running_kit() as kit:
        assert (text_of(await ask(kit, "PUT", path + query, body)) == "No path to region") is is_refused


@pytest.mark.parametrize(("query", "namespace"), [("", "body"), ("?namespace=", "body"), ("?namespace=query", "query")])
async def test_the_namespace_of_a_body_counts_where_the_query_has_none(query: str, namespace: str) -> None:
    async with running_kit() as kit:
        body = a_body("web") | {"Namespace": "body"}
        text = text_of(await ask(kit, "PUT", f"/v1/volume/csi/web/create{query}", body))
        assert f"volume web is in nonexistent namespace {namespace}" in text


async def test_allocations_page_and_filter() -> None:
    async with running_kit() as kit:
        ids = [f"00000000-0000-4000-8000-00000000000{n}" for n in range(4)]
        for number, use in enumerate(ids):
            await read(kit, "PUT", f"/v1/volume/csi/v{number}/create", a_body(f"v{number}"))
            volume = {"Name": "data", "Source": f"v{number}"}
            body = {"Allocation": {"ID": use, "NodeID": NODE, "Name": f"use-{number}", "Volumes": [volume]}}
            await read(kit, "PUT", "/v1/allocations", body)

        async def find(query: str) -> tuple[list[str], str]:
            answer = await ask(kit, "GET", f"/v1/allocations?{query}")
            assert answer.status == 200, text_of(answer)
            return [row["ID"] for row in json.loads(answer.body)], answer.headers.get("X-Nomad-NextToken", "")

        assert await find("per_page=3") == (ids[:3], ids[3])
        assert await find(f"per_page=3&next_token={ids[3]}") == (ids[3:], "")
        assert await find("per_page=3&reverse=true") == (ids[:0:-1], ids[0])
        assert await find(f"per_page=3&reverse=true&next_token={ids[0]}") == (ids[:1], "")
        assert await find("filter=Name%20==%20%22use-2%22") == (ids[2:3], "")
        volume = quote('any Mounts as m { m.Volume == "v1" }')
        assert await find(f"filter={volume}") == (ids[1:2], "")
        assert (await ask(kit, "GET", "/v1/allocations?filter=Nope%20==%20x")).status == 400
        assert (await ask(kit, "GET", "/v1/allocations?per_page=-1")).status == 400


async def test_nodes_backwards() -> None:
    async with running_kit() as kit:
        others = [NodeId(f"{n}" + NODE[1:]) for n in (2, 3)]
        for other in others:
            await kit.service.nodes.register(Node(id=other, name=other[:1], boot_id="b"))
        answer = await ask(kit, "GET", "/v1/nodes?reverse=true&per_page=2")
        assert [row["ID"] for row in json.loads(answer.body)] == others[::-1]
        assert answer.headers["X-Nomad-NextToken"] == NODE


@pytest.mark.parametrize(("page", "name"), [("external", "Volumes"), ("snapshot", "Snapshots")])
async def test_a_page_of_a_driver_that_ignores_its_size(page: str, name: str) -> None:
    """The scripted driver lists everything at once and gives no token."""
    async with running_kit() as kit:
        for volume in ("a", "b", "c"):
            await read(kit, "PUT", f"/v1/volume/csi/{volume}/create", a_body(volume))
            await read(kit, "PUT", "/v1/volumes/snapshot", {"Snapshots": [{"SourceVolumeID": volume, "Name": volume}]})
        path = f"/v1/volumes/{page}?plugin_id=hostpath"
        everything = (await read(kit, "GET", path))[name]
        first = await read(kit, "GET", f"{path}&per_page=2")
        rest = await read(kit, "GET", f"{path}&per_page=2&next_token={quote(first['NextToken'])}")
        assert (first[name], rest[name], rest["NextToken"]) == (everything[:2], everything[2:], "")
        assert len(everything) == 3
