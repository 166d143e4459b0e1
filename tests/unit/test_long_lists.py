"""Lists that look at many volumes: some in a turn of the loop, while others have theirs and everything changes."""

from __future__ import annotations

import itertools
import random
from typing import Any
from urllib.parse import quote

import anyio
import anyio.lowlevel
import msgspec
import pytest
from held_kit import begin, end, holding, index_now, with_index
from list_kit import a_claim, a_query, change_at_random, looking, transact
from many_volumes import NODE, PLUGIN, Kit, Line, a_volume, put_volumes, running_kit

from moorage.api import volume_lists
from moorage.api.http import Answer
from moorage.api.volume_lists import _Listing
from moorage.engine import segments
from moorage.engine.kept import Kept
from moorage.errors import MoorageError
from moorage.model.volume import Volume
from moorage.state import keys
from moorage.state.store import Delete, Put

pytestmark = pytest.mark.anyio

FILTERS = (
    "",
    'ID matches "[13]$"',
    'Name == "é"',
    "ControllersHealthy == 1",
    "CurrentReaders != 0 or CurrentWriters != 0",
    "Topologies is empty",
    # One that many volumes cannot be asked.
    'ID matches "0[13]$" and Context.none != "z1"',
)


def told(listing: _Listing, ranges: Any) -> tuple[bytes, str] | str:
    """A list's body and the token of the next page, or its error."""
    try:
        answer = PLAIN(listing, ranges)
    except MoorageError as error:
        return error.message
    return answer.whole(), answer.headers.get("X-Nomad-NextToken", "")


PLAIN = _Listing._answer
FORMAT = msgspec.json.format


