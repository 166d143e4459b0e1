"""One disk's worker: look, decide, carry out one action, look again.

The newest assignments are read in each round; a failure is reported and tried again with growing pauses, claim by
claim. While the server cannot be reached nothing changes here: the last assignments stand.
Never: decides (``rules.mounts`` does); overlaps two actions of one disk.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

import anyio
import msgspec
import structlog

from moorage.agent import mounts
from moorage.agent.acts import Acts, Room
from moorage.agent.lane import Lane
from moorage.errors import BadRequest, DeadlineExceeded
from moorage.model.assignment import ClaimAssignment, MountFailedReport, Report
from moorage.model.claim import Attached, Mounted
from moorage.model.ids import ClaimId
from moorage.model.volume import Fault
from moorage.rules import mount_actions as actions
from moorage.rules.mount_actions import NOBODY, Action, View
from moorage.rules.mount_records import Disk, Layout, Seen, Staging, Use, check_target
from moorage.rules.mounts import goal_of, next_action

log = structlog.get_logger()
replace = msgspec.structs.replace

RETRY_FIRST_S = 0.5
FENCE_RETRY_S = 0.25
# Nothing but a change by somebody helps against these.
_HOPELESS = frozenset({errno.EPERM, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EINVAL})


class _Pause(msgspec.Struct, frozen=True):
    """A claim's failures in a row, and when (loop time) the next try is due."""

    attempts: int
    due_s: float


