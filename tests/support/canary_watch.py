"""The search of everything that a fleet said and left behind for every secret that was in it, and the count of it.

A fleet's own ``search`` goes over recordings of its servers (each answer unpacked, each header), its processes'
arguments and environments, and every file below its place: logs, database with its write-ahead log and deleted pages,
rows of the database, audit, agents' journals, bundles. What it knows as secrets are the marks of ``canary_marks`` and
those that the programs made, which it learns from where they belong.
"""

from __future__ import annotations

import base64
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from canary_marks import IN_ENVIRONMENTS, MARKS, NODE_SECRET, PUBLISH_CONTEXT, SEALING_KEY, SHOWN, TLS_KEY
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from recording import Answer, read_answers, read_connections

from moorage.state.keyring import parse_keys
from moorage.testing.canaries import Canaries, Finding

FILE_BYTES_MAX = 64 << 20
RECORDING = ".answers"
# Where a secret lies on purpose; and what tests write for the programs to read.
_KEEPERS = ("secret.key", "node-secret", "join-token", "backup.key")
_INPUTS = (".toml", ".hcl", "-key.pem", RECORDING)
_INPUT_PLACES = ("inputs",)
# Data of volumes are not ours; what drivers note about them beside them is.
_DATA_PLACES = ("nas", "mnt", "volumes")


