"""The list of volumes: conditions, filter, order and pages. Source: contract volumes-api §2.1, §5.

Stubs come from the shelf as bytes. A list without conditions on single volumes is found by bisection, and a long one
is the shelf's own pieces; with conditions each volume is looked at, and its stub is touched only if it is shown.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from itertools import chain

import anyio.lowlevel
import msgspec

from moorage.api import answers
from moorage.api.elsewhere import list_nothing
from moorage.api.http import JSON, Answer, Meta, Request, json_answer, raw_answer, text_answer
from moorage.api.params import ReadOptions, check_page_size, parse_read
from moorage.api.volumes import wait_for_change
from moorage.engine.kept import BODY_BYTES_MAX, KeptBody
from moorage.engine.reads import VOLUMES_TOPICS, Record
from moorage.engine.segments import ROWS_MAX, Piece, Segment
from moorage.engine.service import Service
from moorage.engine.shelf import Range, find_ranges
from moorage.errors import MoorageError
from moorage.model.ids import ALL_NAMESPACES
from moorage.model.volume import Volume
from moorage.rules.authorize import LIST
from moorage.rules.filter import VolumeFilter, compile_volume_filter
from moorage.rules.filter_exact import Exact, find_equal

# Positions of volumes in a segment.
Part = tuple[Segment, Sequence[int]]
# A segment, and the range of positions in it.
Span = tuple[Segment, int, int]
_BEGIN, _END = Piece(b"["), Piece(b"]")
# How much one list may do in a turn of the loop, in volumes that a filter looks at: a millisecond or two. And how much
# it is to look at a volume's text alone, to make one whole for the filter, and to join or make its stub.
TURN_WORK = 4096
EXACT_WORK, DATUM_WORK, STUB_WORK = 1 / 8, 32, 4


async def list_volumes(service: Service, request: Request) -> Answer:
    """GET /v1/volumes."""
    kind = request.query.get("type")
    if kind is None:
        may_list = request.access.may(ALL_NAMESPACES, LIST)
        return json_answer(request, [], Meta(index=service.reads.volumes_index if may_list else 0))
    if kind == "host":
        return await list_nothing(service, request)
    if kind != "csi":
        return text_answer(404, "resource not found")
    options = parse_read(request)
    check_page_size(options)
    chosen = compile_volume_filter(options.filter, service.settings.filters) if options.filter else None
    reads = service.reads
    await wait_for_change(service, options, VOLUMES_TOPICS, lambda: reads.volumes_index)
    return await _Listing(service, request, options, chosen).make()


class _Found(msgspec.Struct, frozen=True):
    """What was found in a part of a segment, and its stubs joined where they may be long; good for as long as
    ``state``, which is that of the part, is the same."""

    state: tuple[int, ...]
    positions: list[int]
    piece: Piece | None
    is_first: bool


class _Listing:
    """One list; its answer is made without waiting in between, of what was prepared some in a turn of the loop."""

    def __init__(self, service: Service, request: Request, options: ReadOptions, chosen: VolumeFilter | None) -> None:
        self._shelf = service.shelf
        self._reads = service.reads
        self._request = request
        self._options = options
        self._chosen = chosen
        self._plugin_id = request.query.get("plugin_id", "")
        self._node_id = request.query.get("node_id", "")
        self._exact: Exact | None = chosen.exact if chosen is not None else None
        self._row_work = 1 if self._exact is None else EXACT_WORK
        self._found: dict[Segment, _Found] = {}
        # How many volumes were made whole for the filter.
        self._datums = 0

    async def make(self) -> Answer:
        """The answer, of the state in which it is asked for or a later one. Raises what the filter raises."""
        options = self._options
        is_looking = bool(self._chosen or self._plugin_id or self._node_id)
        ranges = self._find_ranges()
        if not options.per_page and not (is_looking or options.is_reversed):
            await self._shelf.prepare(ranges)
            ranges = self._find_ranges()
        elif (is_looking or not options.per_page) and self._is_long(ranges) and not self._is_kept():
            key = (self._find_key(), self._request.query.get("pretty", "0"))
            return await self._finish(await self._shelf.sharing.ask(key, self._make_slowly))
        return await self._finish(self._answer(ranges))

    async def _finish(self, answer: Answer) -> Answer:
        """The answer as it is to look; the pieces of a long one are those of others too."""
        if not answer.pieces or self._request.query.get("pretty", "0") == "0":
            return answer
        return msgspec.structs.replace(answer, pieces=tuple(await _indent(answer.pieces)))

    def _is_long(self, ranges: Iterable[Range]) -> bool:
        """Whether more may have to be looked at than should be in one turn of the loop. A read that has waited is
        answered in one all the same: it is the answer of thousands who wait for the same."""
        if self._request.waited is not None:
            return False
        rows_max = sum(found.high[0] + 1 - found.low[0] for found in ranges) * ROWS_MAX
        return rows_max * self._row_work > TURN_WORK

    async def _make_slowly(self) -> Answer:
        """Look at the volumes some in a turn of the loop, and answer then: what has changed meanwhile is looked at
        again."""
        work, count, is_first = 0.0, 0, True
        per_page = self._options.per_page
        claimed, changes = self._find_claimed(), self._shelf.changes
        for segment, low, high in list(self._spans(self._find_ranges())):
            if changes != self._shelf.changes:
                claimed, changes = self._find_claimed(), self._shelf.changes
            # It may have become shorter since the turn before.
            span = (segment, low, min(high, len(segment.ids)))
            self._datums, made = 0, self._shelf.made_stubs
            try:
                positions = [at for _, some in self._select([span], claimed) for at in some]
            except MoorageError:
                # It is met again, and told, unless the page ends before it.
                break
            piece = self._join(segment, positions, is_first=is_first) if positions and not per_page else None
            self._found[segment] = _Found(self._find_state(span), positions, piece, is_first)
            is_first = is_first and not positions
            count += len(positions)
            if per_page and count > per_page:
                break
            work += (span[2] - span[1]) * self._row_work + self._datums * DATUM_WORK
            work += (len(positions) + self._shelf.made_stubs - made) * STUB_WORK
            if work >= TURN_WORK:
                work = 0
                await anyio.lowlevel.checkpoint()
        return self._answer(self._find_ranges())

    def _find_state(self, span: Span) -> tuple[int, ...]:
        """What shows that a part of a segment, and all that a filter sees of it, is as it was."""
        return (span[1], span[2], span[0].version, self._shelf.health_changes)

    def _find_claimed(self) -> set[tuple[str, str]] | None:
        return self._reads.list_claimed(self._node_id) if self._node_id else None

    def _find_ranges(self) -> list[Range]:
        """Where the volumes are that may be shown."""
        start = _parse_token(self._options.next_token)
        is_reversed = self._options.is_reversed
        return find_ranges(self._shelf, self._find_seen(), self._options.prefix, start=start, is_reversed=is_reversed)

    def _find_seen(self) -> tuple[str, ...]:
        """The namespaces whose volumes are shown."""
        is_seen = self._request.access.chooser(LIST)
        names = self._shelf.names.ordered if self._options.namespace == ALL_NAMESPACES else [self._options.namespace]
        return tuple(name for name in names if is_seen(name))

    def _answer(self, ranges: Iterable[Range]) -> Answer:
        """The answer; a body that is not long is kept for whoever asks alike and sees the same."""
        meta = Meta(index=self._reads.volumes_index)
        key, stamp = self._find_key(), self._shelf.stamp
        kept = self._shelf.kept.find(key, stamp)
        if kept is None:
            parts, next_token = self._cut_page(ranges)
            pieces = self._find_pieces(parts)
            if sum(len(piece.data) for piece in pieces) > BODY_BYTES_MAX:
                return self._answer_long(pieces, meta, next_token)
            kept = KeptBody(b"".join(piece.data for piece in pieces), next_token)
            self._shelf.kept.keep(key, stamp, kept)
        return raw_answer(self._request, kept.body, meta, **_next(kept.next_token))

    def _is_kept(self) -> bool:
        return self._shelf.kept.find(self._find_key(), self._shelf.stamp) is not None

    def _find_key(self) -> Hashable:
        """What is asked for, and by whom as far as it shows."""
        asked = msgspec.structs.replace(self._options, index=0, wait_s=0.0, waited=None)
        return (asked, self._plugin_id, self._node_id, self._find_seen())

    def _answer_long(self, pieces: Sequence[Piece], meta: Meta, next_token: str) -> Answer:
        headers = {**meta.headers(), **_next(next_token)}
        return Answer(pieces=tuple(pieces), content_type=JSON, headers=headers)

    def _cut_page(self, ranges: Iterable[Range]) -> tuple[list[Part], str]:
        """One page, and the token of the next: the namespace and ID of its first volume."""
        left = self._options.per_page
        parts: list[Part] = []
        for segment, positions in self._select(self._spans(ranges), self._find_claimed()):
            if not self._options.per_page:
                parts.append((segment, positions if isinstance(positions, range | list) else list(positions)))
                continue
            taken: list[int] = []
            for at in positions:
                if not left:
                    if taken:
                        parts.append((segment, taken))
                    namespace, volume_id = segment.records[at].value.key
                    return parts, f"{namespace}.{volume_id}"
                taken.append(at)
                left -= 1
            parts.append((segment, taken))
        return parts, ""

    def _spans(self, ranges: Iterable[Range]) -> Iterator[Span]:
        return chain.from_iterable(found.spans(is_reversed=self._options.is_reversed) for found in ranges)

    def _select(
        self, spans: Iterable[Span], claimed: Collection[tuple[str, str]] | None
    ) -> Iterator[tuple[Segment, Iterable[int]]]:
        """Volumes that all conditions hold for, in order. A filter is asked last, so that its errors come only from
        volumes that the other conditions let through, and only from those up to the page's end."""
        plugin_id, chosen, is_reversed = self._plugin_id, self._chosen, self._options.is_reversed
        exact, found = self._exact, self._found
        for segment, low, high in spans:
            if found and (known := found.get(segment)) and known.state == self._find_state((segment, low, high)):
                yield segment, known.positions
                continue
            records = segment.records
            positions: Iterable[int]
            positions = span = range(high - 1, low - 1, -1) if is_reversed else range(low, high)
            if exact is not None:
                positions = find_equal(segment.column(exact.member), exact.value, span)
            if plugin_id:
                positions = [at for at in positions if records[at].value.plugin_id == plugin_id]
            if claimed is not None:
                positions = [at for at in positions if records[at].value.key in claimed]
            if chosen is not None:
                positions = chosen.select(records, positions, self._datum)
            yield segment, positions

    def _datum(self, record: Record[Volume]) -> answers.Json:
        """What a filter sees: the volume as it is answered, with the counters of the list."""
        self._datums += 1
        read = self._reads.join(record, health=self._shelf.health_of(record.value.plugin_id))
        return answers.volume(read) | answers.counters(read)

    def _find_pieces(self, parts: Sequence[Part]) -> list[Piece]:
        pieces = [_BEGIN]
        for segment, positions in parts:
            if not positions:
                continue
            is_first = len(pieces) == 1
            known = self._found.get(segment) if self._found else None
            if known is not None and known.positions is positions and known.piece and known.is_first is is_first:
                pieces.append(known.piece)
            else:
                pieces.append(self._join(segment, positions, is_first=is_first))
        return [*pieces, _END]

    def _join(self, segment: Segment, positions: Sequence[int], *, is_first: bool) -> Piece:
        """The stubs at these positions, with a comma before them unless they are the list's first."""
        if len(positions) == len(segment.ids) and not self._options.is_reversed:
            return self._shelf.piece_of(segment, is_first=is_first)
        joined = self._shelf.stubs(segment, positions)
        return Piece(joined if is_first else b"," + joined)


def _next(token: str) -> dict[str, str]:
    return {"X-Nomad-NextToken": token} if token else {}


async def _indent(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces of a long list, written as an indented whole would be: one in a turn of the loop."""
    inner = []
    for piece in pieces[1:-1]:
        await anyio.lowlevel.checkpoint()
        inner.append(msgspec.json.format(b"[%s]" % piece.data.lstrip(b","), indent=4)[1:-2])
    return [_BEGIN, *(Piece(b"," + data if number else data) for number, data in enumerate(inner)), Piece(b"\n]\n")]


def _parse_token(token: str) -> tuple[str, str] | None:
    if not token:
        return None
    # A namespace holds no dot: the first one parts it from the ID.
    namespace, _, volume_id = token.partition(".")
    return namespace, volume_id
