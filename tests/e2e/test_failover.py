"""Two controllers of one plugin, on two hosts; the one that was called, or its agent, is killed in the middle of calls.

A create, an attach, a detach and a delete hang at it, before or after their effect. The other controller takes all of
them over: nothing is lost, nothing is there twice, and storage is what the records say. Judges stand before both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from asking import describe_volume
from cluster import Cluster, Use
from dev_server import wait_until
from namespaces import Host, running_lan

from moorage.model.ids import NodeId
from moorage.rules.plugins import choose_controller
from moorage.testing.judge_records import Ended, Started, read_log

pytestmark = [pytest.mark.root, pytest.mark.slow]

METHODS = ("CreateVolume", "ControllerPublishVolume", "ControllerUnpublishVolume", "DeleteVolume")
HANG_S = 600
SLOW_S = 12
NUMBERS = count(1)


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    with running_lan() as lan:
        yield Cluster(lan, hosts=2)


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """Each test finds, and leaves, two healthy controllers; no judge has anything to say."""
    yield running
    wait_until(lambda: running.healthy_nodes() == 2, "both controllers are healthy")
    assert running.find_faults() == []
    assert running.find_doubles() == []


def choose_host(cluster: Cluster, serial: str) -> Host:
    """The host whose controller is called for a serial key while both are healthy."""
    ids = {NodeId(str(cluster.node(host)["ID"])): host for host in cluster.hosts}
    chosen = choose_controller(sorted(ids), f"volume/hostpath/{serial}")
    assert chosen is not None
    return ids[chosen]


def name_for(cluster: Cluster, host: Host, start: str) -> str:
    """A volume's name with which its create goes to the controller of a host."""
    return next(n for i in count(1) if choose_host(cluster, f"name:{(n := f'{start}-{i}')}") == host)


def create_for(cluster: Cluster, host: Host, start: str) -> str:
    """A volume that the controller of a host is called for, by the ID that it has got."""
    for number in range(64):
        cluster.create(name := f"{start}-{number}")
        if choose_host(cluster, read_records(cluster)[name]) == host:
            return name
    raise AssertionError(f"the controller of {host.name} is never chosen")


def restart_driver(cluster: Cluster, host: Host, *options: str) -> None:
    """Another driver process; both controllers are healthy afterwards."""
    host.jobs["driver"].kill()
    wait_until(lambda: cluster.healthy_nodes() == 1, "the end of the driver is noticed")
    cluster.start_driver(host, *options)
    wait_until(lambda: cluster.healthy_nodes() == 2, "both controllers are healthy")


def find_calls(cluster: Cluster, host: Host) -> list[tuple[str, str]]:
    """(method, status) of each call to the controller on a host; the status is empty while it runs."""
    lines = list(read_log(cluster.log(host)))
    ends = {line.id: line.status for line in lines if isinstance(line, Ended)}
    return [(one.method, ends.get(one.id, "")) for one in lines if isinstance(one, Started) and one.method in METHODS]


def watch_calls(cluster: Cluster) -> Callable[[Host], list[tuple[str, str]]]:
    """What finds the calls on a host as ``find_calls`` does, of those from now on."""
    before = {host.name: len(find_calls(cluster, host)) for host in cluster.hosts}
    return lambda host: find_calls(cluster, host)[before[host.name] :]


def read_backend(cluster: Cluster) -> dict[str, list[str]]:
    """What the storage itself has: the nodes that each volume is attached to, by the volume's ID there."""
    state = json.loads((cluster.nas / "state.json").read_text())
    return {key: [one["node_id"] for one in volume["publications"]] for key, volume in state["volumes"].items()}


def read_records(cluster: Cluster) -> dict[str, str]:
    """The volumes on record: their ID at the storage by their own."""
    ids = [row["ID"] for row in cluster.lan.get("/v1/volumes?type=csi")]
    return {name: str(cluster.lan.get(f"/v1/volume/csi/{name}")["ExternalID"]) for name in ids}


@dataclass(frozen=True, kw_only=True)
class Names:
    """Volumes for which one and the same controller is called: one to create, one in use, one to use, one to delete."""

    new: str
    used: str
    idle: str
    old: str


def begin(cluster: Cluster, pool: ThreadPoolExecutor, names: Names, second: Host, used: Use) -> tuple[Any, Any, Use]:
    """A create, an attach, a detach and a delete, all at once: the answers to come, and the use that is to run."""
    created = pool.submit(cluster.lan.ask, "PUT", f"/v1/volume/csi/{names.new}/create", describe_volume(names.new))
    deleted = pool.submit(cluster.lan.ask, "DELETE", f"/v1/volume/csi/{names.old}/delete")
    used.stop()
    allocation_id, status, answer = cluster.ask_use(names.idle, second)
    assert status == 200, answer
    return created, deleted, Use(cluster, allocation_id, second, second.place / "mnt" / names.idle)


