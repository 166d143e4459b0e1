"""The audit log's writer: a thread of its own with a bounded queue, one file at a time, rotated by size.

A request waits for a place in the queue at most ``wait_s``; then its entry is dropped, and the next line and the log
say how many were. Lines are written as they come, many at once when there are many, and made durable (fsync) at the
latest ``sync_s`` later, at a rotation and at the end: killing the process loses what is in the queue, cutting the power
loses ``sync_s`` more. A line that a crash left unfinished is taken away at the next start, and the line after says so.
Files are FILE, and FILE.NUMBER for older ones, where NUMBER is that of their last line. They are for their owner only.
Never: decides what is noted.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
import msgspec
import structlog

from moorage import __version__
from moorage.config import AuditSettings
from moorage.errors import BadRequest
from moorage.model.audit import AuditEntry, Who
from moorage.rules.audit import LINE_BYTES_MAX, Head, read_head, write_line
from moorage.syncing import sync_directory

log = structlog.get_logger()
AUDIT_FILE = "audit.log"
BATCH = 256
GATHER_S = 0.003
POLL_S = 0.002
CLOSE_S = 10.0
REPORT_S = 5.0


class AuditFileSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``queue_max``: entries that may wait; ``rotate_bytes``: size after which a file is put aside; ``keep``: how many
    of those stay."""

    queue_max: int = 4096
    wait_s: float = 0.1
    sync_s: float = 1.0
    rotate_bytes: int = 64 << 20
    keep: int = 8


def list_files(path: Path) -> list[Path]:
    """The files of a log, oldest first; the one that is written to is the last."""
    pattern = re.compile(re.escape(path.name) + r"\.(\d+)")
    numbered = [(int(m[1]), p) for p in path.parent.iterdir() if (m := pattern.fullmatch(p.name)) is not None]
    return [p for _, p in sorted(numbered)] + ([path] if path.exists() else [])


class AuditWriter:
    """Writes one log. A ``model.audit.AuditSink``; ``close`` ends it. Raises BadRequest from the start."""

    def __init__(self, path: Path, settings: AuditFileSettings | None = None) -> None:
        self.path = path
        self.dropped = 0
        self.lines = 0
        self._settings = settings or AuditFileSettings()
        self._queue: queue.SimpleQueue[AuditEntry | None] = queue.SimpleQueue()
        self._lost_lock = threading.Lock()
        self._lost = 0
        self._told_s = 0.0
        self._torn = 0
        try:
            self._head, self._size, self._fd = self._open()
        except OSError as error:
            raise BadRequest(f"audit log {path}: {error.strerror}") from error
        # A daemon: a disk that hangs must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="moorage-audit", daemon=True)
        self._thread.start()

    # -- any thread, the loop ----------------------------------------------------------------------------------------

    async def note(self, entry: AuditEntry) -> None:
        """See ``AuditSink.note``."""
        if self._put(entry):
            return
        with anyio.move_on_after(self._settings.wait_s):
            # The other side is a thread, which has no event for us.
            while True:
                await anyio.sleep(POLL_S)
                if self._put(entry):
                    return
        self._lose(1)

    def note_now(self, entry: AuditEntry) -> None:
        """See ``AuditSink.note_now``."""
        if not self._put(entry):
            self._lose(1)

    def close(self) -> None:
        """Write what waits and end; blocks for CLOSE_S at the most."""
        self._queue.put(None)
        self._thread.join(CLOSE_S)

    def _put(self, entry: AuditEntry) -> bool:
        if self._queue.qsize() >= self._settings.queue_max:
            return False
        self._queue.put(entry)
        return True

    def _lose(self, count: int) -> None:
        with self._lost_lock:
            self._lost += count
            self.dropped += count
            is_time = time.monotonic() - self._told_s > REPORT_S
            if is_time:
                self._told_s = time.monotonic()
        if is_time:
            log.error("audit.dropped", file=str(self.path), dropped=self.dropped)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        synced_s = time.monotonic()
        is_dirty = is_over = False
        while not is_over:
            entries, is_over = self._take(self._settings.sync_s if is_dirty else None)
            if entries:
                is_dirty = self._write(entries) or is_dirty
            if is_dirty and (is_over or time.monotonic() - synced_s >= self._settings.sync_s):
                with suppress(OSError):
                    os.fsync(self._fd)
                is_dirty, synced_s = False, time.monotonic()
            if self._size >= self._settings.rotate_bytes:
                self._rotate()
        os.close(self._fd)

    def _take(self, timeout_s: float | None) -> tuple[list[AuditEntry], bool]:
        entries: list[AuditEntry] = []
        try:
            entry = self._queue.get(timeout=timeout_s)
            # A moment for more to come: waking up for each line would cost the program more than the line.
            time.sleep(GATHER_S)
            while entry is not None:
                entries.append(entry)
                if len(entries) == BATCH:
                    return entries, False
                entry = self._queue.get_nowait()
        except queue.Empty:
            return entries, False
        return entries, True

    def _write(self, entries: list[AuditEntry]) -> bool:
        with self._lost_lock:
            lost, self._lost = self._lost, 0
        head, torn, text = self._head, self._torn, b""
        for entry in entries:
            line, head = write_line(entry, head, dropped=lost, torn_bytes=torn)
            text += line
            lost = torn = 0
        try:
            self._write_all(text)
        except OSError as error:
            # Nothing half written stays, so that the chain goes on from where it was.
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)
            with self._lost_lock:
                self._lost += lost
            self._lose(len(entries))
            log.error("audit.failed", file=str(self.path), error=error.strerror)
            return False
        self._head, self._torn = head, 0
        self._size += len(text)
        self.lines += len(entries)
        return True

    def _write_all(self, text: bytes) -> None:
        left = memoryview(text)
        at = self._size
        while left:
            written = os.pwrite(self._fd, left, at)
            left, at = left[written:], at + written

    def _rotate(self) -> None:
        try:
            os.fsync(self._fd)
            os.rename(self.path, f"{self.path}.{self._head.seq}")
            fresh = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_EXCL, 0o600)
            os.close(self._fd)
            self._fd, self._size = fresh, 0
            sync_directory(self.path.parent)
            for old in list_files(self.path)[: -self._settings.keep - 1]:
                old.unlink()
        except OSError as error:
            log.error("audit.unrotated", file=str(self.path), error=error.strerror)

    # -- the start ---------------------------------------------------------------------------------------------------

    def _open(self) -> tuple[Head, int, int]:
        """The chain's end, the size of the file, and the file. What a crash left unfinished is cut off."""
        files = list_files(self.path) if self.path.parent.exists() else []
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        size = os.fstat(descriptor).st_size
        head: Head | None = None
        for file in reversed(files):
            whole, line = _find_last(file)
            if file == self.path:
                self._torn, size = size - whole, whole
            if line:
                head = self._take_up(file, line)
                break
        if self._torn:
            os.ftruncate(descriptor, size)
            log.warning("audit.torn", file=str(self.path), bytes=self._torn)
        return head or Head(), size, descriptor

    def _take_up(self, file: Path, line: bytes) -> Head:
        try:
            return read_head(line)[0]
        except (ValueError, msgspec.MsgspecError) as error:
            # It goes on with a new chain; that the old one is broken is for `moorage audit verify` to find.
            log.error("audit.broken", file=str(file), error=str(error))
            return Head()


