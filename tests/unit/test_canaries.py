"""The search for canaries finds them in every form that it says it does, and nothing else."""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
import tarfile
import zlib
from pathlib import Path
from urllib.parse import quote

import zstandard

from moorage.testing.canaries import Canaries


def test_every_form_is_found(tmp_path: Path) -> None:
    canaries = Canaries()
    value = canaries.make("one")
    canaries.make("other")
    data = value.encode()
    texts = [data, json.dumps(value).encode(), json.dumps({"a": json.dumps(value)}).encode(), quote(value).encode()]
    texts += [data.hex().encode(), data.hex().upper().encode(), gzip.compress(b"x" + data)]
    texts += [zlib.compress(b"x" + data), zstandard.ZstdCompressor().compress(b"x" + data)]
    texts += [base64.b64encode(b"abcdefg"[:n] + data + b"tail"[: n % 3]) for n in range(7)]
    texts[3] = quote(value, safe="").encode()
    for text in texts:
        is_packed = text.startswith((b"\x1f", b"\x78", b"\x28"))
        found = canaries.search(text if is_packed else b"before " + text + b" after", "here")
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


def test_arguments_of_processes_are_searched() -> None:
    canaries = Canaries()
    words = Path(f"/proc/{os.getpid()}/cmdline").read_bytes().split(b"\0")
    canaries.add("self", words[0].decode())
    assert canaries.search_processes([os.getpid()])


def _read_environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def test_environments_of_processes_are_searched() -> None:
    canaries = Canaries()
    with subprocess.Popen(["sleep", "60"], env={"X": f"a{canaries.make_plain('variable')}b"}) as process:
        # The name comes first, and the environment a moment later.
        while Path(f"/proc/{process.pid}/comm").read_bytes() != b"sleep\n" or not _read_environment(process.pid):
            pass
        found = canaries.search_environments([process.pid])
        process.kill()
    assert [finding.name for finding in found] == ["variable"]


def test_a_canary_that_was_cut_is_found_and_strangers_secrets_are() -> None:
    canaries = Canaries()
    value = canaries.make("one")
    assert canaries.search(value[:20].encode(), "here")
    assert canaries.search(gzip.compress(value.encode() + os.urandom(9000))[:4000], "a stream that was cut")
    canaries.add("token", "5e2f3a52-3a86-4c53-9a8e-0d6e3a9b1c77")
    canaries.add_bytes("key", bytes(range(32)))
    assert [f.name for f in canaries.search(b"x 5e2f3a52-3a86-4c53-9a8e-0d6e3a9b1c77", "here")] == ["token"]
    assert [f.name for f in canaries.search(b"ab" + base64.b64encode(b"z" + bytes(range(32))), "here")] == ["key"]
    assert canaries.names_in(json.dumps({"a": value}).encode()) == {"one"}
