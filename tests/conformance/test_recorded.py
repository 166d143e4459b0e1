"""Recorded exchanges are replayed against a fresh `moorage dev`; and the comparison itself is shown to fail."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from asking import Reply
from dev_server import running_fleet
from recorded import SERVER, compare, learn, make_body, make_path, read_steps, recorded_reply, replay

CORPUS = Path(__file__).parent / "corpus"

# The corpus files that the server answers whole.
AGREEING = ("empty", "lifecycle", "create-invalid", "multi", "around", "namespaces", "list-paging-filter")


@pytest.mark.parametrize("name", AGREEING)
def test_recorded_exchanges_agree(name: str) -> None:
    with running_fleet() as fleet:
        server = fleet.start_dev(plugin_id="hostpath")
        disagreements = replay(server.url, CORPUS / f"{name}.jsonl")
        assert not disagreements, f"{len(disagreements)} disagreements:\n" + "\n".join(disagreements)
        assert "Traceback" not in server.log


# -- the corpus ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*.jsonl")), ids=lambda file: str(file.stem))
def test_the_recording_agrees_with_itself(file: Path) -> None:
    """Every step that moorage does not answer differently on purpose is satisfied by its own recorded answer."""
    steps = read_steps(file)
    assert [step["n"] for step in steps] == list(range(len(steps)))
    for step in steps:
        if "instead" not in step:
            assert compare(step, recorded_reply(step), scenario=file.stem) == [], step["n"]


# -- the comparison --------------------------------------------------------------------------------------------------


def step_of(body: object, *, status: int = 200, method: str = "GET", path: str = "/v1/volumes", **headers: str) -> Any:
    text = body if isinstance(body, str) else json.dumps(body)
    default = "text/plain; charset=utf-8" if isinstance(body, str) else "application/json"
    named = {"Content-Type": default, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return {
        "n": 0,
        "request": {"method": method, "path": path},
        SERVER: {"status": status, "headers": named, "body": text},
    }


def reply_of(body: object, *, status: int = 200, **headers: str) -> Reply:
    return recorded_reply(step_of(body, status=status, **headers))


VOLUME = {
    "ID": "web",
    "Capacity": 10,
    "Schedulable": True,
    "ExternalID": "a",
    "MountOptions": {"FSType": "ext4"},
    "RequestedCapabilities": [{"AccessMode": "single-node-writer"}],
}


def changed(way: tuple[str | int, ...], value: object) -> list[Any]:
    rows: list[Any] = [copy.deepcopy(VOLUME)]
    inner: Any = rows
    for part in way[:-1]:
        inner = inner[part]
    inner[way[-1]] = value
    return rows


@pytest.mark.parametrize(
    ("way", "value", "where"),
    [
        ((0, "ID"), "weB", "[0].ID"),
        ((0, "Capacity"), 11, "[0].Capacity"),
        ((0, "Capacity"), "10", "[0].Capacity"),
        ((0, "Schedulable"), 1, "[0].Schedulable"),
        ((0, "MountOptions", "FSType"), "xfs", "[0].MountOptions.FSType"),
        ((0, "MountOptions"), None, "[0].MountOptions"),
        ((0, "RequestedCapabilities"), [], "[0].RequestedCapabilities"),
        ((0, "ExternalID"), 7, "[0].ExternalID"),
        ((0,), None, "[0]"),
    ],
)
def test_a_changed_value_is_found(way: tuple[str | int, ...], value: object, where: str) -> None:
    found = compare(step_of([VOLUME]), reply_of(changed(way, value)))
    assert len(found) == 1
    assert found[0].startswith(f"{where} ")


@pytest.mark.parametrize("name", sorted(VOLUME))
def test_a_missing_field_is_found(name: str) -> None:
    rows = [{k: v for k, v in VOLUME.items() if k != name}]
    assert compare(step_of([VOLUME]), reply_of(rows)) == [f"[0].{name} is missing"]


def test_every_difference_is_listed() -> None:
    rows = [{**VOLUME, "ID": "x", "Capacity": 0}, VOLUME]
    assert len(compare(step_of([VOLUME]), reply_of(rows))) == 3


def test_values_of_the_provider_and_more_keys_agree() -> None:
    rows = [{**VOLUME, "ExternalID": "another", "Extra": 1}]
    assert compare(step_of([VOLUME]), reply_of(rows)) == []


@pytest.mark.parametrize(
    "reply",
    [
        reply_of("volume not found", status=500),
        reply_of("volume not  found!", status=404),
        reply_of("", status=404),
        reply_of({"error": "volume not found"}, status=404),
        reply_of("volume not found", status=404, Content_Type="text/html"),
        reply_of("volume not found", status=404, Content_Type="text/plain"),
    ],
)
def test_another_refusal_is_found(reply: Reply) -> None:
    assert compare(step_of("volume not found", status=404), reply)


def test_texts_of_drivers_and_identifiers_agree() -> None:
    one = "controller create volume: 00000000-0000-4000-8000-000000000001: &{a}\n rpc error: code = Internal"
    other = "controller create volume: 00000000-0000-4000-8000-0000000000ff: &{b}  rpc error: code = Aborted"
    assert compare(step_of(one, status=500), reply_of(other, status=500)) == []
    assert compare(step_of(one, status=500), reply_of(other.replace("create", "expand"), status=500))


def test_decoder_errors_are_free_but_say_something() -> None:
    step = step_of("json: cannot unmarshal array into Go value", status=400)
    assert compare(step, reply_of("the body must be an object, not a list", status=400)) == []
    assert compare(step, reply_of("", status=400))
    assert compare(step, reply_of("the body must be an object, not a list", status=500))


@pytest.mark.parametrize("name", ["X-Nomad-Index", "X-Nomad-Knownleader", "X-Nomad-Lastcontact", "X-Nomad-Nexttoken"])
def test_a_missing_header_is_found(name: str) -> None:
    step = step_of([], X_Nomad_Index="7", X_Nomad_Knownleader="true", X_Nomad_Lastcontact="0", X_Nomad_Nexttoken="d.a")
    reply = recorded_reply(step)
    assert compare(step, reply) == []
    headers = {k: v for k, v in reply.headers.items() if k != name.lower()}
    assert len(compare(step, Reply(status=200, headers=headers, body=reply.body))) == 1


def test_another_token_and_another_redirect_are_found() -> None:
    assert compare(step_of([], X_Nomad_Nexttoken="d.a"), reply_of([], X_Nomad_Nexttoken="d.b"))
    assert compare(step_of([]), reply_of([], X_Nomad_Nexttoken="d.b"))
    assert compare(step_of("", status=307, Location="/ui/"), reply_of("", status=307, Location="/"))


def test_a_drivers_listing_is_compared_by_fields() -> None:
    rows = [{"ExternalID": "a", "CapacityBytes": 1}, {"ExternalID": "b", "CapacityBytes": 2}]
    step = step_of({"Volumes": rows, "NextToken": "2"}, path="/v1/volumes/external")
    assert compare(step, reply_of({"Volumes": rows[:1], "NextToken": "x"})) == []
    wrong: list[Any] = [
        {"Volumes": [], "NextToken": "2"},
        {"Volumes": [rows[0], {"ExternalID": "b"}], "NextToken": "2"},
        {"Volumes": [rows[0], None], "NextToken": "2"},
        {"Volumes": rows, "NextToken": ""},
        {"Volumes": None, "NextToken": "2"},
        {"NextToken": "2"},
        [],
    ]
    for body in wrong:
        assert compare(step, reply_of(body)), body
    empty = step_of({"Volumes": [], "NextToken": ""}, path="/v1/volumes/external")
    assert compare(empty, reply_of({"Volumes": rows, "NextToken": ""}))


def test_what_we_answer_better_is_expected_as_told() -> None:
    step = {**step_of("", status=404), "instead": {"status": [400, 500], "contains": "dup1", "why": "clear"}}
    assert compare(step, reply_of("dup1 is there", status=500)) == []
    assert compare(step, reply_of("dup1 is there", status=404))
    assert compare(step, reply_of("it is there", status=400))
    step["instead"] = {"status": 200, "ids": ["b", "a"], "why": "reverse"}
    assert compare(step, reply_of([{"ID": "b"}, {"ID": "a"}])) == []
    assert compare(step, reply_of([{"ID": "a"}, {"ID": "b"}]))
    step["instead"] = {"status": 200, "count": 1, "why": "filter"}
    assert compare(step, reply_of([{"ID": "b"}])) == []
    assert compare(step, reply_of([]))
    assert compare(step, reply_of("no list"))


def test_later_steps_use_what_was_learned() -> None:
    variables: dict[str, str] = {}
    created = {"Volumes": [{"ID": "v", "ExternalID": "e/1"}], "NextToken": "2"}
    step = {**step_of(created, method="PUT"), "capture": {"first": ["Volumes", 0, "ID"], "no": ["Volumes", 5, "ID"]}}
    learn(step, reply_of(created, X_Nomad_Nexttoken="default.b"), variables)
    assert variables == {"next": "default.b", "extnext": "2", "v": "e/1", "first": "v"}
    request = {"path": "/v1/x?id=${v}&t=${gone}", "query": {"q": "a b"}, "body": {"ID": ["${first}"], "N": 1}}
    assert make_path(request, variables) == "/v1/x?id=e/1&t=%24%7Bgone%7D&q=a%20b"
    assert make_body(request, variables) == b'{"ID": ["v"], "N": 1}'
    assert make_body({"raw": "{", "body": {}}, variables) == b"{"


def test_a_server_that_answers_nonsense_disagrees_everywhere() -> None:
    """Replay reaches every step, and notices that a step got no answer at all."""
    file = CORPUS / "lifecycle.jsonl"

    def answer_nonsense(url: str, method: str, path: str, **options: object) -> Reply:
        if path == "/v1/nodes":
            return reply_of([])
        if method == "DELETE":
            raise ConnectionResetError
        return reply_of("nonsense", status=418)

    found = replay("http://nowhere", file, asking=answer_nonsense)
    assert {int(line.split()[1]) for line in found} == set(range(len(read_steps(file))))
