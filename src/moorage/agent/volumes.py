"""All disks of one node: who has something to do gets a worker; workers without work leave.

Never: decides about a mount; touches a disk before the server's first answer, because without it every claim would
look gone.
"""

from __future__ import annotations

from collections.abc import Iterable

import anyio
import structlog
from anyio.abc import TaskGroup

from moorage.agent.acts import Room
from moorage.agent.disk import DiskWorker
from moorage.model.assignment import ClaimAssignment, ClaimAssignments
from moorage.model.ids import ClaimId, PluginId
from moorage.rules.mount_records import Disk, Staging, Use
from moorage.rules.mounts import goal_of

log = structlog.get_logger()


class Volumes:
    """The disks of one node. ``uses`` and ``stagings`` are the journal as found at start."""

    def __init__(self, group: TaskGroup) -> None:
        self._group = group
        self._room: Room | None = None
        self._workers: dict[Disk, DiskWorker] = {}
        self._busy: set[Disk] = set()
        # The server's last word: this node's claims by disk, the disk of each, and the revision of the node's record.
        self._claims: dict[Disk, dict[ClaimId, ClaimAssignment]] = {}
        self._disks: dict[ClaimId, Disk] = {}
        self._node_revision: int | None = None
        # The revision of the node's record with which the server took the node (back); None: it has not.
        self._taken: int | None = None
        # Made by who waits for it.
        self._stepped: anyio.Event | None = None

    def prepare(self, room: Room, uses: Iterable[Use], stagings: Iterable[Staging]) -> None:
        """Take what the journal has; nothing is done yet."""
        self._room = room
        for use in uses:
            self._worker(use.disk).take(use)
        for staging in stagings:
            self._worker(staging.disk).take(staging)

    def assign(self, page: ClaimAssignments) -> None:
        """Take the server's list of this node's claims, whole or what is new of it, and wake whom it concerns."""
        could_mount = self.may_mount
        is_first, self._node_revision = self._node_revision is None, page.node_revision
        disks = self._merge(page) if page.is_delta else self._replace(page)
        self._wake_changed(disks, is_first=is_first)
        self.note_step()
        if not could_mount and self.may_mount:
            self.lift()

    def _replace(self, page: ClaimAssignments) -> Iterable[Disk]:
        self._claims, self._disks = {}, {}
        for assignment in page.claims:
            disk = _disk_of(assignment)
            self._claims.setdefault(disk, {})[assignment.claim.id] = assignment
            self._disks[assignment.claim.id] = disk
        return {**self._claims, **self._workers}

    def _merge(self, page: ClaimAssignments) -> Iterable[Disk]:
        """Take what is new; the workers keep what they were given, so that a disk's claims are a dict of their own."""
        changed: dict[Disk, dict[ClaimId, ClaimAssignment]] = {}
        for claim_id in page.gone:
            gone_from = self._disks.pop(claim_id, None)
            if gone_from is not None:
                if gone_from not in changed:
                    changed[gone_from] = dict(self._claims[gone_from])
                del changed[gone_from][claim_id]
        for assignment in page.claims:
            disk = self._disks[assignment.claim.id] = _disk_of(assignment)
            if disk not in changed:
                changed[disk] = dict(self._claims.get(disk, {}))
            changed[disk][assignment.claim.id] = assignment
        for disk, claims in changed.items():
            if claims:
                self._claims[disk] = claims
            else:
                self._claims.pop(disk, None)
        return changed

    def _wake_changed(self, disks: Iterable[Disk], *, is_first: bool = False) -> None:
        for disk in disks:
            now = self._claims.get(disk, {})
            if disk not in self._workers and all(goal_of(a) == "none" for a in now.values()):
                continue
            worker = self._worker(disk)
            if is_first or worker.assignments != now:
                worker.assign(now)
                self._start(worker)

    # -- the node is the server's ------------------------------------------------------------------------------------

    @property
    def may_mount(self) -> bool:
        """Whether anything may be mounted: the server counts the node among its own, and the list of claims is from
        after it took the node. Before that it may give claims away, and the list may show those still."""
        return self._taken is not None and self._node_revision is not None and self._node_revision >= self._taken

    def note_taken(self, revision: int) -> None:
        """The server has the node among its own; if it had not before, then by this revision of the node's record."""
        if self._taken is None:
            self._taken = revision
            if self.may_mount:
                self.lift()

    def note_lost(self) -> None:
        """The server had lost the node, and has not taken it back yet: what is mounted stays, nothing is added."""
        self._taken = None

    def retry_plugin(self, plugin_id: PluginId) -> None:
        """Its driver became able (or unable): try again now what waits for it."""
        for disk, worker in self._workers.items():
            if disk.plugin_id == plugin_id:
                worker.retry()

    def note_step(self) -> None:
        """Something was done: whoever waits for it looks."""
        if self._stepped is not None:
            self._stepped.set()
            self._stepped = None

    async def wait_clean(self) -> int:
        """Until nothing is mounted any more for claims that the server does not have, by its last word. Returns the
        ``node_revision`` of that list."""
        while self._node_revision is None or any(w.is_orphaned for w in self._workers.values()):
            if self._stepped is None:
                self._stepped = anyio.Event()
            await self._stepped.wait()
        return self._node_revision

    def has_begun(self, boot_id: str) -> bool:
        """Whether a mount was begun since the host booted, by the journal."""
        return any(
            any(u.boot_id == boot_id and u.phase != "gone" for u in worker.uses.values())
            or (worker.staging is not None and worker.staging.boot_id == boot_id)
            for worker in self._workers.values()
        )

    def is_used(self, plugin_id: PluginId) -> bool:
        """Whether anything of the plugin's is mounted here or on its way."""
        return any(disk.plugin_id == plugin_id for disk in self._workers)

    # -- broken mounts -----------------------------------------------------------------------------------------------

    def list_published(self) -> list[str]:
        """Paths at which volumes are to be seen."""
        return [path for worker in self._workers.values() for path in worker.list_published()]

    def note_change(self, path: str) -> None:
        """The mount at a path has broken, or answers again."""
        for worker in self._workers.values():
            if path in worker.list_published():
                worker.wake()

    # -- fencing -----------------------------------------------------------------------------------------------------

    def list_written(self) -> tuple[str, ...]:
        """Paths by which somebody may write to a volume."""
        uses = [u for w in self._workers.values() for u in w.uses.values() if u.phase != "gone" and not u.read_only]
        return tuple(path for use in uses for path in (use.target, use.publish_path, use.staging_path) if path)

    def fence(self) -> None:
        """The room's fence has begun: every disk lets go, also before the server ever answered."""
        for worker in self._workers.values():
            worker.retry()
            self._start(worker)

    def lift(self) -> None:
        """The fence is lifted, or mounting is allowed: the server's last word counts again."""
        for worker in self._workers.values():
            worker.retry()
        if self._node_revision is not None:
            self._wake_changed({**self._claims, **self._workers})
            self.note_step()

    def list_orphans(self) -> list[str]:
        """External IDs of the disks that are still mounted without a claim."""
        return sorted(d.external_id for d, w in self._workers.items() if w.is_orphaned)

    def _worker(self, disk: Disk) -> DiskWorker:
        assert self._room is not None
        worker = self._workers.get(disk)
        if worker is None:
            worker = self._workers[disk] = DiskWorker(disk, self._room)
        return worker

    def _start(self, worker: DiskWorker) -> None:
        if worker.disk not in self._busy:
            self._busy.add(worker.disk)
            self._group.start_soon(self._run, worker, name=f"disk {worker.disk.plugin_id} {worker.disk.external_id}")

    async def _run(self, worker: DiskWorker) -> None:
        await worker.run()
        # No await since it found itself idle, so that nothing was assigned in between.
        self._busy.discard(worker.disk)
        del self._workers[worker.disk]
        self.note_step()


def _disk_of(assignment: ClaimAssignment) -> Disk:
    return Disk(assignment.claim.plugin_id, assignment.claim.external_id)
