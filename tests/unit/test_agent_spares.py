"""The journal's spare files: no write makes or deletes one, and nothing that a power cut brings back is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from moorage.agent import spares as module
from moorage.agent.spares import SPARES_MAX, Spares


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "u").mkdir()
    return tmp_path


def make(place: Path) -> Spares:
    spares = Spares(str(place / "t"))
    spares.clear()
    return spares


def read(path: Path) -> object:
    return json.loads(path.read_text())


def put(spares: Spares, path: Path, value: object) -> None:
    spares.put(str(path), json.dumps(value).encode())


def inodes(place: Path) -> set[int]:
    return {path.stat().st_ino for path in (*(place / "u").iterdir(), *(place / "t").iterdir())}


def test_writes_in_a_row_take_files_that_are_there(place: Path) -> None:
    spares, one = make(place), place / "u" / "one"
    for number in range(4):
        put(spares, one, number)
        spares.sync(str(place / "u"))
    made, known = spares.made, inodes(place)
    for number in range(50):
        put(spares, one, {"number": number})
        spares.sync(str(place / "u"))
        assert read(one) == {"number": number}
        spares.remove(str(one))
        assert not one.exists()
    assert (spares.made, inodes(place)) == (made, known)


def test_what_was_put_out_of_its_place_is_not_written_to_before_that_is_on_disk(place: Path) -> None:
    """A power cut may bring back the old name: then the old content must be behind it."""
    spares, one, two = make(place), place / "u" / "one", place / "u" / "two"
    put(spares, one, "old")
    old = one.stat().st_ino
    put(spares, one, "new")
    for number in range(5):
        put(spares, two, number)
    behind = [path for path in (place / "t").iterdir() if path.stat().st_ino == old]
    assert [read(path) for path in behind] == ["old"]
    spares.remove(str(two))
    put(spares, place / "u" / "three", "three")
    assert [read(path) for path in behind] == ["old"]
    spares.sync(str(place / "u"))
    for number in range(8):
        put(spares, place / "u" / f"more{number}", number)
    assert old in {path.stat().st_ino for path in (place / "u").iterdir()}


def test_a_long_content_and_then_a_short_one(place: Path) -> None:
    spares, one = make(place), place / "u" / "one"
    for value in ("x" * 5000, "short", "y" * 3000, "", "z" * 9000, "end"):
        if len(value) == 3000:
            spares._sizes.clear()  # as in a new process
        put(spares, one, value)
        spares.sync(str(place / "u"))
        assert read(one) == value
        assert one.stat().st_mode & 0o777 == 0o600


def test_without_exchange_files_are_replaced(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_exchange", lambda one, other: False)
    spares, one = make(place), place / "u" / "one"
    for number in range(5):
        put(spares, one, number)
        assert read(one) == number
    assert list((place / "t").iterdir()) == []


def test_spares_are_few_and_those_of_an_earlier_process_go(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two for each of 500 uses: so many are begun anew without a file that has to be made.
    assert SPARES_MAX >= 1000
    monkeypatch.setattr(module, "SPARES_MAX", 20)
    spares = make(place)
    for number in range(30):
        put(spares, place / "u" / str(number), number)
    for number in range(30):
        spares.remove(str(place / "u" / str(number)))
        spares.remove(str(place / "u" / str(number)))
    assert len(os.listdir(place / "t")) == 20
    make(place)
    assert os.listdir(place / "t") == []


def test_what_was_written_by_half_is_not_put_in_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spares, one = make(place), place / "u" / "one"
    put(spares, one, "old")
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:5]))
    with pytest.raises(OSError, match="No space left"):
        put(spares, one, "new" * 9)
    monkeypatch.undo()
    assert read(one) == "old"
    put(spares, one, "newer")
    assert read(one) == "newer"
