"""One disk's worker: look, decide, carry out one action, look again. All that blocks is ``agent.acts``, in a thread.

Nothing is unbound, unpublished or unstaged while somebody uses it; who does is told, and the action waits for its
next try. The newest assignments are read in each round; a failure is reported and tried again with growing pauses,
claim by claim. While the server cannot be reached nothing changes here: the last assignments stand.
Never: decides (``rules.mounts`` does); overlaps two actions of one disk.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping

import anyio
import msgspec
import structlog

from moorage.agent.acts import Acts, Advance, Answers, Room
from moorage.agent.calls import call_in_turn
from moorage.agent.holders import Question
from moorage.agent.lane import Lane
from moorage.agent.probes import SWEEP_S
from moorage.errors import DeadlineExceeded
from moorage.model.assignment import ClaimAssignment, MountFailedReport, Report
from moorage.model.claim import Attached
from moorage.model.ids import ClaimId
from moorage.model.steps import Failed, Step
from moorage.model.volume import Fault
from moorage.rules import mount_actions as actions
from moorage.rules.holders import describe_holders
from moorage.rules.mount_actions import NOBODY, Action, View
from moorage.rules.mount_records import Disk, Seen, Staging, Use
from moorage.rules.mounts import goal_of, next_action

log = structlog.get_logger()
replace = msgspec.structs.replace

IN_USE = "in_use"
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
        self._now_s = asyncio.get_running_loop().time
        self._lane = Lane(timeout_s=room.settings.look_timeout_s, hops=room.hops)
        self._acts = Acts(disk, room, self._now_s)
        # The last look, until something is done here; whether something may have happened since.
        self._seen: Seen | None = None
        self._is_stale = False
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
            self._acts.uses = {**self._acts.uses, entry.claim_id: entry}
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
        self._is_stale = True
        self._news.set()

    def retry(self) -> None:
        """Try everything again now."""
        self._pauses.clear()
        self._is_stale = True
        self._news.set()

    async def run(self) -> None:
        """Work until there is nothing left to do or to watch."""
        done: Action | None = None
        while done is not None or not self.is_idle:
            self._news = anyio.Event()
            if done is None and not self._is_told and not self._room.fence.is_fenced:
                # Begun by a fence that was lifted before the server ever said which claims are its own.
                await self._news.wait()
                continue
            if done is None and self._is_at_rest():
                await self._rest()
                continue
            try:
                found = await self._advance(done)
            except (OSError, DeadlineExceeded) as e:
                done, self._seen = None, None
                await self._hop_failed(e)
                continue
            self._note_ended()
            await self._note_broken(found.broken)
            done = await self._go_on(found)
            self._room.on_step()

    def _is_at_rest(self) -> bool:
        """Whether there is nothing to do by the last look, where that still counts: news alone make no other."""
        return self._seen is not None and not self._is_stale and isinstance(self._decide(self._seen), actions.Rest)

    def _decide(self, seen: Seen) -> Action:
        """The next action. Also called in a thread: it only reads."""
        if not self._is_told and not self._room.fence.is_fenced:
            return actions.REST
        now_s = self._now_s()
        return next_action(self._view(seen), frozenset(i for i, p in list(self._pauses.items()) if p.due_s > now_s))

    async def _rest(self) -> None:
        now_s = self._now_s()
        self._pauses = {i: p for i, p in self._pauses.items() if p.due_s > now_s}
        self._room.on_step()
        if not self.is_idle:
            await self._wait(now_s)

    async def _wait(self, now_s: float) -> None:
        """Until there are news; or until it is time to look again, whatever has happened."""
        rescan_s = self._room.settings.rescan_s * (0.75 + 0.5 * self._room.random())
        due_s = min((p.due_s for p in self._pauses.values()), default=now_s + rescan_s)
        with anyio.move_on_after(max(0.0, min(rescan_s, due_s - now_s))):
            await self._news.wait()
            return
        self._seen = None

    async def _advance(self, done: Action | None) -> Advance:
        """One trip to a thread; a second one where a mount did not answer at once."""
        known: Answers = {}
        self._is_stale = False
        while True:
            found = await self._lane.work(self._acts.advance(done, self._decide, known), patience_s=SWEEP_S)
            if found is not None:
                return found
            done, asked = self._acts.doing, self._acts.asked
            known = dict.fromkeys(asked, "") | await self._room.probes.find_dead(asked)

    def _note_ended(self) -> None:
        for claim_id in self._acts.ended:
            self._pauses.pop(claim_id, None)
        self._acts.ended.clear()

    async def _go_on(self, found: Advance) -> Action | None:
        """Carry out what a trip has come to. Returns the action whose second half is due."""
        action = found.action
        self._seen = found.seen if found.error is None else None
        if action is None or isinstance(action, actions.Rest):
            return None
        if found.error is not None:
            await self._failed(action.claim_id, self._fault(type(action).__name__, action.claim_id, found.error))
            return None
        try:
            fault = await self._try(action, found.standing)
        except (OSError, DeadlineExceeded) as e:
            fault = self._fault(type(action).__name__, action.claim_id, e)
        if fault is not None:
            self._seen = None
            await self._failed(action.claim_id, fault)
            return None
        if isinstance(action, (actions.ReportMounted, actions.ReportUnmounted)):
            self._pauses.pop(action.claim_id, None)
            return None
        return action

    async def _hop_failed(self, error: OSError | DeadlineExceeded) -> None:
        action = self._acts.doing
        self._note_ended()
        if action is not None:
            await self._failed(action.claim_id, self._fault(type(action).__name__, action.claim_id, error))
            self._room.on_step()
            return
        fault = self._fault("Look", NOBODY, error)
        for claim_id, assignment in list(self.assignments.items()):
            if goal_of(assignment) != "none":
                await self._failed(claim_id, fault)
        await self._failed(NOBODY, fault)
        await self._wait(self._now_s())

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

    # -- act ---------------------------------------------------------------------------------------------------------

    async def _try(self, action: Action, standing: tuple[str, ...]) -> Fault | None:
        """What an action takes besides its two halves. Raises OSError, DeadlineExceeded."""
        match action:
            case actions.Stage() | actions.Publish():
                return await self._call(action.step, action.claim_id)
            case actions.Unbind():
                return await self._find_use("Unbind", action.claim_id, standing)
            case actions.Unpublish():
                return await self._take_away(action, action.step.target_path, standing)
            case actions.Unstage():
                return await self._take_away(action, action.step.staging_path, standing)
            case actions.Grow():
                fault = await self._call(action.step, action.claim_id)
                # Final for the growth is not final for the mount, which works as it is.
                return replace(fault, final=False) if fault else None
            case actions.ReportMounted() | actions.ReportUnmounted():
                await self._report(action.claim_id, action.report)
            case actions.Refuse():
                return replace(action.report.fault, at_ns=self._room.clock())
            case _:
                pass
        return None

    async def _take_away(
        self, action: actions.Unpublish | actions.Unstage, path: str, standing: tuple[str, ...]
    ) -> Fault | None:
        """Ask the driver for it, unless somebody uses the path."""
        if fault := await self._find_use(type(action).__name__, action.claim_id, standing):
            return fault
        fault = await self._call(action.step, action.claim_id)
        mounter = self._room.mounter
        # The last resort of a fence: the driver does not take its mount away, so that no new writer may find it.
        is_cutting = fault is not None and self._room.fence.stage == "kill"
        if is_cutting and await self._lane.run(lambda: bool(mounter.find_mounted([path]))):
            await self._lane.run(lambda: mounter.unmount(path))
            log.error("mount.cut", path=path, plugin=self.disk.plugin_id)
        return fault

    async def _find_use(self, method: str, claim_id: ClaimId, standing: tuple[str, ...]) -> Fault | None:
        """The fault that keeps the paths as they are while somebody uses them."""
        if not standing:
            return None
        is_last = all(i == claim_id or use.phase == "gone" for i, use in self.uses.items())
        found = await self._room.holders.find(Question(standing, is_last))
        if not found:
            return None
        at_ns = self._room.clock()
        return Fault(method=method, status=IN_USE, message=describe_holders(found), final=False, at_ns=at_ns)

    async def _call(self, step: Step, claim_id: ClaimId) -> Fault | None:
        plugin_id, assignment = self.disk.plugin_id, self.assignments.get(claim_id)
        timeout_s = assignment.timeout_s if assignment else self._room.settings.node_call_s
        driver, budget = self._room.drivers.get(plugin_id), self._room.node_budgets.get(plugin_id)
        outcome = await call_in_turn(
            budget, driver, step, subject=self.disk.external_id, timeout_s=timeout_s, clock=self._room.clock
        )
        return outcome.fault if isinstance(outcome, Failed) else None

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
        due_s = self._now_s() + full_s * (0.5 + 0.5 * self._room.random())
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
