"""The recorded answers of a server with access control on are replayed, and the comparison is shown to fail."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from asking import Reply, ask
from dev_server import running_fleet
from recorded_acl import compare, expect, prepare, read_rows, replay

CORPUS = read_rows(Path(__file__).parent / "corpus" / "acl.json")


@pytest.mark.parametrize("strict", [False, True], ids=["page", "strict"])
def test_recorded_answers_agree(strict: bool) -> None:
    with running_fleet() as fleet:
        options = ["--acl", "--acl-strict"] if strict else ["--acl"]
        server = fleet.start_dev(plugin_id="hostpath", options=options)
        made = ask(server.url, "PUT", "/v1/acl/bootstrap").json()
        callers = prepare(server.url, made["SecretID"], CORPUS)
        disagreements = replay(server.url, CORPUS, callers, strict=strict)
        assert not disagreements, f"{len(disagreements)} disagreements:\n" + "\n".join(disagreements)
        assert "Traceback" not in server.log
        assert made["SecretID"] not in server.log


def find_row(who: str, method: str, path: str) -> Any:
    found = [
        row
        for row in (*CORPUS["answers"], *CORPUS["acl"])
        if (row["as"], row["request"]["method"], row["request"]["path"]) == (who, method, path)
    ]
    assert found, (who, method, path)
    return found[-1]


def reply_of(status: int, body: object = "") -> Reply:
    text = body if isinstance(body, str) else json.dumps(body)
    return Reply(status=status, headers={"x-nomad-index": "7"}, body=text.encode())


def recorded(row: Any) -> Reply:
    want = row["response"]
    headers = {name.lower(): value for name, value in want["headers"].items()}
    return Reply(status=want["status"], headers=headers, body=want["body"].encode())


def test_the_recording_agrees_with_itself_where_nothing_is_better() -> None:
    rows = [("answers", row) for row in CORPUS["answers"]] + [("acl", row) for row in CORPUS["acl"]]
    assert len(rows) == 646
    differing = [row for group, row in rows if compare(group, row, recorded(row), strict=True)]
    whys = {(row["as"], row["request"]["path"]) for row in differing}
    # Seven callers see one namespace instead of two; the rest are metrics, malformed tokens, and lists for nobody.
    others = {(who, path) for who, path in whys if path != "/v1/metrics" and who not in ("malformed", "anonymous")}
    assert {path for _, path in others} == {"/v1/volumes?type=csi&namespace=*"}
    assert len(others) == 7


@pytest.mark.parametrize(
    ("who", "method", "path", "wrong"),
    [
        ("ns-read", "GET", "/v1/volumes?type=csi", reply_of(403, "Permission denied")),
        ("ns-read", "GET", "/v1/volumes?type=csi", reply_of(200, [])),
        ("ns-read", "GET", "/v1/volumes?type=csi&namespace=*", reply_of(200, [{}, {}])),
        ("ns-read", "GET", "/v1/volume/csi/none", reply_of(404, "no such volume")),
        ("ns-read", "DELETE", "/v1/volume/csi/none", reply_of(500, "volume not found: none")),
        ("unknown", "GET", "/v1/nodes", reply_of(200, [])),
        ("unknown", "GET", "/v1/nodes", reply_of(403, "ACL token not found")),
        ("anonymous", "GET", "/v1/metrics", reply_of(200, {})),
        ("malformed", "GET", "/v1/acl/token/self", reply_of(500, "x")),
        ("management", "GET", "/v1/acl/policy/none", reply_of(404, "policy not found")),
        ("management", "GET", "/v1/acl/policy/list", reply_of(200, {"Name": "list"})),
    ],
)
def test_a_wrong_answer_is_found(who: str, method: str, path: str, wrong: Reply) -> None:
    row = find_row(who, method, path)
    group = "acl" if row in CORPUS["acl"] else "answers"
    assert compare(group, row, wrong, strict=False)


def test_a_changed_value_is_found() -> None:
    row = find_row("management", "GET", "/v1/acl/policy/list")
    for name, value in {"Hash": "x", "Rules": "", "RulesJSON": None, "CreateIndex": "1"}.items():
        body = copy.deepcopy(json.loads(row["response"]["body"])) | {name: value}
        assert len(compare("acl", row, reply_of(200, body), strict=True)) == 1, name


def test_strict_differs_from_the_page_for_writers_only() -> None:
    differing = {row["as"] for row in CORPUS["answers"] if expect(row, strict=True) != expect(row, strict=False)}
    assert differing == {"write", "ns-write", "all"}
