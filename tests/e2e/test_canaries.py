"""No secret leaks: marked secrets go in at every place that takes one, through real programs and a driver that tells
all it knows; then answers, logs, files, arguments, audit and the debug bundle are searched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from canary_marks import (
    REFERRED_CREDENTIAL,
    REFERRED_FILE,
    REFERRED_VARIABLE,
)
from canary_site import Site
from canary_watch import RECORDING
from dev_server import Fleet, find_port, wait_until
from talkative_driver import hash_secret

from moorage.testing.canaries import Canaries

REFERRED = (REFERRED_FILE, REFERRED_VARIABLE, REFERRED_CREDENTIAL)


@pytest.fixture
def site(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("MOORING_TEST_SECRET", fleet.watch.canaries.make_plain(REFERRED_VARIABLE))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(fleet.place / "inputs" / "credentials"))
    return Site(fleet)


def drive_volumes(site: Site) -> None:
    """Create, register, expand, mistake."""
    header = {"X-Nomad-CSI-Secrets": f"header={site.canaries.make_plain('header')}"}
    site.json("PUT", "/v1/volume/csi/web/create", site.describe("web"), header)
    bigger = site.describe("web", RequestedCapacityMin=2 << 20, RequestedCapacityMax=4 << 20)
    site.json("PUT", "/v1/volume/csi/web/create", bigger)
    registered = site.describe("reg", ExternalID="id-reg", Context={"a": "b"})
    site.json("PUT", "/v1/volume/csi/reg", registered)
    for path in ("/v1/volume/csi/bad-1/create", "/v1/volume/csi/bad-2/create"):
        name = path.split("/")[4]
        assert site.ask("PUT", path, site.describe(name)).status == 500
        assert site.ask("PUT", path, site.describe(name), {"Accept": "application/problem+json"}).status >= 400
    spec = site.describe("cli")["Volumes"][0]
    hcl = f"""
