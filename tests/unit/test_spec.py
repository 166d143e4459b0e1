"""Volume specifications: every form in use, nothing lost, errors with line and column."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.errors import BadRequest
from moorage.model.spec import SIZE_BYTES_MAX, parse_size, read_spec

FULL = """
id           = "ebs_prod_db1"
Name         = "database"   # names of keys count without regard to case
TYPE         = "CSI"
plugin_id    = "ebs-prod"
namespace    = "dev"
external_id  = "vol-123"
snapshot_id  = "snap-1"
capacity_max = "200G"
capacity_min = "100GiB"

capability {
  access_mode     = "single-node-reader-only"
  attachment_mode = "file-system"
}
capability = { access_mode = "single-node-writer", attachment_mode = "block-device" }

mount_options {
  fs_type     = "ext4"
  mount_flags = ["noatime", "ro"]
}
topology_request {
  required {
    topology { segments { "rack" = "R1" } }
    topology { segments { "rack" = "R2", "zone" = "z" } }
  }
  preferred { topology { segments { rack = "R1" } } }
}
secrets { example_secret = "xyzzy" }
secrets = { other = "a=b" }
parameters { skuname = "Premium_LRS", count = 010, yes = true, half = 1.50, whole = 1.0 }
context { "a.b/c" = "d" }
"""


def test_everything_in_hcl() -> None:
    spec = read_spec(FULL)
    assert spec.notes == ()
    assert spec.body == {
        "ID": "ebs_prod_db1",
        "Name": "database",
        "PluginID": "ebs-prod",
        "Namespace": "dev",
        "ExternalID": "vol-123",
        "CloneID": "",
        "SnapshotID": "snap-1",
        "RequestedCapacityMax": 200 * 1000**3,
        "RequestedCapacityMin": 100 * 1024**3,
        "RequestedCapabilities": [
            {"AccessMode": "single-node-reader-only", "AttachmentMode": "file-system"},
            {"AccessMode": "single-node-writer", "AttachmentMode": "block-device"},
        ],
        "MountOptions": {"FSType": "ext4", "MountFlags": ["noatime", "ro"]},
        "RequestedTopologies": {
            "Required": [{"Segments": {"rack": "R1"}}, {"Segments": {"rack": "R2", "zone": "z"}}],
            "Preferred": [{"Segments": {"rack": "R1"}}],
        },
        "Secrets": {"example_secret": "xyzzy", "other": "a=b"},
        "Parameters": {"skuname": "Premium_LRS", "count": "8", "yes": "1", "half": "1.5", "whole": "1"},
        "Context": {"a.b/c": "d"},
    }


def test_what_is_not_given_is_null() -> None:
    body = read_spec('id = "v"').body
    absent = ("MountOptions", "RequestedTopologies", "RequestedCapabilities", "Secrets", "Parameters", "Context")
    assert {name: body[name] for name in absent} == dict.fromkeys(absent)
    assert body["RequestedCapacityMin"] == 0


R1, R2 = {"segments": {"rack": "R1"}}, {"segments": {"rack": "R2"}}


@pytest.mark.parametrize(
    "request_",
    [
        [{"required": [{"topology": [R1, R2]}]}],
        {"required": [{"topology": R1}, {"topology": R2}]},
        {"required": {"topology": [R1, R2]}},
        {"required": {"topology": [{"segments": [{"rack": "R1"}]}, R2]}},
        [{"required": {"topology": R1}}, {"required": {"topology": R2}}],
    ],
    ids=["canonical", "list-of-topologies", "plain-object", "segments-list", "two-requests"],
)
def test_json_topologies_are_all_kept(request_: Any) -> None:
    body = read_spec(json.dumps({"id": "v", "topology_request": request_})).body
    wanted = [{"Segments": {"rack": "R1"}}, {"Segments": {"rack": "R2"}}]
    assert body["RequestedTopologies"] == {"Required": wanted, "Preferred": None}


def test_json_spec() -> None:
    text = '{"id": "v", "capability": [{"access_mode": "a"}, {}], "secrets": {"k": null}, "capacity_min": 1024}'
    body = read_spec(text).body
    assert body["RequestedCapabilities"] == [
        {"AccessMode": "a", "AttachmentMode": ""},
        {"AccessMode": "", "AttachmentMode": ""},
    ]
    assert body["Secrets"] == {"k": ""}
    assert body["RequestedCapacityMin"] == 1024


def test_empty_segments_are_skipped() -> None:
    body = read_spec("topology_request { required { topology { segments {} } } }").body
    assert body["RequestedTopologies"] == {"Required": None, "Preferred": None}


def test_unknown_keys_at_the_top_are_noted() -> None:
    spec = read_spec('id = "v"\n  capacity_mni = "1GiB"\naccess_mode = "x"\n')
    assert spec.notes[0].startswith("line 2, column 3: capacity_mni")
    assert len(spec.notes) == 2


def test_first_mount_options_and_last_scalar_count() -> None:
    body = read_spec('id = "a"\nid = "b"\nmount_options { fs_type = "x" }\nmount_options { fs_type = "y" }').body
    assert (body["ID"], body["MountOptions"]["FSType"]) == ("b", "x")


@pytest.mark.parametrize(
    ("text", "line", "column", "part"),
    [
        ('type = "host"', 1, 1, "unknown volume type: 'host'"),
        ('id = "v"\ncapacity_min = "ten"', 2, 16, "invalid capacity_min: could not parse value as bytes"),
        ("capacity_min = -1", 1, 16, "invalid capacity_min"),
        ('capacity_max = "9EiB"', 1, 16, "too large"),
        ('capability {\n  acces_mode = "x"\n}', 2, 3, "invalid key: acces_mode"),
        ('mount_options { flags = ["x"] }', 1, 17, "invalid key: flags"),
        ("topology_request { requird {} }", 1, 20, "invalid key: requird"),
        ('capability "x" { }', 1, 1, "takes no label"),
        ('capability = "x"', 1, 14, "takes {…}"),
        ("secrets { a { b = 1 } }", 1, 13, "takes a text"),
        ('{"secrets": null}', 1, 13, "takes {…}"),
        ("id = [1]", 1, 6, "takes a text, not a list"),
        ("id = {}", 1, 6, "takes a text, not a block"),
    ],
)
def test_errors_say_where(text: str, line: int, column: int, part: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_spec(text)
    assert caught.value.message.startswith(f"line {line}, column {column}: ")
    assert part in caught.value.message


def test_a_spec_does_not_print_its_secrets() -> None:
    assert "xyzzy" not in repr(read_spec(FULL))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("10737418240", 10737418240),
        ("1.5GiB", 1610612736),
        ("1,000MB", 10**9),
        ("10 gib", 10 * 1024**3),
        ("1k", 1000),
        ("1Ki", 1024),
        ("7B", 7),
        ("0.1MB", 100_000),
        ("7.999EiB", int(7999 * 1024**6 / 1000)),
        ("9223372036854775807", SIZE_BYTES_MAX),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert abs(parse_size(text) - count) <= count >> 50


@pytest.mark.parametrize("text", ["-1", "1e3", "1 XB", "GiB", "1..5M", "1GiB2", "9EiB", "9223372036854775808", "１GB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_size(text)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    with contextlib.suppress(BadRequest):
        assert 0 <= parse_size(text) <= SIZE_BYTES_MAX
