"""The server's own pages, and those of things that moorage does not have."""

from __future__ import annotations

import anyio
import pytest
from app_asking import a_body, ask, read, text_of
from engine_kit import NODE, running_kit

from moorage.model.ids import NodeId
from moorage.model.node import Node

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


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/evaluations", "/v1/deployments", "/v1/volumes/claims"])
async def test_empty_lists(path: str) -> None:
    async with running_kit() as kit:
        answer = await ask(kit, "GET", f"{path}?prefix=x&namespace=*")
        assert (answer.status, answer.body, answer.headers["X-Nomad-Index"]) == (200, b"[]", "1")
        assert (await ask(kit, "GET", f"{path}?wait=nonsense")).status == 400
        assert (await ask(kit, "PUT", path, {})).status == 405


async def test_an_empty_list_does_not_answer_a_waiting_client_at_once() -> None:
    async with running_kit() as kit:
        with anyio.move_on_after(0.2) as scope:
            await ask(kit, "GET", "/v1/jobs?index=1&wait=60s")
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