class DiskWorker:
    """Brings one disk's claims to where they are wanted. ``uses`` and ``staging`` are what the journal has."""

    def __init__(self, disk: Disk, room: Room) -> None:
        self.disk = disk
        self.assignments: dict[ClaimId, ClaimAssignment] = {}
        self._room = room
        self._lane = Lane(timeout_s=room.settings.look_timeout_s)
        self._acts = Acts(disk, room, self._lane, self._report)
        self._is_told = False
        self._broken: Mapping[ClaimId, str] = {}
        self._pauses: dict[ClaimId, _Pause] = {}
        self._reported: dict[ClaimId, Report] = {}
        self._news = anyio.Event()

    @property
    def uses(self) -> dict[ClaimId, Use]:
        """The journal's uses of this disk."""
        return self._acts.uses

    @property
    def staging(self) -> Staging | None:
        """The journal's staging of this disk."""
        return self._acts.staging

    def take(self, entry: Use | Staging) -> None:
        """Take an entry of the journal as found at start."""
        if isinstance(entry, Use):
            self._acts.uses[entry.claim_id] = entry
        else:
            self._acts.staging = entry

    def list_published(self) -> list[str]:
        """Paths at which the volume is to be seen: those that are watched for a broken mount."""
        return [u.publish_path for u in self.uses.values() if u.phase == "done"]

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do and nothing to watch."""
        is_fenced = self._room.fence.is_fenced
        is_wanted = not is_fenced and any(goal_of(a) != "none" for a in self.assignments.values())
        return not is_wanted and not self.uses and self.staging is None

    @property
    def is_orphaned(self) -> bool:
        """Whether something is still mounted for a claim that the server does not have (any more)."""
        goals = {i: goal_of(a) for i, a in self.assignments.items()}
        is_left = any(u.phase != "gone" and goals.get(i, "none") == "none" for i, u in self.uses.items())
        return is_left or (self.staging is not None and all(g == "none" for g in goals.values()))

    def assign(self, assignments: dict[ClaimId, ClaimAssignment]) -> None:
        """Take the newest assignments. A claim that is wanted otherwise than before is tried at once."""
        for claim_id in list(self._pauses):
            if _course(assignments.get(claim_id)) != _course(self.assignments.get(claim_id)):
                del self._pauses[claim_id]
        self._reported = {i: r for i, r in self._reported.items() if i in assignments}
        self._is_told = True
        self.assignments = self._acts.assignments = assignments
        self._news.set()

    def wake(self) -> None:
        """Look again now; what waits for its next try goes on waiting."""
        self._news.set()

    def retry(self) -> None:
        """Try everything again now."""
        self._pauses.clear()
        self._news.set()

    async def run(self) -> None:
        """Work until there is nothing left to do or to watch."""
        while not self.is_idle:
            self._news = anyio.Event()
            if not self._is_told and not self._room.fence.is_fenced:
                # Begun by a fence that was lifted before the server ever said which claims are its own.
                await self._news.wait()
                continue
            try:
                view = self._view(await self._look())
            except (OSError, DeadlineExceeded) as e:
                await self._look_failed(e)
                continue
            now_s = anyio.current_time()
            action = next_action(view, frozenset(i for i, p in self._pauses.items() if p.due_s > now_s))
            if isinstance(action, actions.Rest):
                self._pauses = {i: p for i, p in self._pauses.items() if p.due_s > now_s}
                self._room.on_step()
                if not self.is_idle:
                    await self._wait(now_s)
                continue
            fault = await self._try(action)
            if fault is None:
                self._pauses.pop(action.claim_id, None)
            else:
                await self._failed(action.claim_id, fault)
            self._room.on_step()

    async def _wait(self, now_s: float) -> None:
        rescan_s = self._room.settings.rescan_s * (0.75 + 0.5 * self._room.random())
        due_s = min((p.due_s for p in self._pauses.values()), default=now_s + rescan_s)
        with anyio.move_on_after(max(0.0, min(rescan_s, due_s - now_s))):
            await self._news.wait()

    # -- look --------------------------------------------------------------------------------------------------------

    async def _look(self) -> Seen:
        layout, mounter = self._room.layout, self._room.mounter
        staging_path = self.staging.staging_path if self.staging else layout.staging(self.disk)
        publish_paths = {i: _publish_path(a, layout) for i, a in self.assignments.items()}
        publish_paths |= {i: u.publish_path for i, u in self.uses.items()}
        targets = {i: a.claim.target for i, a in self.assignments.items() if _is_usable(a.claim.target, layout)}
        targets |= {i: u.target for i, u in self.uses.items() if u.target}
        ours = [staging_path, *publish_paths.values()]
        dead = await self._room.probes.find_dead(await self._lane.run(lambda: mounts.find_standing(mounter, ours)))
        await self._note_broken({i: dead[p] for i, p in publish_paths.items() if p in dead})
        return await self._lane.run(
            lambda: mounts.look(
                mounter, staging_path=staging_path, publish_paths=publish_paths, targets=targets, dead=dead
            )
        )

    async def _note_broken(self, broken: dict[ClaimId, str]) -> None:
        """Tell, once, that a consumer's mount has broken."""
        before, self._broken = self._broken, broken
        for claim_id, status in broken.items():
            assignment, use = self.assignments.get(claim_id), self.uses.get(claim_id)
            is_mount = assignment is not None and goal_of(assignment) == "mount"
            if claim_id in before or use is None or use.phase != "done" or not is_mount:
                continue
            text = f"{use.target or use.publish_path} is broken ({status}): its server died or does not answer"
            fault = Fault(method="Look", status=status, message=f"{text}; it is mounted again", final=False)
            await self._send_fault(claim_id, replace(fault, at_ns=self._room.clock()))

    def _view(self, seen: Seen) -> View:
        # To an agent that fences, nothing here is the server's wish any more: all of it goes, and nobody is told.
        return View(
            disk=self.disk,
            layout=self._room.layout,
            boot_id=self._room.boot_id,
            assignments=() if self._room.fence.is_fenced else tuple(self.assignments.values()),
            uses=tuple(self.uses.values()),
            staging=self.staging,
            seen=seen,
            node=self._room.find_node_info(self.disk.plugin_id),
            reported=self._reported,
            may_mount=self._room.may_mount(),
        )

    async def _look_failed(self, error: OSError | DeadlineExceeded) -> None:
        fault = self._fault("Look", NOBODY, error)
        for claim_id, assignment in list(self.assignments.items()):
            if goal_of(assignment) != "none":
                await self._failed(claim_id, fault)
        await self._failed(NOBODY, fault)
        await self._wait(anyio.current_time())

    # -- act ---------------------------------------------------------------------------------------------------------

    async def _try(self, action: Action) -> Fault | None:
        try:
            return await self._acts.carry_out(action)
        except (OSError, DeadlineExceeded) as e:
            return self._fault(type(action).__name__, action.claim_id, e)

    # -- tell --------------------------------------------------------------------------------------------------------

    async def _report(self, claim_id: ClaimId, report: Report) -> None:
        self._reported[claim_id] = report
        await self._room.reporter.send(report, lambda is_taken: self._answered(claim_id, report, is_taken=is_taken))

    def _answered(self, claim_id: ClaimId, report: Report, *, is_taken: bool) -> None:
        if not is_taken and self._reported.get(claim_id) == report:
            del self._reported[claim_id]
            self._pause(claim_id)

    async def _failed(self, claim_id: ClaimId, fault: Fault) -> None:
        attempts = self._pause(claim_id, is_final=fault.final)
        await self._send_fault(claim_id, fault, attempts=attempts)

    async def _send_fault(self, claim_id: ClaimId, fault: Fault, *, attempts: int = 0) -> None:
        log.warning(
            "mount.failed",
            plugin=self.disk.plugin_id,
            external_id=self.disk.external_id,
            claim=claim_id,
            method=fault.method,
            status=fault.status,
            error=fault.message,
            attempts=attempts,
        )
        assignment = self.assignments.get(claim_id)
        if assignment is not None and goal_of(assignment) != "none":
            report = MountFailedReport(claim_id=claim_id, revision=assignment.revision, fault=fault)
            await self._room.reporter.send(report)

    def _pause(self, claim_id: ClaimId, *, is_final: bool = False) -> int:
        attempts = self._pauses[claim_id].attempts + 1 if claim_id in self._pauses else 1
        cap_s = self._room.settings.retry_cap_s
        full_s = cap_s if is_final else min(cap_s, RETRY_FIRST_S * 2.0 ** min(attempts - 1, 16))
        if self._room.fence.is_fenced:
            full_s = min(full_s, FENCE_RETRY_S)
        due_s = anyio.current_time() + full_s * (0.5 + 0.5 * self._room.random())
        self._pauses[claim_id] = _Pause(attempts, due_s)
        return attempts

    def _fault(self, method: str, claim_id: ClaimId, error: OSError | DeadlineExceeded) -> Fault:
        at_ns = self._room.clock()
        if isinstance(error, DeadlineExceeded):
            return Fault(method=method, status=error.code, message=error.message, final=False, at_ns=at_ns)
        assignment = self.assignments.get(claim_id)
        # Where a mount was lost and the consumer still holds the claim, no fault is the last word.
        is_new = assignment is not None and isinstance(assignment.claim.state, Attached)
        hint = "; it is in use: stop what uses it" if error.errno == errno.EBUSY else ""
        text = f"{error.filename}: {error.strerror}{hint}" if error.filename else str(error)
        status = errno.errorcode.get(error.errno or 0, "OSError")
        is_final = is_new and error.errno in _HOPELESS
        return Fault(method=method, status=status, message=text, final=is_final, at_ns=at_ns)


def _course(assignment: ClaimAssignment | None) -> tuple[str, str]:
    if assignment is None:
        return ("", "")
    return (assignment.claim.wanted, type(assignment.claim.state).__name__)


def _publish_path(assignment: ClaimAssignment, layout: Layout) -> str:
    state = assignment.claim.state
    told = state.publish_path if isinstance(state, Mounted) else ""
    return told or layout.publish(assignment.claim.id)


def _is_usable(target: str, layout: Layout) -> bool:
    try:
        check_target(target, layout)
    except BadRequest:
        return False
    return True
