"""The event stream over real sockets: chunks as they come, a slow consumer, a server that is killed and comes back."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from asking import ask, describe_volume, put
from dev_server import Fleet, wait_until
from engine_kit import RunningClock

from moorage.api.app import App
from moorage.engine.events import EventSettings
from moorage.engine.service import Service
from moorage.model.ids import NamespaceName, PluginId, VolumeId
from moorage.model.volume import Volume
from moorage.serve.http import address_of, open_socket, serve_http
from moorage.state import keys
from moorage.state.feed import Feed
from moorage.state.memory import MemoryStore
from moorage.state.repo import Repo, Write
from moorage.testing.clock import SeededChance

PATH = "/v1/event/stream"
PATIENCE_S = 30.0


class Consumer:
    """Follows a stream in a thread, line by line, and remembers the last index seen, as real consumers do."""

    def __init__(self, url: str, query: str = "") -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.lines: list[Any] = []
        self.is_over = False
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE_S)
        self._connection.request("GET", f"{PATH}?{query}")
        self.answer = self._connection.getresponse()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            while line := self.answer.readline():
                self.lines.append(json.loads(line))
        except (OSError, http.client.HTTPException, ValueError):
            pass
        self.is_over = True

    @property
    def events(self) -> list[Any]:
        return [event for line in list(self.lines) for event in line.get("Events", [])]

    @property
    def index(self) -> int:
        return max((event["Index"] for event in self.events), default=0)

    def keys_of(self, kind: str) -> list[str]:
        return [event["Key"] for event in self.events if event["Type"] == kind]

    def until(self, test: Callable[[], object], what: str) -> None:
        wait_until(test, f"{what} (seen: {[e['Type'] for e in self.events][-8:]})")

    def close(self) -> None:
        if self._connection.sock is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        assert not self._thread.is_alive()
        self.answer.close()
        self._connection.close()


def create(url: str, volume_id: str) -> None:
    put(url, f"/v1/volume/csi/{volume_id}/create", describe_volume(volume_id))


def test_lines_come_as_it_happens_each_in_a_chunk(fleet: Fleet) -> None:
    url = fleet.start_dev().url
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S) as wire:
        wire.sendall(f"GET {PATH}?topic=CSIVolume HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        reader = wire.makefile("rb")
        assert reader.readline() == b"HTTP/1.1 200 OK\r\n"
        headers = {}
        while (line := reader.readline()) != b"\r\n":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        assert headers["transfer-encoding"] == "chunked"
        assert headers["content-type"] == "application/json"
        assert _read_chunk(reader) == b"{}\n"
        for volume_id in ("web", "db"):
            create(url, volume_id)
            chunk = _read_chunk(reader)
            assert chunk.count(b"\n") == 1
            assert chunk.endswith(b"}\n")
            found = json.loads(chunk)
            assert [event["Key"] for event in found["Events"]] == [volume_id]


def _read_chunk(reader: Any) -> bytes:
    size = int(reader.readline(), 16)
    chunk: bytes = reader.read(size)
    assert reader.readline() == b"\r\n"
    return chunk


def test_compressed_lines_come_as_it_happens(fleet: Fleet) -> None:
    url = fleet.start_dev().url
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE_S)
    try:
        connection.request("GET", f"{PATH}?topic=CSIVolume", headers={"Accept-Encoding": "gzip"})
        answer = connection.getresponse()
        assert answer.headers["Content-Encoding"] == "gzip"
        unpacker = zlib.decompressobj(31)
        assert unpacker.decompress(answer.read1()) == b"{}\n"
        create(url, "web")
        text = b""
        while not text.endswith(b"\n"):
            text += unpacker.decompress(answer.read1())
        assert json.loads(text)["Events"][0]["Key"] == "web"
    finally:
        connection.close()
    listed = ask(url, "GET", "/v1/plugin/csi/hostpath", headers={"Accept-Encoding": "gzip"})
    assert json.loads(gzip.decompress(listed.body))["ID"] == "hostpath"


def test_resuming_over_a_kill_loses_nothing(fleet: Fleet) -> None:
    program = fleet.start_dev()
    first = Consumer(program.url, "topic=CSIVolume&namespace=*")
    for number in range(5):
        create(program.url, f"before-{number}")
    first.until(lambda: len(first.keys_of("CSIVolumeRegistered")) == 5, "five volumes are told")
    first.close()
    # These happen while nobody listens.
    for number in range(5):
        create(program.url, f"unheard-{number}")
    program.kill()
    program.restart()
    create(program.url, "after")
    second = Consumer(program.url, f"topic=CSIVolume&namespace=*&index={first.index}")
    second.until(lambda: "after" in second.keys_of("CSIVolumeRegistered"), "the volume after the restart is told")
    assert second.lines[0] == {}
    told = second.keys_of("CSIVolumeRegistered")
    assert told == ["before-4", *(f"unheard-{number}" for number in range(5)), "after"]
    # The last one seen comes again, the same as before.
    assert second.events[0] == first.events[-1]
    # A consumer that follows while the server is killed hears the end, and goes on where it was.
    program.kill()
    second.until(lambda: second.is_over, "the stream ended")
    second.close()
    program.restart()
    create(program.url, "last")
    third = Consumer(program.url, f"topic=CSIVolume&namespace=*&index={second.index + 1}")
    third.until(lambda: third.keys_of("CSIVolumeRegistered"), "the last volume is told")
    assert third.keys_of("CSIVolumeRegistered") == ["last"]
    third.close()


def test_a_stopping_server_ends_the_stream_whole(fleet: Fleet) -> None:
    program = fleet.start_dev()
    consumer = Consumer(program.url)
    consumer.until(lambda: consumer.lines, "the heartbeat")
    assert program.stop() == 0
    consumer.until(lambda: consumer.is_over, "the stream ended")
    assert consumer.answer.isclosed(), "the last chunk came"
    consumer.close()


@asynccontextmanager
async def serving(settings: EventSettings) -> AsyncIterator[tuple[str, Repo, Service]]:
    """A server in this process over a store in memory, which only the test writes to."""
    store = MemoryStore()
    repo = Repo(store, Feed(store))
    service = Service(repo, RunningClock(), SeededChance(), event_settings=settings)
    listener = open_socket("127.0.0.1:0")
    try:
        async with anyio.create_task_group() as group:
            await group.start(repo.feed.run)
            await group.start(serve_http, App(service), listener)
            yield address_of(listener), repo, service
            group.cancel_scope.cancel()
    finally:
        listener.close()


async def put_volume(repo: Repo, volume_id: str, *, context_bytes: int = 0) -> None:
    volume = Volume(
        id=VolumeId(volume_id),
        namespace=NamespaceName("default"),
        plugin_id=PluginId("p"),
        state="ready",
        context={"long": "x" * context_bytes},
    )
    await repo.commit(Write().put(keys.volume_key(*volume.key), volume, revision=0))


@pytest.mark.anyio
async def test_a_slow_consumer_is_cut_off_and_resumes_without_a_loss() -> None:
    async with serving(EventSettings(unread_max=20)) as (url, repo, service):
        parts = urlsplit(url)
        with socket.socket() as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.settimeout(PATIENCE_S)
            await anyio.to_thread.run_sync(wire.connect, (parts.hostname, parts.port))
            wire.sendall(f"GET {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            with anyio.fail_after(10):
                while not service.events.readers:
                    await anyio.sleep(0.01)
            (reader,) = service.events._readers
            total = 0
            # More than the sockets on both sides can hold, while nobody reads.
            while reader.ended is None:
                await put_volume(repo, f"v{total:04}", context_bytes=100_000)
                total += 1
                assert total < 1000
                await anyio.lowlevel.checkpoint()
            for _ in range(5):
                await put_volume(repo, f"v{total:04}")
                total += 1
            lines = await anyio.to_thread.run_sync(_read_lines, wire)
        assert set(lines[-1]) == {"Error", "Index"}
        assert "too slow" in lines[-1]["Error"]
        heard = [event["Key"] for line in lines for event in line.get("Events", [])]
        resumed = await anyio.to_thread.run_sync(Consumer, url, f"index={lines[-1]['Index']}")
        wanted = [f"v{number:04}" for number in range(total)]
        with anyio.fail_after(20):
            while len(heard) + len(resumed.events) < total:
                await anyio.sleep(0.02)
        assert heard + [event["Key"] for event in resumed.events] == wanted
        await anyio.to_thread.run_sync(resumed.close)
        with anyio.fail_after(10):
            while service.events.readers:
                await anyio.sleep(0.01)


def _read_lines(wire: socket.socket) -> list[Any]:
    answer = http.client.HTTPResponse(wire)
    answer.begin()
    return [json.loads(line) for line in answer.read().splitlines()]
