"""What reads show of volumes, as bytes that are ready to be sent: made once a change, kept in order.

The shelf follows the feed in the same loop turn. It only notes what is out of date; the bytes are made when they are
asked for, by a ``Spelling`` that knows what answers look like. What a stub takes from its plugin is kept apart
(``Shape``), so that a plugin's change makes no volume's own part anew.
Never: decides who may see what; waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import anyio.lowlevel

from moorage.engine.kept import Kept
from moorage.engine.reads import Reads, VolumeRead
from moorage.engine.segments import START, Names, Piece, Place, Row, Segment, Segments, Shape
from moorage.engine.sharing import Sharing
from moorage.model.claim import Allocation, Claim
from moorage.model.ids import PluginId
from moorage.model.plugin import Plugin
from moorage.model.volume import Volume
from moorage.rules.plugins import Health, measure_health
from moorage.rules.volumes import is_shown
from moorage.state.feed import Change
from moorage.state.view import Record

Key = tuple[str, str]
WHOLES_BYTES_MAX = 16 << 20
SHAPES_MAX = 4096
# Stubs that a list may need made in one turn of the loop: five milliseconds.
PREPARED_MAX = 1024
_LAST = 0x10FFFF


class Spelling(Protocol):
    """How records become bytes."""

    def cut(self, read: VolumeRead) -> Row:
        """A volume's stub without what it takes from its plugin."""
        ...

    def frame(self, shape: Shape, health: Health) -> tuple[bytes, bytes]:
        """What stands before and after a core of this shape: from the stub's first byte on, and up to its last."""
        ...

    def whole(self, read: VolumeRead) -> bytes:
        """A volume whole."""
        ...


class Shelf:
    """All volumes that reads show. ``changes`` counts what may have changed any answer about volumes,
    ``health_changes`` what of it is a plugin's. ``sharing``: long lists that are being made, for all who ask the same.
    """

    def __init__(self, reads: Reads) -> None:
        self.names = Names()
        self.changes = self.health_changes = 0
        self.sharing: Sharing[Any] = Sharing()
        self.kept = Kept()
        # How often bytes were made, for those who count work.
        self.made_stubs = self.made_wholes = self.made_pieces = 0
        self._reads = reads
        self._spelling: Spelling | None = None
        self._health: dict[str, Health] = {}
        self._shapes: dict[Shape, Shape] = {}
        self._frames: dict[Shape, tuple[bytes, bytes]] = {}
        self._wholes: OrderedDict[Key, bytes] = OrderedDict()
        self._wholes_bytes = 0
        reads.follow(self._note)

    def spell(self, spelling: Spelling) -> None:
        """Make bytes of records in this way, from now on."""
        self._spelling = spelling

    @property
    def _speller(self) -> Spelling:
        assert self._spelling is not None
        return self._spelling

    @property
    def is_spelled(self) -> bool:
        """Whether anybody will ask for bytes."""
        return self._spelling is not None

    @property
    def stamp(self) -> tuple[int, ...]:
        """Differs whenever an answer about volumes, the index that it bears, or who may see it may differ."""
        return (self.changes, *self._reads.volumes_stamp)

    # -- following the feed ------------------------------------------------------------------------------------------

    def _note(self, change: Change) -> None:
        concerned = change.after if change.after is not None else change.before
        match concerned:
            case Volume():
                self._note_volume(concerned, is_there=change.after is not None)
            case Claim():
                for claim in (change.before, change.after):
                    if isinstance(claim, Claim):
                        self._forget(claim.volume_key)
            case Allocation():
                for claim in self._reads.claims_of(concerned):
                    self._drop_whole(claim.volume_key)
            case Plugin():
                self._note_plugin(concerned.id)
            case _:
                return
        self.changes += 1

    def _note_volume(self, volume: Volume, *, is_there: bool) -> None:
        namespace, volume_id = volume.key
        record = self._reads.find_record(namespace, volume_id) if is_there else None
        self._drop_whole((namespace, volume_id))
        if record is not None and is_shown(record.value):
            self.names.need(namespace).put(record)
        elif (found := self.names.get(namespace)) is not None:
            found.drop(volume_id)
            self.names.tidy(namespace)

    def _forget(self, key: Key) -> None:
        """A volume's bytes are out of date, its record is not."""
        self._drop_whole(key)
        found = self.names.get(key[0])
        place = found.find(key[1]) if found is not None else None
        if found is not None and place is not None:
            segment = found.all[place[0]]
            segment.rows[place[1]] = None
            segment.piece = None
            segment.version += 1

    def _note_plugin(self, plugin_id: PluginId) -> None:
        before = self._health.pop(plugin_id, None)
        if before is not None and before == self.health_of(plugin_id):
            return
        self.health_changes += 1
        self._frames.clear()
        self._wholes.clear()
        self._wholes_bytes = 0
        for found in self.names.by_name.values():
            for segment in found.all:
                if any(record.value.plugin_id == plugin_id for record in segment.records):
                    segment.piece = None

    def _drop_whole(self, key: Key) -> None:
        dropped = self._wholes.pop(key, None)
        if dropped is not None:
            self._wholes_bytes -= len(dropped)

    async def warm(self) -> None:
        """Make every stub that is missing, a segment at a time, so that the first list after a start need not."""
        for name in tuple(self.names.ordered):
            found = self.names.get(name)
            for segment in tuple(found.all) if found is not None else ():
                self._fill(segment, range(len(segment.ids)))
                await anyio.lowlevel.checkpoint()

    async def prepare(self, ranges: Iterable[Range]) -> None:
        """Make what a list of these ranges lacks, some in a turn of the loop: the first list of 100,000 volumes that
        came since the start would hold up everybody for half a second."""
        rows, is_first = 0, True
        for segment, low, high in [span for found in ranges for span in found.spans()]:
            if segment.piece is None:
                # Others may have come, or some be gone, since the turn before.
                if low == 0 and high >= len(segment.ids):
                    self.piece_of(segment, is_first=is_first)
                else:
                    self._fill(segment, range(low, min(high, len(segment.ids))))
                rows += high - low
                if rows >= PREPARED_MAX:
                    rows = 0
                    await anyio.lowlevel.checkpoint()
            is_first = False

    # -- asking ------------------------------------------------------------------------------------------------------

    def health_of(self, plugin_id: str) -> Health:
        """A plugin's health now."""
        found = self._health.get(plugin_id)
        if found is None:
            record = self._reads.find_plugin(plugin_id)
            found = self._health[plugin_id] = measure_health(record.value if record else None)
        return found

    def find_whole(self, namespace: str, volume_id: str) -> bytes | None:
        """The bytes of a volume; None when reads show none of that name."""
        key = (namespace, volume_id)
        found = self._wholes.get(key)
        if found is not None:
            return found
        record = self._reads.find_record(namespace, volume_id)
        if record is None or not is_shown(record.value):
            return None
        read = self._reads.join(record, with_allocations=True, health=self.health_of(record.value.plugin_id))
        self.made_wholes += 1
        found = self._wholes[key] = self._speller.whole(read)
        self._wholes_bytes += len(found)
        while self._wholes_bytes > WHOLES_BYTES_MAX:
            self._wholes_bytes -= len(self._wholes.popitem(last=False)[1])
        return found

    def stubs(self, segment: Segment, positions: Sequence[int]) -> bytes:
        """The stubs at these positions of a segment, with commas between them."""
        self._fill(segment, positions)
        parts: list[bytes] = []
        frames, rows = self._frames, segment.rows
        for at in positions:
            row = rows[at]
            assert row is not None
            before, after = frames.get(row.shape) or self._frame(row.shape)
            parts += (before, row.core, after)
        return b"".join(parts)[1:]

    def piece_of(self, segment: Segment, *, is_first: bool) -> Piece:
        """A segment's stubs joined, with a comma before them unless it is the first of its list; kept until they
        change."""
        piece = segment.piece
        if piece is None or segment.is_first is not is_first:
            self.made_pieces += 1
            joined = self.stubs(segment, range(len(segment.ids)))
            piece = segment.piece = Piece(joined if is_first else b"," + joined)
            segment.is_first = is_first
        return piece

    def _fill(self, segment: Segment, positions: Sequence[int]) -> None:
        rows, records = segment.rows, segment.records
        for at in positions:
            if rows[at] is None:
                rows[at] = self._cut(records[at])

    def _cut(self, record: Record[Volume]) -> Row:
        self.made_stubs += 1
        row = self._speller.cut(self._reads.join(record, health=self.health_of(record.value.plugin_id)))
        known = self._shapes.get(row.shape)
        if known is row.shape:
            return row
        if known is not None:
            return Row(row.core, known)
        if len(self._shapes) >= SHAPES_MAX:
            self._shapes.clear()
        self._shapes[row.shape] = row.shape
        return row

    def _frame(self, shape: Shape) -> tuple[bytes, bytes]:
        if len(self._frames) >= SHAPES_MAX:
            self._frames.clear()
        before, after = self._speller.frame(shape, self.health_of(shape.plugin_id))
        found = self._frames[shape] = (b"," + before, after)
        return found


