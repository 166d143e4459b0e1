"""Routing, parameters, bodies and refusals of the API, without a socket."""

from __future__ import annotations

import json

import pytest
from engine_kit import NODE, PLUGIN, Kit, running_kit

from moorage.api.bodies import VolumesBody, decode
from moorage.api.http import Answer, Request
from moorage.api.params import find_query, parse_duration_s, parse_read, parse_secrets
from moorage.errors import BadRequest, Rejected
from moorage.model.ids import NodeId
from moorage.model.node import Node

pytestmark = pytest.mark.anyio


async def ask(kit: Kit, method: str, target: str, body: object = None, **headers: str) -> Answer:
    path, _, query = target.partition("?")
    raw = b"" if body is None else json.dumps(body).encode()
    request = Request(
        method=method,
        path=path,
        parts=tuple(path.split("/")[1:]),
        query=find_query(query.encode()),
        headers=headers,
        body=raw,
    )
    return await kit.app.answer(request)


def a_body(volume_id: str, **members: object) -> dict[str, object]:
    capability = {"AccessMode": "single-node-writer", "AttachmentMode": "file-system"}
    volume = {"ID": volume_id, "Name": volume_id, "PluginID": PLUGIN, "RequestedCapabilities": [capability]}
    return {"Volumes": [volume | members]}


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v1/nope", 404, ""),
        ("GET", "/v1/volumes/", 404, ""),
        ("GET", "/V1/volumes", 404, ""),
        ("PATCH", "/v1/volumes", 405, "Invalid method"),
        ("HEAD", "/v1/volumes", 405, "Invalid method"),
        ("GET", "/v1/volume/csi/a/b", 405, "Invalid method"),
        ("PUT", "/v1/volume/csi/a/b", 404, "resource not found"),
        ("DELETE", "/v1/volume/csi/a/b/c", 404, "resource not found"),
        ("POST", "/v1/volume/csi/a/delete", 405, "Invalid method"),
        ("GET", "/v1/volume/csi/", 500, "missing volume ID"),
        ("DELETE", "/v1/volume/csi/", 500, "volume not found: "),
        ("GET", "/v1/plugin/csi/", 500, "missing plugin ID"),
        ("DELETE", "/v1/plugin/csi/x", 405, "Invalid method"),
    ],
)
async def test_paths_and_methods(method: str, path: str, status: int, text: str) -> None:
    async with running_kit() as kit:
        answer = await ask(kit, method, path)
        assert (answer.status, answer.body.decode()) == (status, text)


async def test_secrets_and_flags_never_come_back() -> None:
    async with running_kit() as kit:
        secret = {"Secrets": {"key": "canary-1"}, "MountOptions": {"FsType": "ext4", "MountFlags": ["canary-2"]}}
        created = await ask(kit, "PUT", "/v1/volume/csi/a/create", a_body("a", **secret))
        read = await ask(kit, "GET", "/v1/volume/csi/a")
        listed = await ask(kit, "GET", "/v1/volumes?type=csi")
        for answer in (created, read, listed):
            assert answer.status == 200
            assert b"canary" not in answer.body
        assert json.loads(read.body)["MountOptions"] == {"FSType": "ext4", "MountFlags": ["[REDACTED]"]}
        assert json.loads(read.body)["Secrets"] is None
        assert kit.driver.calls[0].secrets.values == {"key": "canary-1"}  # type: ignore[union-attr]


async def test_second_registration_of_a_disk_warns() -> None:
    async with running_kit() as kit:
        await ask(kit, "PUT", "/v1/volume/csi/a/create", a_body("a"))
        answer = await ask(kit, "PUT", "/v1/volumes", a_body("b", ExternalID="vol-1"))
        assert answer.status == 200
        assert 'registered already as "a"' in answer.headers["X-Moorage-Warnings"]
        assert json.loads(answer.body)["Warnings"] == ""


async def test_problem_details_on_request() -> None:
    async with running_kit() as kit:
        problem = {"accept": "application/problem+json"}
        bad = await ask(kit, "PUT", "/v1/volumes", {"Volumes": []}, **problem)
        assert (bad.status, bad.content_type) == (400, "application/problem+json")
        assert json.loads(bad.body)["code"] == "validation"
        gone = await ask(kit, "DELETE", "/v1/volume/csi/none", **problem)
        assert (gone.status, json.loads(gone.body)["code"]) == (404, "volume_missing")
        plain = await ask(kit, "DELETE", "/v1/volume/csi/none")
        assert (plain.status, plain.body) == (500, b"volume not found: none")


async def test_an_unforeseen_error_is_an_incident_not_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    async with running_kit() as kit:
        kit.service.reads = None  # type: ignore[assignment]
        answer = await ask(kit, "GET", "/v1/volumes?type=csi")
        assert answer.status == 500
        assert b"Traceback" not in answer.body
        assert b"incident" in answer.body


