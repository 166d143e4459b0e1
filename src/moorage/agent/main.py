"""The agent: register the node, keep its lease, probe its drivers, carry out steps, mount and unmount.

Order at start: read the journal; ask the server for this node's claims; unmount what is mounted for claims that it
does not have; then register, which renews the lease; only then mount. So the server never believes in a node that still
holds what it gave away, and what it gives away is not mounted behind its back.
Shapes: ``client`` reaches the server; ``drivers`` has the socket of each plugin's driver on this node.
Never: unmounts because the server is silent.
"""

from __future__ import annotations

import random as chance
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog
from anyio.abc import TaskGroup, TaskStatus

from moorage.agent.acts import Room
from moorage.agent.fencing import SelfFence, read_ticks
from moorage.agent.fingerprint import Fingerprints
from moorage.agent.holders import PROC, HolderSearch
from moorage.agent.host import describe_host
from moorage.agent.host_mounts import HostMounter
from moorage.agent.joining import Joining
from moorage.agent.journal import Journal
from moorage.agent.lane import Hops
from moorage.agent.link import Link
from moorage.agent.plugins import Plugins
from moorage.agent.ports import AgentSettings, Chance, Clock, Connect, Driver, DriverSpec, Mounter, Ticks
from moorage.agent.probes import Ask, MountProbes, ask_mount
from moorage.agent.reporter import Reporter
from moorage.agent.standing import StandingNews
from moorage.agent.steps import StepGate, Steps
from moorage.agent.threads import ThreadHops
from moorage.agent.volumes import Volumes
from moorage.agent.worker import StepWorkers
from moorage.client.api import AgentPages, follow, retry_delay_s
from moorage.errors import Conflict, Forbidden, MoorageError, NotFound, Rejected, Unavailable
from moorage.model.assignment import ClaimAssignments, NodeRegistered, Report
from moorage.model.ids import NodeId, PluginId
from moorage.model.node import Node
from moorage.rules.mount_records import check_state_dir

log = structlog.get_logger()
HEARTBEATS_PER_LEASE = 3
CLOSE_TIMEOUT_S = 3.0


def connect_csi(plugin_id: PluginId, spec: DriverSpec) -> Driver:
    """The CSI driver behind a unix socket."""
    from moorage.csi.client import DriverClient  # late: grpc takes 130 ms to import

    return DriverClient(spec.socket)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a test may put in place of the host's own."""

    connect: Connect = connect_csi
    mounter: Mounter | None = None
    clock: Clock = time.time_ns
    random: Chance = chance.random
    ticks: Ticks = read_ticks
    ask_mount: Ask = ask_mount
    hops: Hops | None = None
    proc: Path = PROC


