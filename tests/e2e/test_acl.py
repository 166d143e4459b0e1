"""Access control end to end: the commands of docs/acl.md, mounting with the agent inside, bootstrap after a reset."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from asking import ask
from dev_server import Fleet, Program, wait_until

from moorage.csi.mounting import can_mount

DOC = Path(__file__).parents[2] / "docs" / "acl.md"
RUN_S = 60


class Shell:
    """Runs commands as a person would, in one directory, with a token in the environment."""

    def __init__(self, server: Program, place: Path) -> None:
        self.server = server
        self.place = place
        self.token = ""

    def run(self, line: str, *, code: int = 0, token: str | None = None) -> str:
        """A command's standard output; standard error too where a failure is expected."""
        words = shlex.split(line)
        assert words[0] == "moorage"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MOORAGE_", "NOMAD_"))}
        environment |= {"MOORAGE_ADDR": self.server.url, "NOMAD_TOKEN": self.token if token is None else token}
        done = subprocess.run(
            [self.server.words[0], "-m", "moorage", *words[1:]],
            env=environment,
            cwd=self.place,
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_S,
        )
        assert done.returncode == code, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if code == 0 else done.stderr


def find_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOC.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def find_secret(text: str) -> str:
    found = re.search(r"^Secret ID += (\S+)$", text, re.MULTILINE)
    assert found, text
    return found[1]


def test_the_commands_of_the_page(fleet: Fleet) -> None:
    server = fleet.start_dev(options=["--acl"])
    shell = Shell(server, fleet.place)
    (fleet.place / "backup.hcl").write_text(find_blocks("hcl")[0])
    secret = ""
    lines = [line for block in find_blocks("sh") for line in block.splitlines() if line]
    assert len(lines) > 6
    for line in lines:
        output = shell.run(line)
        if line.endswith("acl bootstrap"):
            shell.token = find_secret(output)
        if "token create" in line:
            secret = find_secret(output)
    created = "moorage volume create data -plugin hostpath -size 1MiB"
    assert "data" in shell.run(created, token=secret)
    assert "Permission denied" in shell.run("moorage node status", code=1, token=secret)
    assert "Permission denied" in shell.run("moorage volume status", code=1, token="")
    accessor = json.loads(shell.run("moorage acl token self -json", token=secret))["AccessorID"]
    assert secret not in shell.run(f"moorage acl token info {accessor}")
    shell.run(f"moorage acl token delete {accessor}")
    refused = shell.run("moorage volume status", code=1, token=secret)
    assert "Permission denied" in refused
    assert "MOORAGE_TOKEN" in refused
    log = server.log
    assert shell.token not in log
    assert secret not in log
    state = b"".join(path.read_bytes() for path in (fleet.place / "dev" / "server").glob("state.db*"))
    assert accessor.encode() in state
    assert secret.encode() not in state
    assert shell.token.encode() not in state


def test_bootstrap_after_a_reset_and_a_restart(fleet: Fleet) -> None:
    server = fleet.start_dev(options=["--acl"])
    shell = Shell(server, fleet.place)
    first = find_secret(shell.run("moorage acl bootstrap"))
    server.kill()
    server.restart()
    assert ask(server.url, "GET", "/v1/nodes", headers={"X-Nomad-Token": first}).status == 200
    refused = shell.run("moorage acl bootstrap", code=1)
    found = re.search(r"reset index: (\d+)", refused)
    assert found, refused
    assert "acl-bootstrap-reset" in refused
    (fleet.place / "dev" / "server" / "acl-bootstrap-reset").write_text(f"{found[1]}\n")
    second = find_secret(shell.run("moorage acl bootstrap"))
    assert second != first
    assert "already done" in shell.run("moorage acl bootstrap", code=1)


@pytest.mark.root
def test_mounting_works_with_access_control(fleet: Fleet) -> None:
    """The agent inside is a node to the server, and needs nobody's token."""
    if not can_mount():
        pytest.skip("this process may not mount")
    server = fleet.start_dev(options=["--acl"])
    shell = Shell(server, fleet.place)
    shell.token = find_secret(shell.run("moorage acl bootstrap"))
    (fleet.place / "use.hcl").write_text('namespace "default" { policy = "write" }\nnode { policy = "read" }\n')
    shell.run("moorage acl policy apply use use.hcl")
    token = find_secret(shell.run("moorage acl token create -policy use"))
    shell.run("moorage volume create data -plugin hostpath -size 1MiB", token=token)
    target = fleet.place / "mnt"
    shell.run(f"moorage mount data {target}", token=token)
    (target / "hello").write_text("x")
    assert "Permission denied" in shell.run(f"moorage umount {target}", code=1, token="")
    server.kill()
    server.restart()
    assert (target / "hello").read_text() == "x"
    shell.run(f"moorage umount {target}", token=token)
    wait_until(lambda: not os.path.ismount(target), "the volume is unmounted")
    node = ask(server.url, "GET", "/v1/nodes", headers={"X-Nomad-Token": token}).json()[0]["ID"]
    claims = ask(server.url, "GET", f"/v1/node/{node}/claims", headers={"X-Nomad-Token": shell.token})
    assert claims.status == 403
