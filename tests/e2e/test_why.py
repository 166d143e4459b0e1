"""`moorage why` and `moorage volume orphans` as people run them, against real programs with the embedded driver."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

import anyio
import pytest
from asking import ask, describe_volume, get, list_external, put
from dev_server import Fleet, Program, wait_until
from guarding import find_door

from moorage.csi.client import DriverClient
from moorage.model.steps import Created, CreateVolume, DeleteVolume, Done
from moorage.model.volume import Capability

CAPABILITIES = (Capability(access_mode="single-node-writer", attachment_mode="file-system"),)


def run_cli(fleet: Fleet, server: Program, *words: str, said: str = "") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    program = [fleet.identity.interpreter, "-m", "moorage", *words]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MOORAGE_", "NOMAD_"))}
    environment |= find_door(server.url).variables()
    done = subprocess.run(program, input=said, env=environment, capture_output=True, text=True, timeout=50, check=False)
    return done.returncode, done.stdout, done.stderr


def why(server: Program, path: str) -> Any:
    return get(server.url, f"/v1/{path}/why")


def use(server: Program, volume_id: str, target: Path) -> str:
    """Claim a volume, and return the allocation's ID at once."""
    allocation_id = str(uuid.uuid4())
    volumes = [{"Name": "data", "Source": volume_id, "Target": str(target)}]
    node_id = get(server.url, "/v1/nodes")[0]["ID"]
    body = {"Allocation": {"ID": allocation_id, "Name": "db[0]", "NodeID": node_id, "Volumes": volumes}}
    put(server.url, "/v1/allocations", body)
    return allocation_id


def wait_state(server: Program, path: str, state: str) -> Any:
    wait_until(lambda: why(server, path)["State"] == state, f"{path} is {state}")
    return why(server, path)


@pytest.fixture
def parts(fleet: Fleet) -> tuple[Program, Program, Program]:
    """Server, driver and agent as programs of their own."""
    server = fleet.start_server()
    driver = fleet.start_driver()
    return server, driver, fleet.start_agent(server)


@pytest.mark.guarded
def test_why_follows_a_volume_from_ready_to_stuck_and_back(fleet: Fleet, parts: tuple[Program, ...]) -> None:
    server, driver, _ = parts
    wait_until(lambda: get(server.url, "/v1/plugins?type=csi"), "the plugin is known")
    wait_state(server, "plugin/csi/hostpath", "ready")
    put(server.url, "/v1/volume/csi/web/create", describe_volume("web"))
    assert why(server, "volume/csi/web")["State"] == "ready"
    code, out, _ = run_cli(fleet, server, "why", "web")
    assert code == 0
    assert 'volume "web" is ready, and nobody uses it' in out

    allocation_id = use(server, "web", fleet.mounts / "web")
    held = wait_state(server, "volume/csi/web", "held")
    assert [(h["AllocationID"], h["Path"]) for h in held["Holders"]] == [(allocation_id, str(fleet.mounts / "web"))]
    assert wait_state(server, f"allocation/{allocation_id}", "ready")["Summary"].startswith(
        f"allocation {allocation_id}"
    )
    code, out, _ = run_cli(fleet, server, "why", "web")
    assert code == 0
    assert f"moorage umount {allocation_id}" in out
    assert " ago (20" in out
    code, out, _ = run_cli(fleet, server, "why", allocation_id[:8], "-json")
    assert (code, json.loads(out)["Kind"]) == (0, "allocation")

    driver.kill()
    sick = wait_state(server, "plugin/csi/hostpath", "unhealthy")
    assert "is not healthy since" in sick["Summary"]
    put(server.url, f"/v1/allocation/{allocation_id}/stop")
    stuck = wait_state(server, "volume/csi/web", "releasing")
    assert any("hostpath" in text and "not healthy" in text for text in stuck["Blocks"])
    assert "moorage why hostpath -kind plugin" in [c["Command"] for c in stuck["Commands"]]
    driver.restart()
    wait_state(server, "volume/csi/web", "ready")

    code, _, err = run_cli(fleet, server, "why", "nothing-like-this")
    assert code == 1
    assert "nothing-like-this" in err


def test_a_name_of_several_things_is_listed(fleet: Fleet) -> None:
    server = fleet.start_dev(plugin_id="hostpath")
    put(server.url, "/v1/volume/csi/hostpath/create", describe_volume("hostpath"))
    code, _, err = run_cli(fleet, server, "why", "hostpath")
    assert code == 1
    assert "volume" in err
    assert "plugin" in err
    code, out, _ = run_cli(fleet, server, "why", "hostpath", "-kind", "plugin")
    assert (code, out.splitlines()[0]) == (0, 'plugin "hostpath" is ready: 1 healthy instance')


# -- orphans -----------------------------------------------------------------------------------------------------------


async def call_driver(socket: Path, step: CreateVolume | DeleteVolume) -> object:
    async with DriverClient(str(socket)) as client:
        return await client.run(step, timeout_s=20)


def make_behind(socket: Path, name: str) -> str:
    """A volume that the server does not know; returns its external ID."""
    step = CreateVolume(name=name, capabilities=CAPABILITIES, required_bytes=1 << 20)
    made = anyio.run(call_driver, socket, step)
    assert isinstance(made, Created), made
    return made.external_id


def remove_behind(socket: Path, external_id: str) -> None:
    assert isinstance(anyio.run(call_driver, socket, DeleteVolume(external_id=external_id)), Done)


def find_orphans(server: Program) -> Any:
    [found] = get(server.url, "/v1/volumes/orphans?plugin_id=hostpath")["Plugins"]
    return found


def test_orphans_are_found_adopted_deleted_and_lost_ones_reported(fleet: Fleet, parts: tuple[Program, ...]) -> None:
    server, _, _ = parts
    wait_until(lambda: get(server.url, "/v1/plugins?type=csi"), "the plugin is known")
    wait_state(server, "plugin/csi/hostpath", "ready")
    put(server.url, "/v1/volume/csi/web/create", describe_volume("web"))
    first, second = (make_behind(fleet.driver_socket, name) for name in ("stray-1", "stray-2"))
    assert {o["ExternalID"] for o in find_orphans(server)["Orphans"]} == {first, second}
    code, out, _ = run_cli(fleet, server, "volume", "orphans")
    assert code == 0
    assert first in out
    assert second in out

    code, out, err = run_cli(fleet, server, "volume", "orphans", "-adopt", first, "-id", "found")
    assert code == 0, err
    assert "as volume found" in out
    assert get(server.url, "/v1/volume/csi/found")["ExternalID"] == first
    code, _, err = run_cli(fleet, server, "volume", "orphans", "-adopt", second, "-id", "web")
    assert code == 1
    assert "already" in err

    code, _, err = run_cli(fleet, server, "volume", "orphans", "-delete", second, said="no\n")
    assert (code, "Nothing was done" in err) == (1, True)
    assert second in list_external(server.url)
    code, _, err = run_cli(fleet, server, "volume", "orphans", "-delete", second, said="yes\n")
    assert code == 0, err
    assert second not in list_external(server.url)
    assert ask(server.url, "GET", f"/v1/volume/csi/{second}").status == 404
    code, _, err = run_cli(fleet, server, "volume", "orphans", "-delete", first, "-yes")
    assert (code, "no driver has an unregistered volume" in err) == (1, True)

    remove_behind(fleet.driver_socket, get(server.url, "/v1/volume/csi/web")["ExternalID"])
    found = find_orphans(server)
    assert [v["ID"] for v in found["Lost"]] == ["web"]
    assert found["Orphans"] == []
    assert found["Error"] == ""
