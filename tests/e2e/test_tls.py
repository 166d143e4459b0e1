"""Real programs over TLS: agents that join with tokens or certificates, a certificate renewed, a server that forgot its
nodes, a unix socket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dev_server import Fleet, Program, wait_until
from tls_kit import make, make_set

pytestmark = pytest.mark.slow


class Secured:
    """A fleet with certificates: its server, and agents of several nodes on this host."""

    def __init__(self, fleet: Fleet, *options: str) -> None:
        self.fleet = fleet
        self.tls = make_set(fleet.place / "tls")
        words = ["--tls-cert-file", f"{self.tls}/server.pem", "--tls-key-file", f"{self.tls}/server-key.pem"]
        self.server = fleet.start_server(*words, "--tls-ca-file", f"{self.tls}/ca.pem", *options, scheme="https")

    def run(self, *words: str, code: int = 0) -> str:
        """What `moorage WORDS` prints, with the CA from Nomad's variable."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MOORAGE_", "NOMAD_"))}
        environment |= {"NOMAD_ADDR": self.server.url, "NOMAD_CACERT": f"{self.tls}/ca.pem"}
        command = [sys.executable, "-m", "moorage", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50, env=environment)
        assert done.returncode == code, f"moorage {' '.join(words)}: {done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def nodes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("node", "status", "-json"))
        return found

    def place_node(self, number: int) -> tuple[Path, str]:
        """A data directory whose node has an ID of its own: all nodes here have this host's name."""
        place = self.fleet.place / f"a{number}"
        node_id = f"{number:08d}-2222-4333-8444-555555555555"
        (place / "node").mkdir(parents=True, mode=0o700)
        (place / "node" / "node-id").write_text(f"{node_id}\n")
        return place, node_id

    def start_agent(self, place: Path, *words: str, is_joining: bool = True) -> Program:
        """An agent; ready, unless it is not to get in."""
        command = ["agent", "--server", self.server.url, "--data-dir", str(place), "--ca-file", f"{self.tls}/ca.pem"]
        command += ["--plugin", f"none=unix://{place}/none.sock", *words]
        agent = Program(command, self.fleet.place, name=place.name, identity=self.fleet.identity)
        self.fleet.programs.append(agent)
        agent.start()
        if is_joining:
            agent.wait_ready()
        return agent


def test_two_agents_join_over_tls_with_join_tokens(fleet: Fleet) -> None:
    secured = Secured(fleet, "--join", "token")
    first, first_id = secured.place_node(1)
    second, second_id = secured.place_node(2)
    file = fleet.place / "join-token"
    file.write_text(secured.run("node", "join-token", "create", "-uses", "1", "-note", "rack 7"))
    agent = secured.start_agent(first, "--join-token-file", str(file))
    late = secured.start_agent(second, "--join-token-file", str(file), is_joining=False)
    wait_until(lambda: "used up" in late.log, "the second agent hears that the token is used up")
    assert [node["ID"] for node in secured.nodes()] == [first_id]
    file.write_text(secured.run("node", "join-token", "create"))
    late.wait_ready()
    assert sorted(node["ID"] for node in secured.nodes()) == [first_id, second_id]
    # A node that lost its secret is out until an operator says so, and then needs a token.
    agent.kill()
    (first / "node" / "node-secret").unlink()
    file.unlink()
    agent.start()
    wait_until(lambda: f"moorage node reset-identity {first_id}" in agent.log, "the agent hears what helps")
    secured.run("node", "reset-identity", first_id, "-reason", "its secret was lost")
    wait_until(lambda: "may not join without a credential" in agent.log, "the agent hears that it needs a token")
    file.write_text(secured.run("node", "join-token", "create", "-ttl", "5m"))
    agent.wait_ready()
    listed = secured.run("node", "join-token", "list")
    assert "rack 7" in listed
    assert "moorage-join-" not in listed
    for program in (secured.server, agent, late):
        assert "moorage-node-" not in program.log
        assert "moorage-join-" not in program.log
    # A server whose records are gone learns its nodes anew, from agents that still run.
    secured.server.stop()
    shutil.rmtree(fleet.place / "server")
    secured.server.words[secured.server.words.index("token")] = "open"
    secured.server.restart()
    wait_until(lambda: len(secured.nodes()) == 2, "both nodes are known again")


def test_agents_by_certificate_and_a_renewal_on_sighup(fleet: Fleet) -> None:
    secured = Secured(fleet, "--tls-verify-client", "agents")
    place, node_id = secured.place_node(1)
    make(secured.tls, "agent", node_id)
    make(secured.tls, "agent", "another")
    shown = [f"--cert-file={secured.tls}/agent-another.pem", f"--key-file={secured.tls}/agent-another-key.pem"]
    wrong = secured.start_agent(place, *shown, is_joining=False)
    wait_until(lambda: "the client certificate is of another" in wrong.log, "the agent hears whose certificate it has")
    wrong.kill()
    assert secured.nodes() == []
    before = len(wrong.log)
    shown = [f"--cert-file={secured.tls}/agent-{node_id}.pem", f"--key-file={secured.tls}/agent-{node_id}-key.pem"]
    agent = secured.start_agent(place, *shown)
    assert [node["ID"] for node in secured.nodes()] == [node_id]
    (secured.tls / "server-key.pem").write_text("rubbish")
    wait_until(lambda: "tls.reload_refused" in secured.server.log, "the broken key is refused")
    assert [node["Status"] for node in secured.nodes()] == ["ready"]
    loads = secured.server.log.count("event=tls.loaded")
    make(secured.tls, "server", "-force")
    os.kill(secured.server.pid, signal.SIGHUP)
    wait_until(lambda: secured.server.log.count("event=tls.loaded") > loads, "the new certificate is taken")
    assert [node["Status"] for node in secured.nodes()] == ["ready"]
    assert "server.lost" not in agent.log[before:]


def test_a_unix_socket_serves_and_a_dead_servers_file_is_no_obstacle(fleet: Fleet) -> None:
    socket = fleet.place / "api.sock"
    words = ["server", "--bind", f"unix://{socket}", "--data-dir", str(fleet.place / "server")]
    server = fleet._start(words, "server", url=f"unix://{socket}")
    server.kill()
    assert socket.exists()
    server.restart()
    assert socket.stat().st_mode & 0o777 == 0o660
    environment = {**os.environ, "NOMAD_ADDR": f"unix://{socket}"}
    agent = Program(
        ["agent", "--server", f"unix://{socket}", "--data-dir", str(fleet.place / "a"), "--plugin", "n=unix:///none"],
        fleet.place,
        name="agent",
        identity=fleet.identity,
    )
    fleet.programs.append(agent)
    agent.restart()
    command = [sys.executable, "-m", "moorage", "node", "status", "-json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50, env=environment)
    assert len(json.loads(done.stdout)) == 1
    command = [sys.executable, "-m", "moorage", *words[:-1], str(fleet.place / "other")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, "is another server there?" in done.stderr) == (2, True)
