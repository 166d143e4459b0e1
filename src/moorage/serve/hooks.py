"""The fence hook as a program: started for a lost node, with the node in its environment; exit code 0 is evidence.

The first line that it prints to stdout is kept as the reason; what it prints to stderr goes to the log. One that takes
too long is killed with its children (its process group).
Never: decides for which node or when (``engine.fence_hooks``); lets the program inherit settings and secrets of ours.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack, suppress

import anyio
import anyio.abc
import structlog

from moorage.engine.ports import HookAnswer
from moorage.model.node import Node
from moorage.model.times import format_time
from moorage.serve.output import open_pipe, read_lines

log = structlog.get_logger()

REASON_MAX = 256
LINES_LOGGED_MAX = 100
# How long to wait for the rest of its output once it ended: a child that it left behind may keep the pipes open.
OUTPUT_S = 1.0
_OWN_PREFIXES = ("MOORAGE_", "NOMAD_")


class ProgramHook:
    """Runs a command for each node that is to be cut off."""

    def __init__(self, command: tuple[str, ...], *, timeout_s: float) -> None:
        self._command = command
        self._timeout_s = timeout_s

    async def fence(self, node: Node) -> HookAnswer:
        """See ``FenceHook``."""
        said: dict[str, str] = {}
        with ExitStack() as ours, ExitStack() as theirs:
            ends: dict[str, tuple[int, int]] = {}
            for name in ("stdout", "stderr"):
                ends[name] = open_pipe()
                ours.callback(os.close, ends[name][0])
                theirs.callback(os.close, ends[name][1])
            try:
                process = await anyio.open_process(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=ends["stdout"][1],
                    stderr=ends["stderr"][1],
                    env=make_environment(node, os.environ),
                    start_new_session=True,
                )
            except OSError as e:
                return HookAnswer(is_fenced=False, text=f"{self._command[0]} cannot be started: {e.strerror}")
            theirs.close()
            code = await self._wait(process, {name: pipe for name, (pipe, _) in ends.items()}, node, said)
        text = said.get("stdout", "")
        if code is None:
            return HookAnswer(is_fenced=False, text=f"it was killed after {self._timeout_s:g} s; {text}".rstrip("; "))
        if code == 0:
            return HookAnswer(is_fenced=True, text=text or "the fence hook exited with 0", exit_code=0)
        return HookAnswer(is_fenced=False, text=text or said.get("stderr", ""), exit_code=code)

    async def _wait(
        self, process: anyio.abc.Process, pipes: Mapping[str, int], node: Node, said: dict[str, str]
    ) -> int | None:
        """Its exit code, or None when it was killed. ``said`` gets the first line of each of its outputs."""
        code: int | None = None
        try:
            async with anyio.create_task_group() as group:
                is_read = anyio.Event()
                group.start_soon(_read_output, pipes, node, said, is_read)
                with anyio.move_on_after(self._timeout_s):
                    code = await process.wait()
                if code is None:
                    await _kill(process)
                with anyio.move_on_after(OUTPUT_S):
                    await is_read.wait()
                group.cancel_scope.cancel()
        finally:
            # The server stops: what is half done is done again by the next one.
            await _kill(process)
        return code


async def _kill(process: anyio.abc.Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with anyio.CancelScope(shield=True):
        await process.wait()


async def _read_output(pipes: Mapping[str, int], node: Node, said: dict[str, str], is_read: anyio.Event) -> None:
    counts = dict.fromkeys(pipes, 0)

    def take(name: str, line: str) -> None:
        said.setdefault(name, line.strip()[:REASON_MAX])
        counts[name] += 1
        if counts[name] <= LINES_LOGGED_MAX:
            log.info("fence_hook.said", node=node.id, stream=name, text=line)

    async with anyio.create_task_group() as group:
        for name, descriptor in pipes.items():
            group.start_soon(read_lines, descriptor, lambda line, name=name: take(name, line))
    is_read.set()


def make_environment(node: Node, ours: Mapping[str, str]) -> dict[str, str]:
    """The hook's environment: ours without our own settings (they may hold secrets), and the node.

    What an agent says of its node cannot end a text early: a zero byte is left out.
    """
    kept = {name: text for name, text in ours.items() if not name.startswith(_OWN_PREFIXES)}
    about = {
        "MOORAGE_NODE_ID": node.id,
        "MOORAGE_NODE_NAME": node.name,
        "MOORAGE_NODE_ADDRESS": node.address,
        "MOORAGE_NODE_BOOT_ID": node.boot_id,
        "MOORAGE_NODE_DATACENTER": node.datacenter,
        "MOORAGE_NODE_POOL": node.node_pool,
        "MOORAGE_NODE_CLASS": node.node_class,
        "MOORAGE_NODE_LOST_AT": format_time(node.lost_at_ns) or "",
    }
    return kept | {name: text.replace("\0", "") for name, text in about.items()}
