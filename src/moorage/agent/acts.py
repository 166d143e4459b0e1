"""One disk's paths and journal, in a worker thread: look, decide, do what no driver takes part in, look again.

``Acts.advance`` is one trip. It first does the second half of an action whose driver call has just ended, then looks
and decides, carries out what needs nobody else, and goes on so until it comes to an action that takes a driver, a
report or a pause; of that it does the first half. Journal first, then the driver or the kernel, then the journal again.
Shapes: ``uses`` and ``staging`` are what the journal has; they are replaced, never changed in place, because the loop
reads them at any time.
Never: decides what is done (``rules.mounts`` does); calls a driver; touches a volume that has not just answered.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import structlog

from moorage.agent import mounts
from moorage.agent.budget import Budget
from moorage.agent.fencing import SelfFence
from moorage.agent.holders import HolderSearch
from moorage.agent.journal import Journal
from moorage.agent.lane import ASKS, STEP, Hops, Work
from moorage.agent.ports import AgentSettings, Chance, Clock, Driver, Mounter
from moorage.agent.probes import MountProbes
from moorage.agent.reporter import Reporter
from moorage.errors import BadRequest
from moorage.model.assignment import ClaimAssignment
from moorage.model.claim import Mounted
from moorage.model.ids import ClaimId, PluginId
from moorage.model.plugin import NodeInfo
from moorage.rules import mount_actions as actions
from moorage.rules.mount_actions import Action
from moorage.rules.mount_records import Disk, Layout, PathKind, Seen, Staging, TargetSeen, Use, check_target

log = structlog.get_logger()
replace = msgspec.structs.replace

# Actions in one trip; the loop then has a look at the newest assignments' pauses.
ACTIONS_MAX = 8
# What a path of ours, or a target, is where a volume is to be seen.
STANDING = frozenset({"mount", "link", "broken"})


@dataclass(frozen=True, kw_only=True)
class Room:
    """What all disks of one agent share. ``node_budgets`` bounds node calls by plugin; ``on_step`` hears of work;
    ``may_mount``: whether the server counts the node among its own, so that mounting is allowed."""

    layout: Layout
    boot_id: str
    journal: Journal
    mounter: Mounter
    hops: Hops
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


class Advance(msgspec.Struct, frozen=True, kw_only=True):
    """How far a trip came. ``action``: what is next, its first half done, unless ``error`` kept that, or an action's
    other half, from being done; None where there may be more to do at once. ``seen``: the last look, ``broken`` by it
    the publications that do not answer; ``standing``: which of the paths that the action takes away show the volume."""

    action: Action | None = None
    error: OSError | None = None
    seen: Seen | None = None
    broken: dict[ClaimId, str] = {}
    standing: tuple[str, ...] = ()


Decide = Callable[[Seen], Action]
Paths = tuple[str, dict[ClaimId, str], dict[ClaimId, str]]
"""Of a disk: its staging, its publications, and the targets that may be used."""
Look = tuple[Seen, dict[ClaimId, str]]
"""What was seen, and which publications do not answer: by what error."""
Answers = Mapping[str, str]
"""What mounts answered that were slow to do so: by path, empty where it was well."""


class Acts:
    """One disk's journal, and what is done at its paths. ``now_s``: the loop's time.

    ``doing``: the action that a trip is at; None while it looks. ``asked``: the paths that it asked last. ``ended``:
    the claims of which something was done; the loop takes them out.
    """

    def __init__(self, disk: Disk, room: Room, now_s: Callable[[], float]) -> None:
        self.uses: dict[ClaimId, Use] = {}
        self.staging: Staging | None = None
        self.assignments: Mapping[ClaimId, ClaimAssignment] = {}
        self.doing: Action | None = None
        self.asked: frozenset[str] = frozenset()
        self.ended: list[ClaimId] = []
        self._seen: tuple[Paths, Look] | None = None
        self._disk = disk
        self._room = room
        self._now_s = now_s

    def advance(self, done: Action | None, decide: Decide, known: Answers) -> Work[Advance | None]:
        """One trip. ``done``: the action whose driver call, or search for holders, has ended well; ``known``: what
        those of ``asked`` answered. None: another is asking one of those right now."""
        self.doing, self._seen = done, None
        broken: dict[ClaimId, str] = {}
        if done is not None:
            try:
                if not (yield from self._finish(done, known)):
                    return None
            except OSError as e:
                return Advance(action=done, error=e)
            self.ended.append(done.claim_id)
            self.doing = None
        for _ in range(ACTIONS_MAX):
            found = yield from self._look(known)
            if found is None:
                return None
            seen, broken = found
            self.doing = action = decide(seen)
            yield STEP
            try:
                standing = yield from self._begin(action, seen)
            except OSError as e:
                return Advance(action=action, error=e, seen=seen, broken=broken)
            if standing is not None:
                return Advance(action=action, seen=seen, broken=broken, standing=standing)
            self.ended.append(action.claim_id)
            self.doing = None
            if not self.uses and self.staging is None:
                break  # maybe nothing is left to look at
        return Advance(broken=broken)

    # -- look --------------------------------------------------------------------------------------------------------

    def _look(self, known: Answers) -> Work[Look | None]:
        """The last look of this trip, where nothing was done at the paths since; else a new one."""
        paths = self._list_paths()
        if self._seen is not None and self._seen[0] == paths:
            return self._seen[1]
        mounter = self._room.mounter
        first = mounts.look(mounter, staging_path=paths[0], publish_paths=paths[1], targets=paths[2])
        dead = yield from self._ask(first.standing, known)
        if dead is None:
            return None
        found = first.complete(mounter, dead), {i: dead[p] for i, p in paths[1].items() if p in dead}
        self._seen = paths, found
        return found

    def _list_paths(self) -> Paths:
        layout, uses, assignments = self._room.layout, self.uses, self.assignments
        staging_path = self.staging.staging_path if self.staging else layout.staging(self._disk)
        publish_paths = {i: _publish_path(a, layout) for i, a in assignments.items()}
        publish_paths |= {i: u.publish_path for i, u in uses.items()}
        targets = {i: a.claim.target for i, a in assignments.items() if _is_usable(a.claim.target, layout)}
        targets |= {i: u.target for i, u in uses.items() if u.target}
        return staging_path, publish_paths, targets

    def _ask(self, standing: frozenset[str], known: Answers) -> Work[dict[str, str] | None]:
        """Those that do not answer well, each with the name of its error."""
        dead = {path: known[path] for path in standing if known.get(path)}
        asked = [path for path in standing if path not in known]
        if asked:
            self.asked = standing
            yield ASKS
            found = self._room.probes.ask_here(asked, self._now_s)
            yield STEP
            if found is None:
                return None
            dead |= found
        return dead

    # -- the first half of an action, or all of it -------------------------------------------------------------------

    def _begin(self, action: Action, seen: Seen) -> Work[tuple[str, ...] | None]:
        """None where the action is over by this; else the paths to be taken away by it that show the volume."""
        match action:
            case actions.Begin():
                self._put(action.use, action.staging)
            case actions.Bind():
                self._seen = None
                yield from self._bind(action.claim_id)
            case actions.Forget():
                self._room.journal.remove(self.uses[action.claim_id])
                self.uses = {i: u for i, u in self.uses.items() if i != action.claim_id}
            case actions.Stage():
                yield from self._prepare_stage(action)
                return ()
            case actions.Publish():
                yield from self._prepare_publish(action)
                return ()
            case actions.Unbind():
                use, target = self.uses[action.claim_id], seen.targets.get(action.claim_id, TargetSeen())
                bound = (use.target,) if target.kind in STANDING else ()
                return bound + self._list_published(action.claim_id, seen)
            case actions.Unpublish():
                return self._list_published(action.claim_id, seen)
            case actions.Unstage():
                return (action.step.staging_path,) if seen.staging in STANDING else ()
            case _:
                return ()
        return None

    def _list_published(self, claim_id: ClaimId, seen: Seen) -> tuple[str, ...]:
        return (self.uses[claim_id].publish_path,) if seen.published.get(claim_id) in STANDING else ()

    def _bind(self, claim_id: ClaimId) -> Work[None]:
        planned = mounts.plan_bind(self.uses[claim_id])
        self._put(planned)
        yield STEP
        mounts.make_bind(self._room.mounter, planned)
        yield STEP
        self._put_soon(replace(planned, bind="done"))
        self._tell("volume.bound", claim_id, target=planned.target)

    def _prepare_stage(self, action: actions.Stage) -> Work[None]:
        path = action.step.staging_path
        begun = Staging(
            plugin_id=self._disk.plugin_id,
            external_id=self._disk.external_id,
            staging_path=path,
            boot_id=self._room.boot_id,
        )
        if self.staging != begun:
            self._put(None, begun)
            yield STEP
        mounts.make_staging(path)

    def _prepare_publish(self, action: actions.Publish) -> Work[None]:
        use = self.uses[action.claim_id]
        begun = replace(use, phase="begun", boot_id=self._room.boot_id)
        if begun != use:
            self._put(begun)
            yield STEP
        mounts.make_parent(action.step.target_path)

    # -- the second half ---------------------------------------------------------------------------------------------

    def _finish(self, action: Action, known: Answers) -> Work[bool]:
        """False where a path is being asked by another."""
        match action:
            case actions.Stage() | actions.Publish():
                found = yield from self._look(known)
                if found is None:
                    return False
                if isinstance(action, actions.Stage):
                    self._end_stage(action, found[0].staging)
                else:
                    self._end_publish(action, found[0].published[action.claim_id])
            case actions.Grow():
                self._put_soon(replace(self.uses[action.claim_id], grown_bytes=action.step.required_bytes))
                self._tell("volume.grown", action.claim_id)
            case actions.Unbind():
                use = self.uses[action.claim_id]
                unbound = mounts.undo_bind(self._room.mounter, use)
                yield STEP
                self._put_soon(unbound)
                self._tell("volume.unbound", action.claim_id, target=use.target)
            case actions.Unpublish():
                yield from self._end_unpublish(action)
            case actions.Unstage():
                yield from self._end_unstage(action)
            case _:
                pass
        return True

    def _end_stage(self, action: actions.Stage, seen_as: PathKind) -> None:
        assert self.staging is not None, "its first half put it there"
        self._put_soon(replace(self.staging, phase="done", seen_as=seen_as))
        self._tell("volume.staged", action.claim_id)

    def _end_publish(self, action: actions.Publish, seen_as: PathKind) -> None:
        if seen_as == "absent":
            path = action.step.target_path
            raise FileNotFoundError(errno.ENOENT, "the driver says that it is published, yet nothing is there", path)
        self._put_soon(replace(self.uses[action.claim_id], phase="done", seen_as=seen_as))
        self._tell("volume.published", action.claim_id, seen_as=seen_as)

    def _end_unpublish(self, action: actions.Unpublish) -> Work[None]:
        path = action.step.target_path
        self._clear(lambda: mounts.clear_published(self._room.mounter, path), path)
        yield STEP
        use = self.uses[action.claim_id]
        self._put_soon(replace(use, phase=action.then, seen_as="absent", boot_id=self._room.boot_id))
        self._tell("volume.unpublished", action.claim_id)

    def _end_unstage(self, action: actions.Unstage) -> Work[None]:
        path = action.step.staging_path
        self._clear(lambda: mounts.clear_staging(self._room.mounter, path), path)
        yield STEP
        if self.staging is not None:
            self._room.journal.remove(self.staging)
        self.staging = None
        self._tell("volume.unstaged", action.claim_id)

    def _clear(self, clear: Callable[[], None], path: str) -> None:
        try:
            clear()
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            log.warning("path.left_behind", path=path, error=os.strerror(e.errno or 0))

    # -- journal and log ---------------------------------------------------------------------------------------------

    def _put(self, use: Use | None, staging: Staging | None = None) -> None:
        """Into the journal, for good: what comes next must not be done without it."""
        self._room.journal.write(*(entry for entry in (staging, use) if entry is not None))
        self.staging = staging or self.staging
        if use is not None:
            self.uses = {**self.uses, use.claim_id: use}

    def _put_soon(self, entry: Use | Staging) -> None:
        """Into the journal; after a power cut the older entry says enough."""
        self._room.journal.write_soon(entry)
        if isinstance(entry, Use):
            self.uses = {**self.uses, entry.claim_id: entry}
        else:
            self.staging = entry

    def _tell(self, event: str, claim_id: ClaimId, **more: str) -> None:
        log.info(event, plugin=self._disk.plugin_id, external_id=self._disk.external_id, claim=claim_id, **more)


def _publish_path(assignment: ClaimAssignment, layout: Layout) -> str:
    state = assignment.claim.state
    told = state.publish_path if isinstance(state, Mounted) else ""
    return told or layout.publish(assignment.claim.id)


def _is_usable(target: str, layout: Layout) -> bool:
    if not target:
        return False
    try:
        check_target(target, layout)
    except BadRequest:
        return False
    return True
