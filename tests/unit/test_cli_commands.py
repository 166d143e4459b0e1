"""The commands against a small server on loopback that keeps what it was sent: requests, output, exit codes."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_stand_in import NODE, Server, last_write, running_stand_in

from moorage.cli.main import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running stand-in, found through MOORAGE_ADDR."""
    with running_stand_in(monkeypatch) as running:
        yield running


# -- volumes ---------------------------------------------------------------------------------------------------------


def test_status_lists_volumes(server: Server, capsys: Captured) -> None:
    server.add("data")
    server.add("web", AccessMode="single-node-writer", CurrentWriters=1)
    assert main(["volume", "status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "ID"
    assert [line.split()[0] for line in lines[1:]] == ["data", "web"]


def test_status_json_is_what_the_server_sent(server: Server, capsys: Captured) -> None:
    server.add("data")
    assert main(["volume", "status", "-json"]) == 0
    assert json.loads(capsys.readouterr().out) == list(server.volumes.values())
    assert main(["volume", "status", "-json", "dat"]) == 0
    assert json.loads(capsys.readouterr().out) == server.volumes["data"]


def test_status_sends_the_filters(server: Server) -> None:
    assert main(["volume", "status", "-plugin=local", "--node", "6f", "-namespace", "dev"]) == 0
    assert server.requests[0][2] == {"namespace": "dev", "type": "csi", "plugin_id": "local", "node_id": "6f"}


def test_status_of_nothing_is_no_error(server: Server, capsys: Captured) -> None:
    assert main(["volume", "status"]) == 0
    assert capsys.readouterr() == ("", "No volumes\n")


def test_exact_id_wins_over_longer_ones(server: Server, capsys: Captured) -> None:
    server.add("data")
    server.add("data2")
    assert main(["volume", "status", "data"]) == 0
    assert re.search(r"^ID +=+ data$", capsys.readouterr().out, re.MULTILINE)


def test_ambiguous_prefix_changes_nothing_and_lists_what_fits(server: Server, capsys: Captured) -> None:
    server.add("data1")
    server.add("data2")
    assert main(["volume", "delete", "data"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error deleting volume data" in err
    assert "data1" in err
    assert "data2" in err
    assert all(request[0] == "GET" for request in server.requests)


def test_id_with_brackets_and_blanks_is_one_path_segment(server: Server) -> None:
    server.add("da ta[0]")
    assert main(["volume", "delete", "da ta[0]"]) == 0
    assert last_write(server)[1] == "/v1/volume/csi/da%20ta%5B0%5D/delete"
    assert server.volumes == {}


def test_delete_sends_secrets_in_the_header(server: Server) -> None:
    server.add("data")
    assert main(["volume", "delete", "-secret", "user=bob", "-secret", "pass=a=b", "data"]) == 0
    assert last_write(server)[4]["X-Nomad-CSI-Secrets"] == "user=bob,pass=a=b"


def test_secret_with_a_comma_is_refused_without_showing_it(server: Server, capsys: Captured) -> None:
    server.add("data")
    assert main(["volume", "delete", "data", "-secret", "pass=hush,hush"]) == 1
    err = capsys.readouterr().err
    assert "'pass'" in err
    assert "hush" not in err
    assert server.requests == []


def test_deregister_says_force_either_way(server: Server) -> None:
    server.add("a")
    server.add("b")
    assert main(["volume", "deregister", "a"]) == 0
    assert last_write(server)[2]["force"] == "false"
    assert main(["volume", "deregister", "-force", "-yes", "b"]) == 0
    assert last_write(server)[2]["force"] == "true"


def test_detach_finds_the_node_by_name(server: Server) -> None:
    server.add("data")
    assert main(["volume", "detach", "data", "host1"]) == 0
    method, path, query, _, _ = last_write(server)
    assert (method, path, query["node"]) == ("DELETE", "/v1/volume/csi/data/detach", NODE["ID"])


def test_detach_takes_a_node_that_is_gone_from_the_uses(server: Server) -> None:
    server.add("data", Allocations=[{"NodeID": "dead-beef"}])
    assert main(["volume", "detach", "data", "dead"]) == 0
    assert last_write(server)[2]["node"] == "dead-beef"


def test_create_from_a_file(server: Server, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "v.hcl"
    file.write_text('id = "v"\nname = "v"\nplugin_id = "local"\ncapacity_min = "1KiB"\nbogus = 1\n')
    assert main(["volume", "create", str(file)]) == 0
    method, path, _, body, _ = last_write(server)
    assert (method, path) == ("PUT", "/v1/volume/csi/v/create")
    assert body["Volumes"][0]["RequestedCapacityMin"] == 1024
    out, err = capsys.readouterr()
    assert out.startswith("Created volume v as ext-v at the driver, 1 KiB")
    assert "line 5, column 1: bogus" in err


def test_register_uses_its_own_path_and_the_files_namespace(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "v.json"
    file.write_text('{"id": "v", "plugin_id": "local", "namespace": "dev", "external_id": "x"}')
    assert main(["volume", "register", str(file)]) == 0
    assert last_write(server)[:2] == ("PUT", "/v1/volume/csi/v")
    assert last_write(server)[2] == {"namespace": "dev"}


def test_create_reads_standard_input(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'id = "piped"\n')))
    assert main(["volume", "create", "-"]) == 0
    assert "piped" in server.volumes


def test_create_from_flags_then_bigger(server: Server, capsys: Captured) -> None:
    flags = ["volume", "create", "data", "-plugin", "local", "-access-mode", "multi-node-multi-writer"]
    assert main([*flags, "-size", "1KiB", "-parameter", "a=b=c"]) == 0
    made = last_write(server)[3]["Volumes"][0]
    assert made["Parameters"] == {"a": "b=c"}
    assert made["RequestedCapabilities"] == [
        {"AccessMode": "multi-node-multi-writer", "AttachmentMode": "file-system"},
    ]
    assert main(["volume", "create", "data", "-plugin", "local", "-size", "2KiB"]) == 0
    assert "Expanded volume data: 1 KiB → 2 KiB" in capsys.readouterr().out
    again = last_write(server)[3]["Volumes"][0]
    assert again["RequestedCapabilities"] == made["RequestedCapabilities"]  # what no flag says stays


def test_create_without_file_says_how(server: Server, capsys: Captured) -> None:
    assert main(["volume", "create", "no-such-file"]) == 1
    assert "-plugin creates one from flags" in capsys.readouterr().err
    assert server.requests == []


def test_create_from_flags_needs_the_plugin(server: Server, capsys: Captured) -> None:
    assert main(["volume", "create", "data", "-size", "1GiB"]) == 1
    assert "-size goes with -plugin" in capsys.readouterr().err


def test_error_in_a_file_names_file_line_and_column(server: Server, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "v.hcl"
    file.write_text('id = "v"\ncapacity_min = 10 GiB\n')
    assert main(["volume", "create", str(file)]) == 1
    err = capsys.readouterr().err
    assert "v.hcl: line 2, column" in err
    assert '"10 GiB"' in err


# -- snapshots, plugins, nodes ---------------------------------------------------------------------------------------


def test_snapshot_create_list_delete(server: Server, capsys: Captured) -> None:
    server.add("data")
    assert main(["volume", "snapshot", "create", "data", "before", "-parameter", "k=v", "-secret", "s=t"]) == 0
    sent = last_write(server)[3]["Snapshots"][0]
    assert sent == {"SourceVolumeID": "data", "Name": "before", "Secrets": {"s": "t"}, "Parameters": {"k": "v"}}
    assert main(["volume", "snapshot", "list"]) == 0
    assert server.requests[-1][2] == {"plugin_id": "local", "per_page": "30"}
    assert main(["volume", "snapshot", "delete", "local", "s1"]) == 0
    assert last_write(server)[2] == {"plugin_id": "local", "snapshot_id": "s1"}
    out = capsys.readouterr().out
    assert "Created snapshot s1 of volume data (2 KiB, ready)" in out
    assert "Deleted snapshot s1" in out


@pytest.mark.parametrize("words", [["plugin", "status"], ["plugin", "status", "loc"], ["node", "status"]])
def test_lists_are_printed(server: Server, capsys: Captured, words: list[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("words", [["plugin", "status", "x"], ["node", "status", "x"], ["alloc", "status", "x"]])
def test_missing_ones_are_errors(server: Server, capsys: Captured, words: list[str]) -> None:
    assert main(words) == 1
    assert "has the ID" in capsys.readouterr().err


# -- errors ----------------------------------------------------------------------------------------------------------


def test_servers_text_and_a_hint(server: Server, capsys: Captured) -> None:
    server.add("data")
    assert main(["volume", "status"]) == 0
    server.fail = (403, "Permission denied")
    assert main(["volume", "delete", "data"]) == 1
    err = capsys.readouterr().err
    assert err.splitlines() == [
        "Error deleting volume data: Permission denied",
        "Hint: a token is given with MOORAGE_TOKEN or -token; `moorage acl token self` shows what it is",
    ]


def test_token_and_region_travel(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOMAD_TOKEN", "from-nomad")
    assert main(["volume", "status", "-region", "eu"]) == 0
    assert server.requests[-1][4]["X-Nomad-Token"] == "from-nomad"
    assert server.requests[-1][2]["region"] == "eu"
    assert main(["-token", "from-flag", "volume", "status"]) == 0
    assert server.requests[-1][4]["X-Nomad-Token"] == "from-flag"


def test_no_server_says_what_to_do(capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOORAGE_ADDR", f"unix://{tmp_path}/no.sock")
    assert main(["volume", "status"]) == 1
    assert "start one with `moorage dev`" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["127.0.0.1:4646", "ftp://x", "http://", "http://h:port"])
def test_bad_addresses_are_named(capsys: Captured, address: str) -> None:
    assert main(["volume", "status", "-address", address]) == 1
    assert repr(address) in capsys.readouterr().err


@pytest.mark.parametrize("words", [["volume", "stats"], ["volume"], [], ["volume", "status", "-bogus"], ["mount", "x"]])
def test_wrong_usage_exits_with_2(capsys: Captured, words: list[str]) -> None:
    assert main(words) == 2


def test_mistyped_command_gets_a_proposal(capsys: Captured) -> None:
    assert main(["volume", "stats"]) == 2
    assert "did you mean `moorage volume status`?" in capsys.readouterr().err
