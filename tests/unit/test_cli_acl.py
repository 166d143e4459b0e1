"""``moorage acl`` against the app itself: output for people and programs, files, errors with their hints."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from dev_server import Program, running_fleet

from moorage.cli.main import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    """A server with access control, without an agent."""
    with running_fleet() as fleet:
        yield fleet.start_server("--acl")


@pytest.fixture(scope="module")
def secret(program: Program) -> str:
    """The bootstrap token's secret."""
    from asking import put

    return str(put(program.url, "/v1/acl/bootstrap")["SecretID"])


@pytest.fixture(autouse=True)
def surroundings(program: Program, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server and the token in the environment."""
    for name in ("NOMAD_TOKEN", "NOMAD_ADDR", "MOORAGE_NAMESPACE", "NOMAD_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MOORAGE_ADDR", program.url)
    monkeypatch.setenv("MOORAGE_TOKEN", secret)


def run_json(capsys: Captured, *words: str) -> object:
    assert main([*words, "-json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_policies(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rules.hcl"
    file.write_text('namespace "default" {\n  policy = "read"\n}\n')
    assert main(["acl", "policy", "apply", "ro", str(file), "-description", "reads"]) == 0
    assert capsys.readouterr().out == "Policy ro is written\n"
    assert main(["acl", "policy", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["ro", "reads"]
    assert main(["acl", "policy", "info", "ro"]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("Rules\n" + file.read_text())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"plugin":{"policy":"list"}}')))
    written = run_json(capsys, "acl", "policy", "apply", "ro", "-")
    assert isinstance(written, dict)
    assert written["RulesJSON"]["Plugin"] == {"Policy": "list"}
    assert main(["acl", "policy", "delete", "ro"]) == 0
    capsys.readouterr()
    assert run_json(capsys, "acl", "policy", "list") == []
    assert main(["acl", "policy", "info", "ro"]) == 1
    assert "acl policy list" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("apply", "x", "/nowhere/rules.hcl"), "cannot read /nowhere/rules.hcl: No such file"),
        (("apply", "bad name", "{file}"), "invalid name 'bad name'"),
        (("apply", "x", "{file}"), "line 1, column 13: expected namespace"),
    ],
)
def test_what_is_wrong_with_a_policy_is_said(
    tmp_path: Path, capsys: Captured, words: tuple[str, ...], says: str
) -> None:
    file = tmp_path / "rules.hcl"
    file.write_text('namespace { policy = "read" }')
    assert main(["acl", "policy", *(word.replace("{file}", str(file)) for word in words)]) == 1
    assert says in capsys.readouterr().err


def test_tokens(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run_json(capsys, "acl", "token", "create", "-name", "ci", "-policy", "a", "-policy", "b", "-ttl", "2h")
    assert isinstance(made, dict)
    assert (made["Name"], made["Policies"], made["ExpirationTTL"]) == ("ci", ["a", "b"], "2h0m0s")
    assert main(["acl", "token", "list"]) == 0
    listed = capsys.readouterr().out
    assert made["AccessorID"] in listed
    assert made["SecretID"] not in listed
    assert main(["acl", "token", "info", made["AccessorID"]]) == 0
    assert "not kept" in capsys.readouterr().out
    assert main(["acl", "token", "self", "-token", made["SecretID"]]) == 0
    assert made["AccessorID"] in capsys.readouterr().out
    # The other client's variable is honoured as well; ours wins.
    monkeypatch.setenv("NOMAD_TOKEN", made["SecretID"])
    assert main(["acl", "token", "list"]) == 0
    monkeypatch.delenv("MOORAGE_TOKEN")
    assert main(["acl", "token", "list"]) == 1
    assert "Permission denied" in capsys.readouterr().err


def test_deletion_and_its_errors(capsys: Captured) -> None:
    made = run_json(capsys, "acl", "token", "create", "-type", "management")
    assert isinstance(made, dict)
    assert main(["acl", "token", "delete", made["AccessorID"]]) == 0
    assert capsys.readouterr().out == f"Token {made['AccessorID']} is deleted\n"
    assert main(["acl", "token", "delete", made["AccessorID"]]) == 1
    assert "Cannot delete nonexistent tokens" in capsys.readouterr().err
    assert main(["acl", "token", "info", made["AccessorID"]]) == 1
    assert "`moorage acl token list`" in capsys.readouterr().err
    assert main(["acl", "bootstrap"]) == 1
    assert "acl-bootstrap-reset" in capsys.readouterr().err
    assert main(["acl", "token", "create"]) == 1
    assert "client token missing policies" in capsys.readouterr().err