async def run(
    client: AgentPages,
    drivers: Mapping[PluginId, DriverSpec],
    *,
    state_dir: Path,
    node: Node | None = None,
    settings: AgentSettings | None = None,
    around: Surroundings | None = None,
    find_join_token: Callable[[], str] | None = None,
    task_status: TaskStatus[NodeId] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Be the agent of this host until cancelled. Started, with the node's ID, once the server knows the node.

    ``node`` None: this host is described, with an ID that is kept in ``state_dir``.
    ``find_join_token`` reads the join token, if there is one, in a thread; None: the node does not join, because the
    server that ``client`` reaches knows no identities (a stand-in).
    Raises BadRequest where the state directory cannot be used.
    """
    around, settings = around or Surroundings(), settings or AgentSettings()
    layout = check_state_dir(str(state_dir))
    journal = Journal(layout)
    uses, stagings = await anyio.to_thread.run_sync(journal.load)
    if node is None:
        node = await anyio.to_thread.run_sync(describe_host, state_dir)
    node = msgspec.structs.replace(node, is_self_fencing=settings.is_self_fencing)
    plugins = Plugins(around.connect, drivers, settings)
    hops = around.hops or ThreadHops()
    fence = SelfFence(
        is_on=settings.is_self_fencing, file=state_dir / "lease.json", boot_id=node.boot_id, ticks=around.ticks,
        look_s=settings.fence_look_s,
    )  # fmt: skip
    await fence.load()
    try:
        await plugins.open()
        joining = Joining(client, node, find_join_token)
        agent = _Agent(client, node, plugins, fence, joining=joining, settings=settings, around=around)
        async with anyio.create_task_group() as group:
            fingerprints = Fingerprints(
                plugins.drivers, plugins.specs, node_id=node.id, file=state_dir / "instances.json", clock=around.clock,
                settings=settings,
            )  # fmt: skip
            volumes = Volumes(group)
            room = Room(
                layout=layout,
                boot_id=node.boot_id,
                journal=journal,
                mounter=around.mounter or HostMounter(),
                hops=hops,
                drivers=plugins.drivers,
                node_budgets=plugins.node_budgets,
                find_node_info=fingerprints.find_node_info,
                reporter=agent.reporter,
                probes=_make_probes(settings, around, hops),
                holders=HolderSearch(timeout_s=settings.holders_s, proc=around.proc, hops=hops),
                fence=fence,
                clock=around.clock,
                random=around.random,
                settings=settings,
                on_step=volumes.note_step,
                may_mount=lambda: volumes.may_mount,
            )
            volumes.prepare(room, uses, stagings)
            fingerprints.on_change = volumes.retry_plugin
            fence.on_fence, fence.on_lift = volumes.fence, volumes.lift
            _start_watches(group, room, volumes)
            await agent.run(group, volumes, fingerprints, task_status=task_status)
    finally:
        hops.close()
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await plugins.close()


def _make_probes(settings: AgentSettings, around: Surroundings, hops: Hops) -> MountProbes:
    return MountProbes(pause_s=settings.mount_probe_s, hang_s=settings.mount_hang_s, ask=around.ask_mount, hops=hops)


def _start_watches(group: TaskGroup, room: Room, volumes: Volumes) -> None:
    group.start_soon(lambda: room.fence.run(room.holders, volumes.list_written), name="fence")
    group.start_soon(lambda: room.probes.run(volumes.list_published, volumes.note_change), name="broken mounts")


class _Sink:
    """Reports go to this node's page."""

    def __init__(self, client: AgentPages, node_id: NodeId, link: Link) -> None:
        self._client = client
        self._node_id = node_id
        self._link = link

    async def report(self, reports: tuple[Report, ...]) -> None:
        try:
            await self._client.report(self._node_id, reports)
        except (NotFound, Forbidden) as e:
            # The server lost the node, not the report's record: it is told again once the node is registered.
            self._link.note_fault(e)
            raise Unavailable(e.message) from e


class _Agent:
    def __init__(
        self, client: AgentPages, node: Node, plugins: Plugins, fence: SelfFence, *, joining: Joining,
        settings: AgentSettings, around: Surroundings,
    ) -> None:  # fmt: skip
        self._client = client
        self._node = node
        self._plugins = plugins
        self._fence = fence
        self._joining = joining
        self._settings = settings
        self._around = around
        self._link = Link()
        # The server has the node on record: it took a registration, or says that it had lost the node.
        self._known = anyio.Event()
        gate, random = StepGate(fence.now_s), around.random
        self._steps = Steps(client, node.id, self._link, gate=gate, settings=settings, random=random)
        self.reporter = Reporter(_Sink(client, node.id, self._link), settings, random=around.random)

    async def run(
        self, group: TaskGroup, volumes: Volumes, fingerprints: Fingerprints, *, task_status: TaskStatus[NodeId]
    ) -> None:
        fingerprints.on_sick, self._steps.gate.on_end = self._steps.gate.note_sick, fingerprints.tell_again
        await group.start(fingerprints.run)
        group.start_soon(self.reporter.run, name="reports")
        group.start_soon(self._follow_claims, volumes, name="claims")
        group.start_soon(lambda: self._plugins.run(fingerprints, volumes.is_used), name="plugin directories")
        lease_s = await self._register_first(volumes)
        log.info("node.registered", node=self._node.id, name=self._node.name, lease_s=lease_s)
        group.start_soon(self._keep_lease, lease_s, volumes, name="lease")
        group.start_soon(self._follow_steps, group, name="steps")
        random = self._around.random
        group.start_soon(
            lambda: fingerprints.report(self._client, self._link, self._steps, random=random), name="plugins"
        )
        task_status.started(self._node.id)

    # -- lease -------------------------------------------------------------------------------------------------------

    async def _clean(self, volumes: Volumes) -> int:
        """Wait until nothing is mounted that the server does not have. Returns the ``node_revision`` of the list that
        says so; 0 when that takes too long."""
        with anyio.move_on_after(self._settings.clean_first_s):
            return await volumes.wait_clean()
        log.error("mounts.left", disks=volumes.list_orphans(), waited_s=self._settings.clean_first_s)
        return 0

    async def _register_first(self, volumes: Volumes) -> float:
        """Register once everything is clean. What cannot be unmounted keeps a node away only if the server had lost
        it: then somebody else may have been given the volume."""
        failures = 0
        while True:
            try:
                await self._joining.join()
                # What is still mounted is known once the claims are, and those are told to a node that has joined.
                clean_by = await self._clean(volumes)
                return await self._register(volumes, clean_by=clean_by)
            except (Unavailable, Rejected) as e:
                if isinstance(e, Conflict):
                    # An earlier registration was taken, though its answer was lost: there is a list of claims to read.
                    self._known.set()
                failures += 1
                self._link.note_fault(e)
                await anyio.sleep(retry_delay_s(failures, self._around.random()))

    async def _register(self, volumes: Volumes, *, clean_by: int) -> float:
        sent_s = self._fence.now_s()
        try:
            registered = await self._send_registration(volumes, clean_by=clean_by)
        except Forbidden:
            # The server has lost what it knew of this node: it learns it anew.
            await self._joining.join()
            registered = await self._send_registration(volumes, clean_by=clean_by)
        if self._steps.note_run(registered.epoch):
            # Only now, with what an earlier run of the server listed dropped, no other call than these begins here.
            registered = await self._send_registration(volumes, clean_by=clean_by)
        self._link.note_registered()
        self._known.set()
        self._steps.gate.renew(sent_s, registered.lease_s)
        await self._fence.renewed(sent_s, registered)
        volumes.note_taken(registered.node_revision)
        return registered.lease_s

    async def _send_registration(self, volumes: Volumes, *, clean_by: int) -> NodeRegistered:
        return await self._client.register_node(
            self._node,
            clean_by=clean_by,
            is_empty=not volumes.has_begun(self._node.boot_id),
            epoch=self._steps.epoch,
            calling=self._steps.list_calling(),
        )

    async def _keep_lease(self, lease_s: float, volumes: Volumes) -> None:
        failures = 0
        while True:
            pause_s = lease_s / HEARTBEATS_PER_LEASE
            if failures:
                pause_s = min(pause_s, retry_delay_s(failures, self._around.random()))
            await self._link.wait_wake(pause_s)
            try:
                lease_s = await self._renew(volumes)
                failures = 0
            except (Unavailable, Rejected) as e:
                failures += 1
                self._link.note_fault(e)

    async def _renew(self, volumes: Volumes) -> float:
        """Renew the lease; a node that the server had lost first lets go of what is not its own any more, by a list of
        claims from after its loss. The standing query brings that list: a loss is a change of the node's record."""
        try:
            return await self._register(volumes, clean_by=0)
        except Conflict as e:
            log.warning("node.was_lost", node=self._node.id, error=e.message)
            self._link.note_fault(e)
            self._steps.gate.close()
            self._steps.drop()
            volumes.note_lost()
        clean_by = await self._clean(volumes)
        if not clean_by:
            raise Unavailable("something is still mounted here that the server gave away")
        return await self._register(volumes, clean_by=clean_by)

    # -- standing queries --------------------------------------------------------------------------------------------

    async def _follow_claims(self, volumes: Volumes) -> None:
        node_id, wait_s = self._node.id, self._settings.wait_s
        news = StandingNews(whole_s=self._settings.whole_list_s, random=self._around.random)
        is_unknown = False

        async def fetch(index: int) -> ClaimAssignments:
            nonlocal is_unknown
            await self._joining.joined.wait()
            if is_unknown:
                await self._known.wait()
            try:
                return news.note(await self._client.wait_claims(node_id, index, wait_s, news.find_epoch()))
            except NotFound:
                # Until this node is on record it has no claims. A server that forgets it later is no reason to
                # unmount anything: the node registers again, and then the server says what it knows.
                if is_unknown or self._known.is_set():
                    raise
                is_unknown = True
                return news.note(ClaimAssignments(index=0, claims=()))

        async for answer in follow(fetch, random=self._around.random, on_fault=self._fault, on_answer=self._answer):
            volumes.assign(answer)

    async def _follow_steps(self, group: TaskGroup) -> None:
        workers = StepWorkers(
            group,
            self._plugins.drivers,
            self.reporter,
            clock=self._around.clock,
            budgets=self._plugins.controller_budgets,
            gate=self._steps.gate,
        )
        self._client.offer(self._node.id, workers)
        await self._steps.run(workers, random=self._around.random)

    def _fault(self, fault: MoorageError) -> None:
        self._link.note_fault(fault)

    def _answer(self) -> None:
        self._link.note_answer()