id = "cli"
name = "cli"
type = "csi"
plugin_id = "talk"
capacity_min = "1MiB"
capability {{
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}}
secrets {{
  password = {json.dumps(spec["Secrets"]["password"], ensure_ascii=False)}
}}
mount_options {{
  mount_flags = [{json.dumps(spec["MountOptions"]["MountFlags"][1], ensure_ascii=False)}]
}}
"""
    (site.inputs / "cli.hcl").write_text(hcl)
    site.cli("volume", "create", str(site.inputs / "cli.hcl"))
    site.cli(
        "volume", "create", "-", said=hcl.replace('id = "cli"', 'id = "cli2"').replace('name = "cli"', 'name="cli2"')
    )
    site.cli("volume", "create", "flagged", "-plugin", "talk", "-secret", f"p={site.canaries.make_plain('CLI flag')}")
    site.cli("volume", "create", "-", said=hcl.replace("secrets {", "secrets { ="), code=1)


def drive_mistakes(site: Site) -> None:
    """Requests that are refused, with secrets in them."""
    canary = site.canaries.make("mistaken")
    plain = site.canaries.make_plain("mistaken plainly")
    for secrets in (
        {"a": [canary]},
        [canary],
        canary,
        {"a": {canary: 1}},
        {"a": f"file:{plain}"},
        {"a": f"env:{canary}"},
    ):
        site.ask("PUT", "/v1/volume/csi/wrong/create", site.describe("wrong", Secrets=secrets))
    wrong = site.describe("wrong", PluginID="none")
    wrong["Volumes"][0]["Secrets"]["password"] = canary
    site.ask("PUT", "/v1/volume/csi/wrong/create", wrong)
    site.ask("PUT", "/v1/volumes", b'{"Volumes":[{"ID":"x","Secrets":{"a":"' + plain.encode() + b'"')
    site.ask("PUT", "/v1/volumes", b'{"Secrets":"' + plain.encode() + b'","Volumes":7}')
    site.ask("GET", "/v1/volumes?type=csi&filter=Secrets.password+%3D%3D+x")
    site.ask("GET", "/v1/volumes?type=csi", headers={"X-Nomad-Token": plain})
    site.ask("GET", "/v1/volumes?type=csi", headers={"Authorization": f"Bearer {plain}"})
    site.ask("GET", "/v1/volumes/snapshot?plugin_id=none", headers={"X-Nomad-CSI-Secrets": f"a={plain}"})


def drive_snapshots(site: Site) -> None:
    """Snapshots, with secrets in the body and in the header."""
    snapshot = {"SourceVolumeID": "web", "Name": "s1", "PluginID": "talk"}
    body = {"Snapshots": [snapshot | {"Secrets": {"snap": site.canaries.make("snapshot")}}]}
    site.json("PUT", "/v1/volumes/snapshot", body)
    bad = {"Snapshots": [snapshot | {"Name": "bad", "Secrets": {"snap": site.canaries.make("bad snapshot")}}]}
    assert site.ask("PUT", "/v1/volumes/snapshot", bad).status == 500
    header = {"X-Nomad-CSI-Secrets": f"list={site.canaries.make_plain('list')},file=env:MOORING_TEST_SECRET"}
    site.json("GET", "/v1/volumes/snapshot?plugin_id=talk", headers=header)
    site.json("DELETE", "/v1/volumes/snapshot?plugin_id=talk&snapshot_id=snap-s1", headers=header)
    assert site.ask("DELETE", "/v1/volumes/snapshot?plugin_id=talk&snapshot_id=bad", headers=header).status == 500


def start_use(site: Site, volume_id: str) -> str:
    allocation_id = str(uuid.uuid4())
    flags = ["rw", f"credentials={site.canaries.make('flag of a use')}"]
    volumes = [{"Name": "data", "Source": volume_id, "MountOptions": {"FSType": "ext4", "MountFlags": flags}}]
    node_id = site.json("GET", "/v1/nodes")[0]["ID"]
    site.json(
        "PUT",
        "/v1/allocations",
        {"Allocation": {"ID": allocation_id, "Name": "w", "NodeID": node_id, "Volumes": volumes}},
    )
    return allocation_id


def look_at_everything(site: Site, allocation_id: str) -> None:
    """Every page that shows something."""
    for path in (
        "/v1/volumes?type=csi&namespace=*",
        "/v1/volume/csi/web",
        "/v1/volume/csi/web/why",
        "/v1/volume/csi/reg/why",
        "/v1/plugin/csi/talk",
        "/v1/plugin/csi/talk/why",
        "/v1/nodes",
        "/v1/allocations?namespace=*",
        f"/v1/allocation/{allocation_id}",
        f"/v1/allocation/{allocation_id}/why",
        "/v1/agent/self",
        "/v1/operator/calls",
        "/v1/operator/log",
        "/v1/operator/settings",
        "/v1/operator/secrets",
        "/v1/volumes/external?plugin_id=talk",
        "/v1/volumes/orphans",
        "/v1/metrics",
    ):
        site.ask("GET", path)
    node_id = site.json("GET", "/v1/nodes")[0]["ID"]
    for part in ("", "/why", "/allocations", "/claims", "/steps"):
        site.ask("GET", f"/v1/node/{node_id}{part}")
    site.ask("PUT", "/v1/search", {"Prefix": "", "Context": "all"})
    # The last line of a stream that asks for what is long gone ends it; this one is cut by its reader.
    stream = subprocess.run(
        [sys.executable, "-c", _READ_STREAM, f"{site.server.url}/v1/event/stream?index=1&topic=*"],
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert b'"Events"' in stream.stdout
    site.findings += site.canaries.search(stream.stdout, "event stream")


_READ_STREAM = """
import sys, urllib.request
answer = urllib.request.urlopen(sys.argv[1], timeout=3)
try:
    while line := answer.readline():
        sys.stdout.buffer.write(line)
except TimeoutError:
    pass