def _find_last(path: Path) -> tuple[int, bytes]:
    """The size of a file up to its last newline, and the line that ends there."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - 2 * LINE_BYTES_MAX)
        file.seek(start)
        tail = file.read()
    end = tail.rfind(b"\n") + 1
    begin = tail.rfind(b"\n", 0, max(0, end - 1)) + 1
    return (start + end if end else (0 if start == 0 else size)), tail[begin:end]


def read_lines(paths: list[Path]) -> Iterator[tuple[Path, bytes]]:
    """Each line of these files with its file, newline included."""
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                yield path, line


@asynccontextmanager
async def open_audit(settings: AuditSettings, data_dir: Path) -> AsyncIterator[AuditWriter | None]:
    """The audit log that settings ask for, with a line for the start and one for the stop; None where it is off.

    Raises BadRequest: the file cannot be opened.
    """
    if not settings.enabled:
        yield None
        return
    chosen = AuditFileSettings(
        queue_max=settings.queue,
        wait_s=settings.wait_s,
        sync_s=settings.sync_s,
        rotate_bytes=int(settings.rotate_mb * (1 << 20)),
        keep=settings.keep,
    )
    writer = await anyio.to_thread.run_sync(AuditWriter, _choose_path(settings, data_dir), chosen)
    writer.note_now(_make_own("started"))
    try:
        yield writer
    finally:
        writer.note_now(_make_own("stopped"))
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(writer.close)


def _choose_path(settings: AuditSettings, data_dir: Path) -> Path:
    return Path(settings.file).absolute() if settings.file else data_dir / AUDIT_FILE


def _make_own(result: Literal["started", "stopped"]) -> AuditEntry:
    return AuditEntry(
        at_ns=time.time_ns(),
        request_id="",
        who=Who(kind="server", name=f"moorage {__version__}"),
        method="",
        path="",
        route="",
        namespace="",
        result=result,
        status=0,
    )
