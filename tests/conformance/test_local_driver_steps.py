"""The embedded driver's directory after a kill between any two steps: all of a group of changes is there, or none."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from local_storage_kit import PUBLISHED, fill, handed_out, ids, prepare, snapshot, volume

from moorage.csi.local import layout
from moorage.csi.local import storage as storage_module
from moorage.csi.local.ledger import Ledger
from moorage.csi.local.records import SnapshotRecord, VolumeRecord
from moorage.csi.local.storage import Change, Storage


class KilledError(BaseException):
    """The process is gone."""


@contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[list[str]]:
    """A block that ends before its step of this number, counted from 0: a change of the directory or of the ledger, or
    a sync. The steps that were made are in the list."""
    made: list[str] = []
    numbers = itertools.count()

    def count(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def do(*args: object, **options: object) -> object:
            if next(numbers) >= step:
                raise KilledError
            made.append(name)
            return real(*args, **options)

        return do

    with monkeypatch.context() as patched:
        for name in ("mkdir", "rename", "chmod", "ftruncate", "truncate", "rmdir", "unlink", "fsync"):
            patched.setattr(os, name, count(name, getattr(os, name)))
        for name in ("write", "forget_removed"):
            patched.setattr(Ledger, name, count(name, getattr(Ledger, name)))
        for module in (layout, storage_module):
            patched.setattr(module, "sync_directory", count("sync", module.sync_directory))
        try:
            yield made
        except KilledError:
            made.append("killed")


def test_a_kill_between_any_two_steps_leaves_all_changes_of_a_group_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = msgspec.structs.replace(handed_out(volume(1)), publications=PUBLISHED)
    before = [handed_out(volume(1)), handed_out(volume(2)), volume(3)]
    block, clone = volume(5, is_block=True), handed_out(volume(6))
    after = [grown, handed_out(volume(3)), volume(4), block, clone, snapshot(7)]
    changes = [
        Change(action="create", record=volume(4)),
        Change(action="rewrite", record=grown),
        Change(action="place", record=clone),
        Change(action="remove", record=handed_out(volume(2))),
        Change(action="create", record=block),
        Change(action="hand_out", record=handed_out(volume(3))),
        Change(action="place", record=snapshot(7)),
    ]
    seen: list[list[object]] = []
    for step in itertools.count():
        place = tmp_path / str(step)
        storage = prepare(place)
        for record in (clone, snapshot(7)):
            fill(storage.temp_data_path(record))
        with killed(monkeypatch, step) as made:
            storage.commit(changes)
        storage.close()
        found = ids(storage.open())
        assert found in (before, after), made
        assert found == after or "killed" in made
        check_directory(storage, place, found)
        # What a start mends is mended.
        storage.close()
        assert ids(storage.open()) == found
        storage.close()
        seen.append(found)
        if "killed" not in made:
            break
    assert before in seen[1:], "nothing was killed before it was written"
    assert after in seen[:-1], "nothing was killed after it was written"


def check_directory(storage: Storage, place: Path, records: list[object]) -> None:
    """Whole data of each record, and nothing else after a sweep."""
    storage.sweep()
    assert os.listdir(place / "temp") == os.listdir(place / "trash") == []
    on_disk = [*os.listdir(place / "volumes"), *os.listdir(place / "snapshots")]
    assert sorted(on_disk) == sorted(record.id for record in records)  # type: ignore[attr-defined]
    for record in records:
        assert isinstance(record, VolumeRecord | SnapshotRecord)
        data = storage.data_path(record)
        if record.is_block:
            assert data.stat().st_size == 4096
        elif record.id in ("id-1", "id-2", "id-6", "id-7"):
            assert (data / "kept").read_text() == "precious"
        else:
            assert os.listdir(data) == []
            assert data.stat().st_mode & 0o7777 == 0o755


def test_a_kill_at_a_start_leaves_what_the_next_one_mends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in itertools.count():
        place = tmp_path / str(step)
        storage = prepare(place)
        fill(storage.temp_data_path(handed_out(volume(6))))
        # Killed after the ledger, so that much is to be done.
        changes = [
            Change(action="create", record=volume(4, parameters={"mode": "0711"})),
            Change(action="place", record=handed_out(volume(6))),
            Change(action="remove", record=handed_out(volume(2))),
        ]
        with monkeypatch.context() as patched, pytest.raises(KilledError):
            patched.setattr(Storage, "_finish", be_killed)
            storage.commit(changes)
        storage.close()
        shutil.rmtree(place / "volumes" / "id-3")
        (place / "temp" / "id-9").mkdir()
        with killed(monkeypatch, step) as made:
            storage.open()
        storage.close()
        found = ids(storage.open())
        assert [one.id for one in found] == ["id-1", "id-3", "id-4", "id-6"], made  # type: ignore[attr-defined]
        assert storage.data_path(volume(4)).stat().st_mode & 0o7777 == 0o711
        assert (storage.data_path(volume(6)) / "kept").read_text() == "precious"
        storage.sweep()
        assert sorted(os.listdir(place / "volumes")) == ["id-1", "id-3", "id-4", "id-6"]
        storage.close()
        if "killed" not in made:
            assert len(made) > 8
            return


def be_killed(*args: object) -> None:
    raise KilledError
