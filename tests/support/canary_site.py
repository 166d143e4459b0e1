"""Server and agent with a driver that tells all it knows, given marked secrets; every answer is searched for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asking import Reply, ask
from canary_marks import DRIVER_ENVIRONMENT, PUBLISH_CONTEXT, REFERRED_CREDENTIAL, REFERRED_FILE
from dev_server import Fleet, find_port, wait_until

from moorage.testing.canaries import Finding

DRIVER = Path(__file__).parent / "talkative_driver.py"
CAPABILITIES = [{"AccessMode": "single-node-writer", "AttachmentMode": "file-system"}]


class Site:
    """Server and agent with the talkative driver; every answer is kept for the search."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        # The fleet's own search, at its end, knows them too.
        self.canaries = fleet.watch.canaries
        # What agents may refer to is said by the settings.
        fleet.variables = {}
        self.findings: list[Finding] = []
        self.inputs = fleet.place / "inputs"
        (self.inputs / "referred").mkdir(parents=True)
        self.witness = fleet.place / "witness.jsonl"
        self.settings = self.inputs / "moorage.toml"
        self._write_settings()
        port = find_port()
        config = ["--config", str(self.settings)]
        words = ["server", "--bind", f"127.0.0.1:{port}", "--data-dir", str(fleet.place / "server"), *config]
        self.server = fleet._start(words, "server", url=f"http://127.0.0.1:{port}")
        words = ["agent", "--server", self.server.url, "--data-dir", str(fleet.place / "agent"), *config]
        self.agent = fleet._start(words, "agent")
        wait_until(lambda: self.json("GET", "/v1/plugins?type=csi"), "the plugin is known")
        for part in ("NodesHealthy", "ControllersHealthy"):
            wait_until(lambda part=part: self.json("GET", "/v1/plugin/csi/talk")[part] == 1, part)

    def _write_settings(self) -> None:
        place, canaries = self.fleet.place, self.canaries
        (self.inputs / "referred" / "password").write_text(canaries.make_plain(REFERRED_FILE) + "\n")
        (self.inputs / "credentials").mkdir()
        (self.inputs / "credentials" / "db").write_text(canaries.make_plain(REFERRED_CREDENTIAL))
        command = [sys.executable, str(DRIVER), "--endpoint", f"unix://{place}/d.sock"]
        command += ["--witness", str(self.witness), "--node-id", "one"]
        command = self.fleet.judge_command(command, socket=place / "d.sock")
        environment = {"DRIVER_TOKEN": canaries.make_plain(DRIVER_ENVIRONMENT)}
        environment["TALKATIVE_CONTEXT"] = str(self.inputs / "publish-context")
        (self.inputs / "publish-context").write_text(canaries.make_plain(PUBLISH_CONTEXT))
        pairs = ", ".join(f'{key} = "{value}"' for key, value in environment.items())
        self.settings.write_text(
            f"""
[server]
log_level = "debug"
[agent]
log_level = "debug"
retry_cap_s = 0.5
secret_dirs = ["{self.inputs}/referred"]
secret_env = ["MOORING_TEST_SECRET"]
secret_credentials = ["db"]
[[driver]]
name = "talk"
command = {json.dumps(command)}
socket = "{place}/d.sock"
environment = {{ {pairs} }}
"""
        )

    def ask(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Reply:
        """The answer, searched."""
        reply = ask(self.server.url, method, path, body=body, headers=headers)
        place = f"answer to {method} {path}"
        self.findings += self.canaries.search(reply.body, place)
        self.findings += self.canaries.search(json.dumps(dict(reply.headers)).encode(), f"headers of {place}")
        return reply

    def json(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Any:
        reply = self.ask(method, path, body, headers)
        assert reply.status == 200, f"{method} {path}: {reply.status} {reply.text[:500]}"
        return reply.json() if reply.body else None

    def cli(self, *words: str, said: str = "", code: int = 0) -> str:
        """What a command says, searched."""
        program = [sys.executable, "-m", "moorage", *words]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MOORAGE_", "NOMAD_"))}
        environment |= {"MOORAGE_ADDR": self.server.url, "MOORAGE_TOKEN": self.canaries.make_plain("CLI token")}
        done = subprocess.run(
            program,
            input=said.encode(),
            env=environment,
            capture_output=True,
            timeout=50,
            check=False,
            cwd=self.fleet.place,
        )
        assert done.returncode == code, done.stderr.decode()
        self.findings += self.canaries.search(done.stdout + done.stderr, f"output of moorage {' '.join(words)[:60]}")
        return done.stdout.decode()

    def describe(self, volume_id: str, **more: Any) -> dict[str, Any]:
        """A volume with secrets of its own."""
        secrets = {
            "password": self.canaries.make(f"secret of {volume_id}"),
            "file": f"file:{self.inputs}/referred/password",
            "credential": "credential:db",
            "variable": "env:MOORING_TEST_SECRET",
        }
        volume = {
            "ID": volume_id,
            "Name": volume_id,
            "PluginID": "talk",
            "RequestedCapabilities": CAPABILITIES,
            "RequestedCapacityMin": 1 << 20,
            "Secrets": secrets,
            "MountOptions": {
                "FSType": "ext4",
                "MountFlags": ["ro", f"password={self.canaries.make(f'flag of {volume_id}')}"],
            },
        }
        return {"Volumes": [volume | more]}
