"""Answers given without a task against those that go the long way: byte for byte, and never to the wrong caller."""

from __future__ import annotations

import json
import re
from typing import Any

import anyio
import msgspec
import pytest
from acl_kit import AclKit, running_acl
from many_volumes import NODE, PLUGIN, Line, a_volume, put_volumes, running_kit

from moorage.api.entries import BYTES_MAX
from moorage.serve.quick_protocol import QUICK_MAX
from moorage.state import keys
from moorage.state.store import Delete, Put

pytestmark = pytest.mark.anyio

READ = "/v1/volume/csi/vol-000001"
PAGE = "/v1/volumes?type=csi&per_page=50"
TARGETS = [
    READ,
    f"{READ}?namespace=ops",
    f"{READ}?namespace=*",
    f"{READ}?pretty",
    f"{READ}?index=1",
    f"{READ}?",
    f"{READ}#part",
    "/v1/volume/csi/none",
    "/v1/volume/csi/vol%2d000001",
    PAGE,
    f"{PAGE}&namespace=*",
    f"{PAGE}&per_page=x",
    "/v1/volumes?type=csi&prefix=vol-00000",
    "/v1/volumes?type=csi&filter=ID%3D%3Da",
    "/v1/volumes",
    "/v1/volumes?type=host",
    "/v1/plugins?type=csi",
    "http://moorage/v1/volume/csi/vol-000001",
]
HEADS = [
    "",
    "Accept-Encoding: gzip\r\n",
    "Accept-Encoding: zstd\r\n",
    "Accept-Encoding: gzip;q=0\r\nAccept: application/problem+json\r\n",
    "X-Request-Id: mine-1\r\n",
    "X-Request-Id: not mine\r\n",
    "Origin: https://ui.example\r\n",
    "Connection: keep-alive\r\nUser-Agent: x\r\n",
    "Connection: close\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 2\r\n\r\nxx",
    "Transfer-Encoding: chunked\r\n\r\n0\r\n",
    "X-Nomad-Token: nobody\r\n",
]
ID = re.compile(rb"x-request-id: (?!mine)[^\r]+")
TIME = re.compile(rb"dur=[0-9.]+")


def without_chance(wire: bytes) -> bytes:
    """An answer without what is another each time."""
    return TIME.sub(b"dur=", ID.sub(b"x-request-id: ", wire))


@pytest.mark.parametrize("target", TARGETS)
async def test_both_ways_send_the_same_bytes(target: str) -> None:
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(60)))
        for method in ("GET", "HEAD", "PUT"):
            for head in HEADS:
                expected = without_chance(await Line(kit, is_quick=False).ask(target, method=method, head=head))
                assert expected.startswith(b"HTTP/1.1 ")
                line = Line(kit)
                for _ in range(3):
                    if not line.wire.is_closed:
                        got = without_chance(await line.ask(target, method=method, head=head))
                        assert got == expected, (method, head)
        quick = kit.app.quick
        is_repeatable = re.fullmatch(r"/v1/(volume/csi/vol(-|%2d)000001(\?namespace=\*)?|volumes\?type=csi&.*)", target)
        assert (quick.given > 0) is (is_repeatable is not None)


@pytest.mark.parametrize("head", ["", "Connection: keep-alive\r\n", "Content-Length: 0\r\n"])
async def test_harmless_headers_do_not_make_a_read_a_task(head: str) -> None:
    async with running_kit() as kit:
        await put_volumes(kit, [a_volume(1)])
        line = Line(kit)
        for _ in range(3):
            assert (await line.ask(READ, head=head)).startswith(b"HTTP/1.1 200 ")
        assert (kit.app.quick.made, kit.app.quick.given) == (1, 2)


async def test_every_change_shows_in_the_next_answer() -> None:
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(3)))
        line, plain = Line(kit), Line(kit, is_quick=False)
        records = kit.repo.feed.records

        async def look() -> Any:
            for target in (READ, PAGE):
                expected = without_chance(await plain.ask(target))
                for _ in range(3):
                    assert without_chance(await line.ask(target)) == expected

        await look()
        volume = a_volume(1)
        key = keys.volume_key(volume.namespace, volume.id)
        changed = msgspec.structs.replace(volume, name="new")
        for op in (Put(key, records.encode(key, changed)), Delete(key), Put(key, records.encode(key, volume))):
            await kit.repo.feed.reach((await kit.store.transact((), [op])).revision)
            await look()
        sick = msgspec.structs.replace(kit.driver.instance(NODE), healthy=False)
        await kit.service.nodes.report_plugins(NODE, {PLUGIN: sick})
        await look()
        use = {"Allocation": {"Name": "x", "Volumes": [{"Name": "data", "Source": "vol-000001"}]}}
        assert b'Allocations":[]' in await line.ask(READ)
        body = json.dumps(use)
        await plain.ask("/v1/allocations", method="PUT", head=f"Content-Length: {len(body)}\r\n\r\n{body}")
        await look()
        assert kit.app.quick.given > 10


def as_bearer(secret: str) -> str:
    return f"X-Nomad-Token: {secret}\r\n"


async def status_of(line: Line, target: str, secret: str) -> int:
    return int((await line.ask(target, head=as_bearer(secret)))[9:12])


async def shown_to(acl: AclKit, line: Line, secret: str) -> set[str]:
    body = await line.ask_body(f"{PAGE}&namespace=*", head=as_bearer(secret))
    return {row["Namespace"] for row in json.loads(body)}


