"""Who uses a volume: real processes on real mounts, in this and in other mount namespaces."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.agent.holders import HolderSearch, Question, end_holder
from moorage.csi import mounting
from moorage.rules.holders import Holder, describe_holders

pytestmark = [pytest.mark.anyio, pytest.mark.root]

HOLD = {
    "open": "f = open(sys.argv[1] + '/file')",
    "directory": "os.chdir(sys.argv[1])",
    "mapped": "f = open(sys.argv[1] + '/file', 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); f.close()",
    "root": "os.chroot(sys.argv[1])",
    "nothing": "pass",
}


class Place:
    """A volume that is published at two paths, and the processes that use it."""

    def __init__(self, path: Path) -> None:
        self.source, self.one, self.two = path / "volume", path / "one", path / "two"
        for made in (self.source, self.one, self.two):
            made.mkdir()
        (self.source / "file").write_text("content")
        (self.source / "inner").mkdir()
        for point in (self.one, self.two):
            mounting.bind(self.source, point)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str | Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([str(w) for w in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    def hold(self, how: str, path: Path, *before: str | Path) -> subprocess.Popen[bytes]:
        code = f"import mmap, os, sys\n{HOLD[how]}\nprint('ready', flush=True)\nsys.stdin.read()"
        return self.start(*before, sys.executable, "-c", code, path)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    if not mounting.can_mount():
        pytest.skip("this process may not mount")
    made = Place(tmp_path)
    yield made
    made.close()
    for mount in reversed(mounting.read_mounts()):
        if mount.target.startswith(f"{tmp_path}/"):
            mounting.unmount(mount.target, lazy=True)


async def find(*paths: Path, is_last: bool = False) -> list[Holder]:
    found = await HolderSearch(timeout_s=10.0).find(Question(tuple(map(str, paths)), is_last))
    return list(found)


async def test_nobody(place: Place) -> None:
    place.hold("nothing", place.one)
    assert await find(place.one, is_last=True) == []


@pytest.mark.parametrize("how", ["open", "directory", "mapped", "root"])
async def test_a_process_that_uses_it(place: Place, how: str) -> None:
    process = place.hold(how, place.one)
    found = await find(place.one)
    assert (process.pid, how) in [(h.pid, h.how) for h in found]
    assert {h.pid for h in found} == {process.pid}
    assert found[0].path.startswith(str(place.one))
    assert f"pid {process.pid} (python" in describe_holders(found)


async def test_another_use_of_the_same_volume_is_not_mistaken_for_it(place: Place) -> None:
    place.hold("open", place.two)
    assert await find(place.one, is_last=True) == []
    place.hold("open", place.source)
    assert await find(place.one, is_last=True) == []


async def test_a_mount_below_it(place: Place) -> None:
    mounting.bind(place.two, place.one / "inner")
    assert await find(place.one) == [Holder(how="mount", path=str(place.one / "inner"))]


async def test_a_process_with_a_mount_table_of_its_own(place: Place) -> None:
    process = place.hold("open", place.one, "unshare", "--mount", "--propagation", "private")
    assert {h.pid for h in await find(place.one, is_last=True)} == {process.pid}


async def test_a_copy_of_the_mount_table_alone_uses_nothing(place: Place) -> None:
    place.hold("nothing", place.one, "unshare", "--mount", "--propagation", "private")
    assert await find(place.one, is_last=True) == []


async def test_a_container_that_was_given_the_volume(place: Place, tmp_path: Path) -> None:
    """Nothing is open, yet the volume is mounted in there on purpose; whose use it is cannot be told."""
    (tmp_path / "box").mkdir()
    script = 'mount -t tmpfs box "$2" && mkdir "$2/data" && mount --bind "$1" "$2/data" && echo ready && read x'
    words = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", place.one, tmp_path / "box")
    process = place.start(*words)
    (found,) = await find(place.one, is_last=True)
    assert (found.pid, found.how, found.path) == (process.pid, "mount", str(tmp_path / "box" / "data"))
    assert await find(place.one) == []


async def test_a_copy_of_the_whole_host_in_a_container_uses_nothing(place: Place, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    script = 'mount --rbind / "$1" && echo ready && read x'
    words = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", tmp_path / "host")
    place.start(*words)
    assert await find(place.one, is_last=True) == []


async def test_a_link_is_in_use_where_it_leads(place: Place, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(place.source)
    process = place.hold("open", link)
    assert [h.pid for h in await find(link, is_last=True)] == [process.pid]
    assert await find(link) == []


async def test_only_the_process_that_was_seen_is_ended(place: Place) -> None:
    process = place.hold("open", place.one)
    (found,) = await find(place.one)
    stranger = Holder(how="open", path=found.path, pid=found.pid, started="1")
    assert not end_holder(stranger, signal.SIGKILL)
    assert not end_holder(Holder(how="open", path="/", pid=os.getpid(), started=found.started), signal.SIGKILL)
    assert process.poll() is None
    assert end_holder(found, signal.SIGTERM)
    assert process.wait(5) == -signal.SIGTERM
    assert not end_holder(found, signal.SIGKILL)