@pytest.mark.parametrize("victim", ["driver", "agent"])
@pytest.mark.parametrize("option", ["--delay", "--delay-answer"], ids=["before the effect", "after the effect"])
def test_the_other_controller_takes_over_what_hangs_at_a_killed_one(cluster: Cluster, victim: str, option: str) -> None:
    first, second = cluster.hosts
    number = next(NUMBERS)
    new = name_for(cluster, first, f"new-{number}")
    names = Names(new=new, **{name: create_for(cluster, first, f"{name}-{number}") for name in ("used", "idle", "old")})
    used = cluster.use(names.used, second)
    restart_driver(cluster, first, *(word for method in METHODS for word in (option, f"{method}={HANG_S}")))
    done_before = len(find_calls(cluster, second))
    with ThreadPoolExecutor(2) as pool:
        created, deleted, use = begin(cluster, pool, names, second, used)
        hanging = sorted((method, "") for method in METHODS)
        wait_until(lambda: sorted(c for c in find_calls(cluster, first) if not c[1]) == hanging, "all calls hang")
        assert find_calls(cluster, second)[done_before:] == []
        if option == "--delay-answer":
            wait_until(lambda: are_calls_effective(cluster, names), "they have had their effect", within_s=10)
        first.jobs[victim].kill()
        assert created.result()[0] == 200, created.result()
        assert deleted.result()[0] == 200, deleted.result()
    wait_until(lambda: use.status == "running", "the attached volume is mounted")
    used.wait_over()
    wait_until(lambda: cluster.is_free(names.used), "the detached volume is free")
    assert sorted(find_calls(cluster, second)[done_before:]) == sorted((method, "OK") for method in METHODS)

    records, backend = read_records(cluster), read_backend(cluster)
    assert sorted(records.values()) == sorted(backend), "storage and records name the same volumes"
    assert names.old not in records
    assert backend[records[names.new]] == []
    assert backend[records[names.used]] == []
    assert backend[records[names.idle]] == [second.name]

    if victim == "agent":
        first.jobs["driver"].kill()
    cluster.start_driver(first)
    if victim == "agent":
        cluster.start_agent(first)
    wait_until(lambda: cluster.healthy_nodes() == 2, "both controllers are healthy")
    use.stop()
    use.wait_over()
    assert all(nodes == [] for nodes in read_backend(cluster).values())


def are_calls_effective(cluster: Cluster, names: Names) -> bool:
    """Whether the storage shows the effect of all calls that hang."""
    records, backend = read_records(cluster), read_backend(cluster)
    if records[names.old] in backend or not set(backend) - set(records.values()):
        return False
    return backend[records[names.idle]] != [] and backend[records[names.used]] == []


def test_a_new_server_leaves_a_volume_to_the_controller_that_is_at_it(cluster: Cluster) -> None:
    """By rank the first controller is the volume's; it was away, so that the other one got the call, and is back when
    the server is killed. The server that comes then hears of the call before it hands it out."""
    first, second = cluster.hosts
    name = name_for(cluster, first, "kept")
    restart_driver(cluster, second, "--delay", f"CreateVolume={SLOW_S}")
    first.jobs["driver"].kill()
    wait_until(lambda: cluster.healthy_nodes() == 1, "the end of the driver is noticed")
    find_new = watch_calls(cluster)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(cluster.lan.ask, "PUT", f"/v1/volume/csi/{name}/create", describe_volume(name))
        wait_until(lambda: find_new(second) == [("CreateVolume", "")], "the create is under way")
        cluster.start_driver(first)
        wait_until(lambda: cluster.healthy_nodes() == 2, "both controllers are healthy")
        cluster.restart_server()
        # Its answer went with the server; asking again is safe.
        assert asked.exception() is not None or asked.result()[0] >= 500
    assert find_new(second) == [("CreateVolume", "")], "the call is still under way"
    cluster.create(name)
    assert find_new(first) == []
    assert find_new(second) == [("CreateVolume", "OK")]
    restart_driver(cluster, second)


def test_the_call_of_a_driver_that_hangs_is_left_where_it_is_and_its_other_volumes_are_not(cluster: Cluster) -> None:
    """The driver is stopped in the middle of a create: its probes have no answer, and its node says so while the call
    goes on there. What it is not at goes to the other controller."""
    first, second = cluster.hosts
    name, other = name_for(cluster, first, "held"), name_for(cluster, first, "moved")
    restart_driver(cluster, first, "--delay", "CreateVolume=1")
    find_new = watch_calls(cluster)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(cluster.lan.ask, "PUT", f"/v1/volume/csi/{name}/create", describe_volume(name))
        wait_until(lambda: find_new(first) == [("CreateVolume", "")], "the create is under way")
        with first.jobs["driver"].hanging():
            wait_until(lambda: cluster.healthy_nodes() == 1, "the driver is found hanging", within_s=30)
            cluster.create(other)
            assert find_new(second) == [("CreateVolume", "OK")]
            told = cluster.lan.get(f"/v1/volume/csi/{name}/why")["Blocks"]
            assert any(f"node {first.name} is at a call for this disk" in text for text in told), told
        wait_until(lambda: find_new(first) == [("CreateVolume", "OK")], "the call has ended")
        assert asked.result()[0] == 200 or cluster.create(name)
    assert find_new(second) == [("CreateVolume", "OK")]
    restart_driver(cluster, first)
