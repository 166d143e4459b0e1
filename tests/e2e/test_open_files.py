"""A server that runs out of files goes on: connections are reset or refused meanwhile, nothing spins, nothing stops."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

FILES_MAX = 40
CONNECTIONS = 120


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A server that may open few files: its URL and pid."""
    limited = ["sh", "-c", f'ulimit -n {FILES_MAX} && exec "$@"', "sh", sys.executable, "-m", "moorage", "server"]
    words = ["--bind", "127.0.0.1:0", "--data-dir", str(tmp_path)]
    process = subprocess.Popen([*limited, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("ready "), "the server did not start"
        yield line.split()[1], process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def count_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(url: str) -> int:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request("GET", "/v1/status/leader")
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_server_without_files_goes_on(server: tuple[str, int]) -> None:
    url, pid = server
    parts = urlsplit(url)
    assert ask(url) == 200
    held = [socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) for _ in range(CONNECTIONS)]
    deadline_s = time.monotonic() + 10
    while count_files(pid) < FILES_MAX - 1:
        assert time.monotonic() < deadline_s, "the files did not run out"
        time.sleep(0.01)
    began_s, used_s = time.monotonic(), cpu_s(pid)
    time.sleep(1.0)
    assert cpu_s(pid) - used_s < 0.5 * (time.monotonic() - began_s), "it spins"
    for wire in held:
        wire.close()
    while True:
        try:
            assert ask(url) == 200
            return
        except OSError:
            assert time.monotonic() < deadline_s + 20, "it serves nobody any more"
            time.sleep(0.05)