"""


def wait_status(site: Site, allocation_id: str, status: str) -> None:
    path = f"/v1/allocation/{allocation_id}"
    wait_until(lambda: site.json("GET", path)["ClientStatus"] == status, f"the use is {status}")


def is_ours(path: Path) -> bool:
    """Not a recording of what a server was asked and answered: the fleet's search reads those itself."""
    return path.suffix != RECORDING


def check_silence(site: Site) -> None:
    """Search what the programs left, while they run and after."""
    site.findings += site.canaries.search_processes(site.fleet.find_processes())
    # A judge's log has contexts as they are. Programs run on, so that the write-ahead log is there too.
    skip = [site.inputs, *site.fleet.place.glob("*.calls")]
    site.findings += site.canaries.search_tree(site.fleet.place, skip=skip, is_wanted=is_ours)
    assert (site.fleet.place / "server" / "state.db-wal").exists()
    site.agent.stop()
    site.server.stop()
    site.findings += site.canaries.search_tree(site.fleet.place, skip=skip, is_wanted=is_ours)
    assert site.canaries.searched_bytes > 500_000
    assert sorted({(f.place, f.name, f.form) for f in site.findings}) == []


def check_arrived(site: Site, methods: set[str], names: set[str]) -> None:
    """The driver got the secrets, with what they refer to: the search is no search for what never was."""
    lines = [json.loads(line) for line in site.witness.read_text().splitlines()]
    called = {line["method"] for line in lines}
    assert called >= methods, methods - called
    hashes = {one for line in lines for one in line["hashes"]}
    assert {name for name in names if hash_secret(site.canaries.make(name)) not in hashes} == set()


def test_no_secret_of_requests_is_anywhere(site: Site) -> None:
    drive_volumes(site)
    drive_mistakes(site)
    drive_snapshots(site)
    look_at_everything(site, "none")
    check_arrived(
        site,
        {"CreateVolume", "ControllerExpandVolume", "ValidateVolumeCapabilities"}
        | {"CreateSnapshot", "DeleteSnapshot", "ListSnapshots"},
        {"secret of web", "snapshot", "list", "CLI flag", "secret of cli", "secret of bad-1", *REFERRED},
    )
    check_silence(site)


def test_no_secret_of_uses_is_anywhere(site: Site) -> None:
    site.json("PUT", "/v1/volume/csi/web/create", site.describe("web"))
    allocation_id = start_use(site, "web")
    wait_status(site, allocation_id, "running")
    look_at_everything(site, allocation_id)
    site.server.kill()
    site.agent.kill()
    site.server.restart()
    site.agent.restart()
    wait_until(lambda: site.json("GET", "/v1/plugin/csi/talk")["ControllersHealthy"] == 1, "the controller is back")
    site.cli("operator", "secrets", "rotate")
    site.cli("operator", "debug", "-output", str(site.fleet.place / "bundle.tar.gz"))
    site.json("PUT", f"/v1/allocation/{allocation_id}/stop")
    wait_status(site, allocation_id, "complete")
    delete = {"X-Nomad-CSI-Secrets": f"delete={site.canaries.make_plain('delete')}"}
    # The driver's first answer to a deletion is that it should be tried again.
    site.json("DELETE", "/v1/volume/csi/web/delete", headers=delete)
    look_at_everything(site, allocation_id)
    methods = {"ControllerPublishVolume", "ControllerUnpublishVolume", "NodeStageVolume", "NodePublishVolume"}
    check_arrived(site, methods | {"DeleteVolume"}, {"secret of web", "delete", *REFERRED})
    check_silence(site)


