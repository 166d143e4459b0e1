"""The commands against a small server on loopback that keeps what it was sent: requests, output, exit codes."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

from moorage.cli.main import main

NODE = {"ID": "6f1c0000-0000-4000-8000-000000000001", "Name": "host1", "Status": "ready", "Address": "127.0.0.1"}


class Server:
    """A stand-in for the API: volumes and allocations in dicts; every request is kept in ``requests``."""

    def __init__(self) -> None:
        self.volumes: dict[str, dict[str, Any]] = {}
        self.allocations: dict[str, dict[str, Any]] = {}
        self.nodes: list[dict[str, Any]] = [NODE]
        self.requests: list[tuple[str, str, dict[str, str], Any, dict[str, str]]] = []
        self.fail: tuple[int, str] | None = None
        self.settle: Callable[[dict[str, Any]], None] = self._run
        self.polls = 0
        self.address = ""

    @staticmethod
    def _run(allocation: dict[str, Any]) -> None:
        stopping = allocation["DesiredStatus"] == "stop"
        allocation["ClientStatus"] = "complete" if stopping else "running"

    def add(self, volume_id: str, **more: Any) -> None:
        """Put a volume in."""
        self.volumes[volume_id] = {
            "ID": volume_id,
            "Name": volume_id,
            "Namespace": "default",
            "PluginID": "local",
            "Schedulable": True,
            "Capacity": 1024,
            "RequestedCapabilities": [{"AccessMode": "single-node-writer", "AttachmentMode": "file-system"}],
            "CurrentReaders": 0,
            "CurrentWriters": 0,
            **more,
        }

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        """Status and body (str is plain text, else JSON) of one request."""
        if self.fail:
            return self.fail
        parts = [unquote(part) for part in path.split("/")[2:]]
        match (method, parts):
            case "GET", ["volumes"]:
                return 200, [v for v in self.volumes.values() if v["ID"].startswith(query.get("prefix", ""))]
            case "GET", ["volume", "csi", volume_id]:
                return (200, self.volumes[volume_id]) if volume_id in self.volumes else (404, "volume not found")
            case "PUT", ["volume", "csi", volume_id, *_]:
                made = body["Volumes"][0]
                kept = self.volumes.get(volume_id, {})
                size = max(kept.get("Capacity", 0), made["RequestedCapacityMin"])
                self.add(volume_id, **{**kept, **made, "Capacity": size, "ExternalID": f"ext-{volume_id}"})
                return 200, {"Volumes": [self.volumes[volume_id]], "Warnings": ""}
            case "DELETE", ["volume", "csi", volume_id, "detach"]:
                return 200, ""
            case "DELETE", ["volume", "csi", volume_id, *_]:
                del self.volumes[volume_id]
                return 200, ""
            case "GET", ["plugins"]:
                known = {"ID": "local", "Provider": "p", "NodesHealthy": 1, "NodesExpected": 1}
                return 200, [known] if "local".startswith(query.get("prefix", "")) else []
            case "GET", ["plugin", "csi", "local"]:
                return 200, {"ID": "local", "Nodes": {NODE["ID"]: {"Healthy": True, "NodeInfo": {}}}}
            case "GET", ["volumes", "snapshot"]:
                return 200, {"Snapshots": [{"ID": "s1", "SizeBytes": 5, "CreateTime": 1, "IsReady": True}]}
            case "PUT", ["volumes", "snapshot"]:
                return 200, {"Snapshots": [{**body["Snapshots"][0], "ID": "s1", "SizeBytes": 2048, "IsReady": True}]}
            case "DELETE", ["volumes", "snapshot"]:
                return 200, ""
            case "GET", ["nodes"]:
                return 200, self.nodes
            case "GET", ["node", _, "allocations"]:
                return 200, list(self.allocations.values())
            case "GET", ["node", _]:
                return 200, NODE
            case _:
                return self._answer_allocation(method, parts, body)

    def _answer_allocation(self, method: str, parts: list[str], body: Any) -> tuple[int, Any]:
        match (method, parts):
            case "GET", ["allocations"]:
                return 200, list(self.allocations.values())
            case "PUT", ["allocations"]:
                made = body["Allocation"]
                mounts = [{"Volume": v["Source"], "Path": v["Target"], "Target": v["Target"]} for v in made["Volumes"]]
                self.allocations[made["ID"]] = {
                    **made,
                    "Mounts": mounts,
                    "DesiredStatus": "run",
                    "ClientStatus": "pending",
                }
                return 200, self.allocations[made["ID"]]
            case "GET", ["allocation", allocation_id]:
                self.polls += 1
                if self.polls % 2 == 0:
                    self.settle(self.allocations[allocation_id])
                return 200, self.allocations[allocation_id]
            case "PUT", ["allocation", allocation_id, "stop"]:
                self.allocations[allocation_id]["DesiredStatus"] = "stop"
                return 200, {"Index": 9}
        return 404, ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running stand-in, found through MOORAGE_ADDR."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            state.requests.append((self.command, parts.path, query, body, dict(self.headers)))
            status, answer = state.answer(self.command, parts.path, query, body)
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Nomad-Index", str(len(state.requests)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.address = f"http://127.0.0.1:{listener.server_address[1]}"
    for name in ("NOMAD_ADDR", "NOMAD_TOKEN", "NOMAD_NAMESPACE", "MOORAGE_TOKEN", "MOORAGE_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MOORAGE_ADDR", state.address)
    try:
        yield state
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


Captured = pytest.CaptureFixture[str]


def last_write(server: Server) -> tuple[str, str, dict[str, str], Any, dict[str, str]]:
    return [request for request in server.requests if request[0] != "GET"][-1]


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


# -- mount and umount ------------------------------------------------------------------------------------------------


def test_mount_asks_and_waits_until_it_runs(server: Server, tmp_path: Path, capsys: Captured) -> None:
    server.add("data")
    target = str(tmp_path / "here")
    assert main(["mount", "data", target]) == 0
    asked = last_write(server)[3]["Allocation"]
    assert asked["NodeID"] == NODE["ID"]
    assert asked["Name"] == "mount.data"
    assert asked["Volumes"] == [
        {
            "Name": "data",
            "Source": "data",
            "Target": target,
            "ReadOnly": False,
            "AccessMode": "single-node-writer",
            "AttachmentMode": "file-system",
        }
    ]
    blocking = [query for method, path, query, _, _ in server.requests if "index" in query]
    assert blocking
    assert blocking[0]["wait"] == "10000ms"
    assert capsys.readouterr().out == target + "\n"


def test_mount_again_is_the_same_mount(server: Server, tmp_path: Path) -> None:
    server.add("data")
    assert main(["mount", "data", str(tmp_path)]) == 0
    assert main(["mount", "data", str(tmp_path)]) == 0
    assert len(server.allocations) == 1


def test_mount_that_fails_says_why(server: Server, tmp_path: Path, capsys: Captured) -> None:
    def fail(allocation: dict[str, Any]) -> None:
        allocation.update(ClientStatus="failed", ClientDescription="the driver refused: bad flag")

    server.settle = fail
    server.add("data")
    assert main(["mount", "data", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error mounting volume data: the driver refused: bad flag" in err


def test_mount_gives_up_after_its_time_and_says_id_and_error(server: Server, tmp_path: Path, capsys: Captured) -> None:
    server.settle = lambda allocation: allocation["Mounts"][0].update(LastError="no such device", Attempts=3)
    server.add("data")
    assert main(["mount", "data", str(tmp_path), "-timeout", "0.1"]) == 1
    [allocation_id] = server.allocations
    err = capsys.readouterr().err
    assert allocation_id in err
    assert "no such device (tried 3 times)" in err


def test_an_interrupted_mount_says_its_id_and_goes_on(server: Server, tmp_path: Path) -> None:
    waiting = threading.Event()
    server.settle = lambda allocation: waiting.set()
    server.add("data")
    words = [sys.executable, "-m", "moorage", "mount", "data", str(tmp_path)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as child:
        assert waiting.wait(30)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    [allocation_id] = server.allocations
    assert f"goes on without us as allocation {allocation_id}" in err
    assert "Traceback" not in err
    assert server.allocations[allocation_id]["DesiredStatus"] == "run"


def test_mount_needs_a_choice_between_nodes(server: Server, tmp_path: Path, capsys: Captured) -> None:
    server.nodes = [{**NODE, "Name": "alpha"}, {**NODE, "ID": "7", "Name": "beta"}]
    server.add("data")
    assert main(["mount", "data", str(tmp_path)]) == 1
    assert "-node: alpha, beta" in capsys.readouterr().err
    assert main(["mount", "data", str(tmp_path), "-node", "beta"]) == 0
    assert last_write(server)[3]["Allocation"]["NodeID"] == "7"


@pytest.mark.parametrize("means", ["path", "volume", "id", "prefix"])
def test_umount_finds_what_is_meant(server: Server, tmp_path: Path, capsys: Captured, means: str) -> None:
    server.add("data")
    server.add("other")
    assert main(["mount", "other", str(tmp_path / "o")]) == 0
    assert main(["mount", "data", str(tmp_path / "d")]) == 0
    [wanted] = [row["ID"] for row in server.allocations.values() if row["Name"] == "mount.data"]
    word = {"path": str(tmp_path / "d"), "volume": "data", "id": wanted, "prefix": wanted[:13]}[means]
    assert main(["umount", word]) == 0
    assert server.allocations[wanted]["ClientStatus"] == "complete"
    assert sum(row["DesiredStatus"] == "stop" for row in server.allocations.values()) == 1
    assert "Unmounted data at" in capsys.readouterr().out


def test_umount_of_nothing_is_an_error(server: Server, capsys: Captured) -> None:
    assert main(["umount", "/nowhere"]) == 1
    assert "nothing is mounted" in capsys.readouterr().err


# -- errors ----------------------------------------------------------------------------------------------------------


def test_servers_text_and_a_hint(server: Server, capsys: Captured) -> None:
    server.add("data")
    assert main(["volume", "status"]) == 0
    server.fail = (403, "Permission denied")
    assert main(["volume", "delete", "data"]) == 1
    err = capsys.readouterr().err
    assert err.splitlines() == [
        "Error deleting volume data: Permission denied",
        "Hint: a token is given with MOORAGE_TOKEN or -token",
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
