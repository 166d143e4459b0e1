"""The embedded driver opens the directories of every version before, and takes over all that is in them.

``data/local-driver-v1`` was written when each record was a file beside its data (here without empty directories), and
``data/local-driver-v2`` by ``write_version_2``; neither is ever edited.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import apsw
import msgspec
import pytest

from moorage.csi.local.ledger import FORMAT, Ledger
from moorage.csi.local.records import Origin, Publication, SnapshotRecord, VolumeRecord
from moorage.csi.local.storage import Change, Storage
from moorage.errors import Unavailable

DATA = Path(__file__).parent / "data"
BEGIN_NS = 1_700_000_000_000_000_000


def volume(number: int, **fields: object) -> VolumeRecord:
    record = VolumeRecord(
        id=f"id-{number}",
        name=f"volume {number}",
        serial=number,
        capacity_bytes=number << 20,
        created_at_ns=BEGIN_NS + number,
    )
    return msgspec.structs.replace(record, **fields)


PLAIN = volume(
    1,
    capacity_bytes=3 << 20,
    required_bytes=1 << 20,
    limit_bytes=4 << 20,
    parameters={"mode": "0750", "tier": "fast"},
    publications=(Publication(node_id="node-1", mode=7, readonly=True),),
)
BLOCK = volume(2, capacity_bytes=4096, is_block=True)
CLONE = volume(5, origin=Origin(kind="volume", id="id-1"))
SNAPSHOT = SnapshotRecord(
    id="id-4",
    name="snapshot 4",
    serial=4,
    source_volume_id="id-1",
    size_bytes=1 << 20,
    created_at_ns=BEGIN_NS + 4,
)
NEW = volume(6, parameters={"mode": "0711"}, is_handed_out=False)


def write_version_2(place: Path) -> None:
    """How ``local-driver-v2`` was made."""
    shutil.copytree(DATA / "local-driver-v1", place)
    storage = Storage(place)
    storage.open()
    storage.commit([Change(action="create", record=record) for record in (NEW, volume(7), volume(8))])
    storage.commit([Change(action="hand_out", record=volume(7))])
    storage.commit([Change(action="remove", record=record) for record in (volume(7), volume(8))])
    storage.sweep()
    storage.close()


@pytest.fixture(params=["local-driver-v1", "local-driver-v2"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / request.param, tmp_path / request.param))


def test_what_an_earlier_version_wrote_is_taken_over(place: Path) -> None:
    is_first = place.name == "local-driver-v1"
    for _ in range(2):
        storage = Storage(place)
        volumes, snapshots = storage.open()
        assert list(volumes.ordered()) == [PLAIN, BLOCK, CLONE, *(() if is_first else (NEW,))]
        assert list(snapshots.ordered()) == [SNAPSHOT]
        for record in (PLAIN, CLONE, SNAPSHOT):
            assert (storage.data_path(record) / "kept").read_text() == "precious"
        assert storage.data_path(BLOCK).stat().st_size == 4096
        if not is_first:
            assert storage.data_path(NEW).stat().st_mode & 0o7777 == 0o711
        storage.close()


def test_what_was_taken_over_changes_as_any_other(place: Path) -> None:
    storage = Storage(place)
    storage.open()
    larger = msgspec.structs.replace(PLAIN, capacity_bytes=8 << 20)
    changes = [Change(action="rewrite", record=larger), Change(action="remove", record=CLONE)]
    assert storage.commit([*changes, Change(action="remove", record=SNAPSHOT)]) == [None, None, None]
    storage.sweep()
    storage.close()
    volumes, snapshots = Storage(place).open()
    # The old record beside the data says otherwise; it counts only where the ledger knows nothing.
    assert [one for one in volumes.ordered() if one != NEW] == [larger, BLOCK]
    assert len(snapshots) == 0
    assert not (place / "volumes" / "id-5").exists()


def test_a_volume_taken_over_is_never_made_anew(tmp_path: Path) -> None:
    place = shutil.copytree(DATA / "local-driver-v1", tmp_path / "data")
    storage = Storage(place)
    storage.open()
    storage.close()
    os.rename(place / "volumes" / "id-1", tmp_path / "away")
    volumes, _ = storage.open()
    storage.close()
    assert volumes.find("id-1") is None
    assert not (place / "volumes" / "id-1").exists()
    os.rename(tmp_path / "away", place / "volumes" / "id-1")
    volumes, _ = storage.open()
    storage.close()
    assert volumes.find("id-1") == PLAIN


def test_an_unfinished_takeover_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path(shutil.copytree(DATA / "local-driver-v1", tmp_path / "data"))

    class KilledError(BaseException):
        pass

    def be_killed(*args: object) -> None:
        raise KilledError

    storage = Storage(place)
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(Ledger, "write", be_killed)
        storage.open()
    storage.close()
    volumes, snapshots = storage.open()
    storage.close()
    assert (len(volumes), len(snapshots)) == (3, 1)


@pytest.mark.parametrize(("content", "text"), [(b"x" * 5000, "not the file of"), (None, "later version")])
def test_a_file_that_is_not_ours_is_refused(content: bytes | None, text: str, tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    if content is None:
        with apsw.Connection(str(path)) as database:
            database.execute(f"CREATE TABLE records (k); PRAGMA user_version = {FORMAT + 1}")
        database.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(Unavailable, match=text):
        Storage(tmp_path).open()
    assert path.read_bytes() == before
