"""One disk's worker: look, decide, carry out one action, look again.

The newest assignments are read in each round; a failure is reported and tried again with growing pauses, claim by
claim. While the server cannot be reached nothing changes here: the last assignments stand.
Never: decides (``rules.mounts`` does); overlaps two actions of one disk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import anyio
import msgspec
import structlog

from moorage.agent import mounts
from moorage.agent.calls import call_driver
from moorage.agent.journal import Journal
from moorage.agent.lane import Lane
from moorage.agent.ports import AgentSettings, Chance, Clock, Driver, Mounter
from moorage.agent.reporter import Reporter
from moorage.errors import BadRequest, DeadlineExceeded
from moorage.model.assignment import ClaimAssignment, MountFailedReport, Report
from moorage.model.claim import Attached, Mounted
from moorage.model.ids import ClaimId, PluginId
from moorage.model.plugin import NodeInfo
from moorage.model.steps import Failed, Step
from moorage.model.volume import Fault
from moorage.rules import mount_actions as actions
from moorage.rules.mount_actions import NOBODY, Action, View
from moorage.rules.mount_records import Disk, Layout, Seen, Staging, Use, check_target
from moorage.rules.mounts import goal_of, next_action

log = structlog.get_logger()
replace = msgspec.structs.replace

RETRY_FIRST_S = 0.5
# Nothing but a change by somebody helps against these.
_HOPELESS = frozenset({errno.EPERM, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EINVAL})


@dataclass(frozen=True, kw_only=True)
class Room:
    """What all disks of one agent share. ``node_slots`` bounds node calls per plugin; ``on_step`` hears of progress."""

    layout: Layout
    boot_id: str
    journal: Journal
    mounter: Mounter
    drivers: Mapping[PluginId, Driver]
    node_slots: Mapping[PluginId, anyio.CapacityLimiter]
    find_node_info: Callable[[PluginId], NodeInfo | None]
    reporter: Reporter
    clock: Clock
    random: Chance
    settings: AgentSettings
    on_step: Callable[[], None]


class _Pause(msgspec.Struct, frozen=True):
    """A claim's failures in a row, and when (loop time) the next try is due."""

    attempts: int
    due_s: float