@pytest.mark.parametrize("seed", range(12))
async def test_a_list_is_that_of_the_instant_in_which_it_is_answered(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance, checked, moved, reused = random.Random(seed), 0, 0, 0
    monkeypatch.setattr(segments, "ROWS_MAX", 8)
    monkeypatch.setattr(segments, "ROWS_MERGED_MAX", 6)
    monkeypatch.setattr(volume_lists, "TURN_WORK", 1)
    async with running_kit() as kit:
        shelf = kit.service.shelf
        began_at = 0
        wrong: list[Any] = []

        def check(listing: _Listing, ranges: Any) -> Answer:
            nonlocal checked, moved, reused
            fresh = _Listing(kit.service, listing._request, listing._options, listing._chosen)
            kept, shelf.kept = shelf.kept, Kept()
            expected, shelf.kept = told(fresh, fresh._find_ranges()), Kept()
            got, shelf.kept = told(listing, ranges), kept
            # What is raised here would be no more than an answer with an error.
            if got != expected:
                wrong.append((listing._request.raw_query, got, expected))
            checked += 1
            moved += shelf.changes != began_at
            reused += sum(
                found.state == listing._find_state((part, *found.state[:2])) for part, found in listing._found.items()
            )
            return PLAIN(listing, ranges)

        monkeypatch.setattr(_Listing, "_answer", check)
        await put_volumes(kit, (a_volume(n) for n in range(0, 900, 3)))
        volumes: dict[str, Volume] = {
            keys.volume_key(a_volume(n).namespace, a_volume(n).id): a_volume(n) for n in range(0, 900, 3)
        }
        line = Line(kit)

        async def change(count: int) -> None:
            for _ in range(count):
                await change_at_random(kit, chance, volumes)
                await change_in_place(kit, chance, volumes)
                if seed % 2 and chance.random() < 0.3:
                    sick = msgspec.structs.replace(kit.driver.instance(NODE), healthy=chance.random() < 0.5)
                    await kit.service.nodes.report_plugins(NODE, {PLUGIN: sick})

        for _ in range(60):
            query = a_query(chance, volumes) | {"filter": chance.choice(FILTERS)}
            raw = "&".join(f"{name}={quote(value)}" for name, value in query.items() if value)
            began_at = shelf.changes
            async with anyio.create_task_group() as group:
                group.start_soon(change, chance.randrange(12))
                await line.ask(f"/v1/volumes?{raw}")
            assert not wrong
        assert checked >= 60
    assert moved > 5
    assert reused > 100


async def change_in_place(kit: Kit, chance: random.Random, volumes: dict[str, Volume]) -> None:
    """Change a volume that is there, or its claims: no other one moves by it."""
    key = chance.choice(list(volumes))
    volume = volumes[key]
    if chance.random() < 0.5:
        volumes[key] = msgspec.structs.replace(volume, name=chance.choice(("é", "other")))
        await transact(kit, Put(key, kit.repo.feed.records.encode(key, volumes[key])))
        return
    claim = a_claim(volume, chance.randrange(50))
    claim_key = keys.claim_key(claim.id)
    is_there = kit.repo.view.claims.find(claim_key) is not None
    records = kit.repo.feed.records
    await transact(kit, Delete(claim_key) if is_there else Put(claim_key, records.encode(claim_key, claim)))


async def test_a_long_look_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the search for a pattern, nor what is joined of it, nor a list that is turned."""
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(6000)))
        line, shelf = Line(kit), kit.service.shelf
        joined: list[int] = []
        stubs = shelf.stubs

        def count(segment: Any, positions: Any) -> bytes:
            joined[-1] += len(positions)
            return stubs(segment, positions)

        monkeypatch.setattr(shelf, "stubs", count)

        async with looking(lambda: joined.append(0)):
            for more, shown, turns_min in (
                ("filter=" + quote('ID matches "[1-8]$"'), 4800, 4800 * 4 / volume_lists.TURN_WORK),
                ("reverse=true", 6000, 6000 * 4 / volume_lists.TURN_WORK),
                ("filter=" + quote('Topologies is empty and ID matches "7$"'), 600, 600 * 32 / volume_lists.TURN_WORK),
            ):
                joined[:] = [0]
                body = await line.ask_body(f"/v1/volumes?type=csi&{more}")
                assert body.count(b'"ID":') == shown
                assert len(joined) > turns_min
                assert max(joined) <= volume_lists.TURN_WORK / 4 + segments.ROWS_MAX


async def test_to_indent_a_long_list_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    indented: list[int] = []

    def count(text: bytes, indent: int) -> bytes:
        indented[-1] += text.count(b'"ID":')
        return FORMAT(text, indent=indent)

    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(6000)))
        line = Line(kit)
        plain = await line.ask_body("/v1/volumes?type=csi")
        monkeypatch.setattr(msgspec.json, "format", count)
        async with looking(lambda: indented.append(0)):
            body = await line.ask_body("/v1/volumes?type=csi&pretty")
    assert body == FORMAT(plain, indent=4) + b"\n"
    assert sum(indented) == 6000
    assert max(indented) <= segments.ROWS_MAX


async def test_who_asks_for_the_same_long_list_waits_for_it_together(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = 0
    slowly = _Listing._make_slowly

    async def count(listing: _Listing) -> Answer:
        nonlocal begun
        begun += 1
        return await slowly(listing)

    monkeypatch.setattr(_Listing, "_make_slowly", count)
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(6000)))
        lines = [Line(kit) for _ in range(20)]
        target = "/v1/volumes?type=csi&filter=" + quote('ID matches "[1-8]$"')
        for line in lines:
            begin(line, target)
        bodies = {(await end(line)).partition(b"\r\n\r\n")[2] for line in lines}
        assert len(bodies) == 1
        # All ask before the first one begins to look.
        assert begun == 1
        other = Line(kit)
        assert (await other.ask_body(f"{target}&reverse=true")).count(b'"ID":') == 4800
        assert len(kit.service.shelf.sharing) == 0


async def test_one_that_leaves_in_the_middle_leaves_the_rest_to_others() -> None:
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(6000)))
        first, other = Line(kit), Line(kit)
        target = "/v1/volumes?type=csi&filter=" + quote('ID matches "[1-8]$"')
        begin(first, target)
        begin(other, target)
        for _ in range(4):
            await anyio.lowlevel.checkpoint()
        first.protocol.connection_lost(None)
        assert (await end(other)).count(b'"ID":') == 4800


async def test_all_who_wait_for_a_long_list_are_answered_by_one_look() -> None:
    async with holding(6000) as kit:
        target = "/v1/volumes?type=csi&per_page=5&filter=" + quote('ID matches "[1-8]$" and Name != "x"')
        lines = [Line(kit) for _ in range(20)]
        index = await index_now(kit, "/v1/volume/csi/vol-000001")
        for line in lines:
            begin(line, with_index(target, index))
        await change_name(kit)
        for line in lines:
            assert b'"new"' in await end(line)
        assert (kit.app.held.answered, kit.app.held.passed, kit.app.held.made) == (20, 0, 1)


async def change_name(kit: Kit) -> None:
    await put_volumes(kit, [a_volume(1, name="new")])


def test_turns_are_counted_in_the_same_units() -> None:
    """A look at a volume's text is cheaper than at a volume; to make one whole is dearer than its stub."""
    works = (volume_lists.EXACT_WORK, 1, volume_lists.STUB_WORK, volume_lists.DATUM_WORK)
    assert all(before < after for before, after in itertools.pairwise(works))
