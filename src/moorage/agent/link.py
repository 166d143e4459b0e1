"""The link to the server as the agent's loops see it: when it broke, when it is back, when the node must register."""

from __future__ import annotations

import anyio
import structlog

from moorage.errors import Forbidden, MoorageError, NotFound

log = structlog.get_logger()


class Link:
    """Shared by all loops of one agent.

    ``epoch`` grows each time the server was away and came back, and each time it had forgotten the node: whoever told
    it something that it does not ask for tells it again.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._is_lost = False
        self._wake = anyio.Event()
        self._changed = anyio.Event()

    def note_fault(self, fault: MoorageError) -> None:
        """A call failed."""
        if not self._is_lost:
            self._is_lost = True
            log.warning("server.lost", code=fault.code, error=fault.message)
        if isinstance(fault, (NotFound, Forbidden)):
            self._wake.set()

    def note_answer(self) -> None:
        """A standing query was answered."""
        if self._is_lost:
            self._wake.set()

    def note_restart(self) -> None:
        """A standing query was answered by another run of the server than the one that took the registration."""
        self._wake.set()

    def note_registered(self) -> None:
        """The server took the node's registration."""
        if self._is_lost:
            self._is_lost = False
            self.epoch += 1
            self._changed.set()
            self._changed = anyio.Event()
            log.info("server.back")

    async def wait_wake(self, timeout_s: float) -> None:
        """Until the node should register again: at the latest after ``timeout_s``."""
        with anyio.move_on_after(timeout_s):
            await self._wake.wait()
        self._wake = anyio.Event()

    async def wait_epoch(self, seen: int) -> None:
        """Until the epoch is beyond ``seen``."""
        while self.epoch <= seen:
            await self._changed.wait()
