"""The SQLite store under kill -9 and on a full disk."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from moorage.errors import StoreUnavailable
from moorage.model.ids import Revision
from moorage.state.sqlite import SqliteStore
from moorage.state.sqlite_files import Limits
from moorage.state.store import Entry, EventBatch, Put

pytestmark = pytest.mark.anyio

ROUNDS = 32
# Four writers, each transaction sets two keys; a line is printed once the store has acknowledged.
CHILD = """
import itertools, pathlib, sys
import anyio
from moorage.state.sqlite import SqliteStore
from moorage.state.sqlite_files import Limits
from moorage.state.store import Compare, Delete, Put

async def write(store, writer):
    last = None
    for number in itertools.count():
        name = f"t/{writer}-{number}"
        ops = [Put(name + "/a", b"x" * 3000), Put(name + "/b", b"y"), Put(f"last/{writer}", b"%d" % number)]
        result = await store.transact([Compare(name + "/a", 0)], ops)
        print(name, result.revision, flush=True)

async def main():
    store = await SqliteStore.open(pathlib.Path(sys.argv[1]), limits=Limits(history_revisions=100))
    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(write, store, f"{sys.argv[2]}-{number}")

anyio.run(main)
"""


def run_until_killed(path: Path, name: str, chance: random.Random) -> dict[str, int]:
    """Start a child, kill it at a random moment; returns the revisions that it had acknowledged, by name."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), name], stdout=subprocess.PIPE)
    assert child.stdout is not None
    lines: list[bytes] = []
    try:
        if chance.random() < 0.2:
            # Before, while or just after it opens the store.
            time.sleep(chance.uniform(0.05, 0.6))
        else:
            lines += [child.stdout.readline() for _ in range(chance.randrange(1, 60))]
            time.sleep(chance.uniform(0, 0.01))
    finally:
        child.kill()
        lines += child.stdout.readlines()
        child.stdout.close()
        child.wait()
    assert child.returncode == -9
    # The last line may be cut: the kill can come in the middle of a print.
    whole = [line.split() for line in lines if line.endswith(b"\n")]
    return {key.decode(): int(revision) for key, revision in whole}


async def test_kill_loses_nothing_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(20220611)
    acknowledged: dict[str, int] = {}
    newest = 0
    for round_number in range(ROUNDS):
        path = tmp_path / "state.db"
        told = await anyio.to_thread.run_sync(run_until_killed, path, str(round_number), chance)
        assert all(revision > newest for revision in told.values())
        assert len(set(told.values())) == len(told)
        acknowledged |= told
        store = await SqliteStore.open(path, limits=Limits(history_revisions=100))
        listing = await store.list("t/")
        await check_history(store, listing.revision)
        await store.close()
        assert listing.revision >= max(acknowledged.values(), default=0)
        newest = listing.revision
        check_records({entry.key: entry for entry in listing.entries}, acknowledged)
    assert len(acknowledged) > ROUNDS


def check_records(found: dict[str, Entry], acknowledged: dict[str, int]) -> None:
    """What was acknowledged is there at its revision; nothing is there by half."""
    for name, revision in acknowledged.items():
        assert found[f"{name}/a"].modify_revision == revision, name
    for key, entry in found.items():
        other = found[key[:-1] + ("b" if key.endswith("a") else "a")]
        assert other.modify_revision == entry.modify_revision, key
    assert len({entry.modify_revision for entry in found.values()}) * 2 == len(found)


async def check_history(store: SqliteStore, newest: Revision) -> None:
    """The log has the last revisions without a gap, each transaction whole."""
    if newest == 0:
        return
    after = Revision(max(0, newest - 100))
    seen: list[EventBatch] = []
    async with store.watch("", after) as batches:
        while not seen or seen[-1].revision < newest:
            seen.append(await anext(batches))
    assert [batch.revision for batch in seen] == list(range(after + 1, newest + 1))
    assert {len(batch.events) for batch in seen} == {3}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 2 MiB."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount_point)], check=True, timeout=10)
    yield mount_point
    subprocess.run(["umount", "--lazy", str(mount_point)], check=True, timeout=10)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 4096)


@pytest.mark.root
async def test_full_disk_is_unavailable_until_there_is_room(small_disk: Path) -> None:
    path = small_disk / "state.db"
    store = await SqliteStore.open(path)
    written: set[str] = set()
    failures: list[StoreUnavailable] = []

    async def write(name: str) -> None:
        try:
            await store.transact((), [Put(f"t/{name}/a", b"x" * 2000), Put(f"t/{name}/b", b"x" * 2000)])
            written.add(name)
        except StoreUnavailable as error:
            failures.append(error)

    for number in range(20):
        await write(f"before-{number}")
    assert not failures
    for round_number in range(3):
        filler = small_disk / "filler"
        await anyio.to_thread.run_sync(fill, filler)
        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(write, f"full-{round_number}-{number}")
        assert failures
        assert all("disk is full" in error.message for error in failures)
        # Reading goes on, and shows whole transactions only.
        listing = await store.list("t/")
        assert {entry.key.split("/")[1] for entry in listing.entries} == written
        assert len(listing.entries) == 2 * len(written)
        assert await store.revision() == len(written)
        filler.unlink()
        failures.clear()
        for number in range(5):
            await write(f"after-{round_number}-{number}")
        assert not failures
        assert await store.revision() == len(written)
    before = await store.list("")
    await store.close()
    store = await SqliteStore.open(path)
    assert await store.list("") == before
    await store.close()


@pytest.mark.root
async def test_full_disk_at_open_is_unavailable(small_disk: Path) -> None:
    path = small_disk / "state.db"
    store = await SqliteStore.open(path)
    await store.transact((), [Put("t/a", b"kept")])
    await store.close()
    filler = small_disk / "filler"
    await anyio.to_thread.run_sync(fill, filler)
    with pytest.raises(StoreUnavailable, match=r"new\.db.*(disk|opened)"):
        await SqliteStore.open(small_disk / "new.db")
    filler.unlink()
    store = await SqliteStore.open(path)
    assert (await store.list("")).revision == 1
    await store.close()
