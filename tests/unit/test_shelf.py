"""The shelf of stubs against lists made the plain way: same bytes, same pages, whatever came, changed and went."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from typing import Any
from urllib.parse import quote

import anyio
import anyio.lowlevel
import msgspec
import pytest
from list_kit import NAMESPACES, a_claim, a_query, change_at_random, list_bytes, list_plainly, looking, transact
from many_volumes import NODE, PLUGIN, Line, a_volume, put_volumes, running_kit

from moorage.api.encoding import Compressor, compress
from moorage.api.http import Request
from moorage.api.pieces import PIECE_BYTES, TURN_BYTES
from moorage.engine.kept import ENTRY_BYTES, Kept, KeptBody
from moorage.engine.segments import ROWS_MAX, Piece, Segments
from moorage.engine.shelf import PREPARED_MAX
from moorage.model.ids import NamespaceName, Revision, VolumeId
from moorage.rules.authorize import Access
from moorage.state import keys
from moorage.state.store import Delete, Put
from moorage.state.view import Record

pytestmark = pytest.mark.anyio

LIST = "/v1/volumes?type=csi"


@pytest.mark.parametrize("seed", range(4))
async def test_lists_are_those_made_of_the_records(seed: int) -> None:
    chance = random.Random(seed)
    async with running_kit() as kit:
        await put_volumes(kit, (a_volume(n) for n in range(0, 900, 3)))
        volumes = {keys.volume_key(a_volume(n).namespace, a_volume(n).id): a_volume(n) for n in range(0, 900, 3)}
        for turn in range(150):
            for _ in range(chance.randrange(4)):
                await change_at_random(kit, chance, volumes)
            if turn % 40 == 0:
                instance = kit.driver.instance(NODE)
                sick = msgspec.structs.replace(instance, healthy=turn % 80 == 0)
                await kit.service.nodes.report_plugins(NODE, {PLUGIN: sick})
            query = a_query(chance, volumes)
            raw = "&".join(f"{name}={quote(value)}" for name, value in query.items())
            got, expected = await list_bytes(kit, raw), list_plainly(kit, query)
            assert got[1] == expected[1], query
            assert json.loads(got[0]) == json.loads(expected[0]), query
            assert got[0] == expected[0], query


@pytest.mark.parametrize("query", ["type=csi", "type=csi&prefix=vol-00&plugin_id=" + PLUGIN, "type=csi&namespace=*"])
async def test_a_first_long_list_holds_up_nobody(query: str) -> None:
    """Beside a list of many volumes whose stubs were never made, others have their turns; and it shows what came and
    went while it was made."""
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(6000)))
        shelf, made = kit.service.shelf, []
        shelf.made_stubs = 0
        line = Line(kit)

        async def change() -> None:
            while not shelf.made_stubs:
                await anyio.lowlevel.checkpoint()
            await transact(kit, Delete(keys.volume_key(NamespaceName("default"), VolumeId("vol-000017"))))
            await put_volumes(kit, [a_volume(5999, name="other"), a_volume(6000)])
            assert shelf.made_stubs < 6000, "too late to be a test"

        async with looking(lambda: made.append(shelf.made_stubs)), anyio.create_task_group() as group:
            group.start_soon(change)
            body = await line.ask_body(f"/v1/volumes?{query}")
        steps = [after - before for before, after in itertools.pairwise([*made, shelf.made_stubs])]
        assert max(steps) <= PREPARED_MAX + ROWS_MAX
        assert sum(step > 0 for step in steps) >= 5
        shown = {found["ID"]: found["Name"] for found in json.loads(body)}
        assert len(shown) == 6000
        assert "vol-000017" not in shown
        assert shown["vol-005999"] == "other"
        assert json.loads(await line.ask_body(f"/v1/volumes?{query}")) == json.loads(body)


@pytest.mark.parametrize("head", ["", "Accept-Encoding: gzip\r\n"])
async def test_a_long_list_whose_reader_takes_everything_holds_up_nobody(head: str) -> None:
    """A fast reader's socket is never full: what ends a turn of writing is then the server alone."""
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(6000)))
        await Line(kit).ask(LIST, head=head)
        line, written = Line(kit), [0]

        async with looking(lambda: written.append(sum(map(len, line.wire.writes)))):
            whole = await line.ask(LIST, head=head)
        steps = [after - before for before, after in itertools.pairwise([*written, len(whole)])]
        assert max(steps) < TURN_BYTES + PIECE_BYTES
        if not head:
            assert len(whole) > 4 * TURN_BYTES
            assert sum(step > 0 for step in steps) >= len(whole) / (TURN_BYTES + PIECE_BYTES)


