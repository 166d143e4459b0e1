"""Carry out one action on a disk: journal first, then the driver or the kernel, then the journal again.

Nothing is unbound, unpublished or unstaged while somebody uses it; who does is told, and the action waits for its
next try.
Never: decides what is done (``rules.mounts`` does); overlaps two actions of one disk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec
import structlog

from moorage.agent import mounts
from moorage.agent.budget import Budget
from moorage.agent.calls import call_in_turn
from moorage.agent.fencing import SelfFence
from moorage.agent.holders import HolderSearch, Question
from moorage.agent.journal import Journal
from moorage.agent.lane import Lane
from moorage.agent.ports import AgentSettings, Chance, Clock, Driver, Mounter
from moorage.agent.probes import MountProbes
from moorage.agent.reporter import Reporter
from moorage.model.assignment import ClaimAssignment, Report
from moorage.model.ids import ClaimId, PluginId
from moorage.model.plugin import NodeInfo
from moorage.model.steps import Failed, Step
from moorage.model.volume import Fault
from moorage.rules import mount_actions as actions
from moorage.rules.holders import describe_holders
from moorage.rules.mount_actions import Action
from moorage.rules.mount_records import Disk, Layout, PathKind, Staging, Use

log = structlog.get_logger()
replace = msgspec.structs.replace

IN_USE = "in_use"

Send = Callable[[ClaimId, Report], Awaitable[None]]
"""Tells the server a report about a claim."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What all disks of one agent share. ``node_budgets`` bounds node calls by plugin; ``on_step`` hears of work;
    ``may_mount``: whether the server counts the node among its own, so that mounting is allowed."""

    layout: Layout
    boot_id: str
    journal: Journal
    mounter: Mounter
    drivers: Mapping[PluginId, Driver]
    node_budgets: Mapping[PluginId, Budget]
    find_node_info: Callable[[PluginId], NodeInfo | None]
    reporter: Reporter
    probes: MountProbes
    holders: HolderSearch
    fence: SelfFence
    clock: Clock
    random: Chance
    settings: AgentSettings
    on_step: Callable[[], None]
    may_mount: Callable[[], bool]


class Acts:
    """One disk's journal, and the actions that change it. ``send`` tells the server a report."""

    def __init__(self, disk: Disk, room: Room, lane: Lane, send: Send) -> None:
        self.uses: dict[ClaimId, Use] = {}
        self.staging: Staging | None = None
        self.assignments: Mapping[ClaimId, ClaimAssignment] = {}
        self._disk = disk
        self._room = room
        self._lane = lane
        self._send = send

    async def carry_out(self, action: Action) -> Fault | None:
        """Do it; the fault says what kept it from being done. Raises OSError, DeadlineExceeded."""
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
                return await self._unbind(action.claim_id)
            case actions.Unpublish():
                return await self._unpublish(action)
            case actions.Unstage():
                return await self._unstage(action)
            case actions.Grow():
                return await self._grow(action)
            case actions.ReportMounted() | actions.ReportUnmounted():
                await self._send(action.claim_id, action.report)
            case actions.Refuse():
                return replace(action.report.fault, at_ns=self._room.clock())
            case actions.Forget():
                use = self.uses[action.claim_id]
                await self._lane.run(lambda: self._room.journal.remove(use))
                del self.uses[action.claim_id]
        return None

    # -- journal -----------------------------------------------------------------------------------------------------

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

    # -- up ----------------------------------------------------------------------------------------------------------

    async def _stage(self, action: actions.Stage) -> Fault | None:
        path = action.step.staging_path
        begun = Staging(
            plugin_id=self._disk.plugin_id,
            external_id=self._disk.external_id,
            staging_path=path,
            boot_id=self._room.boot_id,
        )
        if self.staging != begun:
            await self._write_staging(begun)
        await self._lane.run(lambda: mounts.make_staging(path))
        if fault := await self._call(action.step, action.claim_id):
            return fault
        await self._write_staging(replace(begun, phase="done", seen_as=await self._look_at(path)))
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
        seen_as = await self._look_at(path)
        if seen_as == "absent":
            raise FileNotFoundError(errno.ENOENT, "the driver says that it is published, yet nothing is there", path)
        await self._write_use(replace(begun, phase="done", seen_as=seen_as))
        self._tell("volume.published", action.claim_id, seen_as=seen_as)
        return None

    async def _look_at(self, path: str) -> PathKind:
        mounter = self._room.mounter
        dead = await self._room.probes.find_dead(await self._lane.run(lambda: mounts.find_standing(mounter, [path])))
        return await self._lane.run(
            lambda: mounts.look_at(path, is_mounted=bool(mounter.find_mounted([path])), is_dead=path in dead)
        )

    async def _bind(self, claim_id: ClaimId) -> None:
        planned = await self._lane.run(lambda: mounts.plan_bind(self.uses[claim_id]))
        await self._write_use(planned)
        await self._lane.run(lambda: mounts.make_bind(self._room.mounter, planned))
        await self._write_use(replace(planned, bind="done"))
        self._tell("volume.bound", claim_id, target=planned.target)

    async def _grow(self, action: actions.Grow) -> Fault | None:
        if fault := await self._call(action.step, action.claim_id):
            # Final for the growth is not final for the mount, which works as it is.
            return replace(fault, final=False)
        await self._write_use(replace(self.uses[action.claim_id], grown_bytes=action.step.required_bytes))
        self._tell("volume.grown", action.claim_id)
        return None

    # -- down --------------------------------------------------------------------------------------------------------

    async def _unbind(self, claim_id: ClaimId) -> Fault | None:
        use = self.uses[claim_id]
        if fault := await self._find_use("Unbind", claim_id, (use.target, use.publish_path)):
            return fault
        unbound = await self._lane.run(lambda: mounts.undo_bind(self._room.mounter, use))
        await self._write_use(unbound)
        self._tell("volume.unbound", claim_id, target=use.target)
        return None

    async def _unpublish(self, action: actions.Unpublish) -> Fault | None:
        path = action.step.target_path
        if fault := await self._find_use("Unpublish", action.claim_id, (path,)):
            return fault
        if fault := await self._call(action.step, action.claim_id):
            await self._cut(path)
            return fault
        await self._clear(lambda: mounts.clear_published(self._room.mounter, path), path)
        use = replace(self.uses[action.claim_id], phase=action.then, seen_as="absent", boot_id=self._room.boot_id)
        await self._write_use(use)
        self._tell("volume.unpublished", action.claim_id)
        return None

    async def _unstage(self, action: actions.Unstage) -> Fault | None:
        path, staging = action.step.staging_path, self.staging
        if fault := await self._find_use("Unstage", action.claim_id, (path,)):
            return fault
        if fault := await self._call(action.step, action.claim_id):
            await self._cut(path)
            return fault
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

    async def _find_use(self, method: str, claim_id: ClaimId, paths: tuple[str, ...]) -> Fault | None:
        """The fault that keeps the paths as they are while somebody uses them."""
        standing = await self._lane.run(lambda: mounts.find_standing(self._room.mounter, paths))
        if not standing:
            return None
        is_last = all(i == claim_id or use.phase == "gone" for i, use in self.uses.items())
        found = await self._room.holders.find(Question(tuple(p for p in paths if p in standing), is_last))
        if not found:
            return None
        at_ns = self._room.clock()
        return Fault(method=method, status=IN_USE, message=describe_holders(found), final=False, at_ns=at_ns)

    async def _cut(self, path: str) -> None:
        """The last resort of a fence: the driver does not take its mount away, so that no new writer may find it."""
        mounter = self._room.mounter
        if self._room.fence.stage == "kill" and await self._lane.run(lambda: bool(mounter.find_mounted([path]))):
            await self._lane.run(lambda: mounter.unmount(path))
            log.error("mount.cut", path=path, plugin=self._disk.plugin_id)

    # -- the driver --------------------------------------------------------------------------------------------------

    async def _call(self, step: Step, claim_id: ClaimId) -> Fault | None:
        plugin_id, assignment = self._disk.plugin_id, self.assignments.get(claim_id)
        timeout_s = assignment.timeout_s if assignment else self._room.settings.node_call_s
        driver, budget = self._room.drivers.get(plugin_id), self._room.node_budgets.get(plugin_id)
        outcome = await call_in_turn(
            budget, driver, step, subject=self._disk.external_id, timeout_s=timeout_s, clock=self._room.clock
        )
        return outcome.fault if isinstance(outcome, Failed) else None

    def _tell(self, event: str, claim_id: ClaimId, **more: str) -> None:
        log.info(event, plugin=self._disk.plugin_id, external_id=self._disk.external_id, claim=claim_id, **more)
