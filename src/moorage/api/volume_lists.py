"""The list of volumes: conditions, filter, order and pages. Source: contract volumes-api §2.1, §5.

Stubs come from the shelf as bytes. A list without conditions on single volumes is found by bisection, and a long one
is the shelf's own pieces; with conditions each volume is looked at, and its stub is touched only if it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from moorage.api import answers
from moorage.api.elsewhere import list_nothing
from moorage.api.http import JSON, Answer, Meta, Request, json_answer, raw_answer, text_answer
from moorage.api.params import ReadOptions, check_page_size, parse_read
from moorage.api.volumes import wait_for_change
from moorage.engine.kept import BODY_BYTES_MAX, KeptBody
from moorage.engine.reads import VOLUMES_TOPICS, Record
from moorage.engine.segments import Piece, Segment
from moorage.engine.service import Service
from moorage.engine.shelf import Range, find_ranges
from moorage.model.ids import ALL_NAMESPACES
from moorage.model.volume import Volume
from moorage.rules.authorize import LIST
from moorage.rules.filter import VolumeFilter, compile_volume_filter
from moorage.rules.filter_exact import find_equal

# Positions of volumes in a segment.
Part = tuple[Segment, Sequence[int]]
_BEGIN, _END = Piece(b"["), Piece(b"]")


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
    listing = _Listing(service, request, options, chosen)
    await listing.prepare()
    return listing.answer()


class _Listing:
    """One list; its answer is made without waiting in between."""

    def __init__(self, service: Service, request: Request, options: ReadOptions, chosen: VolumeFilter | None) -> None:
        self._shelf = service.shelf
        self._reads = service.reads
        self._request = request
        self._options = options
        self._chosen = chosen
        self._plugin_id = request.query.get("plugin_id", "")
        self._node_id = request.query.get("node_id", "")

    async def prepare(self) -> None:
        """Have made what the answer lacks where it may be long: some in a turn of the loop."""
        if not (self._options.per_page or self._chosen or self._node_id):
            await self._shelf.prepare(find_ranges(self._shelf, self._find_seen(), self._options.prefix))

    def _find_seen(self) -> tuple[str, ...]:
        """The namespaces whose volumes are shown."""
        is_seen = self._request.access.chooser(LIST)
        names = self._shelf.names.ordered if self._options.namespace == ALL_NAMESPACES else [self._options.namespace]
        return tuple(name for name in names if is_seen(name))

    def answer(self) -> Answer:
        """The answer; a body that is not long is kept for whoever asks alike and sees the same."""
        meta = Meta(index=self._reads.volumes_index)
        seen = self._find_seen()
        asked = msgspec.structs.replace(self._options, index=0, wait_s=0.0, waited=None)
        key = (asked, self._plugin_id, self._node_id, seen)
        stamp = self._shelf.stamp
        kept = self._shelf.kept.find(key, stamp)
        if kept is None:
            ranges = find_ranges(
                self._shelf,
                seen,
                self._options.prefix,
                start=_parse_token(self._options.next_token),
                is_reversed=self._options.is_reversed,
            )
            parts, next_token = self._cut_page(ranges)
            pieces = self._find_pieces(parts)
            if sum(len(piece.data) for piece in pieces) > BODY_BYTES_MAX:
                return self._answer_long(pieces, meta, next_token)
            kept = KeptBody(b"".join(piece.data for piece in pieces), next_token)
            self._shelf.kept.keep(key, stamp, kept)
        return raw_answer(self._request, kept.body, meta, **_next(kept.next_token))

    def _answer_long(self, pieces: Sequence[Piece], meta: Meta, next_token: str) -> Answer:
        if self._request.query.get("pretty", "0") != "0":
            pieces = _indent(pieces)
        headers = {**meta.headers(), **_next(next_token)}
        return Answer(pieces=tuple(pieces), content_type=JSON, headers=headers)

    def _cut_page(self, ranges: Iterable[Range]) -> tuple[list[Part], str]:
        """One page, and the token of the next: the namespace and ID of its first volume."""
        left = self._options.per_page
        parts: list[Part] = []
        for segment, positions in self._select(ranges):
            if not self._options.per_page:
                parts.append((segment, positions if isinstance(positions, range) else list(positions)))
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

    def _select(self, ranges: Iterable[Range]) -> Iterator[tuple[Segment, Iterable[int]]]:
        """Volumes that all conditions hold for, in order. A filter is asked last, so that its errors come only from
        volumes that the other conditions let through, and only from those up to the page's end."""
        claimed = self._reads.list_claimed(self._node_id) if self._node_id else None
        plugin_id, chosen, is_reversed = self._plugin_id, self._chosen, self._options.is_reversed
        exact = chosen.exact if chosen is not None else None
        for found in ranges:
            for segment, low, high in found.spans(is_reversed=is_reversed):
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
        read = self._reads.join(record, health=self._shelf.health_of(record.value.plugin_id))
        return answers.volume(read) | answers.counters(read)

    def _find_pieces(self, parts: Sequence[Part]) -> list[Piece]:
        pieces = [_BEGIN]
        for segment, positions in parts:
            if not positions:
                continue
            is_first = len(pieces) == 1
            if isinstance(positions, range) and positions == range(len(segment.ids)):
                pieces.append(self._shelf.piece_of(segment, is_first=is_first))
            else:
                joined = self._shelf.stubs(segment, positions)
                pieces.append(Piece(joined if is_first else b"," + joined))
        return [*pieces, _END]


def _next(token: str) -> dict[str, str]:
    return {"X-Nomad-NextToken": token} if token else {}


def _indent(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces of a long list, written as an indented whole would be."""
    inner = [msgspec.json.format(b"[%s]" % piece.data.lstrip(b","), indent=4)[1:-2] for piece in pieces[1:-1]]
    return [_BEGIN, *(Piece(b"," + data if number else data) for number, data in enumerate(inner)), Piece(b"\n]\n")]


def _parse_token(token: str) -> tuple[str, str] | None:
    if not token:
        return None
    # A namespace holds no dot: the first one parts it from the ID.
    namespace, _, volume_id = token.partition(".")
    return namespace, volume_id
