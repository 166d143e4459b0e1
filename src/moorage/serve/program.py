"""What the long-running programs share: arguments, signals, exit codes, private directories."""

from __future__ import annotations

import argparse
import os
import signal
import stat
import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path

import anyio
import anyio.abc
import structlog

from moorage.errors import BadRequest, MoorageError
from moorage.log import configure_logging
from moorage.model.ids import PluginId

log = structlog.get_logger()

SWITCH_S = 0.0001

Body = Callable[[anyio.abc.TaskGroup], Awaitable[None]]


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """The flag for drivers that somebody else runs."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="NAME=unix:///SOCKET",
        help="a driver that somebody else runs, by plugin ID; may be repeated",
    )


def parse_plugins(texts: Sequence[str], *, taken: Collection[str] = ()) -> dict[PluginId, str]:
    """Plugin IDs with their drivers' sockets. Raises BadRequest that names the argument."""
    plugins: dict[PluginId, str] = {}
    for text in texts:
        name, equals, endpoint = text.partition("=")
        if not name or "/" in name or not equals or not endpoint.startswith("unix:///"):
            raise BadRequest(f"--plugin {text!r} is not NAME=unix:///SOCKET")
        if name in taken or name in plugins:
            raise BadRequest(f"--plugin {text!r}: the plugin ID {name!r} is taken; give it another name")
        plugins[PluginId(name)] = endpoint.removeprefix("unix://")
    return plugins


def find_state_home() -> Path:
    """Where this user's programs keep their state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")


def choose_place(given: str, program: str) -> Path:
    """The directory that settings name, or the program's own below this user's state."""
    return Path(given).absolute() if given else (find_state_home() / "moorage" / program).absolute()


def make_private(path: Path) -> Path:
    """A directory that is this user's alone, made if it is missing. Raises BadRequest that names it."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise BadRequest(f"cannot make the directory {path}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise BadRequest(f"{path} is not a directory of this user: choose another, or remove it")
    if found.st_mode & 0o077:
        path.chmod(0o700)
    return path


def run_program(name: str, make_body: Callable[[], Body]) -> int:
    """Run until SIGTERM or SIGINT. 0: stopped cleanly; 2: bad arguments or settings; 1: could not start, or failed.

    ``make_body`` reads the settings and sets the level of the log, which is ``info`` until then.
    """
    configure_logging("info")
    # With the default of 5 ms a busy event loop starves the store's writer thread: commits took seconds.
    sys.setswitchinterval(SWITCH_S)
    found: list[MoorageError] = []
    is_crashed = False
    try:
        anyio.run(_run_until_signal, make_body(), backend_options={"use_uvloop": True})
    except* MoorageError as group:
        found = _flatten(group)
    except* Exception:
        # Nobody foresaw it: the log has all of it, the record tells the next start where to go on.
        log.exception("program.crashed", program=name)
        is_crashed = True
    for error in found:
        print(f"{name}: {error.message}", file=sys.stderr)
    if is_crashed or not found:
        return 1 if is_crashed else 0
    return 2 if isinstance(found[0], BadRequest) else 1


def _flatten(error: BaseException) -> list[MoorageError]:
    if isinstance(error, BaseExceptionGroup):
        return [inner for part in error.exceptions for inner in _flatten(part)]
    return [error] if isinstance(error, MoorageError) else []


async def _run_until_signal(body: Body) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as group:

            async def stop_on_signal() -> None:
                async for number in signals:
                    log.info("stopping", signal=signal.Signals(number).name)
                    group.cancel_scope.cancel()
                    break

            group.start_soon(stop_on_signal)
            await body(group)
            await anyio.sleep_forever()
