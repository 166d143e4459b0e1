"""The log's lines: made by a short way, they are those of the library's own renderer."""

from __future__ import annotations

import datetime
import io
import sys
from typing import Any, cast

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.processors import LogfmtRenderer

from moorage.log import LogfmtLine, Stamp, configure_logging

SLOW = LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)
TEXTS = st.text(st.sampled_from('ab ="\\\n\t\0é\x85\u2028/:'), max_size=8)
VALUES = st.one_of(
    TEXTS, st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=3), st.lists(TEXTS, max_size=2)
)
NAMES = st.sampled_from(["timestamp", "level", "event", "key", "took_s", "exception"])


@given(st.dictionaries(NAMES, VALUES))
def test_lines_are_the_librarys(fields: dict[str, Any]) -> None:
    line = LogfmtLine()
    expected = SLOW(None, "info", dict(fields))
    assert line(None, "info", dict(fields)) == line(None, "info", dict(fields)) == expected


@pytest.mark.parametrize("key", ["a b", "a\n", "\x00"])
def test_a_field_whose_name_would_break_the_line_is_refused(key: str) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="Invalid key"):
            LogfmtLine()(None, "info", {key: 1})


@given(st.integers(0, 4_000_000_000_000_000), st.integers(0, 999))
def test_times_are_the_librarys(micros: int, nanos: int) -> None:
    stamp = Stamp(lambda: micros * 1000 + nanos)
    epoch = datetime.datetime.fromtimestamp(0, datetime.UTC)
    expected = (epoch + datetime.timedelta(microseconds=micros)).isoformat().replace("+00:00", "Z")
    for _ in range(2):
        assert stamp(None, "info", {})["timestamp"] == expected


def test_a_line_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write is a call into the kernel, after which a thread has to wait for the interpreter again."""

    class Raw(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            writes.append(bytes(data))
            return len(data)

    writes: list[bytes] = []
    # As the interpreter makes the real one where it is to hold nothing back (PYTHONUNBUFFERED).
    made = io.TextIOWrapper(cast(Any, Raw()), line_buffering=True, write_through=True)
    monkeypatch.setattr(sys, "stderr", made)
    try:
        configure_logging("info")
        structlog.get_logger().info("one", text="a\nb")
        structlog.get_logger().debug("none")
        structlog.get_logger().warning("two")
    finally:
        structlog.reset_defaults()
    assert [line.split(b" ", 1)[1] for line in writes] == [
        b"level=info event=one text=a\\nb\n",
        b"level=warning event=two\n",
    ]
