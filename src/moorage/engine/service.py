"""The engine as the API sees it: reads, use cases, and the loops under them."""

from __future__ import annotations

import anyio
from anyio.abc import TaskStatus

from moorage.engine.access import Accesses
from moorage.engine.acl import AccessControl
from moorage.engine.allocations import Allocations
from moorage.engine.checks import Checks
from moorage.engine.diagnostics import Diagnostics
from moorage.engine.events import Events, EventSettings
from moorage.engine.fence_hooks import FenceHooks
from moorage.engine.identities import Identities
from moorage.engine.leases import Leases
from moorage.engine.listings import Listings
from moorage.engine.metering import EngineMeter
from moorage.engine.namespaces import Namespaces
from moorage.engine.nodes import Nodes
from moorage.engine.operations import Operations
from moorage.engine.orphans import Orphans
from moorage.engine.ports import Chance, Clock, EngineSettings, FenceHook, NoReset, ResetIndex
from moorage.engine.reads import Reads
from moorage.engine.reconciler import Parts, Reconciler
from moorage.engine.removals import Removals
from moorage.engine.shelf import Shelf
from moorage.engine.volumes import Registrations
from moorage.engine.why import Why
from moorage.model.meters import Meters
from moorage.state.repo import Repo
from moorage.state.resealing import Resealing


class Service:
    """One engine over one repo. ``run`` must be running for anything but reads."""

    def __init__(
        self,
        repo: Repo,
        clock: Clock,
        chance: Chance,
        settings: EngineSettings | None = None,
        *,
        event_settings: EventSettings | None = None,
        hook: FenceHook | None = None,
        parts: Parts | None = None,
        sealing: Resealing | None = None,
        diagnostics: Diagnostics | None = None,
        reset: ResetIndex | None = None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.clock = clock
        self.chance = chance
        self._repo = repo
        self.sealing = sealing
        self.diagnostics = diagnostics or Diagnostics()
        self.reads = Reads(repo)
        self.shelf = Shelf(self.reads)
        self.identities = Identities(repo, clock=clock, chance=chance, settings=self.settings)
        self.accesses = Accesses(repo, clock, self.settings.acl, identities=self.identities)
        self.acl = AccessControl(repo, clock, chance, accesses=self.accesses, reset=reset or NoReset())
        self.events = Events(repo, event_settings)
        self.reconciler = Reconciler(repo, clock, chance, self.settings, parts=parts)
        self.operations = Operations(repo, self.reconciler, clock=clock, chance=chance, settings=self.settings)
        checks = Checks(repo, self.reads, self.operations, self.settings)
        self.registrations = Registrations(repo, self.reads, checks, clock=clock, settings=self.settings)
        self.removals = Removals(repo, self.reads, checks, self.settings, clock=clock, chance=chance)
        self.listings = Listings(self.reads, self.operations)
        self.namespaces = Namespaces(repo, self.reads)
        self.allocations = Allocations(repo, self.reads, clock, chance)
        fencing = self.settings.fencing
        hooks = FenceHooks(hook, clock, chance, fencing)
        self.leases = Leases(repo, self.reads, clock, fencing, allocations=self.allocations, hooks=hooks)
        self.nodes = Nodes(
            repo,
            self.reads,
            self.reconciler,
            clock=clock,
            settings=self.settings,
            leases=self.leases,
            questions=self.operations.questions,
        )
        self.why = Why(repo, self.reads, self.reconciler, clock, settings=self.settings, leases=self.leases)
        self.orphans = Orphans(repo, self.reads, self.listings)
        self.meters = Meters()
        self.meters.add(EngineMeter(repo, self.reconciler, self.events, self.reads.waiters).read)
        self.meters.add(self.nodes.driver_calls.read)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the store and reconcile, until cancelled; ``started`` once all records are loaded and looked at."""
        async with anyio.create_task_group() as group:
            await group.start(self._repo.feed.run)
            await self.events.fill()
            if self.shelf.is_spelled:
                group.start_soon(self.shelf.warm)
            await group.start(self.reconciler.run)
            group.start_soon(self.leases.run)
            if self.acl.is_enabled:
                group.start_soon(self.acl.run)
            task_status.started()
