"""What people and programs get to see: tables, details, JSON as the API sent it, progress of long work.

rich is imported only to draw a table on a terminal. Results go to ``out``, all else to ``err``. Never: HTTP.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import TextIO

from moorage.client.sync import Answer

_TICK_S = 0.2
_QUIET_S = 0.4  # work that is done sooner shows nothing
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def format_bytes(count: int | None) -> str:
    """``1536`` as ``1.5 KiB``; 0 and None, which stand for "not known", as ``-``."""
    if not count:
        return "-"
    size = float(count)
    unit = 0
    while abs(size) >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.1f} {_UNITS[unit]}".replace(".0 ", " ")


def format_time_ns(at_ns: int | None) -> str:
    """Nanoseconds since the epoch as local date and time; 0 and None as ``-``."""
    if not at_ns:
        return "-"
    moment = datetime.fromtimestamp(at_ns / 1e9, tz=UTC).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def format_elapsed(seconds: float) -> str:
    """``3.2 s`` or ``2 min 5 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def show(value: object) -> str:
    """A cell's text: ``true``/``false`` for booleans, ``-`` for nothing; control characters are made visible."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or value == "":
        return "-"
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(value))


class Output:
    """Where a command prints. ``is_terminal`` and ``is_err_terminal`` say whether a person is watching."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self.out = out
        self.err = err
        self.is_terminal = out.isatty()
        self.is_err_terminal = err.isatty() and os.environ.get("TERM") != "dumb"

    def line(self, text: str = "") -> None:
        """One line of the result."""
        self.out.write(text + "\n")

    def note(self, text: str) -> None:
        """One line that is not the result: hints, warnings, "nothing found"."""
        self.out.flush()
        self.err.write(text + "\n")
        self.err.flush()

    def json(self, answer: Answer) -> None:
        """The API's JSON, as it came, and a line's end."""
        self.raw_json(answer.body.decode("utf-8", "replace"))

    def raw_json(self, text: str) -> None:
        """JSON text, and a line's end when it has none."""
        self.out.write(text if text.endswith("\n") else text + "\n")

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table for people; columns are two blanks apart where no terminal is."""
        cells = [[show(cell) for cell in row] for row in rows]
        if self.is_terminal:
            _draw_table(heads, cells)
            return
        self._plain_table(self.out, heads, cells)

    def note_table(self, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """The same among the notes, always plain."""
        self._plain_table(self.err, heads, [[show(cell) for cell in row] for row in rows])

    def details(self, pairs: Mapping[str, object] | Sequence[tuple[str, object]]) -> None:
        """Names and values, one a line, aligned."""
        listed = list(pairs.items()) if isinstance(pairs, Mapping) else list(pairs)
        width = max((len(name) for name, _ in listed), default=0)
        for name, value in listed:
            self.line(f"{name.ljust(width)} = {show(value)}")

    def section(self, title: str) -> None:
        """A blank line and a title."""
        self.line()
        self.line(title)

    @staticmethod
    def _plain_table(stream: TextIO, heads: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
        widths = [max([len(head), *(len(row[column]) for row in cells)]) for column, head in enumerate(heads)]
        for row in [heads, *cells]:
            stream.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")


def _draw_table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    styles = {"true": "green", "false": "red", "running": "green", "ready": "green", "failed": "red", "down": "red"}
    for row in cells:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    Console().print(table)


class Progress:
    """Shows the step in hand and the time it has taken so far, on a terminal's last line; silent elsewhere.

    Use as ``with Progress(output, "creating volume x") as progress: …; progress.step("mounting")``.
    """

    def __init__(self, output: Output, text: str) -> None:
        self._output = output
        self._text = text
        self.first_text = text.partition(":")[0]
        self._started_s = time.monotonic()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._started_s

    def step(self, text: str) -> None:
        """The work has come to another step."""
        self._text = text

    def __enter__(self) -> Progress:
        if self._output.is_err_terminal:
            self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _tick(self) -> None:
        if self._end.wait(_QUIET_S):
            return
        err = self._output.err
        while True:
            err.write(f"\r\x1b[K{show(self._text)[:100]} … {format_elapsed(self.elapsed_s)}")
            err.flush()
            if self._end.wait(_TICK_S):
                break
        err.write("\r\x1b[K")
        err.flush()