class Watch:
    """The search of one fleet. ``counts`` is what was searched; ``went_in`` has the marks that requests bore."""

    def __init__(self, place: Path, totals: Totals | None = None) -> None:
        self.place = place
        self._totals = TOTALS if totals is None else totals
        self.canaries: Canaries = MARKS.fork()
        self.counts: Counter[str] = Counter()
        self.went_in: set[str] = set()
        self.learnt: set[str] = set()
        self.findings: list[Finding] = []

    # -- while it runs -----------------------------------------------------------------------------------------------

    def search_running(self, pids: Iterable[int]) -> None:
        """Arguments, environments for all but what belongs into them, and the databases with what is yet to be moved
        into them."""
        self._learn()
        pids = list(pids)
        for path in sorted(self.place.rglob("*.db*")):
            with suppress(OSError):
                self.counts["write-ahead logs"] += path.name.endswith("-wal")
                self.findings += self.canaries.search(path.read_bytes(), f"{path} in use")
        self.counts["processes"] += len(pids)
        self.findings += self.canaries.search_processes(pids)
        self.findings += [f for f in self.canaries.search_environments(pids) if f.name not in IN_ENVIRONMENTS]

    # -- at the end --------------------------------------------------------------------------------------------------

    def search(self) -> None:
        """Everything that is left."""
        self._learn()
        for file in self._recordings():
            for connection in read_connections(file):
                self.went_in |= self.canaries.names_in(b"".join(connection.came))
                for answer in read_answers(connection):
                    self.search_answer(answer)
        self._search_files()
        self._totals.add(self)

    def search_answer(self, answer: Answer) -> None:
        """One answer, but for what it shows on purpose."""
        self.counts["answers"] += 1
        self.counts["answer bytes"] += len(answer.body) + len(answer.headers)
        self.counts["answers unread"] += answer.status == 0
        self.counts["event streams"] += answer.path.startswith("/v1/event/stream") and answer.status == 200
        self.counts["metrics pages"] += answer.path.startswith("/v1/metrics") and answer.status == 200
        place = f"answer to {answer.method} {answer.path[:200]}"
        body = answer.body
        for shown in SHOWN:
            if shown.fits(answer.method, answer.path) and answer.status == 200:
                body = _without(body, shown.members)
                self.counts["answers with exceptions"] += 1
        self.findings += self.canaries.search(body, place)
        self.findings += self.canaries.search(answer.headers, f"headers of {place}")

    def _recordings(self) -> list[Path]:
        return sorted(self.place.rglob(f"*{RECORDING}"))

    def _search_files(self) -> None:
        for path in sorted(self.place.rglob("*")):
            if self._is_wanted(path):
                data = path.read_bytes()
                self.counts["files"] += 1
                self.counts["file bytes"] += len(data)
                self.counts["databases"] += path.suffix == ".db"
                self.counts["write-ahead logs"] += path.name.endswith("-wal")
                self.counts["audit logs"] += path.name.startswith("audit.log")
                self.counts["logs"] += path.suffix in (".log", ".out")
                self.counts["bundles"] += path.name.endswith(".tar.gz")
                self.counts["journals"] += path.parent.name == "u" and path.suffix == ".json"
                found = self.canaries.search(data, str(path)) + self.canaries.search(
                    str(path).encode(), "a file's name"
                )
                if path.suffix == ".db":
                    found += self._search_rows(path)
                # What drivers were called with is the judges' own testimony.
                is_testimony = path.suffix == ".calls" or path.name == "calls.jsonl"
                self.findings += [f for f in found if not (is_testimony and f.name == PUBLISH_CONTEXT)]

    def _is_wanted(self, path: Path) -> bool:
        with suppress(OSError):
            if path.is_symlink() or not path.is_file() or path.stat().st_size > FILE_BYTES_MAX:
                return False
            inner = path.relative_to(self.place).parts[:-1]
            if any(part.startswith(_DATA_PLACES) for part in inner) and path.suffix != ".json":
                return False
            is_input = path.name in _KEEPERS or path.name.endswith(_INPUTS) or any(p in _INPUT_PLACES for p in inner)
            return not is_input
        return False

    def _search_rows(self, path: Path) -> list[Finding]:
        """Values of a database, whole: in the file long ones are cut at the ends of pages."""
        found: list[Finding] = []
        with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for name in names:
                for row in database.execute(f'SELECT * FROM "{name}"'):
                    self.counts["rows"] += 1
                    for value in row:
                        data = value.encode() if isinstance(value, str) else value
                        if isinstance(data, bytes):
                            found += self.canaries.search(data, f"a row of {name} in {path}")
        return found

    # -- secrets that the programs made ------------------------------------------------------------------------------

    def _learn(self) -> None:
        for path in self.place.rglob("node-secret"):
            self._take(NODE_SECRET, str(path), path.read_text().strip())
        for path in self.place.rglob("secret.key"):
            for key in parse_keys(path.read_text(), str(path)):
                self.canaries.add_bytes(f"{SEALING_KEY} {key.id}", key.secret)
                self.learnt.add(SEALING_KEY)
        for path in self.place.rglob("*-key.pem"):
            with suppress(ValueError):
                self._take_key(path)
        for file in self._recordings():
            for connection in read_connections(file):
                if any(shown.kind and shown.fits(*asked) for shown in SHOWN for asked in connection.asked):
                    self._learn_from(read_answers(connection))

    def _learn_from(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            for shown in SHOWN:
                if shown.kind and shown.fits(answer.method, answer.path) and answer.status == 200:
                    for name, value in _list_members(_parse(answer.body)):
                        if name in shown.members and value:
                            self._take(shown.kind, value[:8], value)

    def _take(self, kind: str, which: str, value: str) -> None:
        self.canaries.add(f"{kind} ({which})", value)
        self.learnt.add(kind)

    def _take_key(self, path: Path) -> None:
        text = path.read_bytes()
        key: Any = load_pem_private_key(text, None)
        self.canaries.add_bytes(f"{TLS_KEY} {path.name}", key.private_numbers().private_value.to_bytes(32, "big"))
        lines = [line for line in text.splitlines() if line and b"-" not in line]
        self.canaries.add(f"{TLS_KEY} {path.name}, as text", lines[len(lines) // 2].decode())
        self.canaries.add_bytes(f"{TLS_KEY} {path.name}, in DER", base64.b64decode(b"".join(lines)))
        self.learnt.add(TLS_KEY)

    # -- the verdict -------------------------------------------------------------------------------------------------

    def list_leaks(self) -> list[str]:
        """Each finding once, in words."""
        return sorted({f"{f.place}: {f.name} ({f.form})" for f in self.findings})


class Totals:
    """What all fleets of this process searched."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.went_in: Counter[str] = Counter()

    def add(self, watch: Watch) -> None:
        """One fleet more."""
        self.counts += watch.counts
        self.counts["fleets"] += 1
        self.counts["searched bytes"] += watch.canaries.searched_bytes
        self.went_in.update(watch.went_in | watch.learnt)

    def take(self, other: dict[str, dict[str, int]]) -> None:
        """What another process of the same run has counted."""
        self.counts.update(other["counts"])
        self.went_in.update(other["went_in"])

    def give(self) -> dict[str, dict[str, int]]:
        """For ``take``."""
        return {"counts": dict(self.counts), "went_in": dict(self.went_in)}

    def describe(self) -> list[str]:
        """For people: what was searched, and in how many fleets each kind of secret was."""
        counts = [
            f"{count} {name}" for name, count in sorted(self.counts.items()) if name not in ("fleets", "searched bytes")
        ]
        kinds = [f"{kind} in {count}" for kind, count in sorted(self.went_in.items())]
        size = f"{self.counts['searched bytes'] / 1e6:.0f} MB"
        return [
            f"{self.counts['fleets']} fleets, {size}: " + ", ".join(counts),
            "secrets by fleets: " + ", ".join(kinds),
        ]

    def find_blind_spots(self, kinds: Iterable[str], places: Iterable[str]) -> list[str]:
        """Kinds of secrets that went in nowhere, and places that no search has seen: the search proves nothing then."""
        lacking = [f"no fleet was given a {kind}" for kind in kinds if not self.went_in[kind]]
        return lacking + [f"no {place} searched" for place in places if not self.counts[place]]


TOTALS = Totals()
PLACES = (
    "answers",
    "answers with exceptions",
    "event streams",
    "metrics pages",
    "processes",
    "databases",
    "write-ahead logs",
    "rows",
    "audit logs",
    "logs",
    "bundles",
    "guarded fleets",
)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _without(body: bytes, members: frozenset[str]) -> bytes:
    """JSON without some members, wherever they are; what is no whole JSON stays as it is."""
    found = _parse(body)
    return body if found is None else json.dumps(_strip(found, members), ensure_ascii=False).encode()


def _strip(value: Any, members: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {k: _strip(v, members) for k, v in value.items() if k not in members}
    return [_strip(v, members) for v in value] if isinstance(value, list) else value


def _list_members(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, str):
                yield name, inner
            yield from _list_members(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _list_members(inner)
