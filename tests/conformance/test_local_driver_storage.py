"""What the embedded driver's directory holds after a power cut, or trouble with the disk; and what it waits for."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import apsw
import msgspec
import pytest
from local_storage_kit import PUBLISHED, commit, fill, handed_out, ids, prepare, snapshot, volume

from moorage.csi.local import ledger
from moorage.csi.local.ledger import Ledger
from moorage.csi.local.records import VolumeRecord
from moorage.csi.local.storage import REMOVED_MAX, Change, Storage

# -- power cuts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_block", [False, True])
@pytest.mark.parametrize("left", ["nothing", "half in temp", "no data", "data as at first"])
def test_a_volume_that_nobody_had_is_made_anew_after_a_power_cut(tmp_path: Path, left: str, is_block: bool) -> None:
    storage = Storage(tmp_path)
    storage.open()
    record = volume(1, is_block=is_block, parameters={} if is_block else {"mode": "2770"})
    commit(storage, Change(action="create", record=record))
    storage.close()
    leave(tmp_path, left, is_block=is_block)
    assert ids(storage.open()) == [record]
    check_new(storage, record)
    storage.sweep()
    assert os.listdir(tmp_path / "temp") == os.listdir(tmp_path / "trash") == []
    commit(storage, Change(action="remove", record=record))
    storage.close()


def leave(place: Path, left: str, *, is_block: bool = False) -> None:
    """What is on the disk of a volume that was just made."""
    shutil.rmtree(place / "volumes" / "id-1")
    if left == "half in temp":  # as earlier versions did
        (place / "temp" / "id-1").mkdir()
    elif left != "nothing":
        (place / "volumes" / "id-1").mkdir()
    if left == "data as at first" and is_block:
        (place / "volumes" / "id-1" / "data").touch(0o600)
    elif left == "data as at first":
        (place / "volumes" / "id-1" / "data").mkdir(0o700)


def check_new(storage: Storage, record: VolumeRecord) -> None:
    """Its data is as that of a new volume of 4,096 bytes, or with the mode 2770."""
    found = storage.data_path(record).stat()
    assert found.st_size == 4096 if record.is_block else found.st_mode & 0o7777 == 0o2770


@pytest.mark.parametrize("left", ["nothing", "no data", "data as at first"])
def test_a_volume_that_a_start_could_not_make_is_made_when_it_is_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    storage = Storage(tmp_path)
    storage.open()
    record = volume(1, parameters={"mode": "2770"})
    commit(storage, Change(action="create", record=record))
    storage.close()
    leave(tmp_path, left)
    with monkeypatch.context() as patched:
        patched.setattr(os, "chmod", failing_for("data", os.chmod))
        patched.setattr(os, "mkdir", failing_for("data", os.mkdir))
        assert ids(storage.open()) == [record]
    commit(storage, Change(action="hand_out", record=handed_out(record)))
    check_new(storage, record)
    storage.close()


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_what_somebody_put_into_a_volume_before_it_was_handed_out_stays(tmp_path: Path, mode: int) -> None:
    storage = Storage(tmp_path)
    storage.open()
    commit(storage, Change(action="create", record=volume(1)))
    fill(data := storage.data_path(volume(1)))
    data.chmod(mode)
    storage.close()
    assert ids(storage.open()) == [volume(1)]
    assert (data / "kept").read_text() == "precious"
    # One that is as it was at first may be of a create that did not come to its end.
    assert data.stat().st_mode & 0o7777 == (0o755 if mode == 0o700 else mode)
    storage.close()


def test_a_volume_that_may_have_held_data_is_never_made_anew(tmp_path: Path) -> None:
    storage = prepare(tmp_path)
    fill(storage.temp_data_path(clone := handed_out(volume(6))))
    fill(storage.temp_data_path(snapshot(7)))
    commit(storage, Change(action="place", record=clone), Change(action="place", record=snapshot(7)))
    storage.close()
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("volumes/id-1", "volumes/id-6", "snapshots/id-7"):
        os.rename(tmp_path / name, kept / os.path.basename(name))
    for _ in range(2):
        assert ids(storage.open()) == [handed_out(volume(2)), volume(3)]
        assert sorted(os.listdir(tmp_path / "volumes")) == ["id-2", "id-3"]
        storage.close()
    # The records wait for their data.
    for name in ("volumes/id-1", "volumes/id-6", "snapshots/id-7"):
        os.rename(kept / os.path.basename(name), tmp_path / name)
    assert len(ids(storage.open())) == 5
    storage.close()


def test_a_removal_holds_when_the_disk_still_has_the_entry(tmp_path: Path) -> None:
    storage = prepare(tmp_path)
    commit(storage, Change(action="remove", record=handed_out(volume(1))))
    storage.close()
    os.rename(tmp_path / "trash" / "id-1.leaving", tmp_path / "volumes" / "id-1")
    assert ids(storage.open()) == [handed_out(volume(2)), volume(3)]
    assert storage.sweep() == 1
    assert sorted(os.listdir(tmp_path / "volumes")) == ["id-2", "id-3"]
    storage.close()


@pytest.mark.parametrize("behind", ["anything", "what was there before"])
def test_the_log_of_the_ledger_may_be_torn_anywhere(tmp_path: Path, behind: str) -> None:
    place = tmp_path / "data"
    storage = Storage(place)
    storage.open()
    log = place / "records.db-wal"
    before = log.read_bytes()
    for number in range(1, 7):
        commit(storage, Change(action="create", record=volume(number)))
    database, written = (place / "records.db").read_bytes(), log.read_bytes()
    storage.close()
    ends = ends_of_commits(written)[-7:]
    assert len(before) == len(written), "the log has its length from the start"
    cuts = {cut for end in ends for cut in (end - 1, end, end + 1)} | set(range(ends[0], ends[-1], 997))
    # What was never synced may be anything.
    rest = before if behind == "what was there before" else b"\xa5" * len(written)
    for cut in sorted(cuts):
        copy = tmp_path / "copy"
        copy.mkdir()
        (copy / "records.db").write_bytes(database)
        (copy / "records.db-wal").write_bytes(written[:cut] + rest[cut:])
        found = ids(Storage(copy).open())
        assert found == [volume(number) for number in range(1, sum(end <= cut for end in ends))], cut
        shutil.rmtree(copy)


def ends_of_commits(log: bytes) -> list[int]:
    """Where the transactions in a log of SQLite end: a header of 32 bytes, frames of 24 and a page of 4,096, of which
    the last of a transaction has the number of pages at 4."""
    size = 24 + 4096
    return [at + size for at in range(32, len(log), size) if log[at + 4 : at + 8].strip(b"\0")]


@pytest.mark.parametrize(("name", "value"), [("LOG_PAGES", 1 << 18), ("ROOM_BYTES", 1 << 62)])
def test_a_log_that_cannot_have_its_length_at_the_start_grows_with_the_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    monkeypatch.setattr(ledger, name, value)  # more than SQLite takes as one value, or more than is free
    storage = prepare(tmp_path)
    assert (tmp_path / "records.db-wal").stat().st_size < 1 << 20
    assert storage._ledger is not None
    assert not storage._ledger._db.in_transaction
    storage.close()
    assert len(ids(storage.open())) == 3
    storage.close()


# -- syncs -----------------------------------------------------------------------------------------------------------


class CountingFile(apsw.VFSFile):
    """A file of SQLite whose syncs are counted."""

    syncs = 0

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        """Count."""
        CountingFile.syncs += 1
        super().xSync(flags)


class CountingFiles(apsw.VFS):
    """SQLite's files with their syncs counted."""

    def __init__(self) -> None:
        super().__init__("counting", base="")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        """Open one."""
        return CountingFile("", name, flags)


