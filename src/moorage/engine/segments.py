"""The stubs of one namespace's volumes in order of their IDs, cut into segments.

A segment keeps the bytes of its stubs joined, so that a whole list is a few hundred pieces that are ready to be sent;
a change makes one stub and one segment's bytes anew, when somebody asks for them next.
Never: I/O, clock, JSON; what a stub looks like is its owner's.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

import msgspec

from moorage.model.volume import Volume
from moorage.rules.filter_exact import read_column
from moorage.state.view import Record

ROWS_MAX = 256
# After removals, neighbours that together have no more than this become one.
ROWS_MERGED_MAX = 192


class Packed(msgspec.Struct, frozen=True):
    """Bytes deflated so that they can stand in any place of a stream, with the checksum and size of what they were."""

    data: bytes
    crc: int
    size: int


class Piece:
    """A part of a body: its bytes, and its deflated form once somebody has made it."""

    __slots__ = ("data", "packed")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.packed: Packed | None = None


class Shape(msgspec.Struct, frozen=True):
    """What many stubs share: what stands before and after a volume's own part, and what it takes from its plugin.

    A stub is ``lead``, the plugin's first members, the core, the plugin's other members, ``tail``.
    """

    lead: bytes
    tail: bytes
    plugin_id: str
    provider: str
    controller_required: bool


class Row(msgspec.Struct, frozen=True, gc=False):
    """A stub's own part, and its shape."""

    core: bytes
    shape: Shape


class Segment:
    """Some volumes that follow each other. ``rows`` has None where a stub must be made anew."""

    __slots__ = ("_columns", "ids", "is_first", "piece", "records", "rows", "version")

    def __init__(self) -> None:
        # Another one whenever a volume in it is another, or is gone, or has come, or its claims are others.
        self.version = 0
        self.ids: list[str] = []
        self.records: list[Record[Volume]] = []
        self.rows: list[Row | None] = []
        self.piece: Piece | None = None
        # Whether ``piece`` begins its namespace: then no comma stands before it.
        self.is_first = False
        self._columns: dict[str, list[str]] = {}

    def column(self, member: str) -> list[str]:
        """One member's texts, in order; read once a change (see ``rules.filter_exact``)."""
        found = self._columns.get(member)
        if found is None:
            found = self._columns[member] = read_column(member, (record.value for record in self.records))
        return found

    def note_change(self) -> None:
        """A volume in it is another, or is gone, or has come."""
        self.version += 1
        self.piece = None
        if self._columns:
            self._columns = {}

    def take(self, other: Segment, low: int) -> None:
        """Put the other's volumes from ``low`` on behind one's own, and take them from it."""
        self.ids += other.ids[low:]
        self.records += other.records[low:]
        self.rows += other.rows[low:]
        del other.ids[low:], other.records[low:], other.rows[low:]
        self.note_change()
        other.note_change()


# A place: the segment's position, and the volume's in it.
Place = tuple[int, int]
START: Place = (0, 0)


class Segments:
    """All volumes of one namespace. No segment is ever empty."""

    def __init__(self) -> None:
        self.all: list[Segment] = []
        self._firsts: list[str] = []
        self.count = 0

    @property
    def end(self) -> Place:
        """The place behind the last volume."""
        return (len(self.all), 0)

    def find_place(self, volume_id: str) -> Place:
        """The place of the first volume whose ID is not below this one."""
        at = max(bisect_left(self._firsts, volume_id) - 1, 0)
        if at == len(self.all):
            return self.end
        inside = bisect_left(self.all[at].ids, volume_id)
        return (at, inside) if inside < len(self.all[at].ids) else (at + 1, 0)

    def find(self, volume_id: str) -> Place | None:
        """The volume's place, or None."""
        at, inside = place = self.find_place(volume_id)
        return place if at < len(self.all) and self.all[at].ids[inside] == volume_id else None

    def put(self, record: Record[Volume]) -> None:
        """Enter a volume, or its new record."""
        volume_id = record.value.id
        if not self.all:
            self.all.append(Segment())
            self._firsts.append(volume_id)
        # The last one that may have it: its first ID is not above this one.
        at = bisect_right(self._firsts, volume_id) - 1
        if at < 0:
            at = 0
        segment = self.all[at]
        ids = segment.ids
        inside = bisect_left(ids, volume_id)
        if inside < len(ids) and ids[inside] == volume_id:
            segment.records[inside] = record
            segment.rows[inside] = None
            segment.note_change()
            return
        self.count += 1
        ids.insert(inside, volume_id)
        segment.records.insert(inside, record)
        segment.rows.insert(inside, None)
        segment.note_change()
        self._firsts[at] = ids[0]
        if len(ids) > ROWS_MAX:
            self._split(at, at_end=inside == ROWS_MAX)

    def _split(self, at: int, *, at_end: bool) -> None:
        """In half; volumes that come in order leave full segments behind them."""
        segment, rest = self.all[at], Segment()
        rest.take(segment, ROWS_MAX if at_end else len(segment.ids) // 2)
        self.all.insert(at + 1, rest)
        self._firsts.insert(at + 1, rest.ids[0])

    def drop(self, volume_id: str) -> None:
        """Take a volume out, if it is there."""
        place = self.find(volume_id)
        if place is None:
            return
        self.count -= 1
        at, inside = place
        segment = self.all[at]
        del segment.ids[inside], segment.records[inside], segment.rows[inside]
        segment.note_change()
        if not segment.ids:
            del self.all[at], self._firsts[at]
            return
        self._firsts[at] = segment.ids[0]
        for left in (at - 1, at):
            if 0 <= left < len(self.all) - 1 and self._merge(left):
                return

    def _merge(self, left: int) -> bool:
        one, other = self.all[left], self.all[left + 1]
        if len(one.ids) + len(other.ids) > ROWS_MERGED_MAX:
            return False
        one.take(other, 0)
        del self.all[left + 1], self._firsts[left + 1]
        return True

    def spans(self, low: Place, high: Place, *, is_reversed: bool = False) -> Iterator[tuple[Segment, int, int]]:
        """The segments between two places, each with the range of positions in it; backwards if it is so wanted."""
        found = range(low[0], min(high[0] + 1, len(self.all)))
        for at in reversed(found) if is_reversed else found:
            segment = self.all[at]
            first = low[1] if at == low[0] else 0
            last = high[1] if at == high[0] else len(segment.ids)
            if first < last:
                yield segment, first, last


class Names:
    """Names of namespaces, in order."""

    def __init__(self) -> None:
        self.by_name: dict[str, Segments] = {}
        self.ordered: list[str] = []

    def get(self, name: str) -> Segments | None:
        """A namespace's volumes; None where there are none."""
        return self.by_name.get(name)

    def need(self, name: str) -> Segments:
        """A namespace's volumes, to put one in."""
        found = self.by_name.get(name)
        if found is None:
            found = self.by_name[name] = Segments()
            insort(self.ordered, name)
        return found

    def tidy(self, name: str) -> None:
        """Forget a namespace without volumes."""
        found = self.by_name.get(name)
        if found is not None and not found.count:
            del self.by_name[name]
            self.ordered.remove(name)
