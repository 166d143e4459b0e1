"""Reads that wait: `index` holds a read back until what it reads has changed, or `wait` is over.

Waking is shown by order, not by time: a read that was woken answers long before its `wait` of a minute. Where a read
must not be woken, a later change proves that it was still waiting.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from asking import Reply, ask, delete, describe_volume, get, put
from dev_server import Fleet, Program, wait_until

LONG = "wait=60s"
SOON_S = 20.0
GROWN = 2 << 20
JITTER = 1 / 16
SLACK_S = 1.0  # two busy cores
SERIAL = iter(range(1000))


@pytest.fixture
def url(program: Program) -> str:
    """The address of the server of all tests that do not restart it."""
    return program.url


def create(url: str, volume_id: str) -> None:
    put(url, f"/v1/volume/csi/{volume_id}/create", describe_volume(volume_id))


def new_id() -> str:
    return f"vol-{next(SERIAL)}"


def index_of(url: str, path: str) -> int:
    """The index to wait above: that of a read now. An empty table has index 0, above which no read waits: then 1."""
    return max(1, ask(url, "GET", path).index)


def wait_capacity(url: str, path: str, *, above: int) -> None:
    """Read on and on, each time above the last index, until the volume has grown; a change may be several."""
    reply = ask(url, "GET", f"{path}?index={above}&{LONG}")
    while reply.json()["Capacity"] != GROWN:
        assert reply.index > above
        above = reply.index
        reply = ask(url, "GET", f"{path}?index={above}&{LONG}")


class Waiting:
    """A read that waits in the background."""

    def __init__(self, url: str, path: str, *, above: int) -> None:
        joined = "&" if "?" in path else "?"
        self.above = above
        self._pool = ThreadPoolExecutor(1)
        started = threading.Event()

        def read() -> Reply:
            started.set()
            return ask(url, "GET", f"{path}{joined}index={above}&{LONG}")

        self._reply: Future[Reply] = self._pool.submit(read)
        started.wait(5)
        # Most reads are held by now; one that is not yet is answered at once by the change, which proves less but
        # fails nothing.
        time.sleep(0.15)

    @property
    def is_waiting(self) -> bool:
        """No answer has come yet."""
        return not self._reply.done()

    def woken(self) -> Reply:
        """The answer, which must come soon, with an index above the one asked for."""
        reply = self._reply.result(SOON_S)
        self._pool.shutdown()
        assert reply.index > self.above
        return reply


# -- waking ----------------------------------------------------------------------------------------------------------


def test_a_list_is_woken_by_a_new_volume(url: str) -> None:
    volume_id = new_id()
    path = f"/v1/volumes?type=csi&prefix={volume_id}"
    waiting = Waiting(url, path, above=index_of(url, path))
    assert waiting.is_waiting
    create(url, volume_id)
    reply = waiting.woken()
    # The intent to create it is a change too, and is not listed yet.
    while not reply.json():
        reply = Waiting(url, path, above=reply.index).woken()
    assert [row["ID"] for row in reply.json()] == [volume_id]
    assert reply.json()[0]["ModifyIndex"] <= reply.index


def test_a_list_is_woken_by_a_volume_that_goes(url: str) -> None:
    volume_id = new_id()
    create(url, volume_id)
    path = f"/v1/volumes?type=csi&prefix={volume_id}"
    waiting = Waiting(url, path, above=index_of(url, path))
    delete(url, f"/v1/volume/csi/{volume_id}/delete")
    waiting.woken()
    wait_until(lambda: get(url, path) == [], "the list is empty")


def test_a_read_is_woken_by_its_volume_alone(url: str) -> None:
    one, other = new_id(), new_id()
    create(url, one)
    path = f"/v1/volume/csi/{one}"
    waiting = Waiting(url, path, above=index_of(url, path))
    create(url, other)
    delete(url, f"/v1/volume/csi/{other}/delete")
    time.sleep(0.3)
    assert waiting.is_waiting, "an unrelated volume woke it"
    put(url, f"{path}/create", describe_volume(one, size=GROWN))
    wait_capacity(url, path, above=waiting.woken().index - 1)


def test_a_read_is_woken_by_the_use_of_its_volume(url: str) -> None:
    volume_id = new_id()
    create(url, volume_id)
    path = f"/v1/volume/csi/{volume_id}"
    waiting = Waiting(url, path, above=index_of(url, path))
    request = {"Name": "d", "Source": volume_id, "AccessMode": "single-node-writer", "AttachmentMode": "file-system"}
    allocation: dict[str, Any] = {"Name": "a", "NodeID": get(url, "/v1/nodes")[0]["ID"], "Volumes": [request]}
    started = put(url, "/v1/allocations", {"Allocation": allocation})
    assert waiting.woken().json()["Allocations"]
    way = f"/v1/allocation/{started['ID']}"
    while (reply := ask(url, "GET", way)).json()["ClientStatus"] != "running":
        Waiting(url, way, above=reply.index).woken()
    put(url, f"{way}/stop")
    wait_until(lambda: get(url, way)["ClientStatus"] == "complete", "the use is over")


def test_a_missing_volume_is_woken_by_its_creation(url: str) -> None:
    volume_id = new_id()
    path = f"/v1/volume/csi/{volume_id}"
    assert ask(url, "GET", path).status == 404
    waiting = Waiting(url, path, above=index_of(url, path))
    assert waiting.is_waiting
    create(url, volume_id)
    reply = waiting.woken()
    # A creation has more than one change; the volume may be seen only by the next read.
    while reply.status == 404:
        reply = Waiting(url, path, above=reply.index).woken()
    assert reply.json()["ID"] == volume_id


def test_many_readers_are_woken_by_one_change(url: str) -> None:
    volume_id = new_id()
    create(url, volume_id)
    path = f"/v1/volume/csi/{volume_id}"
    above = index_of(url, path)
    readers = [Waiting(url, path, above=above) for _ in range(10)]
    put(url, f"{path}/create", describe_volume(volume_id, size=GROWN))
    for reader in readers:
        wait_capacity(url, path, above=reader.woken().index - 1)


def test_plugins_are_woken_when_a_driver_goes(fleet: Fleet) -> None:
    server = fleet.start_server()
    driver = fleet.start_driver()
    fleet.start_agent(server)
    wait_until(lambda: get(server.url, "/v1/plugins?type=csi"), "there is a plugin")
    wait_until(lambda: get(server.url, "/v1/plugin/csi/hostpath")["NodesHealthy"] == 1, "it is healthy")
    for path in ("/v1/plugins?type=csi", "/v1/plugin/csi/hostpath"):
        waiting = Waiting(server.url, path, above=index_of(server.url, path))
        assert waiting.is_waiting
        driver.stop()  # takes its socket away, which the agent sees at once
        reply = waiting.woken()
        found = reply.json()[0] if "plugins" in path else reply.json()
        assert found["NodesHealthy"] == 0
        driver.restart()
        wait_until(lambda: get(server.url, "/v1/plugin/csi/hostpath")["NodesHealthy"] == 1, "it is healthy again")


# -- not waiting, and waiting to the end -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/volumes?type=csi", "/v1/plugins?type=csi", "/v1/nodes"])
def test_an_old_index_or_none_answers_at_once(url: str, path: str) -> None:
    create(url, new_id())
    now = index_of(url, path)
    for query in ("index=0", f"index=0&{LONG}", f"index={now - 1}&{LONG}", LONG):
        reply = ask(url, "GET", f"{path}{'&' if '?' in path else '?'}{query}")
        assert reply.status == 200
        assert reply.index >= now


@pytest.mark.parametrize("path", ["/v1/volumes?type=csi", "/v1/volume/csi/never", "/v1/plugins?type=csi"])
@pytest.mark.parametrize(("wait", "wait_s"), [("300ms", 0.3), ("1s", 1.0), ("0.01m", 0.6), ("1ms", 0.001)])
def test_a_wait_is_as_long_as_asked_for(url: str, path: str, wait: str, wait_s: float) -> None:
    joined = "&" if "?" in path else "?"
    above = index_of(url, path)
    began_s = time.monotonic()
    reply = ask(url, "GET", f"{path}{joined}index={above}&wait={wait}")
    took_s = time.monotonic() - began_s
    assert wait_s <= took_s + 0.005
    assert took_s <= wait_s * (1 + JITTER) + SLACK_S
    assert reply.index >= above or reply.status == 404


def test_an_index_of_the_future_waits(url: str) -> None:
    path = "/v1/volumes?type=csi"
    ahead = index_of(url, path) + 1_000_000
    began_s = time.monotonic()
    reply = ask(url, "GET", f"{path}&index={ahead}&wait=300ms")
    assert time.monotonic() - began_s >= 0.29
    assert reply.status == 200


def test_a_stopping_server_answers_those_who_wait(fleet: Fleet) -> None:
    server = fleet.start_dev()
    path = "/v1/volumes?type=csi"
    above = index_of(server.url, path)
    with ThreadPoolExecutor(5) as pool:
        replies = [pool.submit(ask, server.url, "GET", f"{path}&index={above}&{LONG}") for _ in range(5)]
        time.sleep(0.3)
        began_s = time.monotonic()
        assert server.stop() == 0
        assert {reply.result(SOON_S).status for reply in replies} == {503}
    assert time.monotonic() - began_s < SOON_S


# -- the index over time ---------------------------------------------------------------------------------------------


def test_the_index_never_goes_back(fleet: Fleet) -> None:
    paths = ("/v1/volumes?type=csi", "/v1/plugins?type=csi", "/v1/nodes", "/v1/volume/csi/a")
    server = fleet.start_dev()
    create(server.url, "a")
    create(server.url, "b")
    delete(server.url, "/v1/volume/csi/b/delete")
    before = {path: index_of(server.url, path) for path in paths}
    written = get(server.url, "/v1/volume/csi/a")["ModifyIndex"]
    for end in (server.kill, server.stop):
        end()
        server.restart()
        after = {path: index_of(server.url, path) for path in paths}
        assert all(after[path] >= before[path] for path in paths), (before, after)
        assert get(server.url, "/v1/volume/csi/a")["ModifyIndex"] == written
        # A client that goes on with the index of before is not woken for nothing, and not left out.
        waiting = Waiting(server.url, paths[0], above=after[paths[0]])
        assert waiting.is_waiting
        new = new_id()
        create(server.url, new)
        assert waiting.woken().index > before[paths[0]]
        before = {path: index_of(server.url, path) for path in paths}
