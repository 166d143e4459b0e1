"""What the driver knows of volumes and snapshots, and the indexes over it. No I/O.

Shapes: a record is a row of the ledger, as JSON; ``serial`` is the order of creation and the page token.
Units:  sizes in bytes, times in nanoseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

import msgspec

FORMAT = 1


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What a volume was filled from: ``kind`` is volume or snapshot."""

    kind: str
    id: str


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """The controller published the volume on a node. ``mode`` is the number of the CSI access mode."""

    node_id: str
    mode: int
    readonly: bool


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A volume. ``required_bytes`` and ``limit_bytes`` are as first asked, so that a repeat is known again.

    The data of a block volume is one file, its image; that of any other is a directory. ``is_handed_out`` is False as
    long as nobody can have put anything into it: it was made empty, and never shown at any path.
    """

    id: str
    name: str
    serial: int
    capacity_bytes: int
    created_at_ns: int
    required_bytes: int = 0
    limit_bytes: int = 0
    parameters: dict[str, str] = {}
    origin: Origin | None = None
    publications: tuple[Publication, ...] = ()
    is_block: bool = False
    is_handed_out: bool = True
    format: int = FORMAT


class SnapshotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot. ``size_bytes`` is the capacity of its source, the least a volume made from it may have."""

    id: str
    name: str
    serial: int
    source_volume_id: str
    size_bytes: int
    created_at_ns: int
    is_block: bool = False
    format: int = FORMAT


class _Record(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def serial(self) -> int: ...


R = TypeVar("R", bound=_Record)


class Index(Generic[R]):
    """Records by id, by name and in the order of their serials."""

    def __init__(self, records: Iterable[R] = ()) -> None:
        self._by_id: dict[str, R] = {record.id: record for record in records}
        self._by_name: dict[str, str] = {record.name: record.id for record in self._by_id.values()}
        self._order: tuple[R, ...] | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, record_id: str) -> R | None:
        """The record with this id, or None."""
        return self._by_id.get(record_id)

    def find_name(self, name: str) -> R | None:
        """The record with this name, or None."""
        record_id = self._by_name.get(name)
        return None if record_id is None else self._by_id[record_id]

    def put(self, record: R) -> None:
        """Add the record, or replace the one with its id."""
        self._by_id[record.id] = record
        self._by_name[record.name] = record.id
        self._order = None

    def drop(self, record: R) -> None:
        """Forget the record; a later one of the same name stays known."""
        self._by_id.pop(record.id, None)
        if self._by_name.get(record.name) == record.id:
            del self._by_name[record.name]
        self._order = None

    def newest_serial(self) -> int:
        """The highest serial, 0 without records."""
        return max((record.serial for record in self._by_id.values()), default=0)

    def ordered(self) -> tuple[R, ...]:
        """All records, oldest first."""
        if self._order is None:
            self._order = tuple(sorted(self._by_id.values(), key=lambda record: record.serial))
        return self._order