async def test_segments_stay_in_order_and_none_is_empty_or_too_long() -> None:
    chance = random.Random(5)
    segments, model = Segments(), set()
    for step in range(6000):
        volume = a_volume(chance.randrange(3000))
        if chance.random() < (0.65 if step < 3000 else 0.2):
            segments.put(Record(volume, Revision(1), Revision(step)))
            model.add(volume.id)
        else:
            segments.drop(volume.id)
            model.discard(volume.id)
        if step % 50 == 0:
            assert [i for s in segments.all for i in s.ids] == sorted(model)
            assert segments.count == len(model)
            assert all(1 <= len(s.ids) <= ROWS_MAX for s in segments.all)
            assert all(len(s.ids) == len(s.records) == len(s.rows) for s in segments.all)
    assert len(segments.all) <= 2 + len(model) // 50


async def test_a_read_shows_every_change_at_once() -> None:
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(3)))

        async def read() -> Any:
            request = Request(method="GET", path="", parts=("v1", "volume", "csi", "vol-000001"))
            return json.loads((await kit.app.answer(request)).body)

        assert (await read())["WriteAllocs"] == {}
        volume = a_volume(1)
        claim = a_claim(volume, 2)
        key = keys.claim_key(claim.id)
        await transact(kit, Put(key, kit.repo.feed.records.encode(key, claim)))
        assert (await read())["WriteAllocs"] == {claim.allocation_id: None}
        await transact(kit, Delete(key))
        assert (await read())["WriteAllocs"] == {}
        sick = msgspec.structs.replace(kit.driver.instance(NODE), healthy=False)
        assert (await read())["Schedulable"] is True
        await kit.service.nodes.report_plugins(NODE, {PLUGIN: sick})
        assert (await read())["Schedulable"] is False
        key = keys.volume_key(volume.namespace, volume.id)
        renamed = msgspec.structs.replace(volume, name="other")
        await transact(kit, Put(key, kit.repo.feed.records.encode(key, renamed)))
        assert (await read())["Name"] == "other"
        await transact(kit, Delete(key))
        gone = await kit.app.answer(Request(method="GET", path="", parts=("v1", "volume", "csi", "vol-000001")))
        assert (gone.status, gone.body) == (404, b"volume not found")


async def test_kept_bodies_are_for_those_who_see_the_same() -> None:
    async with running_kit() as kit:
        await put_volumes(kit, (a_volume(n, namespace=NAMESPACES[n % 4]) for n in range(8)))

        class OnlyOps(Access, frozen=True, kw_only=True):
            def may(self, namespace: str, any_of: object) -> bool:
                return namespace in ("ops", "*")

        async def ask(access: Access) -> set[str]:
            from moorage.api.volume_lists import list_volumes

            request = Request(
                method="GET", path="", query={"type": "csi", "namespace": "*", "per_page": "50"}, access=access
            )
            rows = json.loads((await list_volumes(kit.service, request)).body)
            return {row["Namespace"] for row in rows}

        for _ in range(2):
            assert await ask(Access(is_open=True)) == set(NAMESPACES)
            assert await ask(OnlyOps()) == {"ops"}


async def test_long_lists_indented_are_as_an_indented_whole() -> None:
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(700)))
        plain, _ = await list_bytes(kit, "type=csi")
        pretty, _ = await list_bytes(kit, "type=csi&pretty")
        assert len(plain) > 300_000
        assert pretty == msgspec.json.format(plain, indent=4) + b"\n"


async def test_packed_pieces_are_one_ordinary_member() -> None:
    compressor = Compressor()
    pieces = [Piece(b"["), Piece(b"x" * 300_000), Piece(bytes(range(256)) * 999), Piece(b""), Piece(b"]")]
    whole = b"".join(piece.data for piece in pieces)
    for _ in range(2):
        packed = b"".join(await compressor.compress_pieces(pieces, "gzip"))
        assert gzip.decompress(packed) == whole
        assert len(packed) < len(compress(whole, "gzip")) * 2
    assert compressor.deflated == len(pieces)


def test_kept_bodies_have_a_bound_and_one_stamp() -> None:
    kept = Kept(bytes_max=4 * (1000 + ENTRY_BYTES))
    for number in range(10):
        kept.keep(number, 1, KeptBody(bytes(1000)))
    assert kept.bytes <= 4 * (1000 + ENTRY_BYTES)
    assert [n for n in range(10) if kept.find(n, 1) is not None] == [6, 7, 8, 9]
    assert kept.find(9, 2) is None
    kept.keep(9, 2, KeptBody(b"new"))
    assert kept.find(9, 2) == KeptBody(b"new")
    assert kept.find(8, 2) is None
    kept.keep("large", 2, KeptBody(bytes(1 << 20)))
    assert kept.find("large", 2) is None
