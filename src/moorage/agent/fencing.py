"""An agent's own fence: what it does with its mounts when it cannot renew its lease in time.

    silent for            stage   what happens
    <= lease + 0.3 grace  keep    nothing: a short break of the network disturbs nobody
    beyond that           end     writers get SIGTERM; what nobody holds is unbound, unpublished, unstaged
    beyond 0.6 grace      kill    writers that are left get SIGKILL; what a driver does not unpublish is unmounted

All of it is over before lease + grace, when the server takes this node's claims as freed. Only a node that registered
with ``is_self_fencing`` does it; the silence is counted from before the last renewal was sent, so that the server's
count is never ahead of ours. It is kept on disk, so that an agent that was restarted goes on counting.
Units: seconds of a clock that nobody sets and that goes on while the host sleeps.
Never: decides what is mounted again; that is the server's, once the node is registered.
Limits: an agent that does not run fences nothing. Let its service manager or a watchdog restart the host with it.
Source: DESIGN "Fencing".
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
import msgspec
import structlog

from moorage.agent.holders import HolderSearch, Question, end_holder
from moorage.agent.ports import Ticks
from moorage.errors import DeadlineExceeded
from moorage.model.assignment import NodeRegistered

log = structlog.get_logger()

Stage = Literal["keep", "end", "kill"]
END_AFTER = 0.3
KILL_AFTER = 0.6


def read_ticks() -> float:
    """Seconds since the boot, with those in which the host slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The last renewal: when it was sent, in which boot, and what the server promised."""

    sent_s: float
    boot_id: str = ""
    lease_s: float = 0.0
    grace_s: float = 0.0

    def stage(self, now_s: float) -> Stage:
        """How far a fence is at ``now_s``."""
        beyond_s = now_s - self.sent_s - self.lease_s
        if beyond_s <= self.grace_s * END_AFTER:
            return "keep"
        return "end" if beyond_s <= self.grace_s * KILL_AFTER else "kill"


class SelfFence:
    """Watches one node's lease. ``on_fence`` is told once when the fence begins, ``on_lift`` when it is lifted.

    ``is_on`` False: it never fences, whatever happens.
    """

    def __init__(
        self, *, is_on: bool, file: Path, boot_id: str, ticks: Ticks = read_ticks, look_s: float = 0.2
    ) -> None:
        self.is_on = is_on
        self.stage: Stage = "keep"
        self.on_fence: Callable[[], None] = lambda: None
        self.on_lift: Callable[[], None] = lambda: None
        self._file = file
        self._boot_id = boot_id
        self._ticks = ticks
        self._look_s = look_s
        self._lease: Lease | None = None

    @property
    def is_fenced(self) -> bool:
        """Whether everything is being let go of."""
        return self.stage != "keep"

    def now_s(self) -> float:
        """The time now; taken before a renewal is sent."""
        return self._ticks()

    async def load(self) -> None:
        """Take up the count of an agent that ran before in this boot. Nothing is mounted since before the boot."""
        if not self.is_on:
            return
        known = await anyio.to_thread.run_sync(_read, self._file)
        if known is not None and known.boot_id == self._boot_id:
            self._lease = known

    async def renewed(self, sent_s: float, answer: NodeRegistered) -> None:
        """The server took a renewal that was sent at ``sent_s``; a fence is lifted."""
        if not self.is_on:
            return
        self._lease = Lease(sent_s=sent_s, boot_id=self._boot_id, lease_s=answer.lease_s, grace_s=answer.grace_s)
        try:
            await anyio.to_thread.run_sync(_write, self._file, self._lease)
        except OSError as e:
            log.warning("lease.not_kept", file=str(self._file), error=str(e))
        if self.is_fenced:
            self.stage = "keep"
            log.warning("fence.lifted")
            self.on_lift()

    async def run(self, holders: HolderSearch, list_written: Callable[[], tuple[str, ...]]) -> None:
        """Look at the lease again and again, until cancelled; ``list_written``: paths that writers may use.

        Writers are ended here and not where their disk is unmounted, so that no hung driver saves one of them.
        """
        if not self.is_on:
            return
        while True:
            stage = self._lease.stage(self._ticks()) if self._lease else "keep"
            if stage != self.stage and not (self.is_fenced and stage == "keep"):
                is_first, self.stage = not self.is_fenced, stage
                log.error("fence.begun" if is_first else "fence.kills", lease=self._lease)
                if is_first:
                    self.on_fence()
            if self.is_fenced:
                await self._end_writers(holders, list_written())
            await anyio.sleep(self._look_s)

    async def _end_writers(self, holders: HolderSearch, paths: tuple[str, ...]) -> None:
        number = signal.SIGKILL if self.stage == "kill" else signal.SIGTERM
        try:
            found = await holders.find(Question(paths, is_last=True)) if paths else ()
        except DeadlineExceeded as e:
            log.error("writers.not_seen", error=e.message)
            return
        for holder in found:
            if end_holder(holder, number):
                log.error("writer.ended", pid=holder.pid, command=holder.command, path=holder.path, by=number.name)


def _read(file: Path) -> Lease | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Lease)
    except (OSError, msgspec.DecodeError):
        return None


def _write(file: Path, lease: Lease) -> None:
    """A crash of the host ends what is mounted, so that nothing has to reach the disk for good."""
    temporary = file.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.encode(lease))
    temporary.replace(file)
