"""Request bodies of any kind get an answer that says what is wrong, never a traceback; the server goes on serving."""

from __future__ import annotations

import copy
import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from asking import ask, describe_volume
from rough_client import Line, check_reply

from moorage.api.routes import ROUTES

MIB = 1 << 20
NODE = "99999999-2222-4333-8444-555555555555"


@pytest.fixture
def url(unharmed_url: str) -> str:
    """The server's address."""
    return unharmed_url


@pytest.fixture
def line(url: str) -> Iterator[Line]:
    """A kept connection to the server."""
    kept = Line(url)
    yield kept
    kept.close()


# -- bodies ----------------------------------------------------------------------------------------------------------

BODIES: dict[str, bytes | None] = {
    "none": None,
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "object": b"{}",
    "text": b'"x"',
    "number": b"7",
    "cut": b'{"Volumes": [{"ID": "a"',
    "not-json": b"ID=a&Name=b",
    "null-elements": b'{"Volumes": [null], "Snapshots": [null], "Allocation": null}',
    "nulls-within": b'{"Volumes": [{"ID": "a", "RequestedCapabilities": [null]}], "Snapshots": [{"ID": null}]}',
    "invalid-utf8": b'{"Volumes": [{"ID": "\xff\xfe"}]}',
    "lone-surrogate": b'{"Volumes": [{"ID": "\\ud800", "PluginID": "hostpath"}]}',
    "nul-in-text": b'{"Volumes": [{"ID": "a\\u0000b", "PluginID": "hostpath"}]}',
    "deep-lists": b'{"Volumes": ' + b"[" * 100_000,
    "deep-objects": b'{"Volumes": [' + b'{"Context": ' * 50_000,
    "deep-and-closed": b'{"Other": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "huge-number": b'{"Volumes": [{"ID": "a", "RequestedCapacityMin": ' + b"9" * 400 + b"}]}",
    "infinite-number": b'{"Volumes": [{"ID": "a", "RequestedCapacityMin": 1e999}]}',
    "two-documents": b"{}{}",
    "bom": b"\xef\xbb\xbf{}",
}


@pytest.mark.parametrize("name", BODIES)
def test_every_route_answers_every_method_and_body(line: Line, name: str) -> None:
    for route in ROUTES:
        path = route.pattern.replace(":id", "x")
        for method in ("GET", "PUT", "POST", "DELETE", "PATCH"):
            reply = line.ask(method, path, BODIES[name])
            check_reply(reply, f"{method} {path} with {name}")
            if method not in route.handlers:
                assert reply.status in (404, 405), f"{method} {path}: {reply.status} {reply.text[:100]}"


CREATE = describe_volume("odd")
CREATE["Volumes"][0] |= {
    "MountOptions": {"FSType": "ext4", "MountFlags": ["noatime"]},
    "Parameters": {"a": "b"},
    "Secrets": {"a": "b"},
    "Context": {"a": "b"},
    "RequestedTopologies": {"Required": [{"Segments": {"a": "b"}}], "Preferred": [{"Segments": {"a": "b"}}]},
    "SnapshotID": "",
    "CloneID": "",
}
REGISTER = copy.deepcopy(CREATE)
REGISTER["Volumes"][0]["ExternalID"] = "an-external-id"
REGISTER["Volumes"][0]["Topologies"] = [{"Segments": {"a": "b"}}]
SNAPSHOT = {
    "Snapshots": [{"SourceVolumeID": "odd", "PluginID": "hostpath", "Name": "s", "Parameters": {}, "Secrets": {}}]
}
ALLOCATION: dict[str, Any] = {
    "Allocation": {
        "ID": "11111111-2222-4333-8444-555555555555",
        "Name": "web.db[0]",
        "Namespace": "default",
        "JobID": "web",
        "TaskGroup": "db",
        "NodeID": NODE,
        "Tasks": ["postgres"],
        "Volumes": [
            {
                "Name": "data",
                "Source": "not-there",
                "ReadOnly": False,
                "AccessMode": "single-node-writer",
                "AttachmentMode": "file-system",
                "MountOptions": {"FSType": "ext4", "MountFlags": ["noatime"]},
                "Target": "/srv/data",
            }
        ],
    }
}
ODD_VALUES: tuple[object, ...] = (None, [], {}, "x", "", 7, -1, 1.5, 2**70, True, [None], [[]], {"x": None})


def list_ways(value: object, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value inside a JSON value, itself first."""
    yield way
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from list_ways(inner, (*way, name))
    if isinstance(value, list):
        for position, inner in enumerate(value):
            yield from list_ways(inner, (*way, position))


def put_in(body: Any, way: tuple[Any, ...], value: object) -> Any:
    """A copy of the body with another value at the end of the way."""
    if not way:
        return value
    changed = copy.deepcopy(body)
    inner = changed
    for part in way[:-1]:
        inner = inner[part]
    inner[way[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/volume/csi/odd/create", CREATE),
        ("/v1/volumes", REGISTER),
        ("/v1/volumes/snapshot", SNAPSHOT),
        ("/v1/allocations", ALLOCATION),
    ],
    ids=["create", "register", "snapshot", "allocation"],
)
def test_every_value_may_be_of_any_type(line: Line, path: str, body: object) -> None:
    for way in list_ways(body):
        for value in ODD_VALUES:
            sent = json.dumps(put_in(body, way, value)).encode()
            check_reply(line.ask("PUT", path, sent), f"PUT {path} with {value!r} at {way}")


def test_a_refusal_of_a_type_names_the_place(url: str) -> None:
    body = put_in(CREATE, ("Volumes", 0, "RequestedCapabilities", 0, "AccessMode"), 7)
    reply = ask(url, "PUT", "/v1/volume/csi/odd/create", body=body)
    assert reply.status == 400
    assert "RequestedCapabilities" in reply.text or "AccessMode" in reply.text, reply.text


def test_an_unknown_plugin_is_named(url: str) -> None:
    body = put_in(describe_volume("stranger"), ("Volumes", 0, "PluginID"), "nosuch")
    reply = ask(url, "PUT", "/v1/volume/csi/stranger/create", body=body)
    assert reply.status == 500
    assert "nosuch" in reply.text
    assert ask(url, "GET", "/v1/volume/csi/stranger").status == 404
    assert ask(url, "GET", "/v1/volumes/external?plugin_id=nosuch").status == 500


@pytest.mark.slow
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_a_body_of_100_mb_is_refused_and_the_connection_answers(url: str, is_chunked: bool) -> None:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    headers = {} if is_chunked else {"Content-Length": str(100 * MIB)}
    connection.request("PUT", "/v1/volume/csi/big/create", body=(b" " * MIB for _ in range(100)), headers=headers,
                       encode_chunked=is_chunked)  # fmt: skip
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    assert answer.status == 413
    assert "larger than" in text


def test_a_body_just_below_the_limit_is_read(url: str) -> None:
    body = json.dumps(describe_volume("wide")).encode()
    reply = ask(url, "PUT", "/v1/volume/csi/wide/create", body=body + b" " * (15 * MIB))
    assert reply.status == 200, reply.text[:300]
