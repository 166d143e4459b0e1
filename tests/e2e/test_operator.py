"""Operators' commands against a real server: the keys of the seal, the debug bundle, the audit log."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from asking import describe_volume, get, put
from dev_server import Fleet, Program
from guarding import find_door

pytestmark = pytest.mark.guarded


def run_cli(fleet: Fleet, server: Program, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MOORAGE_", "NOMAD_"))}
    environment |= find_door(server.url).variables()
    program = [sys.executable, "-m", "moorage", *words]
    done = subprocess.run(
        program, env=environment, capture_output=True, text=True, timeout=50, check=False, cwd=fleet.place
    )
    return done.returncode, done.stdout, done.stderr


def read_keys(path: Path) -> list[str]:
    return [line.split()[2] for line in path.read_text().splitlines() if not line.startswith("#")]


def test_keys_change_while_the_server_works(fleet: Fleet) -> None:
    server = fleet.start_dev()
    key_file = fleet.place / "dev" / "server" / "secret.key"
    (first,) = read_keys(key_file)
    body = describe_volume("web")
    body["Volumes"][0]["Secrets"] = {"p": "hush"}
    put(server.url, "/v1/volume/csi/web/create", body)
    code, out, _ = run_cli(fleet, server, "operator", "secrets", "status")
    assert code == 0
    assert first in out
    assert "there is no other key" in out
    code, out, err = run_cli(fleet, server, "operator", "secrets", "rotate")
    assert code == 0, err
    second, older = read_keys(key_file)
    assert older == first != second
    assert f"the old key {first} may go" in out
    assert str(key_file) in out
    state = b"".join(path.read_bytes() for path in (fleet.place / "dev" / "server").glob("state.db*"))
    assert first.encode() not in state
    assert second.encode() in state
    # As the text says: the old line goes, and the next start needs it no more.
    key_file.write_text("".join(line for line in key_file.read_text().splitlines(True) if first not in line))
    server.kill()
    server.restart()
    assert get(server.url, "/v1/volume/csi/web")["ID"] == "web"
    status = json.loads(run_cli(fleet, server, "operator", "secrets", "status", "-json")[1])
    assert (status["ActiveKey"], status["OldKeys"], status["IsDone"]) == (second, [], True)


def test_debug_bundle_opens_and_is_complete(fleet: Fleet) -> None:
    server = fleet.start_dev()
    put(server.url, "/v1/volume/csi/web/create", describe_volume("web"))
    path = fleet.place / "bundle.tar.gz"
    code, out, err = run_cli(fleet, server, "operator", "debug", "-output", str(path))
    assert code == 0, err
    assert str(path) in out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2]: member for member in archive.getmembers()}
        assert all(member.isfile() and ".." not in member.name for member in names.values())

        def read(name: str) -> object:
            file = archive.extractfile(names[name])
            assert file is not None
            return json.loads(file.read())

        node_id = get(server.url, "/v1/nodes")[0]["ID"]
        for name in (
            "server/agent-self.json",
            "server/settings.json",
            "server/log.json",
            "server/calls.json",
            "server/sealing.json",
            "records/volumes.json",
            "records/plugins.json",
            "records/allocations.json",
            "records/namespaces.json",
            "volumes/default/web.json",
            "volumes/default/web.why.json",
            "plugins/hostpath.json",
            f"nodes/{node_id}.json",
            f"nodes/{node_id}.why.json",
        ):
            assert read(name) is not None, name
        calls = read("server/calls.json")
        assert isinstance(calls, list)
        assert any(call["Record"] == "volumes/default/web" and call["Outcome"] == "Created" for call in calls)
        log = read("server/log.json")
        assert isinstance(log, list)
        assert any("event=" in line for line in log)
        settings = read("server/settings.json")
        assert isinstance(settings, dict)
        assert settings["server"]["data_dir"] == str(fleet.place / "dev")
        manifest = read("manifest.json")
        assert isinstance(manifest, dict)
        listed = {page["Name"] for page in manifest["Pages"] if not page["Error"]}
        assert listed == set(names) - {"manifest.json"}
    unreachable = run_cli(fleet, server, "operator", "debug", "-output", "/none/of/that/name/x.tar.gz")
    assert unreachable[0] == 1
    assert "No such file" in unreachable[2]


def test_audit_verify_without_a_file_says_what_to_name(fleet: Fleet) -> None:
    server = fleet.start_server()
    audit = fleet.place / "server" / "audit.log"
    code, out, _ = run_cli(fleet, server, "audit", "verify", str(audit), "-json")
    assert code == 0
    (result,) = json.loads(out)
    assert result["Holds"] is True
    known = f"{result['LastLine']}:{result['Hash']}"
    assert run_cli(fleet, server, "audit", "verify", str(audit), "-known", known)[0] == 0
    made_anew = f"{result['LastLine']}:{'0' * 64}"
    code, out, _ = run_cli(fleet, server, "audit", "verify", str(audit), "-known", made_anew)
    assert code == 1
    assert "cut off or made anew" in out
    assert "there is no such audit log" in run_cli(fleet, server, "audit", "verify", str(fleet.place / "none"))[2]
