"""The program ``moorage driver local``: arguments, signals, exit codes.

Returns 0 after SIGTERM or SIGINT, 2 for arguments that cannot be used, 1 when the directory or socket cannot be had.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import structlog

from moorage.csi.local.server import serve
from moorage.errors import BadRequest, MoorageError

SWITCH_S = 0.0001
_PR_SET_PDEATHSIG = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of the program."""
    parser.description = (
        "Serve the embedded CSI driver: volumes are plain directories of this host. "
        "The size of a volume is recorded, not enforced: a directory has no quota."
    )
    parser.add_argument("--endpoint", required=True, metavar="unix:///PATH.sock", help="the socket to serve")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="where volumes and snapshots lie")
    parser.add_argument("--node-id", default="", metavar="ID", help="this node's id (default: the host name)")
    parser.add_argument(
        "--die-with-parent",
        nargs="?",
        type=int,
        const=0,
        metavar="PID",
        help="end when the thread that started this process ends, however it ends; with PID, end at once when the "
        "parent is another process, which then has ended already",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Meant for a process of its own: sets its file mask and limits."""
    if args.die_with_parent is not None and not _die_with(args.die_with_parent or os.getppid()):
        return 0
    os.umask(0o077)
    _raise_file_limit()
    # With the default of 5 ms a busy event loop keeps the thread that writes waiting after each call into the kernel.
    sys.setswitchinterval(SWITCH_S)
    if not structlog.is_configured():
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    node_id = args.node_id or socket.gethostname()[:63]
    try:
        anyio.run(
            partial(_serve, endpoint=args.endpoint, data_dir=args.data, node_id=node_id),
            backend_options={"use_uvloop": True},
        )
    except BadRequest as error:
        print(f"moorage driver local: {error.message}", file=sys.stderr)
        return 2
    except MoorageError as error:
        print(f"moorage driver local: {error.message}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"moorage driver local: {error}", file=sys.stderr)
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program by itself."""
    parser = argparse.ArgumentParser(prog="moorage driver local")
    add_arguments(parser)
    return run(parser.parse_args(argv))


async def _serve(*, endpoint: str, data_dir: Path, node_id: str) -> None:
    """Serve until a signal; an error of the server comes out as itself."""
    found: list[MoorageError | OSError] = []
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as group:

            async def serve_once() -> None:
                try:
                    await serve(endpoint=endpoint, data_dir=data_dir, node_id=node_id)
                except* (MoorageError, OSError) as errors:
                    found.append(_first(errors))
                group.cancel_scope.cancel()

            group.start_soon(serve_once)
            async for _ in signals:
                group.cancel_scope.cancel()
                break
    if found:
        raise found[0]


def _first(errors: BaseExceptionGroup[MoorageError | OSError]) -> MoorageError | OSError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, MoorageError | OSError)
    return error


def _die_with(parent: int) -> bool:
    """Ask the kernel for SIGTERM at the end of the thread that started this process; False when it is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return os.getppid() == parent


def _raise_file_limit() -> None:
    """A copy holds two files open for each level of directories."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
