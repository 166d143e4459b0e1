"""The search for canaries finds them in every form that it says it does, and nothing else."""

from __future__ import annotations

import base64
import gzip
import json
import os
import tarfile
from pathlib import Path
from urllib.parse import quote

import pytest

from moorage.testing.canaries import Canaries


def test_every_form_is_found(tmp_path: Path) -> None:
    canaries = Canaries()
    value = canaries.make("one")
    canaries.make("other")
    data = value.encode()
    texts = [data, json.dumps(value).encode(), json.dumps({"a": json.dumps(value)}).encode(), quote(value).encode()]
    texts += [data.hex().encode(), gzip.compress(b"x" + data)]
    texts += [base64.b64encode(b"abcdefg"[:n] + data + b"tail"[: n % 3]) for n in range(7)]
    texts[3] = quote(value, safe="").encode()
    for text in texts:
        found = canaries.search(b"before " + text + b" after" if not text.startswith(b"\x1f") else text, "here")
        assert {finding.name for finding in found} == {"one"}, text
    assert canaries.search(b"canary " * 100, "here") == []


def test_files_their_names_and_archives_are_searched(tmp_path: Path) -> None:
    canaries = Canaries()
    value = canaries.make_plain("p")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_text(f"x{value}y")
    (tmp_path / f"named-{value}").touch()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "d" / "file", "inner")
    skipped = tmp_path / "skipped"
    skipped.mkdir()
    (skipped / "file").write_text(value)
    places = {finding.place for finding in canaries.search_tree(tmp_path, skip=[skipped])}
    assert any("inner" in place for place in places)
    assert any("the name of" in place for place in places)
    assert str(tmp_path / "d" / "file") in places
    assert not any("skipped" in place for place in places)


def test_arguments_of_processes_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    canaries = Canaries()
    words = Path(f"/proc/{os.getpid()}/cmdline").read_bytes().split(b"\0")
    canaries._values["self"] = words[0].decode()
    canaries._forms["self"] = {"plain": words[0]}
    assert canaries.search_processes([os.getpid()])