class Range:
    """A part of one namespace's volumes, in order."""

    __slots__ = ("high", "low", "segments")

    def __init__(self, segments: Segments, low: Place, high: Place) -> None:
        self.segments = segments
        self.low = low
        self.high = high

    def spans(self, *, is_reversed: bool = False) -> Iterator[tuple[Segment, int, int]]:
        """The segments, each with the range of positions in it."""
        return self.segments.spans(self.low, self.high, is_reversed=is_reversed)


def find_ranges(
    shelf: Shelf, namespaces: Sequence[str], prefix: str, *, start: Key | None = None, is_reversed: bool = False
) -> list[Range]:
    """Where the volumes of a list are: in these namespaces, which are in order; with an ID prefix; from ``start`` on in
    the direction of the order. None of them is empty."""
    found: list[Range] = []
    for name in reversed(namespaces) if is_reversed else namespaces:
        segments = shelf.names.get(name)
        if segments is None:
            continue
        low = segments.find_place(prefix) if prefix else START
        after = _successor(prefix)
        high = segments.find_place(after) if after else segments.end
        if start is not None:
            if (name > start[0]) if is_reversed else (name < start[0]):
                continue
            if name == start[0]:
                place = segments.find_place(start[1])
                if is_reversed:
                    is_there = segments.find(start[1]) is not None
                    high = min(high, (place[0], place[1] + 1) if is_there else place)
                else:
                    low = max(low, place)
        if low < high:
            found.append(Range(segments, low, high))
    return found


def _successor(prefix: str) -> str:
    """The smallest text above all that begin with the prefix; empty: there is none."""
    while prefix and ord(prefix[-1]) == _LAST:
        prefix = prefix[:-1]
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""