def test_audit_log_of_these_programs_holds(site: Site) -> None:
    audit = site.fleet.place / "server" / "audit.log"
    site.json("PUT", "/v1/volume/csi/web/create", site.describe("web"))
    # A kill loses what is not yet written; that is some milliseconds.
    wait_until(lambda: "/v1/volume/csi/:id/create" in audit.read_text(), "the line is there", within_s=5)
    site.server.kill()
    site.server.restart()
    assert "hold; head" in site.cli("audit", "verify", str(audit))
    rows = [json.loads(line) for line in audit.read_text().splitlines()]
    created = next(row for row in rows if row.get("route") == "/v1/volume/csi/:id/create")
    assert created["result"] == "done"
    assert created["who"]["address"] == "127.0.0.1"
    assert created["request_id"]
    audit.write_text(audit.read_text().replace('"status":200', '"status":500', 1))
    assert "the chain breaks" in site.cli("audit", "verify", str(audit), code=1)


def test_no_token_is_anywhere_but_in_the_answer_that_made_it(fleet: Fleet) -> None:
    """Tokens, join tokens, nodes' own secrets: known to who got them, and to nobody else."""
    canaries = Canaries()
    port = find_port()
    settings = fleet.place / "inputs" / "moorage.toml"
    settings.parent.mkdir()
    settings.write_text('[server]\nlog_level = "debug"\njoin = "token"\n[acl]\nenabled = true\n')
    words = ["server", "--bind", f"127.0.0.1:{port}", "--data-dir", str(fleet.place / "server")]
    server = fleet._start([*words, "--config", str(settings)], "server", url=f"http://127.0.0.1:{port}")

    def read(method: str, path: str, body: object = None, token: str = "") -> Any:
        reply = ask(server.url, method, path, body=body, headers={"X-Nomad-Token": token} if token else {})
        assert reply.status == 200, f"{method} {path}: {reply.status} {reply.text}"
        return reply.json()

    master = read("PUT", "/v1/acl/bootstrap")["SecretID"]
    narrow = read("PUT", "/v1/acl/token", {"Name": "n", "Type": "client", "Policies": ["p"]}, master)["SecretID"]
    joining = read("PUT", "/v1/nodes/join-tokens", {"Note": "one"}, master)["Token"]
    for name, value in (("management token", master), ("client token", narrow), ("join token", joining)):
        assert len(value) > 20
        canaries.add(name, value)
    agent_settings = fleet.place / "inputs" / "agent.toml"
    token_file = fleet.place / "inputs" / "join-token"
    token_file.write_text(joining)
    token_file.chmod(0o600)
    agent_settings.write_text(
        f'[agent]\nserver = "{server.url}"\njoin_token_file = "{token_file}"\nlog_level = "debug"\n'
    )
    fleet.start_driver()
    words = ["agent", "--config", str(agent_settings), "--data-dir", str(fleet.place / "agent")]
    fleet._start([*words, "--plugin", f"hostpath=unix://{fleet.driver_socket}"], "agent")
    secret_files = [p for p in (fleet.place / "agent").rglob("*") if p.is_file() and b"moorage-node-" in p.read_bytes()]
    assert len(secret_files) == 1
    assert secret_files[0].stat().st_mode & 0o077 == 0
    canaries.add("node's secret", secret_files[0].read_text().strip())
    for token in (master, narrow):
        for path in ("/v1/acl/tokens", "/v1/acl/token/self", "/v1/nodes", "/v1/nodes/join-tokens", "/v1/operator/log"):
            reply = ask(server.url, "GET", path, headers={"X-Nomad-Token": token})
            if path != "/v1/acl/token/self":
                assert canaries.search(reply.body, path) == []
    bundle = fleet.place / "bundle.tar.gz"
    environment = os.environ | {"MOORAGE_ADDR": server.url, "MOORAGE_TOKEN": master}
    program = [sys.executable, "-m", "moorage", "operator", "debug", "-output", str(bundle)]
    subprocess.run(program, env=environment, check=True, capture_output=True, timeout=50)
    assert bundle.stat().st_size > 1000
    found = canaries.search_processes(fleet.find_processes())
    found += canaries.search_tree(fleet.place, skip=[settings.parent, secret_files[0]], is_wanted=is_ours)
    assert found == []