def test_a_group_of_changes_is_one_sync_and_no_more_where_nothing_was_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = CountingFiles()
    real = apsw.Connection
    monkeypatch.setattr(ledger.apsw, "Connection", lambda path: real(path, vfs="counting"))
    storage = prepare(tmp_path)
    for name in ("fsync", "fdatasync", "sync"):
        real_sync = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real_sync: (synced.append(args), real(*args)))
    synced: list[object] = []
    first, second = handed_out(volume(1)), handed_out(volume(2))
    for changes in (
        [Change(action="create", record=volume(4))],
        [Change(action="create", record=volume(number)) for number in range(5, 25)],
        [Change(action="rewrite", record=msgspec.structs.replace(first, publications=PUBLISHED))],
        [Change(action="remove", record=first), Change(action="remove", record=second)],
    ):
        CountingFile.syncs = 0
        commit(storage, *changes)
        assert (CountingFile.syncs, synced) == (1, []), changes[0].action
    # Before a volume is first shown: its data, its directory, and the one that all share.
    CountingFile.syncs = 0
    commit(storage, *(Change(action="hand_out", record=handed_out(volume(number))) for number in (4, 5)))
    assert (CountingFile.syncs, len(synced)) == (1, 5)
    storage.close()
    files.unregister()


# -- trouble ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = prepare(tmp_path)
    fill(storage.temp_data_path(handed_out(volume(6))))
    changes = [
        Change(action="create", record=volume(4, parameters={"x": "y" * 20_000})),
        Change(action="place", record=handed_out(volume(6))),
        Change(action="remove", record=handed_out(volume(1))),
    ]
    assert storage._ledger is not None
    database = storage._ledger._db
    database.pragma("max_page_count", database.pragma("page_count"))
    errors = storage.commit(changes)
    assert [error and error.errno for error in errors] == [errno.ENOSPC] * 3
    assert not storage.broken
    assert (storage.data_path(volume(1)) / "kept").read_text() == "precious"
    assert os.listdir(tmp_path / "temp") == []
    database.pragma("max_page_count", 1 << 30)
    commit(storage, changes[0], changes[2])
    storage.close()
    assert [one.id for one in ids(storage.open())] == ["id-2", "id-3", "id-4"]  # type: ignore[attr-defined]
    storage.close()