class DiskWorker:
    """Brings one disk's claims to where they are wanted. ``uses`` and ``staging`` are what the journal has."""

    def __init__(self, disk: Disk, room: Room) -> None:
        self.disk = disk
        self.uses: dict[ClaimId, Use] = {}
        self.staging: Staging | None = None
        self.assignments: dict[ClaimId, ClaimAssignment] = {}
        self._room = room
        self._lane = Lane(timeout_s=room.settings.look_timeout_s)
        self._pauses: dict[ClaimId, _Pause] = {}
        self._reported: dict[ClaimId, Report] = {}
        self._news = anyio.Event()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do and nothing to watch."""
        is_wanted = any(goal_of(a) != "none" for a in self.assignments.values())
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
        self.assignments = assignments
        self._news.set()

    def retry(self) -> None:
        """Try everything again now."""
        self._pauses.clear()
        self._news.set()

    async def run(self) -> None:
        """Work until there is nothing left to do or to watch."""
        while not self.is_idle:
            self._news = anyio.Event()
            try:
                view = self._view(await self._lane.run(self._looker()))
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

    def _looker(self) -> Callable[[], Seen]:
        layout, mounter = self._room.layout, self._room.mounter
        staging_path = self.staging.staging_path if self.staging else layout.staging(self.disk)
        publish_paths = {i: _publish_path(a, layout) for i, a in self.assignments.items()}
        publish_paths |= {i: u.publish_path for i, u in self.uses.items()}
        targets = {i: a.claim.target for i, a in self.assignments.items() if _is_usable(a.claim.target, layout)}
        targets |= {i: u.target for i, u in self.uses.items() if u.target}
        return lambda: mounts.look(mounter, staging_path=staging_path, publish_paths=publish_paths, targets=targets)

    def _view(self, seen: Seen) -> View:
        return View(
            disk=self.disk,
            layout=self._room.layout,
            boot_id=self._room.boot_id,
            assignments=tuple(self.assignments.values()),
            uses=tuple(self.uses.values()),
            staging=self.staging,
            seen=seen,
            node=self._room.find_node_info(self.disk.plugin_id),
            reported=self._reported,
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
            return await self._carry_out(action)
        except (OSError, DeadlineExceeded) as e:
            return self._fault(type(action).__name__, action.claim_id, e)

    async def _carry_out(self, action: Action) -> Fault | None:
        match action:
            case actions.Begin():
                await self._begin(action)
            case actions.Stage():
                return await self._stage(action)
            case actions.Publish():
                return await self._publish(action)
            case actions.Bind():
                await self._bind(action.claim_id)
            case actions.Unbind():
                await self._unbind(action.claim_id)
            case actions.Unpublish():
                return await self._unpublish(action)
            case actions.Unstage():
                return await self._unstage(action)
            case actions.Grow():
                return await self._grow(action)
            case actions.ReportMounted() | actions.ReportUnmounted():
                await self._report(action.claim_id, action.report)
            case actions.Refuse():
                return replace(action.report.fault, at_ns=self._room.clock())
            case actions.Forget():
                use = self.uses[action.claim_id]
                await self._lane.run(lambda: self._room.journal.remove(use))
                del self.uses[action.claim_id]
        return None

    async def _begin(self, action: actions.Begin) -> None:
        journal, staging = self._room.journal, action.staging

        def write() -> None:
            if staging is not None:
                journal.write(staging)
            journal.write(action.use)

        await self._lane.run(write)
        self.staging = staging or self.staging
        self.uses[action.claim_id] = action.use

    async def _write_use(self, use: Use) -> None:
        await self._lane.run(lambda: self._room.journal.write(use))
        self.uses[use.claim_id] = use

    async def _write_staging(self, staging: Staging) -> None:
        await self._lane.run(lambda: self._room.journal.write(staging))
        self.staging = staging

    async def _stage(self, action: actions.Stage) -> Fault | None:
        path = action.step.staging_path
        begun = Staging(
            plugin_id=self.disk.plugin_id,
            external_id=self.disk.external_id,
            staging_path=path,
            boot_id=self._room.boot_id,
        )
        if self.staging != begun:
            await self._write_staging(begun)
        await self._lane.run(lambda: mounts.make_staging(path))
        if fault := await self._call(action.step, action.claim_id):
            return fault
        seen_as = await self._lane.run(lambda: mounts.look_at_one(self._room.mounter, path))
        await self._write_staging(replace(begun, phase="done", seen_as=seen_as))
        self._tell("volume.staged", action.claim_id)
        return None

    async def _publish(self, action: actions.Publish) -> Fault | None:
        use, path = self.uses[action.claim_id], action.step.target_path
        begun = replace(use, phase="begun", boot_id=self._room.boot_id)
        if begun != use:
            await self._write_use(begun)
        await self._lane.run(lambda: mounts.make_parent(path))
        if fault := await self._call(action.step, action.claim_id):
            return fault
        seen_as = await self._lane.run(lambda: mounts.look_at_one(self._room.mounter, path))
        if seen_as == "absent":
            raise FileNotFoundError(errno.ENOENT, "the driver says that it is published, yet nothing is there", path)
        await self._write_use(replace(begun, phase="done", seen_as=seen_as))
        self._tell("volume.published", action.claim_id, seen_as=seen_as)
        return None

    async def _bind(self, claim_id: ClaimId) -> None:
        planned = await self._lane.run(lambda: mounts.plan_bind(self.uses[claim_id]))
        await self._write_use(planned)
        await self._lane.run(lambda: mounts.make_bind(self._room.mounter, planned))
        await self._write_use(replace(planned, bind="done"))
        self._tell("volume.bound", claim_id, target=planned.target)

    async def _unbind(self, claim_id: ClaimId) -> None:
        use = self.uses[claim_id]
        unbound = await self._lane.run(lambda: mounts.undo_bind(self._room.mounter, use))
        await self._write_use(unbound)
        self._tell("volume.unbound", claim_id, target=use.target)

    async def _unpublish(self, action: actions.Unpublish) -> Fault | None:
        if fault := await self._call(action.step, action.claim_id):
            return fault
        path = action.step.target_path
        await self._clear(lambda: mounts.clear_published(self._room.mounter, path), path)
        use = replace(self.uses[action.claim_id], phase=action.then, seen_as="absent", boot_id=self._room.boot_id)
        await self._write_use(use)
        self._tell("volume.unpublished", action.claim_id)
        return None

    async def _unstage(self, action: actions.Unstage) -> Fault | None:
        if fault := await self._call(action.step, action.claim_id):
            return fault
        path, staging = action.step.staging_path, self.staging
        await self._clear(lambda: mounts.clear_staging(self._room.mounter, path), path)
        if staging is not None:
            await self._lane.run(lambda: self._room.journal.remove(staging))
        self.staging = None
        self._tell("volume.unstaged", action.claim_id)
        return None

    async def _clear(self, clear: Callable[[], None], path: str) -> None:
        try:
            await self._lane.run(clear)
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            log.warning("path.left_behind", path=path, error=os.strerror(e.errno or 0))

    async def _grow(self, action: actions.Grow) -> Fault | None:
        if fault := await self._call(action.step, action.claim_id):
            # Final for the growth is not final for the mount, which works as it is.
            return replace(fault, final=False)
        await self._write_use(replace(self.uses[action.claim_id], grown_bytes=action.step.required_bytes))
        self._tell("volume.grown", action.claim_id)
        return None

    async def _call(self, step: Step, claim_id: ClaimId) -> Fault | None:
        plugin_id, assignment = self.disk.plugin_id, self.assignments.get(claim_id)
        timeout_s = assignment.timeout_s if assignment else self._room.settings.node_call_s
        driver, slots = self._room.drivers.get(plugin_id), self._room.node_slots.get(plugin_id)
        async with slots or anyio.CapacityLimiter(1):
            outcome = await call_driver(driver, step, timeout_s=timeout_s, clock=self._room.clock)
        return outcome.fault if isinstance(outcome, Failed) else None

    # -- tell --------------------------------------------------------------------------------------------------------

    def _tell(self, event: str, claim_id: ClaimId, **more: str) -> None:
        log.info(event, plugin=self.disk.plugin_id, external_id=self.disk.external_id, claim=claim_id, **more)

    async def _report(self, claim_id: ClaimId, report: Report) -> None:
        self._reported[claim_id] = report
        await self._room.reporter.send(report, lambda is_taken: self._answered(claim_id, report, is_taken=is_taken))

    def _answered(self, claim_id: ClaimId, report: Report, *, is_taken: bool) -> None:
        if not is_taken and self._reported.get(claim_id) == report:
            del self._reported[claim_id]
            self._pause(claim_id)

    async def _failed(self, claim_id: ClaimId, fault: Fault) -> None:
        attempts = self._pause(claim_id, is_final=fault.final)
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
