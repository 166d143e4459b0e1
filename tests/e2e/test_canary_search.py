"""The search that every fleet of these tests goes through, put to the test: a mark that a real server is made to show
is found in each place where it comes out, in the clear and over TLS."""

from __future__ import annotations

import gzip

import pytest
from asking import ask, describe_volume, get, put
from canary_marks import MARKS
from canary_watch import Totals, Watch
from dev_server import Fleet
from recording import read_answers, read_connections


@pytest.mark.parametrize("is_guarded", [False, True], ids=["open", "guarded"])
def test_what_a_server_shows_is_found_wherever_it_shows_it(is_guarded: bool) -> None:
    leak = MARKS.make_plain("shown on purpose")
    fleet = Fleet(is_guarded=is_guarded)
    fleet.watch = Watch(fleet.place, Totals())
    try:
        server = fleet.start_dev(options=["--log-level", "debug"])
        # A volume's ID is no secret: this is how a mark comes out everywhere without a leak.
        put(server.url, f"/v1/volume/csi/{leak}/create", describe_volume(leak))
        packed = ask(server.url, "GET", "/v1/volumes?type=csi", headers={"Accept-Encoding": "gzip"})
        assert leak in gzip.decompress(packed.body).decode()
        assert ask(server.url, "GET", "/v1/jobs", headers={"X-Request-Id": leak}).headers["x-request-id"] == leak
        assert get(server.url, f"/v1/volume/csi/{leak}")["ID"] == leak
        url = server.url
    finally:
        fleet.close()
    assert url.startswith("https" if is_guarded else "http:")
    found = "\n".join(fleet.leaks)
    for place in (
        f"answer to GET /v1/volume/csi/{leak}: ",
        "answer to GET /v1/volumes?type=csi: ",
        "answer to GET /v1/event/stream",
        "headers of answer to GET /v1/jobs: ",
        "dev/server/audit.log: ",
        "dev/server/state.db: ",
        "a row of ",
        "state.db-wal in use: ",
        "/dev.log: ",
        "parting.tar.gz!moorage-debug-parting/records/volumes.json: ",
    ):
        assert place in found, f"{place} is not among\n{found}"
    assert all("shown on purpose" in one for one in fleet.leaks), found


def test_answers_of_a_killed_server_are_searched_too(fleet: Fleet) -> None:
    server = fleet.start_dev()
    get(server.url, "/v1/volumes?type=csi")
    server.kill()
    (recording,) = fleet.place.glob("*.answers")
    asked = [a.path for connection in read_connections(recording) for a in read_answers(connection)]
    assert "/v1/volumes?type=csi" in asked
    server.restart()
