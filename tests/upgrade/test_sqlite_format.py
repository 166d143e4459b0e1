"""Every file format ever written is opened by the newest code; a newer one is refused with a text that helps.

``data/sqlite-v1.db`` and ``data/sqlite-v2.db`` were written by formats 1 and 2 and are never edited.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
import apsw
import pytest

import moorage
from moorage.errors import Compacted, StoreUnavailable
from moorage.model.ids import Revision
from moorage.state.sqlite import SqliteStore
from moorage.state.sqlite_format import FORMAT, UPGRADES, open_database, read_meta_number
from moorage.state.store import Compare, Delete, Entry, Event, EventBatch, Put
from moorage.testing.store_use import take

pytestmark = pytest.mark.anyio

DATA = Path(__file__).parent / "data"


async def write_format_1(path: Path) -> None:
    """How ``sqlite-v1.db`` was made."""
    store = await SqliteStore.open(path)
    await store.transact((), [Put("t/a", b"1"), Put("t/b", bytes(range(256)))])
    await store.transact([Compare("t/a", Revision(1))], [Put("t/a", b"2"), Delete("t/b")])
    await store.transact((), [Put("t/\U0001f600", b"")])
    await store.transact((), [Put("t/z", b"newest")])
    await store.transact((), [Delete("t/z")])
    await store.compact(Revision(1))
    await store.close()


async def write_format_2(path: Path) -> None:
    """How ``sqlite-v2.db`` was made."""
    await write_format_1(path)
    store = await SqliteStore.open(path)
    await store.mark_unclean()
    await store.close()


@pytest.fixture(params=[1, 2])
def old_format(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copy(DATA / f"sqlite-v{request.param}.db", tmp_path / "state.db"))


@pytest.fixture
def format_1(tmp_path: Path) -> Path:
    return Path(shutil.copy(DATA / "sqlite-v1.db", tmp_path / "state.db"))


async def test_old_format_means_what_it_meant(old_format: Path) -> None:
    store = await SqliteStore.open(old_format)
    assert not await store.is_clean()
    listing = await store.list("")
    a2 = Entry("t/a", b"2", Revision(1), Revision(2), 2)
    face = Entry("t/\U0001f600", b"", Revision(3), Revision(3), 1)
    newest = Entry("t/z", b"newest", Revision(4), Revision(4), 1)
    assert (listing.entries, listing.revision) == ((a2, face), 5)
    async with store.watch("", Revision(1)) as batches:
        seen = await take(batches, 4)
    two = Revision(2)
    assert seen == [
        EventBatch(
            two,
            (
                Event("t/a", two, a2, Entry("t/a", b"1", Revision(1), Revision(1), 1)),
                Event("t/b", two, None, Entry("t/b", bytes(range(256)), Revision(1), Revision(1), 1)),
            ),
        ),
        EventBatch(Revision(3), (Event(face.key, Revision(3), face, None),)),
        EventBatch(Revision(4), (Event("t/z", Revision(4), newest, None),)),
        EventBatch(Revision(5), (Event("t/z", Revision(5), None, newest),)),
    ]
    async with store.watch("", Revision(0)) as batches:
        with pytest.raises(Compacted):
            await anext(batches)
    assert (await store.transact([Compare("t/a", Revision(2))], [Put("t/a", b"3")])).revision == 6
    await store.close()


async def test_newer_format_is_refused_and_left_alone(format_1: Path) -> None:
    change(format_1, "UPDATE meta SET value = 7 WHERE name = 'format'")
    change(format_1, "UPDATE meta SET value = '9.9.1' WHERE name = 'written_by'")
    before = await anyio.Path(format_1).read_bytes()
    with pytest.raises(StoreUnavailable) as caught:
        await SqliteStore.open(format_1)
    text = caught.value.message
    for part in (
        str(format_1),
        "format 7",
        "moorage 9.9.1",
        moorage.__version__,
        f"up to {FORMAT}",
        "restore a backup",
    ):
        assert part in text
    assert await anyio.Path(format_1).read_bytes() == before
    # The lock is free again: the newer version can be started.
    change(format_1, "UPDATE meta SET value = 1 WHERE name = 'format'")
    await (await SqliteStore.open(format_1)).close()


def change(path: Path, sql: str) -> None:
    database = apsw.Connection(str(path))
    database.execute(sql)
    database.close()


def add_column(database: apsw.Connection) -> None:
    database.execute("ALTER TABLE current ADD COLUMN note TEXT NOT NULL DEFAULT ''")


def fill_column(database: apsw.Connection) -> None:
    database.execute("UPDATE current SET note = k || '!'")


def break_off(database: apsw.Connection) -> None:
    database.execute("DELETE FROM current")
    raise apsw.FullError("no room")


def test_steps_go_one_version_at_a_time(format_1: Path) -> None:
    open_database(format_1, format_known=2, upgrades={1: add_column}).close()
    database = open_database(format_1, format_known=3, upgrades={1: break_off, 2: fill_column})
    assert [note for (note,) in database.execute("SELECT note FROM current ORDER BY k")] == ["t/a!", "t/\U0001f600!"]
    assert read_meta_number(database, "format") == 3
    database.close()


def test_broken_off_upgrade_leaves_the_old_format(format_1: Path) -> None:
    with pytest.raises(StoreUnavailable, match="disk is full"):
        open_database(format_1, format_known=3, upgrades={1: add_column, 2: break_off})
    database = apsw.Connection(str(format_1))
    assert read_meta_number(database, "format") == 1
    database.close()
    database = open_database(format_1)
    assert read_meta_number(database, "format") == FORMAT
    assert database.execute("SELECT count(*) FROM current").get == 2
    assert len(list(database.execute("PRAGMA table_info(current)"))) == 5
    database.close()


def test_every_step_is_there() -> None:
    assert sorted(UPGRADES) == list(range(1, FORMAT))
    assert [int(file.stem.rpartition("v")[2]) for file in sorted(DATA.glob("sqlite-v*.db"))] == list(
        range(1, FORMAT + 1)
    )
