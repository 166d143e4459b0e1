"""The mount table is read once for all who asked before the reading began, and never from before the question."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from moorage.agent.host_mounts import MountTable
from moorage.csi.mounting import Mount, parse_mounts

LINE = "{id} 1 8:1 / {point} rw - ext4 /dev/sda1 rw\n"


class Points:
    """A mount table that tells when it is read, and waits until it may be."""

    def __init__(self) -> None:
        self.points = ["/"]
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)

    def read(self) -> tuple[Mount, ...]:
        text = "".join(LINE.format(id=n, point=p) for n, p in enumerate(self.points, start=2))
        self.begun.release()
        assert self.may_end.acquire(timeout=10)
        return parse_mounts(text)


def test_who_asks_during_a_reading_shares_the_next_one() -> None:
    points = Points()
    table = MountTable(points.read)
    with ThreadPoolExecutor(12) as pool:
        first = pool.submit(table.find_taken)
        assert points.begun.acquire(timeout=10)
        # The first reading has begun: what is mounted now is for the next one.
        points.points.append("/srv")
        later = [pool.submit(table.find_taken) for _ in range(10)]
        ends_s = time.monotonic() + 10
        while table.asked < 11:
            assert time.monotonic() < ends_s
            time.sleep(0.001)
        points.may_end.release()
        points.may_end.release()
        assert first.result(10) == {"/"}
        assert [f.result(10) for f in later] == [{"/", "/srv"}] * 10
    assert table.reads == 2


def test_a_reading_that_fails_leaves_nothing_behind() -> None:
    answers: list[OSError | str] = [PermissionError("no"), "/srv"]

    def read() -> tuple[Mount, ...]:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return parse_mounts(LINE.format(id=2, point=answer))

    table = MountTable(read)
    with pytest.raises(PermissionError):
        table.find_taken()
    assert table.find_taken() == {"/srv"}
