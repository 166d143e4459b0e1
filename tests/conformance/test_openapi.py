"""The API's description is whole, and the server answers as it says."""

from __future__ import annotations

import json
import re
from typing import Any

import anyio
import jsonschema
import pytest
from described import Judge
from engine_kit import NODE, PLUGIN, Kit, join, running_kit

from moorage.api.http import Answer, Request
from moorage.api.openapi import describe, find_operation, find_operations
from moorage.api.params import find_query
from moorage.api.routes import ROUTES
from moorage.engine.ports import AclSettings
from moorage.state.keyring import make_key
from moorage.testing.key_sources import FixedKeys

pytestmark = pytest.mark.anyio

PROBLEM = "application/problem+json"
ALLOCATION = "00000000-0000-4000-8000-00000000000a"


class Tourist:
    """Asks a kit, and has every answer judged."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.judge = Judge()

    async def ask(self, method: str, target: str, body: object = None, *, status: int = 200, **headers: str) -> Answer:
        path, _, query = target.partition("?")
        request = Request(
            method=method,
            path=path,
            parts=tuple(path.split("/")[1:]),
            query=find_query(query.encode()),
            raw_query=query.encode(),
            headers=headers,
            body=b"" if body is None else json.dumps(body).encode(),
        )
        answer = await self.kit.app.answer(request)
        assert answer.status == status, f"{method} {target}: {answer.status} {answer.body[:500]!r}"
        self.judge.check(method, target, answer)
        return answer


def a_volume(volume_id: str, **members: object) -> dict[str, Any]:
    capability = {"AccessMode": "multi-node-multi-writer", "AttachmentMode": "file-system"}
    volume = {"ID": volume_id, "Name": volume_id, "PluginID": PLUGIN, "RequestedCapabilities": [capability]}
    return {"Volumes": [volume | members]}


# -- the description ---------------------------------------------------------------------------------------------------


def test_every_row_is_described() -> None:
    missing = [
        f"{method} {route.pattern}"
        for route in ROUTES
        for method in route.handlers
        if (found := find_operation(route.pattern, method)) is None or not found.summary
    ]
    assert not missing, "rows of api/routes.py without an entry in api/openapi_storage.py or api/openapi_around.py"


def test_every_description_has_its_row() -> None:
    rows = {(route.pattern, method) for route in ROUTES for method in route.handlers}
    described = {(pattern, method) for pattern, methods in find_operations().items() for method in methods}
    assert described <= rows


def test_references_lead_somewhere() -> None:
    document = describe()
    for reference in set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document))):
        found: Any = document
        for name in reference.removeprefix("#/").split("/"):
            assert name in found, reference
            found = found[name]


def test_schemas_are_schemas_and_operations_have_names_of_their_own() -> None:
    document = describe()
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


def test_agents_pages_are_marked() -> None:
    pages = ("join", "register", "plugins", "steps", "claims", "reports")
    internal = {p for p, methods in describe()["paths"].items() for op in methods.values() if op.get("x-internal")}
    assert internal == {f"/v1/node/{{id}}/{page}" for page in pages}


async def test_description_is_served() -> None:
    async with running_kit() as kit:
        tourist = Tourist(kit)
        plain = await tourist.ask("GET", "/v1/openapi.json")
        pretty = await tourist.ask("GET", "/v1/openapi.json?pretty")
        assert json.loads(plain.body) == json.loads(pretty.body) == json.loads(json.dumps(describe()))
        assert pretty.body.startswith(b"{\n    ")


# -- the answers -------------------------------------------------------------------------------------------------------


async def _make_volumes(tourist: Tourist) -> None:
    whole = a_volume(
        "whole",
        RequestedCapacityMin=1 << 20,
        RequestedCapacityMax=1 << 30,
        MountOptions={"FSType": "ext4", "MountFlags": ["noatime"]},
        Secrets={"key": "s"},
        Parameters={"tier": "fast"},
        Context={"a": "b"},
        RequestedTopologies={"Required": [{"Segments": {"rack": "r1"}}], "Preferred": None},
    )
    await tourist.ask("PUT", "/v1/volume/csi/whole/create", whole)
    await tourist.ask("POST", "/v1/volume/csi/plain/create?pretty", a_volume("plain"))
    await tourist.ask("PUT", "/v1/volumes", a_volume("taken", ExternalID="elsewhere-1"))
    second = await tourist.ask("POST", "/v1/volumes", a_volume("second", ExternalID="vol-1"))
    assert "X-Moorage-Warnings" in second.headers
    await tourist.ask("PUT", "/v1/volume/csi/taken", a_volume("taken", ExternalID="elsewhere-1"))
    await tourist.ask("POST", "/v1/volume/csi/taken", a_volume("taken", ExternalID="elsewhere-1"))
    for query in ("", "?type=csi", "?type=host", "?type=csi&per_page=1", "?type=csi&reverse=true&prefix=w"):
        await tourist.ask("GET", f"/v1/volumes{query}")
    await tourist.ask("GET", "/v1/volume/csi/whole")
    await tourist.ask("GET", f"/v1/volumes/external?plugin_id={PLUGIN}")


async def _make_snapshots(tourist: Tourist) -> None:
    async def make(method: str, path: str, **members: object) -> None:
        await tourist.ask(method, path, {"Snapshots": [{"PluginID": PLUGIN, **members}]})

    for number, method in enumerate(("PUT", "POST")):
        await make(method, "/v1/volumes/snapshot", SourceVolumeID="plain", Name=f"a{number}")
        await make(method, "/v1/volumes/snapshot/plain", Name=f"b{number}")
        await make(method, "/v1/volume/csi/plain/snapshot", Name=f"c{number}")
    await tourist.ask("PUT", "/v1/volumes/snapshot", {"Snapshots": []})
    listed = await tourist.ask("GET", f"/v1/volumes/snapshot?plugin_id={PLUGIN}")
    snapshot_id = json.loads(listed.body)["Snapshots"][0]["ID"]
    await tourist.ask("DELETE", f"/v1/volumes/snapshot?plugin_id={PLUGIN}&snapshot_id={snapshot_id}")


async def _claim_volumes(tourist: Tourist) -> None:
    volumes = [
        {"Name": "data", "Source": "whole", "Target": "/srv"},
        {"Name": "r", "Source": "plain", "ReadOnly": True},
    ]
    asked = {"Allocation": {"ID": ALLOCATION, "Name": "web[0]", "NodeID": NODE, "Tasks": ["t"], "Volumes": volumes}}
    first = await tourist.ask("PUT", "/v1/allocations", asked)
    index = first.headers["X-Nomad-Index"]
    await tourist.ask("POST", "/v1/allocations", asked)
    await tourist.ask("GET", f"/v1/allocation/{ALLOCATION}?index={index}&wait=2s")
    for path in ("volume/csi/whole", f"allocation/{ALLOCATION}", f"node/{NODE}", f"plugin/csi/{PLUGIN}"):
        await tourist.ask("GET", f"/v1/{path}/why")
    await tourist.ask("GET", f"/v1/volumes/orphans?plugin_id={PLUGIN}")
    for path in ("/v1/allocations", f"/v1/node/{NODE}/allocations", "/v1/volume/csi/whole", "/v1/volumes?type=csi"):
        await tourist.ask("GET", path)
    own = await join(tourist.kit)
    await tourist.ask("GET", f"/v1/node/{NODE}/claims", **own)
    await tourist.ask("GET", f"/v1/node/{NODE}/steps", **own)
    await tourist.ask("PUT", f"/v1/allocation/{ALLOCATION}/stop")
    await tourist.ask("POST", f"/v1/allocation/{ALLOCATION}/stop")
    for _ in range(200):
        answer = await tourist.ask("GET", "/v1/volume/csi/whole")
        if not json.loads(answer.body)["WriteAllocs"]:
            return
        await tourist.ask("GET", f"/v1/volume/csi/whole?index={answer.headers['X-Nomad-Index']}&wait=100ms")
    pytest.fail("the claims stay")


async def _remove_volumes(tourist: Tourist) -> None:
    await tourist.ask("DELETE", f"/v1/volume/csi/plain/detach?node={NODE}")
    await tourist.ask("DELETE", "/v1/volume/csi/second?force=true")
    await tourist.ask("DELETE", "/v1/volume/csi/plain/delete")


async def _look_around(tourist: Tourist) -> None:
    names = "/v1/plugins /v1/plugins?type=csi /v1/nodes /v1/plugin/csi/hostpath /v1/plugin/csi/hostpath/x"
    for path in (*names.split(), f"/v1/node/{NODE}"):
        await tourist.ask("GET", path)
    for path in find_operations():
        found = find_operation(path, "GET")
        is_plain = found is not None and not (found.is_refused or found.is_stream or "plugin_id" in found.parameters)
        if is_plain and ":" not in path and not path.startswith("/v1/acl/"):
            await tourist.ask("GET", path)
    for method in ("PUT", "POST", "DELETE"):
        await tourist.ask(method, "/v1/volumes/claims")
    for method in ("PUT", "POST"):
        await tourist.ask(method, "/v1/operator/secrets/rotate")
        with anyio.fail_after(10):
            while json.loads((await tourist.ask("GET", "/v1/operator/secrets")).body)["Phase"] != "done":
                await anyio.sleep(0.01)
    for part in ("client", "server"):
        await tourist.ask("GET", f"/v1/agent/health?type={part}")
    await tourist.ask("GET", "/v1/acl/token/self")
    for method in ("PUT", "POST"):
        await tourist.ask(method, "/v1/system/gc")
        for context in ("all", "volumes"):
            await tourist.ask(method, "/v1/search", {"Prefix": "", "Context": context})
            await tourist.ask(method, "/v1/search/fuzzy", {"Text": "whole", "Context": context})


async def _use_namespaces(tourist: Tourist) -> None:
    for method in ("PUT", "POST"):
        await tourist.ask(method, "/v1/namespace", {"Name": "a", "Meta": {"k": "v"}, "Capabilities": {"x": 1}})
        await tourist.ask(method, "/v1/namespace/b", {"Name": "b", "Description": "d"})
    await tourist.ask("GET", "/v1/namespaces")
    await tourist.ask("GET", "/v1/namespace/a")
    await tourist.ask("DELETE", "/v1/namespace/a")


async def _report_as_agent(tourist: Tourist) -> None:
    node_id = "99999999-2222-3333-4444-555555555555"
    own = {"x-nomad-token": f"moorage-node-{node_id}"}
    await tourist.ask("PUT", f"/v1/node/{node_id}/join", {"name": "n2"}, **own)
    await tourist.ask("PUT", f"/v1/node/{node_id}/register", {"node": {"id": node_id, "name": "n2"}}, **own)
    await tourist.ask("PUT", f"/v1/node/{node_id}/plugins", {"instances": {}}, **own)
    await tourist.ask("PUT", f"/v1/node/{node_id}/reports", {"reports": []}, **own)
    for method in ("PUT", "POST"):
        await tourist.ask(method, f"/v1/node/{node_id}/drain", {"DrainSpec": {"Deadline": 0}})
        await tourist.ask(method, f"/v1/node/{node_id}/eligibility", {"Eligibility": "eligible"})
        await tourist.ask(method, f"/v1/node/{node_id}/fence", {"Reason": "test", "Force": True})
        await tourist.ask(method, f"/v1/node/{node_id}/reset-identity", {"Reason": "test"})
        made = await tourist.ask(method, "/v1/nodes/join-tokens", {"TTL": "5m", "Uses": 2, "Note": "rack 7"})
        await tourist.ask("GET", "/v1/nodes/join-tokens")
        await tourist.ask("DELETE", f"/v1/nodes/join-token/{json.loads(made.body)['ID']}")


async def _use_access_control(tourist: Tourist) -> None:
    made = json.loads((await tourist.ask("PUT", "/v1/acl/bootstrap")).body)
    token = {"x-nomad-token": made["SecretID"]}
    rules = 'namespace "default" { policy = "read" }\nplugin { policy = "read" }'
    for method in ("PUT", "POST"):
        await tourist.ask(method, "/v1/acl/policy/a", {"Name": "a", "Rules": rules}, **token)
        sent = {"Name": "t", "Type": "client", "Policies": ["a"], "ExpirationTTL": "1h"}
        answer = await tourist.ask(method, "/v1/acl/token", sent, **token)
        accessor = json.loads(answer.body)["AccessorID"]
        sent = {"AccessorID": accessor, "Name": "u", "Type": "client", "Policies": ["a"]}
        await tourist.ask(method, f"/v1/acl/token/{accessor}", sent, **token)
    pages = ("policies", "policy/a", "policy/self", "tokens", "tokens?per_page=1", "token/self", f"token/{accessor}")
    for page in pages:
        await tourist.ask("GET", f"/v1/acl/{page}", **token)
    await tourist.ask("GET", "/v1/acl/token/self")
    await tourist.ask("DELETE", "/v1/acl/policy/a", **token)
    await tourist.ask("DELETE", f"/v1/acl/token/{accessor}", **token)


class Reset:
    """An operator who allows every bootstrap."""

    def __init__(self, kit: Kit | None = None) -> None:
        self.kit = kit

    async def read_index(self) -> int | None:
        """The index of the last one."""
        done = next(iter(self.kit.repo.view.acl_bootstrap), None) if self.kit else None
        return done.modified if done else None


async def test_answers_are_as_described() -> None:
    reset = Reset()
    async with running_kit(acl=AclSettings(enabled=True), reset=reset) as kit:
        reset.kit = kit
        tourist = Tourist(kit)
        await _use_access_control(tourist)
        await tourist.ask("POST", "/v1/acl/bootstrap")
        judge = tourist.judge
    async with running_kit(keys=FixedKeys(make_key(b"1" * 32))) as kit:
        tourist = Tourist(kit)
        tourist.judge = judge
        await _use_namespaces(tourist)
        await _make_volumes(tourist)
        await _make_snapshots(tourist)
        await _claim_volumes(tourist)
        await _look_around(tourist)
        await _remove_volumes(tourist)
        await _report_as_agent(tourist)
        paths = describe()["paths"]
        promised = {(p, m.upper()) for p, ms in paths.items() for m, op in ms.items() if "200" in op["responses"]}
        streams = {(p, m.upper()) for p, ms in paths.items() for m, op in ms.items() if op.get("x-moorage-stream")}
        assert promised - streams - tourist.judge.seen == set(), "described, and never seen to work"


@pytest.mark.parametrize("accept", ["", PROBLEM])
async def test_refusals_are_as_described(accept: str) -> None:
    async with running_kit() as kit:
        tourist = Tourist(kit)
        await tourist.ask("PUT", "/v1/volume/csi/a/create", a_volume("a"))
        headers = {"accept": accept} if accept else {}
        plain = {404: 404, 409: 500, 503: 500, 400: 500}

        async def refused(method: str, target: str, body: object = None, *, honest: int, recorded: int = 0) -> None:
            status = honest if accept else recorded or plain[honest]
            answer = await tourist.ask(method, target, body, status=status, **headers)
            assert accept == "" or answer.content_type == PROBLEM or honest == 404

        await refused("PUT", "/v1/volumes", honest=400, recorded=400)
        await refused("PUT", "/v1/volumes", {"Volumes": [{}]}, honest=400)
        await refused("PUT", "/v1/volumes", a_volume("a", Name="other"), honest=409)
        await refused("GET", "/v1/volume/csi/none", honest=404)
        await refused("DELETE", "/v1/volume/csi/none", honest=404, recorded=500)
        await refused("GET", "/v1/volumes?type=csi&index=x", honest=400, recorded=400)
        await refused("GET", "/v1/volumes/external?plugin_id=none", honest=404, recorded=500)
        await refused("GET", "/v1/acl/policies", honest=400, recorded=400)
