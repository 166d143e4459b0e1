"""The comparison of two servers in turns (`bench/beside.py`), with two of ours; and its clients with long answers."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import pytest
from dev_server import Program, running_fleet

BENCH = Path(__file__).resolve().parents[2] / "bench"
ITEMS = ("register_batched", "memory", "read", "list_filter", "register_c16", "create_c1", "fanout_page50")
SMALL = ("--volumes", "200", "--rounds", "1", "--seconds", "0.2", "--waiters", "20", "--writes", "8", "--pause", "0.1")
MEMBERS = {"unit", "ours", "peer", "ours_median", "peer_median", "ratio", "lowest", "highest", "goal", "is_met"}
# Answers are right whatever the client makes of a chunk's edge.
CUTS = (1, 7, 1000)


@pytest.fixture
def two() -> Iterator[tuple[Program, Program]]:
    """Two servers that have nothing in common."""
    with running_fleet(is_guarded=False) as one, running_fleet(is_guarded=False) as other:
        yield one.start_dev(), other.start_dev()


def compare(two: tuple[Program, Program], *words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """What the program says."""
    command = [sys.executable, str(BENCH / "beside.py"), *(program.url for program in two), *SMALL, *words]
    environment = dict(os.environ) if path is None else {**os.environ, "PATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=False)


@pytest.mark.slow
def test_all_is_measured_in_turns(two: tuple[Program, Program], tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    pids = ("--ours-pid", str(two[0].pid), "--peer-pid", str(two[1].pid))
    done = compare(two, "--only", ",".join(ITEMS), "--out", str(out), *pids)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == list(ITEMS)
    assert all(len(row) == 8 and row[-1] in ("met", "MISSED") for row in rows)
    items = json.loads(out.read_text())["items"]
    assert list(items) == list(ITEMS)
    for found in items.values():
        assert set(found) == MEMBERS
        assert len(found["ours"]) == len(found["peer"]) == 1
        assert 0 < found["lowest"] <= found["ratio"] <= found["highest"]
    assert [items[name]["unit"] for name in ITEMS] == ["/s", "MB", "/s", "/s", "/s", "/s", "ms"]


@pytest.mark.slow
def test_reads_without_wrk(two: tuple[Program, Program], tmp_path: Path) -> None:
    only = "list_all_gzip,list_filter_page,memory,fanout_read"
    done = compare(two, "--only", only, "--reader", "streams", path=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    said = [line.split()[0] for line in done.stdout.splitlines()]
    assert "wrk is not on PATH" in done.stdout
    assert "memory: not measured without --ours-pid and --peer-pid" in done.stdout
    assert said[-3:] == ["list_all_gzip", "list_filter_page", "fanout_read"]


def test_an_error_in_an_answer_ends_the_run(two: tuple[Program, Program]) -> None:
    done = compare(two, "--plugin", "nobodys")
    assert done.returncode == 1
    assert done.stderr.startswith(f"stopped: {two[0].url.removeprefix('http://')} answered ")
    assert " to PUT /v1/volume/csi/base/create: " in done.stderr
    assert "nobodys" in done.stderr
    # What the clients of writes say, it says too.
    words = [str(BENCH / "streams.py"), two[1].url, "write", "w", "--clients", "4", "--plugin", "nobodys"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert " to PUT /v1/volume/csi/w-0000" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    # And the one that waits: nobody's write wakes it.
    words = [str(BENCH / "waking.py"), two[1].url, "/v1/namespaces", "--external-id", "e", "--waiters", "3"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert " to PUT /v1/volume/csi/vol-000042: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


@asynccontextmanager
async def answering(body: bytes, *, cut: int, is_chunked: bool) -> AsyncIterator[int]:
    """A server that answers anything with this body, in two chunks or plainly, in writes of so many bytes; who waits,
    once something was put. Its port."""
    put, half = asyncio.Event(), len(body) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:], b""))
    plain = b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    sent = b"Transfer-Encoding: chunked\r\n\r\n" + chunks if is_chunked else plain
    answer = b"HTTP/1.1 200 OK\r\nX-Nomad-Index: 7\r\n" + sent

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                _, _, length = head.partition(b"content-length: ")
                await reader.readexactly(int(length.partition(b"\r\n")[0] or b"0"))
                if head.startswith(b"put"):
                    put.set()
                elif b"index=7&wait=" in head:
                    await put.wait()
                for low in range(0, len(answer), cut):
                    writer.write(answer[low : low + cut])
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def load_client() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_client", BENCH / "client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.anyio
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_waiters_are_read_whole(cut: int, is_chunked: bool) -> None:
    body = b"0\r\n\r\n and 10\r\n" * 5
    async with answering(body, cut=cut, is_chunked=is_chunked) as port:
        words = [str(BENCH / "waking.py"), f"http://127.0.0.1:{port}", "/v1/x", "--external-id", "e", "--waiters", "5"]
        waking = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=subprocess.PIPE)
        out, _ = await waking.communicate()
    assert waking.returncode == 0
    got = json.loads(out)
    assert got["early"] == 0
    assert 0 < got["median_ms"] <= got["last_ms"]


@pytest.mark.anyio
@pytest.mark.parametrize("cut", CUTS)
async def test_answers_in_chunks(cut: int) -> None:
    body, client = b"0\r\n\r\n and 10\r\n" * 5, load_client()
    left = iter([client.request("GET", "/")] * 3)
    async with answering(body, cut=cut, is_chunked=True) as port:
        got = await client.drive("127.0.0.1", port, lambda: next(left, None), connections=1)
        assert (got.count, got.bad) == (3, 0)
        words = [str(BENCH / "streams.py"), f"http://127.0.0.1:{port}", "write", "w", "--count", "3"]
        streams = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=subprocess.PIPE)
        out, _ = await streams.communicate()
    assert streams.returncode == 0
    assert json.loads(out)["per_s"] > 0
