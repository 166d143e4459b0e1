"""What a search for holders reads: of each process once, and of the kernel's own ones next to nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import moorage.agent.holders as module
from moorage.agent.holders import HolderSearch, Question

pytestmark = pytest.mark.anyio

KERNEL = 50
MAPPED = "7f0000000000-7f0000001000 r--p 00000000 08:01 77                         {path}\n"


class Host:
    """A directory as ``/proc`` is, with one volume mounted."""

    def __init__(self, place: Path) -> None:
        self.proc, self.volume = place / "proc", place / "volume"
        self.volume.mkdir()
        self.add("self", "/bin/agent")
        mount = f"40 1 8:1 / {self.volume} rw - ext4 /dev/sda1 rw\n"
        (self.proc / "self" / "mountinfo").write_text(f"1 0 8:0 / / rw - ext4 /dev/sda rw\n{mount}")
        for pid in range(2, KERNEL + 2):
            self.add(str(pid), "")

    def add(self, pid: str, program: str, *, cwd: str = "/", mapped: str = "") -> None:
        """A process; without a program it is the kernel's own."""
        process = self.proc / pid
        (process / "ns").mkdir(parents=True)
        os.symlink("mnt:[1]", process / "ns" / "mnt")
        (process / "fd").mkdir()
        (process / "comm").write_text("name\n")
        (process / "cgroup").write_text("0::/\n")
        (process / "stat").write_text(f"{pid} (name) S" + " 0" * 50)
        (process / "maps").write_text(MAPPED.format(path=mapped) if mapped else "")
        if program:
            os.symlink(program, process / "exe")
            os.symlink(cwd, process / "cwd")
            os.symlink("/", process / "root")

    async def find(self) -> list[tuple[int, str]]:
        found = await HolderSearch(timeout_s=10, proc=self.proc).find(Question((str(self.volume),)))
        return [(holder.pid, holder.how) for holder in found]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def test_a_kernel_s_process_costs_one_look(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[str] = Counter()

    def counting(function: Callable[[str], object]) -> Callable[[str], object]:
        def count(path: str) -> object:
            below = path.removeprefix(f"{host.proc}/")
            if below.partition("/")[0].isdigit():
                reads[below] += 1
            return function(path)

        return count

    for name in ("_read_link", "_read_bytes", "_list"):
        monkeypatch.setattr(module, name, counting(getattr(module, name)))
    host.add("500", "/bin/a", cwd=f"{host.volume}/inner")
    host.add("501", "/bin/b", mapped=f"{host.volume}/file")
    host.add("502", "/bin/c")
    assert await host.find() == [(500, "directory"), (501, "mapped")]
    assert {path: count for path, count in reads.items() if int(path.partition("/")[0]) < 500} == {
        f"{pid}/exe": 1 for pid in range(2, KERNEL + 2)
    }
    for name in ("exe", "ns/mnt", "cwd", "root", "fd", "maps"):
        assert reads[f"502/{name}"] == 1
    assert sum(count for path, count in reads.items() if path.startswith("502/")) == 6


async def test_a_process_that_comes_between_the_looks_is_seen(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.add("500", "/bin/a")
    run = module._Scan.run

    def run_and_add(scan: module._Scan, look: module._Look, *, is_first: bool) -> None:
        run(scan, look, is_first=is_first)
        if is_first:
            host.add("600", "/bin/b", cwd=f"{host.volume}", mapped=f"{host.volume}/file")

    monkeypatch.setattr(module._Scan, "run", run_and_add)
    assert await host.find() == [(600, "mapped")]
