"""What the processes of the shared driver agree on: one JSON file, changed under a lock. Everything here blocks.

Shapes: DIR/state.json has the volumes by ID; DIR/volumes/ID/data is a volume's data; DIR/nodes/ID belongs to one node.
Raises OSError as the kernel said; ValueError when the file is not ours.
Never:  a change that only half took place: the file is replaced as a whole, after it was brought to the disk.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from moorage.csi.local.records import VolumeRecord
from moorage.csi.local.storage import Storage
from moorage.syncing import sync_directory

# What every node is told beside its name when a volume is attached to it, as a JSON object; not there: nothing.
CONTEXT_FILE = "publish-context"


class _Content(msgspec.Struct, kw_only=True):
    serial: int = 0
    volumes: dict[str, VolumeRecord] = {}
    # IDs whose data is still to be removed.
    doomed: list[str] = []


class SharedStorage(Storage):
    """The directory that all nodes reach, as one node's process sees it."""

    def __init__(self, directory: Path, *, node_id: str) -> None:
        super().__init__(directory)
        self.nodes = os.path.join(directory, "nodes")
        self.node = os.path.join(self.nodes, node_id)
        self._file = os.path.join(directory, "state.json")

    def prepare(self, *, is_node: bool) -> None:
        """Make the directories; a node is known to all from then on."""
        os.makedirs(os.path.join(self.directory, "volumes"), 0o755, exist_ok=True)
        os.makedirs(self.node if is_node else self.nodes, 0o755, exist_ok=True)

    def knows_node(self, node_id: str) -> bool:
        """Whether a driver has served on this node."""
        return "/" not in node_id and os.path.isdir(os.path.join(self.nodes, node_id))

    def find(self, volume_id: str) -> VolumeRecord | None:
        """The volume as it is now, or None."""
        return self._read().volumes.get(volume_id)

    def volumes(self) -> list[VolumeRecord]:
        """All volumes, oldest first."""
        return sorted(self._read().volumes.values(), key=lambda volume: volume.serial)

    def read_context(self) -> dict[str, str]:
        """What CONTEXT_FILE says."""
        try:
            with open(os.path.join(self.directory, CONTEXT_FILE), "rb") as file:
                return msgspec.json.decode(file.read(), type=dict[str, str])
        except FileNotFoundError:
            return {}

    @contextmanager
    def changing(self) -> Iterator[Changes]:
        """All volumes, for a change, with every other process kept out; written when the block ends without error."""
        lock = os.open(os.path.join(self.directory, "state.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self._read()
            before = msgspec.json.encode(content)
            changes = Changes(content)
            yield changes
            if msgspec.json.encode(content) != before:
                self._write(content)
            self._make_and_remove(content)
        finally:
            os.close(lock)

    def _make_and_remove(self, content: _Content) -> None:
        """Bring the data in line with the records; what a kill left undone is done at the next change."""
        for volume in content.volumes.values():
            os.makedirs(self.data_path(volume), 0o777, exist_ok=True)
        if content.doomed:
            for volume_id in content.doomed:
                shutil.rmtree(os.path.join(self.directory, "volumes", volume_id), ignore_errors=True)
            content.doomed.clear()
            self._write(content)

    def _read(self) -> _Content:
        try:
            return msgspec.json.decode(Path(self._file).read_bytes(), type=_Content)
        except FileNotFoundError:
            return _Content()
        except msgspec.DecodeError as error:
            raise ValueError(f"{self._file} is not the state of a shared driver: {error}") from error

    def _write(self, content: _Content) -> None:
        temporary = f"{self._file}.new"
        with open(temporary, "wb") as file:
            file.write(msgspec.json.encode(content))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._file)
        sync_directory(str(self.directory))


class Changes:
    """The volumes while they may be changed."""

    def __init__(self, content: _Content) -> None:
        self._content = content

    @property
    def volumes(self) -> dict[str, VolumeRecord]:
        """The volumes by ID, to look at."""
        return self._content.volumes

    def find_name(self, name: str) -> VolumeRecord | None:
        """The volume of this name, or None."""
        return next((volume for volume in self._content.volumes.values() if volume.name == name), None)

    def next_serial(self) -> int:
        """A number above all those given so far."""
        self._content.serial += 1
        return self._content.serial

    def put(self, volume: VolumeRecord) -> None:
        """Add a volume, or replace it."""
        self._content.volumes[volume.id] = volume

    def remove(self, volume: VolumeRecord) -> None:
        """Forget a volume, and remove its data."""
        del self._content.volumes[volume.id]
        self._content.doomed.append(volume.id)
