"""Probes of mounts: what is found, what a hang costs, and that it is found when it ends. No mount takes part."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from moorage.agent.probes import HUNG, MountProbes

pytestmark = pytest.mark.anyio


class Mounts:
    """Mounts that answer as they are told. ``asked`` counts the questions by path."""

    def __init__(self) -> None:
        self.errors: dict[str, int] = {}
        self.gates: dict[str, threading.Event] = {}
        self.asked: dict[str, int] = {}

    def ask(self, path: str) -> None:
        self.asked[path] = self.asked.get(path, 0) + 1
        if gate := self.gates.get(path):
            gate.wait(20)
        if number := self.errors.get(path, 0):
            raise OSError(number, os.strerror(number), path)


@contextmanager
def hanging(mounts: Mounts, *paths: str) -> Iterator[None]:
    gates = [mounts.gates.setdefault(path, threading.Event()) for path in paths]
    try:
        yield
    finally:
        for path, gate in zip(paths, gates, strict=True):
            gate.set()
            mounts.gates.pop(path)


def make(mounts: Mounts, *, hang_s: float = 0.1) -> MountProbes:
    return MountProbes(pause_s=0.01, hang_s=hang_s, ask=mounts.ask)


@pytest.mark.parametrize("others", [0, 12])
async def test_dead_mounts_are_told_by_their_error_and_others_are_not(others: int) -> None:
    mounts = Mounts()
    mounts.errors = {"/a": errno.ENOTCONN, "/b": errno.ESTALE, "/c": errno.EIO, "/d": errno.EACCES, "/e": errno.ENOSYS}
    paths = [*mounts.errors, *(f"/good{n}" for n in range(others))]
    assert await make(mounts).find_dead(paths) == {"/a": "ENOTCONN", "/b": "ESTALE", "/c": "EIO"}


async def test_a_link_that_leads_nowhere_is_dead(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    probes = MountProbes(pause_s=0.01, hang_s=1.0)
    assert await probes.find_dead([str(tmp_path / "link"), str(tmp_path)]) == {str(tmp_path / "link"): "ENOENT"}


async def test_a_hung_mount_is_asked_once_until_it_comes_back() -> None:
    mounts = Mounts()
    probes = make(mounts)
    with hanging(mounts, "/a"):
        for _ in range(3):
            assert await probes.find_dead(["/a", "/b"]) == {"/a": HUNG}
        assert mounts.asked == {"/a": 1, "/b": 3}
    with anyio.fail_after(5):
        while await probes.find_dead(["/a"]):
            pass
    assert mounts.asked["/a"] >= 2


async def test_many_hung_mounts_take_as_long_as_one() -> None:
    mounts = Mounts()
    probes = make(mounts, hang_s=0.6)
    hung = [f"/hung{n}" for n in range(40)]
    good = [f"/good{n}" for n in range(40)]
    with hanging(mounts, *hung):
        with anyio.fail_after(4):
            found = await probes.find_dead([*hung, *good])
        assert found == dict.fromkeys(hung, HUNG)
        began = anyio.current_time()
        assert await probes.find_dead(hung) == dict.fromkeys(hung, HUNG)
        assert anyio.current_time() - began < 0.6
    assert max(mounts.asked.values()) == 1


async def test_two_who_ask_for_one_path_share_a_probe() -> None:
    mounts = Mounts()
    probes, found = make(mounts, hang_s=5.0), list[dict[str, str]]()

    async def find() -> None:
        found.append(await probes.find_dead(["/a"]))

    with hanging(mounts, "/a"):
        async with anyio.create_task_group() as group:
            group.start_soon(find)
            group.start_soon(find)
            while not mounts.asked:
                await anyio.sleep(0.005)
            mounts.gates["/a"].set()
    assert found == [{}, {}]


async def test_what_breaks_and_what_comes_back_is_told_once() -> None:
    mounts, told = Mounts(), list[str]()
    probes = make(mounts)

    async def until(count: int) -> None:
        with anyio.fail_after(5):
            while len(told) < count:
                await anyio.sleep(0.005)

    async with anyio.create_task_group() as group:
        group.start_soon(lambda: probes.run(lambda: ["/a", "/b"], told.append))
        while mounts.asked.get("/a", 0) < 3:
            await anyio.sleep(0.005)
        assert told == []
        mounts.errors["/a"] = errno.ENOTCONN
        await until(1)
        assert probes.list_dead() == {"/a": "ENOTCONN"}
        seen = mounts.asked["/a"]
        while mounts.asked["/a"] < seen + 3:
            await anyio.sleep(0.005)
        mounts.errors.clear()
        await until(2)
        group.cancel_scope.cancel()
    assert told == ["/a", "/a"]


async def test_mounts_that_answer_in_their_time_share_a_thread_however_many_they_are() -> None:
    mounts = Mounts()
    probes = MountProbes(pause_s=0.01, hang_s=2.0, ask=lambda path: time.sleep(0.004))
    assert await probes.find_dead([f"/slow{n}" for n in range(100)]) == {}
    assert probes.alone == 0
    probes = make(mounts, hang_s=1.0)
    with hanging(mounts, "/hung"):
        assert await probes.find_dead(["/hung", *(f"/good{n}" for n in range(20))]) == {"/hung": HUNG}
    assert 1 <= probes.alone <= 21