@pytest.mark.parametrize("failing", ["mkdir volumes/id-4", "mkdir volumes/id-4/data", "chmod volumes/id-4/data"])
def test_an_empty_volume_that_cannot_be_made_takes_its_record_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    storage = prepare(tmp_path)
    step, _, place = failing.partition(" ")
    with monkeypatch.context() as patched:
        patched.setattr(os, step, failing_for(place, getattr(os, step)))
        errors = storage.commit([Change(action="create", record=volume(number)) for number in (4, 5)])
    assert [error and error.errno for error in errors] == [errno.ENOSPC, None]
    assert sorted(os.listdir(tmp_path / "volumes")) == ["id-1", "id-2", "id-3", "id-5"]
    check_only(storage, tmp_path, ["id-1", "id-2", "id-3", "id-5"])


def test_data_that_cannot_get_into_its_place_takes_its_record_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = prepare(tmp_path)
    clones = [handed_out(volume(number)) for number in (4, 5)]
    for clone in clones:
        fill(storage.temp_data_path(clone))
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", failing_for("temp/id-4", os.rename))
        errors = storage.commit([Change(action="place", record=clone) for clone in clones])
    assert [error and error.errno for error in errors] == [errno.ENOSPC, None]
    assert os.listdir(tmp_path / "temp") == []
    check_only(storage, tmp_path, ["id-1", "id-2", "id-3", "id-5"])


def failing_for(place: str, real: Callable[..., None]) -> Callable[..., None]:
    """``real`` on a disk that has no room for what ends so."""

    def do(path: str, *args: object, **options: object) -> None:
        if path.endswith(place):
            raise OSError(errno.ENOSPC, "no room", path)
        real(path, *args, **options)

    return do


def check_only(storage: Storage, place: Path, expected: list[str]) -> None:
    """These volumes are there, and the driver makes others; the same after a start."""
    commit(storage, Change(action="create", record=volume(6)))
    storage.close()
    assert [one.id for one in ids(storage.open())] == [*expected, "id-6"]  # type: ignore[attr-defined]
    assert sorted(os.listdir(place / "volumes")) == [*expected, "id-6"]
    storage.close()


@pytest.mark.parametrize("is_written", [False, True])
def test_a_failing_disk_stops_all_writes_until_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    storage = prepare(tmp_path)
    fill(storage.temp_data_path(handed_out(volume(6))))
    real = Ledger.write

    def write(self: Ledger, puts: list[tuple[str, bytes]], takes: list[str]) -> None:
        if is_written:
            real(self, puts, takes)
        raise OSError(errno.EIO, "SQLite: disk I/O error", "records.db")

    changes = [
        Change(action="create", record=volume(4)),
        Change(action="place", record=handed_out(volume(6))),
        Change(action="remove", record=handed_out(volume(1))),
    ]
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "write", write)
        errors = storage.commit(changes)
    assert [error and error.errno for error in errors] == [errno.EIO] * 3
    assert "restart the driver" in storage.broken
    assert storage.commit([Change(action="create", record=volume(9))])[0] is not None
    storage.close()
    again = Storage(tmp_path)
    found = [one.id for one in ids(again.open())]  # type: ignore[attr-defined]
    assert found == (["id-2", "id-3", "id-4", "id-6"] if is_written else ["id-1", "id-2", "id-3"])
    if is_written:
        assert (again.data_path(volume(6)) / "kept").read_text() == "precious"
    else:
        assert (again.data_path(volume(1)) / "kept").read_text() == "precious"
    again.close()


def test_notes_of_removals_are_bounded(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.open()
    assert storage._ledger is not None
    most = 0
    for low in range(0, 2 * REMOVED_MAX, 128):
        records = [volume(number) for number in range(low, low + 128)]
        commit(storage, *(Change(action="create", record=record) for record in records))
        commit(storage, *(Change(action="remove", record=record) for record in records))
        most = max(most, len(storage._ledger.read_removed()))
    assert 128 <= most <= REMOVED_MAX
    storage.close()
    assert ids(storage.open()) == []
    assert storage._ledger is not None
    assert storage._ledger.read_removed() == []
    storage.close()


def test_an_id_that_was_removed_and_made_again_stays(tmp_path: Path) -> None:
    storage = prepare(tmp_path)
    commit(storage, Change(action="remove", record=handed_out(volume(1))))
    commit(storage, Change(action="create", record=volume(1)))
    commit(storage, Change(action="hand_out", record=handed_out(volume(1))))
    fill(storage.data_path(volume(1)))
    storage.close()
    assert ids(storage.open())[0] == handed_out(volume(1))
    assert (storage.data_path(volume(1)) / "kept").read_text() == "precious"
    storage.close()
