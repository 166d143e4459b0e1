"""Consumers of the event stream without a socket, and a ring that only the test feeds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
from app_asking import a_body, read
from engine_kit import Kit, RunningClock

from moorage.api.app import App
from moorage.api.http import Answer, Request
from moorage.api.params import find_query
from moorage.engine.events import Events, EventSettings
from moorage.engine.service import Service
from moorage.model.ids import AllocationId, NamespaceName, PluginId, VolumeId
from moorage.model.volume import Volume
from moorage.state import keys
from moorage.state.feed import Feed
from moorage.state.memory import MemoryStore
from moorage.state.repo import Repo, Write
from moorage.testing.clock import SeededChance


class Lines:
    """A consumer: the lines so far. While ``take`` is not set, it takes none."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.is_over = False
        self.take = anyio.Event()
        self.take.set()
        self._moved = anyio.Event()

    async def write(self, piece: bytes) -> None:
        assert piece.endswith(b"\n")
        assert piece.count(b"\n") == 1
        assert piece != b"\n"
        await self.take.wait()
        self.raw.append(piece)
        self._move()

    def _move(self) -> None:
        self._moved.set()
        self._moved = anyio.Event()

    async def follow(self, answer: Answer) -> None:
        assert answer.stream is not None
        await answer.stream(self.write)
        self.is_over = True
        self._move()

    @property
    def all(self) -> list[Any]:
        return [json.loads(line) for line in self.raw]

    @property
    def events(self) -> list[Any]:
        return [event for line in self.all for event in line.get("Events", [])]

    @property
    def types(self) -> list[str]:
        return [event["Type"] for event in self.events]

    async def until(self, *types: str) -> list[Any]:
        """The events, once those of these types have come, in this order among others."""
        with anyio.fail_after(10):
            while not _has_in_order(self.types, types):
                await self._moved.wait()
        return self.events

    async def until_over(self) -> None:
        with anyio.fail_after(10):
            while not self.is_over:
                await self._moved.wait()


def _has_in_order(found: list[str], wanted: tuple[str, ...]) -> bool:
    rest = iter(found)
    return all(kind in rest for kind in wanted)


async def open_stream(app: App, query: str = "") -> Answer:
    request = Request(
        method="GET",
        path="/v1/event/stream",
        parts=("v1", "event", "stream"),
        query=find_query(query.encode()),
        raw_query=query.encode(),
    )
    return await app.answer(request)


@asynccontextmanager
async def following(app: App, query: str = "") -> AsyncIterator[Lines]:
    """A consumer that follows until the block ends."""
    answer = await open_stream(app, query)
    assert (answer.status, answer.content_type) == (200, "application/json")
    lines = Lines()
    async with anyio.create_task_group() as group:
        group.start_soon(lines.follow, answer)
        await anyio.wait_all_tasks_blocked()
        yield lines
        group.cancel_scope.cancel()


async def create(kit: Kit, volume_id: str, **members: object) -> None:
    await read(kit, "PUT", f"/v1/volume/csi/{volume_id}/create", a_body(volume_id, **members))


async def use(kit: Kit, volume_id: str) -> str:
    """An allocation that has the volume mounted."""
    body = {"Allocation": {"JobID": "job", "Volumes": [{"Name": "data", "Source": volume_id}]}}
    started = await read(kit, "PUT", "/v1/allocations", body)
    await wait_for(lambda: kit.service.reads.find_allocation(started["ID"]).value.status == "running")  # type: ignore[union-attr]
    return str(started["ID"])


async def wait_for(test: Any) -> None:
    with anyio.fail_after(10):
        while not test():
            await anyio.sleep(0.005)


async def release(kit: Kit, allocation_id: str) -> None:
    await read(kit, "PUT", f"/v1/allocation/{allocation_id}/stop")
    await wait_for(lambda: not kit.repo.view.claims.of_allocation(AllocationId(allocation_id)))


def a_volume(volume_id: str, **fields: object) -> Volume:
    return Volume(
        id=VolumeId(volume_id),
        namespace=NamespaceName("default"),
        plugin_id=PluginId("p"),
        state="ready",
        **fields,  # type: ignore[arg-type]
    )


async def put(repo: Repo, volume_id: str, **fields: object) -> int:
    """Put a ready volume on record; returns the revision."""
    key = keys.volume_key(NamespaceName("default"), VolumeId(volume_id))
    known = repo.view.volumes.find(key)
    return await repo.commit(Write().put(key, a_volume(volume_id, **fields), revision=known.modified if known else 0))


class Ring(msgspec.Struct, kw_only=True):
    """A feed with its events, and nothing that writes but the test."""

    repo: Repo
    events: Events
    app: App


@asynccontextmanager
async def running_events(settings: EventSettings, store: MemoryStore | None = None) -> AsyncIterator[Ring]:
    """A ring that follows its feed until the block ends."""
    store = store or MemoryStore()
    repo = Repo(store, Feed(store))
    service = Service(repo, RunningClock(), SeededChance(), event_settings=settings)
    async with anyio.create_task_group() as group:
        await group.start(repo.feed.run)
        await service.events.fill()
        yield Ring(repo=repo, events=service.events, app=App(service))
        group.cancel_scope.cancel()
