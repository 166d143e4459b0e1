"""The journal: one small file for every use and every staging, beside the mounts.

Every function blocks: call it in a worker thread. A file appears whole or not at all, also after a power cut.
Never: decides anything; keeps a secret.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from moorage.agent.spares import Spares
from moorage.rules.mount_records import Layout, Staging, Use
from moorage.syncing import sync_directory

log = structlog.get_logger()
_Entry = TypeVar("_Entry", Use, Staging)
STAGING_SUFFIX = ".stage.json"


class Journal:
    """Reads and writes the entries below one state directory."""

    def __init__(self, layout: Layout) -> None:
        self.spares = Spares(f"{layout.state_dir}/t")
        self._layout = layout

    def load(self) -> tuple[list[Use], list[Staging]]:
        """All entries. One that cannot be read is put aside under another name and told in the log."""
        uses: list[Use] = []
        stagings: list[Staging] = []
        directory = Path(self._layout.state_dir, "u")
        for name in ("s", "p", "u"):
            Path(self._layout.state_dir, name).mkdir(mode=0o755 if name == "p" else 0o700, parents=True, exist_ok=True)
        self.spares.clear()
        for path in sorted(directory.iterdir()):
            if path.name.endswith(".tmp"):
                path.unlink()
            elif path.name.endswith(STAGING_SUFFIX):
                stagings += _read(path, Staging)
            elif path.suffix == ".json":
                uses += _read(path, Use)
        return uses, stagings

    def write(self, *entries: Use | Staging) -> None:
        """Put entries on disk for good."""
        for entry in entries:
            self.write_soon(entry)
        self.spares.sync(os.path.dirname(self._path_of(entries[0])))

    def write_soon(self, entry: Use | Staging) -> None:
        """Put on disk an entry that is there already, and may be the old one after a power cut. That is what is true of
        all that is mounted or done to mounts, which a power cut ends."""
        self.spares.put(self._path_of(entry), msgspec.json.encode(entry))

    def remove(self, entry: Use | Staging) -> None:
        """Take an entry away; one that is not there is fine."""
        self.spares.remove(self._path_of(entry))

    def _path_of(self, entry: Use | Staging) -> str:
        if isinstance(entry, Use):
            return self._layout.use_file(entry.claim_id)
        return self._layout.staging_file(entry.disk)


def _read(path: Path, kind: type[_Entry]) -> list[_Entry]:
    try:
        return [msgspec.json.decode(path.read_bytes(), type=kind)]
    except msgspec.DecodeError as e:
        aside = path.with_suffix(".unreadable")
        os.replace(path, aside)
        log.error("journal.unreadable", file=str(aside), error=str(e))
        return []


def write_whole(path: str, content: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new one, and the new one once this has returned;
    readable by its owner only."""
    temporary = f"{path}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(descriptor, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    sync_directory(os.path.dirname(path))
