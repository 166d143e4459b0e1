"""Supervised drivers: processes started beside the agent, and started again when they end.

The embedded driver is one of them; settings name others. Each gets ``CSI_ENDPOINT`` and is asked to end with the agent,
also when the agent is killed. What it prints goes to the log with its name, a line an event; the embedded driver
writes its own log.
Never: speaks CSI; decides whether a driver is well (the agent's probes do).
"""

from __future__ import annotations

import os
import socket as sockets
import stat
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog

from moorage.serve.output import open_pipe, read_lines

log = structlog.get_logger()

OUTPUT_S = 1.0
# Ends the driver when its parent does, then becomes the driver. A parent that is gone already counts too.
_TIED = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 15)\n"
    "os.getppid() == int(sys.argv[1]) or sys.exit(1)\n"
    "try:\n    os.execvp(sys.argv[2], sys.argv[2:])\n"
    "except OSError as e:\n    sys.exit(f'{sys.argv[2]}: {e.strerror}')\n"
)


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. The pause before a restart doubles from ``first_s`` to ``cap_s``, and begins anew after a run of
    ``steady_s``; ``stop_s``: how long an end may take until it is forced."""

    first_s: float = 0.2
    cap_s: float = 10.0
    steady_s: float = 30.0
    stop_s: float = 5.0


class SupervisedDriver(msgspec.Struct, frozen=True, kw_only=True):
    """A driver to run. ``name`` is its plugin ID; ``is_logged``: what it prints is put into our log."""

    name: str
    command: tuple[str, ...]
    socket: Path
    environment: Mapping[str, str] = {}
    restart: RestartPolicy = RestartPolicy()
    is_logged: bool = True


def embed_driver(name: str, *, socket: Path, data_dir: Path, node_id: str) -> SupervisedDriver:
    """The embedded driver: its socket, its data and the node's name for it."""
    ours = (sys.executable, "-m", "moorage", "driver", "local", "--endpoint", f"unix://{socket}")
    more = ("--data", str(data_dir), "--node-id", node_id, "--die-with-parent", str(os.getpid()))
    return SupervisedDriver(name=name, command=(*ours, *more), socket=socket, is_logged=False)


async def supervise(driver: SupervisedDriver) -> None:
    """Keep the driver running until cancelled: back-off between restarts, forgotten once it has run for a while."""
    policy = driver.restart
    pause_s = policy.first_s
    while True:
        started = anyio.current_time()
        code = await _run_once(driver)
        if anyio.current_time() - started > policy.steady_s:
            pause_s = policy.first_s
        log.warning("driver.ended", driver=driver.name, code=code, restart_in_s=pause_s)
        await anyio.sleep(pause_s)
        pause_s = min(policy.cap_s, pause_s * 2)


async def _run_once(driver: SupervisedDriver) -> int | None:
    """Its exit code; None where it could not be started."""
    await anyio.to_thread.run_sync(_clear_socket, driver.socket)
    command = driver.command
    if driver.is_logged:
        command = (sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command)
    environment = {**os.environ, **driver.environment, "CSI_ENDPOINT": f"unix://{driver.socket}"}
    with ExitStack() as pipes, ExitStack() as theirs:
        ours: dict[str, int] = {}
        ends: dict[str, int] = {}
        for name in ("stdout", "stderr") if driver.is_logged else ():
            ours[name], ends[name] = open_pipe()
            pipes.callback(os.close, ours[name])
            theirs.callback(os.close, ends[name])
        try:
            process = await anyio.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=ends.get("stdout"),
                stderr=ends.get("stderr"),
                env=environment,
                start_new_session=True,
            )
        except OSError as e:
            log.error("driver.not_started", driver=driver.name, error=e.strerror)
            return None
        theirs.close()
        log.info("driver.started", driver=driver.name, pid=process.pid, socket=str(driver.socket))
        return await _wait(driver, process, ours)


async def _wait(driver: SupervisedDriver, process: anyio.abc.Process, pipes: Mapping[str, int]) -> int:
    """Log what it prints until it ends; end it when cancelled."""
    try:
        async with anyio.create_task_group() as group:
            is_read = anyio.Event()
            group.start_soon(_log_output, pipes, driver.name, is_read)
            code = await process.wait()
            # What it left running may hold the other ends of its pipes for ever.
            with anyio.move_on_after(OUTPUT_S):
                await is_read.wait()
            group.cancel_scope.cancel()
        return code
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process, driver.restart.stop_s)


async def _end(process: anyio.abc.Process, stop_s: float) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
        with anyio.move_on_after(stop_s):
            await process.wait()
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _log_output(pipes: Mapping[str, int], driver: str, is_read: anyio.Event) -> None:
    async with anyio.create_task_group() as group:
        for name, descriptor in pipes.items():
            group.start_soon(read_lines, descriptor, partial(_log_line, driver, name))
    is_read.set()


def _log_line(driver: str, stream: str, line: str) -> None:
    log.info("driver.said", driver=driver, stream=stream, text=line)


def _clear_socket(path: Path) -> None:
    """Remove a socket that a dead driver left behind; many drivers do not start over one. Blocks for a moment."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except OSError:
        return
    with sockets.socket(sockets.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            with suppress(OSError):
                path.unlink()
        except OSError:
            return
