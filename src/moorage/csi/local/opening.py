"""The start of a driver: its directory is brought in line with its records. Everything here blocks.

What a kill or a power cut may have left, and what becomes of it:

| The record | The data | Then |
|---|---|---|
| is there | in temp, being copied or taken away | is put into its place |
| is there, nobody ever had the volume | nowhere | is made anew, empty |
| is there, nobody ever had the volume | unfinished in its place | is finished; what is there stays |
| is there | nowhere | the record is left out, and said so: never made anew |
| is noted as removed | in its place | goes to the trash |
| is not there | in temp | goes to the trash |
| is not there | in its place, with the record of an earlier version | the record is taken over |
| is not there, or cannot be read | in its place | is left alone, and said so: it may be precious |

Raises OSError, Unavailable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from moorage.csi.local.layout import LEAVING, Layout, Record, key_of
from moorage.csi.local.ledger import Ledger
from moorage.csi.local.records import FORMAT, Index, SnapshotRecord, VolumeRecord
from moorage.syncing import sync_directory

OLD_RECORD = "meta.json"

log = structlog.get_logger("moorage.csi.local")
R = TypeVar("R", VolumeRecord, SnapshotRecord)

_decode_volume = msgspec.json.Decoder(VolumeRecord).decode
_decode_snapshot = msgspec.json.Decoder(SnapshotRecord).decode
_encode = msgspec.json.Encoder().encode


def bring_in_line(layout: Layout, ledger: Ledger) -> tuple[Index[VolumeRecord], Index[SnapshotRecord]]:
    """Clear what an ended process left; all volumes and snapshots whose data is there."""
    stored = ledger.read()
    _finish_removals(layout, ledger, stored)
    adopted: dict[str, Record] = {}
    volumes = _read_kind("volumes", _decode_volume, layout, stored, adopted=adopted)
    snapshots = _read_kind("snapshots", _decode_snapshot, layout, stored, adopted=adopted)
    if adopted:
        ledger.write((key, _encode(record)) for key, record in adopted.items())
        log.info("records of an earlier version were taken over", count=len(adopted))
    known: dict[str, Record] = {**snapshots, **volumes}
    for name in os.listdir(layout.temp):
        _clear_temp(layout, name, known)
    return Index(_with_data(layout, volumes)), Index(_with_data(layout, snapshots))


def _finish_removals(layout: Layout, ledger: Ledger, stored: Mapping[str, bytes]) -> None:
    removed = ledger.read_removed()
    for key in removed:
        if key not in stored:
            layout.throw_away(os.path.join(layout.directory, key))
    if removed:
        for kind in layout.kinds:
            sync_directory(kind)
        ledger.forget_removed()


def _read_kind(
    kind: str, decode: Callable[[bytes], R], layout: Layout, stored: Mapping[str, bytes], *, adopted: dict[str, Record]
) -> dict[str, R]:
    """The records of one kind by ID; those that only an earlier version wrote go to ``adopted`` too."""
    found: dict[str, R] = {}
    for key, content in stored.items():
        if key.startswith(f"{kind}/"):
            record = _read(key, f"{layout.directory}/{key}", content, decode)
            if record is not None:
                found[record.id] = record
    for name in os.listdir(os.path.join(layout.directory, kind)):
        key = f"{kind}/{name}"
        if key in stored:
            continue
        path = os.path.join(layout.directory, key, OLD_RECORD)
        try:
            record = _read(key, path, Path(path).read_bytes(), decode)
        except OSError as error:
            log.error("left out: there is no record", path=path, error=str(error))
            continue
        if record is not None:
            found[record.id] = adopted[key] = record
    return found


def _read(key: str, path: str, content: bytes, decode: Callable[[bytes], R]) -> R | None:
    """The record; one that cannot be read is left alone and logged: its data may be precious."""
    try:
        record = decode(content)
    except msgspec.DecodeError as error:
        log.error("left out: the record cannot be read", path=path, error=str(error))
        return None
    if key_of(record) != key or record.format != FORMAT:
        log.error("left out: the record does not fit", path=path, id=record.id, format=record.format)
        return None
    return record


def _clear_temp(layout: Layout, name: str, known: Mapping[str, Record]) -> None:
    path = os.path.join(layout.temp, name)
    record = known.get(name.removesuffix(LEAVING))
    if record is None or os.path.lexists(layout.place_of(record)):
        layout.throw_away(path)
    elif name.endswith(LEAVING):
        layout.put_back(record)
    elif _is_new(record):
        # By an earlier version, which made empty volumes here too: it is made anew, whole.
        layout.throw_away(path)
    else:
        layout.put_in_place(record)


def _with_data(layout: Layout, records: Mapping[str, R]) -> list[R]:
    """The records whose data is in its place, after what may be made anew was made."""
    found: list[R] = []
    for record in records.values():
        if _is_new(record):
            assert isinstance(record, VolumeRecord)
            try:
                layout.make_whole(record)
            except OSError as error:
                log.error("an empty volume cannot be made; tried again when it is used", id=record.id, error=str(error))
        elif not os.path.lexists(layout.place_of(record)):
            log.error("left out: the data is missing", path=layout.place_of(record), name=record.name)
            continue
        found.append(record)
    return found


def _is_new(record: Record) -> bool:
    """Whether the data is that of an empty volume which nobody has ever been shown."""
    return not (isinstance(record, SnapshotRecord) or record.is_handed_out)