async def test_allocation_life() -> None:
    async with running_kit() as kit:
        await ask(kit, "PUT", "/v1/volume/csi/a/create", a_body("a"))
        use = {"Allocation": {"Name": "x", "Volumes": [{"Name": "data", "Source": "a", "Target": "/srv/x"}]}}
        started = json.loads((await ask(kit, "PUT", "/v1/allocations", use)).body)
        path = f"/v1/allocation/{started['ID']}"
        index = started["ModifyIndex"]
        found = started
        while found["ClientStatus"] != "running":
            answer = await ask(kit, "GET", f"{path}?index={index}&wait=5s")
            index, found = answer.headers["X-Nomad-Index"], json.loads(answer.body)
        assert found["Mounts"][0] | {"Path": "/srv/x", "Volume": "a", "State": "mounted"} == found["Mounts"][0]
        assert found["TaskStates"]["main"]["State"] == "running"
        volume = json.loads((await ask(kit, "GET", "/v1/volume/csi/a")).body)
        assert list(volume["WriteAllocs"]) == [started["ID"]]
        assert [a["ID"] for a in volume["Allocations"]] == [started["ID"]]
        refused = await ask(kit, "PUT", "/v1/allocations", use)
        assert started["ID"] in refused.body.decode()
        assert (await ask(kit, "DELETE", "/v1/volume/csi/a")).body == b"volume in use: a"
        assert (await ask(kit, "PUT", f"{path}/stop")).status == 200


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10.0),
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("1.5h", 5400.0),
        ("0", 0.0),
        ("-1s", -1.0),
        ("10", None),
        ("s", None),
        ("", None),
        ("1 s", None),
    ],
)
async def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    ("query", "error", "text"),
    [
        ("per_page=x", BadRequest, "Expect a number for `per_page`"),
        ("per_page=2147483648", BadRequest, "Expect a number"),
        ("stale=maybe", BadRequest, "Expect `true` or `false` for `stale`"),
        ("wait=5", BadRequest, "Invalid wait time"),
        ("index=-1", BadRequest, "Invalid index"),
        ("index=18446744073709551616", BadRequest, "Invalid index"),
        ("region=nowhere", Rejected, "No path to region"),
    ],
)
async def test_bad_parameters(query: str, error: type[Rejected], text: str) -> None:
    with pytest.raises(error, match=text):
        parse_read(Request(method="GET", path="/", query=find_query(query.encode())))


async def test_the_first_of_repeated_parameters_counts() -> None:
    found = find_query(b"a=1&a=2&&b&c=%20+x")
    assert found == {"a": "1", "b": "", "c": "  x"}


async def test_secrets_header() -> None:
    request = Request(method="DELETE", path="/", headers={"x-nomad-csi-secrets": "a=b=c,broken,k=,=v"})
    assert parse_secrets(request) == {"a": "b=c", "k": ""}


async def test_names_match_without_regard_to_case_and_nulls_leave_defaults() -> None:
    sent = b'{"VOLUMES":[{"id":"a","mountoptions":{"fstype":"x"},"secrets":null,"unknown":1}]} and more'
    volume = (decode(VolumesBody, sent).volumes or [])[0]
    assert (volume.id, volume.secrets) == ("a", None)
    assert volume.mount_options is not None
    assert volume.mount_options.fs_type == "x"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "Request body is empty"),
        (b"  ", "unexpected EOF"),
        (b'{"Volumes":[', "ends at byte 12"),
        (b"[]", "must be an object, not array"),
        (b'{"Volumes":[null]}', r"null is not allowed in a list - at `\$.Volumes\[0\]`"),
        (b'{"Volumes":[{"RequestedCapabilities":[null]}]}', "RequestedCapabilities"),
        (b'{"Volumes":[{"ID":5}]}', r"Expected `str`, got `int` - at `\$.Volumes\[0\].ID`"),
        (b'{"Volumes":[{"RequestedCapacityMin":"10GB"}]}', "RequestedCapacityMin"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b"[" * 100_000, "of sensible depth"),
    ],
)
async def test_bad_bodies_name_the_place(body: bytes, text: str) -> None:
    with pytest.raises(BadRequest, match=text):
        decode(VolumesBody, body)


async def test_nodes_page_and_filter() -> None:
    async with running_kit() as kit:
        for number in (1, 2, 3):
            await kit.service.nodes.register(
                Node(id=NodeId(f"{number:08d}-2222-3333-4444-555555555555"), name=f"m{number}")
            )
        first = await ask(kit, "GET", "/v1/nodes?per_page=2")
        assert [n["Name"] for n in json.loads(first.body)] == ["m1", "m2"]
        rest = await ask(kit, "GET", f"/v1/nodes?per_page=2&next_token={first.headers['X-Nomad-NextToken']}")
        assert [n["Name"] for n in json.loads(rest.body)] == ["m3", "n1"]
        assert "X-Nomad-NextToken" not in rest.headers
        chosen = await ask(kit, "GET", "/v1/nodes?filter=Name%20==%20m2")
        assert [n["Name"] for n in json.loads(chosen.body)] == ["m2"]


async def test_a_drain_shows_and_ends() -> None:
    async with running_kit() as kit:
        changed = await ask(kit, "PUT", f"/v1/node/{NODE}/drain", {"DrainSpec": {"Deadline": 1}})
        index = json.loads(changed.body)["NodeModifyIndex"]
        node = json.loads((await ask(kit, "GET", f"/v1/node/{NODE}?index={index}&wait=5s")).body)
        assert (node["DrainStrategy"], node["Drain"], node["SchedulingEligibility"]) == (None, False, "ineligible")
        assert node["LastDrain"]["Status"] == "complete"