async def test_everybody_gets_only_what_they_may_see() -> None:
    async with running_acl() as acl:
        await put_volumes(acl.kit, (a_volume(n, namespace=("default", "ops")[n % 2]) for n in range(8)))
        reader = await acl.grant('namespace "default" { policy = "read" }')
        operator = await acl.grant('namespace "*" { policy = "read" }')
        nobody = await acl.grant('node { policy = "read" }')
        line = Line(acl.kit)
        for _ in range(3):
            assert await shown_to(acl, line, reader) == {"default"}
            assert await shown_to(acl, line, operator) == {"default", "ops"}
            assert await shown_to(acl, line, acl.management) == {"default", "ops"}
            for secret in (nobody, "no-such-token", ""):
                assert await status_of(line, f"{PAGE}&namespace=*", secret) == 403
            assert await status_of(line, f"{READ}?namespace=ops", reader) == 403
            assert await status_of(line, f"{READ}?namespace=ops", operator) == 200
        assert acl.kit.app.quick.given > 5


async def test_a_grant_that_is_taken_away_is_gone_at_once() -> None:
    async with running_acl() as acl:
        await put_volumes(acl.kit, map(a_volume, range(3)))
        await acl.apply("all", 'namespace "default" { policy = "read" }')
        token = await acl.make_token("all")
        line = Line(acl.kit)
        assert [await status_of(line, READ, token["SecretID"]) for _ in range(3)] == [200, 200, 200]
        await acl.apply("all", 'namespace "default" { capabilities = ["csi-list-volume"] }')
        assert [await status_of(line, READ, token["SecretID"]) for _ in range(2)] == [403, 403]
        await acl.apply("all", 'namespace "default" { policy = "read" }')
        assert [await status_of(line, READ, token["SecretID"]) for _ in range(3)] == [200, 200, 200]
        await acl.read("DELETE", f"/v1/acl/token/{token['AccessorID']}")
        assert await status_of(line, READ, token["SecretID"]) == 403


async def until_answers(line: Line, count: int) -> None:
    """Return once so many answers were written."""
    with anyio.fail_after(10):
        while b"".join(line.wire.writes).count(b"HTTP/1.1 200") < count:
            line.wire.moved = anyio.Event()
            await line.wire.moved.wait()


async def test_requests_in_one_go_are_answered_in_order() -> None:
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(60)))
        line = Line(kit)
        for number in range(4):
            await line.ask(f"/v1/volume/csi/vol-{number:06d}")
        targets = [f"/v1/volume/csi/vol-{n % 6:06d}" for n in range(40)]
        data = b"".join(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % target.encode() for target in targets)
        line.wire.writes.clear()
        line.protocol.data_received(data)
        await until_answers(line, len(targets))
        found = re.findall(rb'"ID":"(vol-\d+)"', b"".join(line.wire.writes))
        assert [name.decode() for name in found] == [target[-10:] for target in targets]


async def test_one_turn_gives_only_so_many_answers() -> None:
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(3)))
        line = Line(kit)
        await line.ask(READ)
        quick = kit.app.quick
        before = quick.given
        line.protocol.data_received(f"GET {READ} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * (QUICK_MAX + 20))
        assert quick.given - before == QUICK_MAX
        await until_answers(line, QUICK_MAX + 21)


async def test_a_reader_that_takes_nothing_is_not_written_to_without_end() -> None:
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(3)))
        line = Line(kit)
        await line.ask(READ)
        line.protocol.pause_writing()
        line.wire.writes.clear()
        line.protocol.data_received(f"GET {READ} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 5)
        await anyio.wait_all_tasks_blocked()
        assert line.wire.writes == []
        line.protocol.resume_writing()
        await until_answers(line, 5)


async def test_a_connection_in_use_is_not_idle() -> None:
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(3)))
        line = Line(kit)
        await line.ask(READ)
        book = line.book
        other = Line(kit, book=book)
        await other.ask(READ)
        first = book.idle.find_first()
        assert first is not None
        assert first[0] is line.protocol
        await line.ask(READ)
        first = book.idle.find_first()
        assert first is not None
        assert first[0] is other.protocol
        assert len(book.idle) == 2


async def test_what_is_kept_has_a_bound() -> None:
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(300)))
        line, quick = Line(kit), kit.app.quick
        for number in range(200):
            await line.ask(f"/v1/volumes?type=csi&per_page=250&x={number}")
            assert quick.entries.bytes <= BYTES_MAX
        assert quick.entries.bytes > BYTES_MAX // 2


async def test_both_ways_are_counted_alike() -> None:
    async with running_kit() as kit:
        await put_volumes(kit, map(a_volume, range(3)))

        def count() -> dict[tuple[str, ...], float]:
            found = [s for s in kit.service.meters.read() if s.name == "moorage_http_requests_total"]
            return {s.labels: s.value for s in found if isinstance(s.value, int)}

        for is_quick, expected in ((False, 3), (True, 6)):
            line = Line(kit, is_quick=is_quick)
            for _ in range(3):
                await line.ask(READ)
            assert count()["GET", "/v1/volume/csi/:id", "200"] == expected
            await line.ask("/v1/volume/csi/none")
        assert count()["GET", "/v1/volume/csi/:id", "404"] == 2
