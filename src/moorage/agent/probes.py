"""Find mounts whose server died: a dead FUSE daemon, a stale network handle, a server that does not answer.

Each watched path is asked for its filesystem's figures and its attributes once a pause, in a worker thread. A path
whose probe has not come back is not probed again until it does; so it costs one thread, and no loop waits for it. The
number of such threads is bounded.
Units: seconds; the time is the event loop's.
Never: decides what is done about a broken mount (``rules.mounts`` does); waits longer than ``hang_s``.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable

import anyio
import anyio.to_thread
import structlog

from moorage.agent.lane import ASKS, STEP, Hops, Job, Work
from moorage.agent.threads import ThreadHops

log = structlog.get_logger()

# A look at a mount whose server or daemon is gone fails with one of these; others (EACCES) mean only that we may not.
DEAD = frozenset({errno.ENOTCONN, errno.ESTALE, errno.EIO, errno.ENODEV, errno.ESHUTDOWN, errno.EHOSTDOWN})
PROBES_MAX = 128
HUNG = "HUNG"
# One thread asks all paths in turn, one for so long, and all for so long; what is left gets threads of its own. Before,
# it may wait for its turn so long.
SWEEP_S = 0.25
SWEEP_ALL_S = 1.0
TURN_MAX_S = 30.0
_LOOK_S = 0.01

Ask = Callable[[str], None]


def ask_mount(path: str) -> None:
    """Make the filesystem at a path answer. Blocks; raises OSError. ``statvfs`` reaches a server whose attributes are
    still cached, ``stat`` one that answers no ``statvfs``."""
    os.statvfs(path)
    os.stat(path)


class MountProbes:
    """Asks paths whether they answer. ``ask`` blocks; it stands in for the kernel in tests. ``alone``: so many times a
    path took a thread of its own."""

    def __init__(self, *, pause_s: float, hang_s: float, ask: Ask = ask_mount, hops: Hops | None = None) -> None:
        self.alone = 0
        self._hops: Hops = hops or ThreadHops()
        self._pause_s = pause_s
        self._hang_s = hang_s
        self._ask = ask
        self._limiter = anyio.CapacityLimiter(PROBES_MAX)
        self._busy: dict[str, float] = {}
        self._dead: dict[str, str] = {}

    def list_dead(self) -> dict[str, str]:
        """Watched paths that did not answer well at the last look, each with the name of its error."""
        return dict(self._dead)

    async def find_dead(self, paths: Iterable[str]) -> dict[str, str]:
        """Those of ``paths`` that do not answer well now, each with the name of its error (``ENOTCONN``, ``HUNG``).

        Takes as long as the slowest, at most ``hang_s``; what is known to hang takes no time.
        """
        found: dict[str, str] = {}
        left = set(paths)
        if left:
            left -= await self._sweep(tuple(left), found)
        if not left:
            return found
        self.alone += len(left)
        async with anyio.create_task_group() as group:
            for path in left:
                group.start_soon(self._probe, path, found)
        return found

    def ask_here(self, paths: Iterable[str], now_s: Callable[[], float]) -> dict[str, str] | None:
        """``find_dead`` in the caller's own thread, for mounts that answer at once. Blocks for as long as one hangs;
        None where another is at one of them. ``now_s``: the loop's time. After either, ``find_dead`` knows more."""
        found: dict[str, str] = {}
        for path in paths:
            if path in self._busy:
                return None
            if len(self._busy) >= PROBES_MAX:
                log.warning("mount.not_probed", path=path, hanging=len(self._busy))
                continue
            self._busy[path] = now_s()
            if error := self._ask_one(path):
                found[path] = error
        return found

    async def _sweep(self, paths: Iterable[str], found: dict[str, str]) -> set[str]:
        """Ask many paths in one thread; returns those that answered. The first that is slow is left to others, and with
        it the rest."""
        answered: set[str] = set()

        def work() -> Work[None]:
            began_s = job.now_s()
            for path in paths:
                yield ASKS
                if job.now_s() - began_s > SWEEP_ALL_S:
                    return
                if path in self._busy or len(self._busy) >= PROBES_MAX:
                    continue
                self._busy[path] = job.now_s()
                error = self._ask_one(path)
                yield STEP
                answered.add(path)
                if error:
                    found[path] = error

        job = Job(work())
        with contextlib.suppress(TimeoutError):
            await self._hops.run(job, timeout_s=TURN_MAX_S, patience_s=min(SWEEP_S, self._hang_s))
        return set(answered)

    async def run(self, list_watched: Callable[[], Iterable[str]], on_change: Callable[[str], None]) -> None:
        """Probe what is watched, for ever; ``on_change`` is told a path that has broken or came back."""
        while True:
            watched = set(list_watched())
            dead = await self.find_dead(watched)
            before, self._dead = self._dead, dead
            for path in watched:
                if dead.get(path) != before.get(path):
                    on_change(path)
            await anyio.sleep(self._pause_s)

    async def _probe(self, path: str, found: dict[str, str]) -> None:
        begun_s = self._busy.get(path)
        if begun_s is None:
            if len(self._busy) >= PROBES_MAX:
                log.warning("mount.not_probed", path=path, hanging=len(self._busy))
                return
            begun_s = self._busy[path] = anyio.current_time()
            with anyio.move_on_after(self._hang_s) as scope:
                error = await self._run(path)
                if error:
                    found[path] = error
            if scope.cancelled_caught:
                found[path] = HUNG
            return
        # Another probe of the same path is under way: its end is what counts here.
        while path in self._busy and anyio.current_time() < begun_s + self._hang_s:  # noqa: ASYNC110
            await anyio.sleep(_LOOK_S)
        if path in self._busy:
            found[path] = HUNG
        else:
            await self._probe(path, found)

    async def _run(self, path: str) -> str:
        """The name of the error, or empty. The thread clears the way for the next probe, whenever it comes back."""
        is_begun = False

        def work() -> str:
            nonlocal is_begun
            is_begun = True
            return self._ask_one(path)

        try:
            return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
        finally:
            if not is_begun:
                self._busy.pop(path, None)

    def _ask_one(self, path: str) -> str:
        try:
            self._ask(path)
        except OSError as e:
            is_dead = e.errno in DEAD or (e.errno == errno.ENOENT and os.path.islink(path))
            return errno.errorcode.get(e.errno or 0, "EIO") if is_dead else ""
        finally:
            self._busy.pop(path, None)
        return ""
