"""Reads that are held: connections that wait, and changes that wake them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
from many_volumes import Kit, Line, a_volume, put_volumes, running_kit

from moorage.state import keys
from moorage.state.store import Delete, Op, Put

READ = "/v1/volume/csi/vol-000001"
OTHER = "/v1/volume/csi/vol-000002"
PAGE = "/v1/volumes?type=csi&per_page=50"
ID = re.compile(rb"x-request-id: (?!mine)[^\r]+")
TIME = re.compile(rb"dur=[0-9.]+")


def without_chance(wire: bytes) -> bytes:
    """An answer without what is another each time."""
    return TIME.sub(b"dur=", ID.sub(b"x-request-id: ", wire))


def with_index(target: str, index: int, wait: str = "20s") -> str:
    return f"{target}{'&' if '?' in target else '?'}index={index}&wait={wait}"


@asynccontextmanager
async def holding(count: int = 60, **options: Any) -> AsyncIterator[Kit]:
    """A kit with volumes whose reads are held while the block runs."""
    async with running_kit(**options) as kit, anyio.create_task_group() as group:
        await put_volumes(kit, map(a_volume, range(count)))
        group.start_soon(kit.app.held.run)
        await anyio.wait_all_tasks_blocked()
        yield kit
        group.cancel_scope.cancel()


async def write(kit: Kit, *ops: Op) -> None:
    await kit.repo.feed.reach((await kit.store.transact((), ops)).revision)


def a_put(kit: Kit, number: int, **members: Any) -> Op:
    volume = msgspec.structs.replace(a_volume(number), **members)
    key = keys.volume_key(volume.namespace, volume.id)
    return Put(key, kit.repo.feed.records.encode(key, volume))


def a_delete(number: int) -> Op:
    volume = a_volume(number)
    return Delete(keys.volume_key(volume.namespace, volume.id))


def begin(line: Line, target: str, head: str = "", method: str = "GET") -> None:
    """Ask, without waiting for the answer."""
    line.wire.writes.clear()
    line.protocol.data_received(f"{method} {target} HTTP/1.1\r\nHost: moorage\r\n{head}\r\n".encode())


async def end(line: Line) -> bytes:
    """The answer to what was begun."""
    with anyio.fail_after(10):
        while line.protocol.is_answering() and not line.wire.is_closed:
            line.wire.moved = anyio.Event()
            await line.wire.moved.wait()
    return b"".join(line.wire.writes)


def index_of(answer: bytes) -> int:
    found = re.search(rb"x-nomad-index: (\d+)", answer)
    assert found is not None
    return int(found[1])


async def index_now(kit: Kit, target: str) -> int:
    """The index to wait above: an empty table's is 0, above which no read waits."""
    return max(1, index_of(await Line(kit, is_quick=False).ask(target)))
