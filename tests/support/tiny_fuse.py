"""The smallest FUSE server: a root directory and nothing in it. It speaks to /dev/fuse itself, in a process of its own.

Killed, it leaves a mount that answers ENOTCONN, as any dead FUSE daemon does. Stopped (SIGSTOP), one that hangs.
Source: linux/fuse.h, protocol 7.31.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import stat
import struct
import subprocess
import sys
import time

HEADER_IN, HEADER_OUT = struct.Struct("<IIQQIIII"), struct.Struct("<IiQ")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
GETATTR, OPENDIR, STATFS, INIT, RELEASEDIR, FORGET, INTERRUPT = 3, 27, 17, 26, 29, 2, 36


def _answer(opcode: int, body: bytes) -> bytes | None:
    """The answer's body; None for ENOSYS."""
    if opcode == INIT:
        major, _minor, readahead = struct.unpack_from("<III", body)
        return struct.pack("<IIIIHHIIHH32x", major, 31, readahead, 0, 12, 9, 65536, 1, 0, 0)
    if opcode == GETATTR:
        now = int(time.time())
        mode = stat.S_IFDIR | 0o755
        return struct.pack("<QII", 0, 0, 0) + ATTR.pack(1, 0, 0, now, now, now, 0, 0, 0, mode, 2, 0, 0, 0, 4096, 0)
    if opcode == STATFS:
        return struct.pack("<QQQQQIIII24x", 1, 1, 1, 1, 1, 4096, 255, 4096, 0)
    if opcode == OPENDIR:
        return struct.pack("<QII", 1, 0, 0)
    return b"" if opcode == RELEASEDIR else None


def serve(descriptor: int) -> None:
    """Answer until the mount is gone."""
    while True:
        try:
            message = os.read(descriptor, 1 << 17)
        except OSError as e:
            if e.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                continue
            return
        _, opcode, unique, *_ = HEADER_IN.unpack_from(message)
        if opcode in (FORGET, INTERRUPT):
            continue
        body = _answer(opcode, message[HEADER_IN.size :])
        number = errno.ENOSYS if body is None else 0
        answer = HEADER_OUT.pack(HEADER_OUT.size + len(body or b""), -number, unique) + (body or b"")
        with contextlib.suppress(OSError):
            os.write(descriptor, answer)


def main(point: str) -> None:
    """Mount at ``point``, say so, and serve."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"tiny", os.fsencode(point), b"fuse.tiny", 0, options) != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    print("mounted", flush=True)
    serve(descriptor)


class TinyFuse:
    """A running server, mounted at a path."""

    def __init__(self, point: str) -> None:
        self._process = subprocess.Popen([sys.executable, __file__, point], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert said == b"mounted\n", said

    def kill(self) -> None:
        """The server dies; its mount stays."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def stop(self) -> None:
        """The server answers no more, but lives."""
        self._process.send_signal(signal.SIGSTOP)

    @property
    def is_running(self) -> bool:
        """Whether it lives."""
        return self._process.poll() is None


if __name__ == "__main__":
    main(sys.argv[1])
