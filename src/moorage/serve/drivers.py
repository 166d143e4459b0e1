"""Child drivers: a driver process started beside the agent, and started again when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio
import msgspec
import structlog

log = structlog.get_logger()

RESTART_FIRST_S = 0.2
RESTART_CAP_S = 10.0
STEADY_S = 30.0
STOP_S = 5.0


class ChildDriver(msgspec.Struct, frozen=True, kw_only=True):
    """The embedded driver as a child process: its socket, its data and the node's name for it."""

    socket: Path
    data_dir: Path
    node_id: str

    def command(self) -> list[str]:
        """The command line."""
        return [
            sys.executable,
            "-m",
            "moorage",
            "driver",
            "local",
            "--endpoint",
            f"unix://{self.socket}",
            "--data",
            str(self.data_dir),
            "--node-id",
            self.node_id,
            "--die-with-parent",
            str(os.getpid()),
        ]


async def supervise(driver: ChildDriver) -> None:
    """Keep the driver running until cancelled: back-off between restarts, forgotten once it has run for a while."""
    pause_s = RESTART_FIRST_S
    while True:
        started = anyio.current_time()
        code = await _run_once(driver)
        if anyio.current_time() - started > STEADY_S:
            pause_s = RESTART_FIRST_S
        log.warning("driver.ended", code=code, restart_in_s=pause_s)
        await anyio.sleep(pause_s)
        pause_s = min(RESTART_CAP_S, pause_s * 2)


async def _run_once(driver: ChildDriver) -> int:
    process = await anyio.open_process(
        driver.command(), stdin=subprocess.DEVNULL, stdout=None, stderr=None, start_new_session=True
    )
    log.info("driver.started", pid=process.pid, socket=str(driver.socket))
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            with anyio.CancelScope(shield=True):
                process.terminate()
                with anyio.move_on_after(STOP_S):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
