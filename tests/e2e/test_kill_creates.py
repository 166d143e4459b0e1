"""The server is killed in the middle of many creates: nothing answered is lost, nothing is doubled, nothing leaks."""

from __future__ import annotations

import contextlib
import http.client
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from asking import Reply, ask, describe_volume, get, list_external
from dev_server import Fleet

CREATES = 200
CLIENTS = 8
SETTLE_S = 10.0


class Creates:
    """Clients that each create their share of the volumes, until the server is gone."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answered: dict[str, str] = {}
        self.unanswered: set[str] = set()
        self.refused: list[str] = []
        self.reached = threading.Condition()

    def create(self, number: int) -> None:
        """One create; what became of it is noted."""
        volume_id = f"vol-{number:03}"
        reply: Reply | None = None
        with contextlib.suppress(OSError, http.client.HTTPException):
            reply = ask(self.url, "PUT", f"/v1/volume/csi/{volume_id}/create", body=describe_volume(volume_id))
        with self.reached:
            if reply is None:
                self.unanswered.add(volume_id)
            elif reply.status == 200:
                self.answered[volume_id] = reply.json()["Volumes"][0]["ExternalID"]
            else:
                self.refused.append(f"{volume_id}: {reply.status} {reply.text[:300]}")
            self.reached.notify_all()

    def wait_answered(self, count: int) -> None:
        """Return when so many creates are answered."""
        with self.reached:
            self.reached.wait_for(lambda: len(self.answered) >= count or self.refused, timeout=40)
            assert len(self.answered) >= count, self.refused[:3]


def find_drift(url: str) -> str:
    """How the driver's volumes differ from the registered ones; empty when they are the same."""
    registered = Counter(str(row["ExternalID"]) for row in list_registered(url))
    listed = Counter(list_external(url))
    if registered == listed and "" not in registered:
        return ""
    return f"only registered {registered - listed}, only at the driver {listed - registered}"


def wait_settled(url: str) -> float:
    """Return when driver and records agree, with the seconds it took; fails after SETTLE_S."""
    began_s = time.monotonic()
    while drift := find_drift(url):
        assert time.monotonic() - began_s < SETTLE_S, f"still different after {SETTLE_S:g} s: {drift}"
        time.sleep(0.1)
    return time.monotonic() - began_s


def list_registered(url: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    token = ""
    while True:
        query = "type=csi&per_page=60" + (f"&next_token={token}" if token else "")
        reply = ask(url, "GET", f"/v1/volumes?{query}")
        assert reply.status == 200, reply.text
        for stub in reply.json():
            found.append(get(url, f"/v1/volume/csi/{stub['ID']}"))
        token = reply.headers.get("x-nomad-nexttoken", "")
        if not token:
            return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_killed_server_loses_and_doubles_nothing(fleet: Fleet, seed: int) -> None:
    chance = random.Random(seed)
    server = fleet.start_dev()
    creates = Creates(server.url)
    with ThreadPoolExecutor(CLIENTS) as pool:
        for number in range(CREATES):
            pool.submit(creates.create, number)
        creates.wait_answered(chance.randrange(CREATES // 5, CREATES * 3 // 5))
        time.sleep(chance.random() * 0.01)  # not always just after an answer
        server.kill()
    assert not creates.refused
    assert creates.unanswered, "the server was killed too late to prove anything"
    server.restart()
    took_s = wait_settled(server.url)
    print(f"seed {seed}: {len(creates.answered)} answered, driver and records agree after {took_s:.1f} s")
    volumes = {str(row["ID"]): row["ExternalID"] for row in list_registered(server.url)}
    lost = {name: external for name, external in creates.answered.items() if volumes.get(name) != external}
    assert not lost, f"answered, and not there or another: {lost}"
    assert len(set(volumes.values())) == len(volumes), "two volumes are one at the driver"
    assert set(volumes) <= set(creates.answered) | creates.unanswered
    # What got no answer may be asked again, and is one volume then.
    again = sorted(creates.unanswered)[:: max(1, len(creates.unanswered) // 10)]
    for volume_id in again:
        reply = ask(server.url, "PUT", f"/v1/volume/csi/{volume_id}/create", body=describe_volume(volume_id))
        assert reply.status == 200, reply.text
        external_id = reply.json()["Volumes"][0]["ExternalID"]
        assert external_id == volumes.get(volume_id, external_id)
    wait_settled(server.url)
    assert "Traceback" not in server.log
