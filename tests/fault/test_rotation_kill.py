"""A server that is killed in the middle of a change of keys: every record stays readable, nothing needs a key that is
not there, and the change comes to its end after a start, whatever was done of it."""

from __future__ import annotations

import random
import shutil
import sqlite3
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from asking import ask, describe_volume, get
from canary_marks import MARKED, VOLUME_SECRET
from dev_server import Fleet, Program, running_fleet, wait_until

from moorage.model.volume import Volume
from moorage.state.codec import Records
from moorage.state.keyring import join_keys, parse_keys
from moorage.state.sealing import Sealer

VOLUMES = 300
KILLS = 4
SEALING = "/v1/operator/secrets"


def fill(server: Program) -> None:
    """Volumes, each with a secret."""
    with ThreadPoolExecutor(8) as pool:
        bodies = [describe_volume(f"v{number:03}") for number in range(VOLUMES)]
        asked = [
            pool.submit(ask, server.url, "PUT", f"/v1/volume/csi/{one['Volumes'][0]['ID']}/create", body=one)
            for one in bodies
        ]
        assert {reply.result().status for reply in asked} == {200}


def list_keys(place: Path) -> list[str]:
    return [key.id for key in parse_keys((place / "dev" / "server" / "secret.key").read_text(), "file")]


def find_key_ids(place: Path, ids: list[str]) -> set[str]:
    """Which keys' IDs are anywhere in the records, their history and the write-ahead log."""
    content = b"".join(path.read_bytes() for path in (place / "dev" / "server").glob("state.db*"))
    return {one for one in ids if one.encode() in content}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_killed_in_the_middle_of_a_change_of_keys() -> None:
    chance = random.Random(11)
    with running_fleet() as fleet:
        server = fleet.start_dev()
        fill(server)
        in_the_middle = 0
        for _ in range(KILLS):
            in_the_middle += kill_while_sealing(fleet, server, chance)
        assert in_the_middle >= KILLS // 2, "the kills came too late to interrupt anything"
        wait_until(lambda: get(server.url, SEALING)["IsDone"], "the last change is done", within_s=60)
        active, *older = list_keys(fleet.place)
        assert len(older) == KILLS
        # As the text says when it is done: nothing needs the old ones, in the records or in what was there before.
        assert find_key_ids(fleet.place, [active, *older]) == {active}
        key_file = fleet.place / "dev" / "server" / "secret.key"
        lines = key_file.read_text().splitlines(keepends=True)
        key_file.write_text("".join(line for line in lines if not any(one in line for one in older)))
        assert list_keys(fleet.place) == [active]
        server.kill()
        check_stored(fleet.place)
        server.restart()
        check_served(server)
        assert get(server.url, SEALING)["OldKeys"] == []


def kill_while_sealing(fleet: Fleet, server: Program, chance: random.Random) -> bool:
    """Begin a change, kill the server somewhere in it, start it again; whether it was interrupted."""
    wait_until(lambda: get(server.url, SEALING)["IsDone"], "no change is under way", within_s=60)
    assert ask(server.url, "PUT", f"{SEALING}/rotate").status == 200
    time.sleep(chance.uniform(0.0, 0.25))
    server.kill()
    check_stored(fleet.place)
    ids = list_keys(fleet.place)
    is_interrupted = len(find_key_ids(fleet.place, ids)) > 1
    server.restart()
    check_served(server)
    return is_interrupted


def check_stored(place: Path) -> None:
    """With the server dead: every stored secret opens with the keys that are written down, and is what it was."""
    directory = place / "dev" / "server"
    keys = parse_keys((directory / "secret.key").read_text(), "file")
    records = Records(Sealer(join_keys(keys[:1], keys[1:]), "file"))
    with tempfile.TemporaryDirectory() as copy:
        for path in directory.glob("state.db*"):
            shutil.copy(path, copy)
        with closing(sqlite3.connect(f"{copy}/state.db")) as database:
            rows = database.execute("SELECT k, value FROM current WHERE k LIKE 'volumes/%'").fetchall()
    assert len(rows) == VOLUMES
    for key, value in rows:
        volume = records.decode(key, value)
        assert isinstance(volume, Volume)
        assert volume.secrets.values["password"] == MARKED[VOLUME_SECRET], key


def check_served(server: Program) -> None:
    """Every volume is there, and a driver can be called for one."""
    assert len(get(server.url, "/v1/volumes?type=csi")) == VOLUMES
    assert ask(server.url, "PUT", "/v1/volume/csi/v007/create", body=describe_volume("v007")).status == 200
