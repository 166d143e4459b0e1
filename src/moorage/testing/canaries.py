"""Canaries: marked secrets, and the search for them wherever they must not be.

A canary is a text that occurs nowhere else. All that one ``Canaries`` makes bear its mark, so that a search for the
mark finds each of them, also one that was cut; a secret that somebody else made is searched for by its value. The
search knows them as they are, escaped for JSON and for addresses, in hexadecimal digits, in base64 at any offset, and
inside what gzip, deflate, zstd and tar have packed.
Shapes: names to canaries; bytes, directories and processes in, findings out: a place and a canary's name.
"""

from __future__ import annotations

import base64
import io
import json
import secrets
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import msgspec
import zstandard

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_DEFLATE = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_AUTO_WBITS = 47
UNPACKED_BYTES_MAX = 256 << 20


class Finding(msgspec.Struct, frozen=True):
    """A canary was found: where, which, and in what form."""

    place: str
    name: str
    form: str


class Canaries:
    """Canaries of one test run."""

    def __init__(self) -> None:
        # Letters and digits alone: no escaping changes it.
        self.mark = f"canary{secrets.token_hex(5)}"
        self._mark_forms = list_forms(self.mark)
        self._made: dict[str, str] = {}
        self._made_forms: dict[str, dict[str, bytes]] = {}
        self._added: dict[str, dict[str, bytes]] = {}
        self.searched_bytes = 0

    def fork(self) -> Canaries:
        """The same canaries; what is added there is not searched for here."""
        other = Canaries()
        other.mark, other._mark_forms = self.mark, self._mark_forms
        other._made, other._made_forms = self._made, self._made_forms
        other._added = dict(self._added)
        return other

    @property
    def names(self) -> list[str]:
        """All canaries that are searched for."""
        return sorted({*self._made, *self._added})

    def make(self, name: str) -> str:
        """A new canary, or the one of that name. It has characters that JSON and addresses escape."""
        return self._keep(name, f'{self.mark}/{secrets.token_hex(4)}"ü=\\&z{secrets.token_hex(4)}')

    def make_plain(self, name: str) -> str:
        """A canary of letters and digits only, for places that take no others."""
        return self._keep(name, f"{self.mark}{secrets.token_hex(8)}")

    def _keep(self, name: str, value: str) -> str:
        if name not in self._made:
            self._made[name] = value
            self._made_forms[name] = list_forms(value)
        return self._made[name]

    def add(self, name: str, value: str) -> None:
        """Search for this secret too, which somebody else made."""
        self._added[name] = list_forms(value)

    def add_bytes(self, name: str, value: bytes) -> None:
        """The same for one that is no text."""
        self._added[name] = {"bytes": value, "hex": value.hex().encode()} | _list_base64(value)

    def names_in(self, data: bytes) -> set[str]:
        """Which canaries of our making are in some bytes as they are or escaped: to see that they went in."""
        if self.mark.encode() not in data:
            return set()
        return {name for name, forms in self._made_forms.items() if any(text in data for text in forms.values())}

    def search(self, data: bytes, place: str) -> list[Finding]:
        """The canaries in some bytes, also in what they are compressed of."""
        self.searched_bytes += len(data)
        found = [Finding(place, n, f) for n, forms in self._added.items() for f, text in forms.items() if text in data]
        for form, text in self._mark_forms.items():
            if text in data:
                named = [Finding(place, n, f) for n, fs in self._made_forms.items() for f, t in fs.items() if t in data]
                found += named or [Finding(place, "a part of some canary", form)]
                break
        for inner, more in _unpack(data):
            found += self.search(more, f"{place}!{inner}")
        return found

    def search_tree(
        self, directory: Path, *, skip: Collection[Path] = (), is_wanted: Callable[[Path], bool] = lambda path: True
    ) -> list[Finding]:
        """The canaries in all files below a directory, and in their names."""
        found: list[Finding] = []
        for path in sorted(directory.rglob("*")):
            if path in skip or any(parent in skip for parent in path.parents) or not is_wanted(path):
                continue
            found += self.search(str(path).encode(), f"the name of {path}")
            if path.is_file() and not path.is_symlink():
                with suppress(OSError):
                    found += self.search(path.read_bytes(), str(path))
        return found

    def search_processes(self, pids: Iterable[int]) -> list[Finding]:
        """The canaries in the arguments of processes."""
        return [f for pid in pids for f in self._search_process(pid, "cmdline", "arguments")]

    def search_environments(self, pids: Iterable[int]) -> list[Finding]:
        """The canaries in the environments of processes."""
        return [f for pid in pids for f in self._search_process(pid, "environ", "environment")]

    def _search_process(self, pid: int, file: str, what: str) -> list[Finding]:
        with suppress(OSError):
            return self.search(Path(f"/proc/{pid}/{file}").read_bytes(), f"{what} of process {pid}")
        return []


def list_forms(value: str) -> dict[str, bytes]:
    """How programs spell a text."""
    data = value.encode()
    forms = {
        "plain": data,
        "JSON": json.dumps(value)[1:-1].encode(),
        "JSON of JSON": json.dumps(json.dumps(value)[1:-1])[1:-1].encode(),
        "UTF-8 JSON": json.dumps(value, ensure_ascii=False)[1:-1].encode(),
        "address": quote(value, safe="").encode(),
        "address in small letters": quote(value, safe="").lower().encode(),
        "hex": data.hex().encode(),
        "HEX": data.hex().upper().encode(),
    }
    return _keep_unlike(forms | _list_base64(data))


def _list_base64(data: bytes) -> dict[str, bytes]:
    forms: dict[str, bytes] = {}
    for offset in range(3):
        # What stands before shifts base64 by a part of a character: only whole ones in the middle are alike.
        for name, encode in (("base64", base64.b64encode), ("base64 for addresses", base64.urlsafe_b64encode)):
            text = encode(b"\0" * offset + data)
            forms[f"{name} at {offset}"] = text[4 if offset else 0 : len(text) // 4 * 4 - 4]
    return _keep_unlike(forms)


def _keep_unlike(forms: dict[str, bytes]) -> dict[str, bytes]:
    unlike: dict[bytes, str] = {}
    for form, text in forms.items():
        unlike.setdefault(text, form)
    return {form: text for text, form in unlike.items()}


def unpack_bytes(data: bytes, coding: str) -> bytes:
    """What was packed in gzip, deflate or zstd; of a stream that was cut, what can be read. Raises ValueError."""
    try:
        if coding == "zstd":
            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
        return zlib.decompressobj(_AUTO_WBITS).decompress(data, UNPACKED_BYTES_MAX)
    except (zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"not {coding}: {error}") from error


def _unpack(data: bytes) -> Iterator[tuple[str, bytes]]:
    if data.startswith(_GZIP):
        coding = "gzip"
    elif data.startswith(_ZSTD):
        coding = "zstd"
    elif data.startswith(_DEFLATE):
        coding = "deflate"
    else:
        return
    with suppress(ValueError):
        plain = unpack_bytes(data, coding)
        yield coding, plain
        with suppress(tarfile.TarError), tarfile.open(fileobj=io.BytesIO(plain)) as archive:
            for member in archive.getmembers():
                file = archive.extractfile(member)
                if file is not None:
                    yield member.name, file.read()
