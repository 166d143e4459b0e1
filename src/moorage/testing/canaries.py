"""Canaries: marked secrets, and the search for them wherever they must not be.

A canary is a text that occurs nowhere else. The search knows it as it is, escaped for JSON and for addresses, in
base64 at any offset, in hexadecimal digits, and inside gzip and tar files.
Shapes: names to canaries; bytes, directories and processes in, findings out: a place and a canary's name.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import secrets
import tarfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import msgspec

_GZIP = b"\x1f\x8b"


class Finding(msgspec.Struct, frozen=True):
    """A canary was found: where, which, and in what form."""

    place: str
    name: str
    form: str


class Canaries:
    """Canaries of one test run."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._forms: dict[str, dict[str, bytes]] = {}
        self.searched_bytes = 0

    def make(self, name: str) -> str:
        """A new canary, or the one of that name. It has characters that JSON and addresses escape."""
        if name not in self._values:
            value = f'canary/{secrets.token_hex(8)}"ü=\\&z{secrets.token_hex(4)}'
            self._values[name] = value
            self._forms[name] = _list_forms(value)
        return self._values[name]

    def make_plain(self, name: str) -> str:
        """A canary of letters and digits only, for places that take no others."""
        if name not in self._values:
            self._values[name] = f"canary{secrets.token_hex(12)}"
            self._forms[name] = _list_forms(self._values[name])
        return self._values[name]

    def add(self, name: str, value: str) -> None:
        """Search for this secret too, which somebody else made."""
        self._values[name] = value
        self._forms[name] = _list_forms(value)

    def search(self, data: bytes, place: str) -> list[Finding]:
        """The canaries in some bytes, also in what they are compressed of."""
        self.searched_bytes += len(data)
        found = [
            Finding(place, name, form)
            for name, forms in self._forms.items()
            for form, text in forms.items()
            if text in data
        ]
        for inner, more in _unpack(data):
            found += self.search(more, f"{place}!{inner}")
        return found

    def search_tree(self, directory: Path, *, skip: Collection[Path] = ()) -> list[Finding]:
        """The canaries in all files below a directory, and in their names."""
        found: list[Finding] = []
        for path in sorted(directory.rglob("*")):
            if path in skip or any(parent in skip for parent in path.parents):
                continue
            found += self.search(str(path).encode(), f"the name of {path}")
            if path.is_file() and not path.is_symlink():
                with suppress(FileNotFoundError):
                    found += self.search(path.read_bytes(), str(path))
        return found

    def search_processes(self, pids: Iterable[int]) -> list[Finding]:
        """The canaries in the arguments of processes."""
        found: list[Finding] = []
        for pid in pids:
            with suppress(OSError):
                found += self.search(Path(f"/proc/{pid}/cmdline").read_bytes(), f"arguments of process {pid}")
        return found


def _list_forms(value: str) -> dict[str, bytes]:
    data = value.encode()
    forms = {
        "plain": data,
        "JSON": json.dumps(value)[1:-1].encode(),
        "JSON of JSON": json.dumps(json.dumps(value)[1:-1])[1:-1].encode(),
        "UTF-8 JSON": json.dumps(value, ensure_ascii=False)[1:-1].encode(),
        "address": quote(value, safe="").encode(),
        "hex": data.hex().encode(),
    }
    for offset in range(3):
        # What stands before shifts base64 by a part of a character: only whole ones in the middle are alike.
        text = base64.b64encode(b"\0" * offset + data)
        forms[f"base64 at {offset}"] = text[4 if offset else 0 : len(text) // 4 * 4 - 4]
    return forms


def _unpack(data: bytes) -> Iterator[tuple[str, bytes]]:
    if not data.startswith(_GZIP):
        return
    with suppress(OSError, EOFError, zlib.error):
        plain = gzip.decompress(data)
        yield "gzip", plain
        with suppress(tarfile.TarError), tarfile.open(fileobj=io.BytesIO(plain)) as archive:
            for member in archive.getmembers():
                file = archive.extractfile(member)
                if file is not None:
                    yield member.name, file.read()
