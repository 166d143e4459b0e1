"""The controller steps of one node: the standing query for them, and which of them may begin.

A step begins only while the server counts the node among the living: until the last renewal of its lease runs out,
counted from before it was sent. So no step begins here once the server takes this node for lost and gives its steps to
another controller. What was listed is dropped when the server had lost the node, and when it was started anew: then a
fresh list is asked for, and the new run of the server is told which calls are under way.
A driver's step begins only while the driver is well here and the last report that the server took says so, too: a sick
driver's steps are given to another controller, but for those of volumes that the report names as being called.
Units: seconds of the clock that counts the lease. Never: calls a driver (``worker`` does).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import anyio

from moorage.agent.link import Link
from moorage.agent.ports import AgentSettings, Chance, Ticks
from moorage.agent.standing import StandingNews
from moorage.agent.worker import StepWorkers
from moorage.client.api import AgentPages, follow
from moorage.model.assignment import PluginsReported, StepAssignments
from moorage.model.ids import NodeId, PluginId
from moorage.waking import Bell


@dataclass(frozen=True, kw_only=True)
class Telling:
    """A report of drivers on its way. ``well``: those that it says are well, each with how often it fell sick until
    then; ``after``: the report before it, by the server's count."""

    well: dict[PluginId, int]
    after: int


class StepGate:
    """Open while the node's lease runs; for a driver's steps, while the server knows it as well, too.

    ``on_end`` is called when the call of a driver that is not known as well has ended: the server waits to hear it.
    """

    def __init__(self, ticks: Ticks) -> None:
        self.on_end: Callable[[], None] = lambda: None
        self._ticks = ticks
        self._until_s = float("-inf")
        self._opened = Bell()
        # Drivers that are well by the last report that the server took, and have not been sick since it was made.
        self._well: set[PluginId] = set()
        self._falls: Counter[PluginId] = Counter()

    @property
    def is_open(self) -> bool:
        """Whether a step may begin now."""
        return self._ticks() < self._until_s

    def renew(self, sent_s: float, lease_s: float) -> None:
        """The server took a renewal that was sent at ``sent_s``."""
        self._until_s = sent_s + lease_s
        self._opened.ring()

    def close(self) -> None:
        """The server had lost the node."""
        self._until_s = float("-inf")

    async def wait_open(self) -> None:
        """Until a step may begin."""
        while not self.is_open:
            await self._opened.wait()

    def is_told(self, plugin_id: PluginId) -> bool:
        """Whether the driver is known as well, here and at the server."""
        return plugin_id in self._well

    def note_sick(self, plugin_id: PluginId) -> None:
        """The driver does not work, or is gone: none of its steps begins until the server has heard that it does."""
        self._falls[plugin_id] += 1
        self._well.discard(plugin_id)

    def note_end(self, plugin_id: PluginId) -> None:
        """A call of the driver has ended."""
        if plugin_id not in self._well:
            self.on_end()

    def begin_telling(self, well: Iterable[PluginId], after: int) -> Telling:
        """A report is made that says of these drivers that they are well."""
        return Telling(well={plugin_id: self._falls[plugin_id] for plugin_id in well}, after=after)

    def find_recovered(self, telling: Telling) -> list[PluginId]:
        """The server took the report: which drivers are known as well by it that were not before. A driver that fell
        sick while the report was on its way waits for the next one."""
        return [p for p, falls in telling.well.items() if falls == self._falls[p] and p not in self._well]

    def note_well(self, plugin_ids: Iterable[PluginId]) -> None:
        """Let these drivers' steps begin; what was listed of them is dropped."""
        self._well.update(plugin_ids)


class Steps:
    """What one agent knows of its steps. ``epoch``: the run of the server that listed them, 0: of none yet."""

    def __init__(
        self,
        client: AgentPages,
        node_id: NodeId,
        link: Link,
        *,
        gate: StepGate,
        settings: AgentSettings,
        random: Chance,
    ) -> None:
        self.epoch = 0
        self.gate = gate
        self.list_calling: Callable[[], tuple[str, ...]] = tuple
        self._client = client
        self._node_id = node_id
        self._link = link
        # The last report of drivers that the server took; 0: of none yet.
        self._count = 0
        self._wait_s = settings.wait_s
        self._news = StandingNews(whole_s=settings.whole_list_s, random=random)
        self._drop_listed: Callable[[Collection[PluginId] | None], None] = lambda plugin_ids: None
        self._asking: anyio.CancelScope | None = None
        self._is_dropped = False

    def note_run(self, epoch: int) -> bool:
        """A registration was answered by this run of the server. Whether that is another one than before, which has
        to be told what is being called."""
        if epoch == self.epoch:
            return False
        self.drop()
        self.epoch = epoch
        return True

    def drop(self, plugin_ids: Collection[PluginId] | None = None) -> None:
        """Begin nothing of what is listed, or is listed for these drivers, and ask for all of it anew; an answer that
        is under way is not taken."""
        self._is_dropped = True
        self._news.forget()
        self._drop_listed(plugin_ids)
        if self._asking is not None:
            self._asking.cancel()

    def begin_telling(self, well: Iterable[PluginId]) -> Telling:
        """The server is about to be told which drivers are well, and what is being called."""
        return self.gate.begin_telling(well, self._count or self.epoch)

    def note_told(self, telling: Telling, answer: PluginsReported) -> bool:
        """The server has answered. Whether it took the report; else the next one is taken, if it is made now."""
        self._count = answer.count
        if not answer.is_taken:
            return False
        recovered = self.gate.find_recovered(telling)
        if recovered:
            # What was listed before may be with another controller: the server heard in between that this one is sick.
            self.drop(recovered)
            self.gate.note_well(recovered)
        return True

    async def run(self, workers: StepWorkers, *, random: Chance) -> None:
        """Follow the list, until cancelled."""
        self._drop_listed, self.list_calling = workers.drop_listed, workers.list_calling
        link = self._link
        async for page in follow(self._fetch, random=random, on_fault=link.note_fault, on_answer=link.note_answer):
            if page.epoch != self.epoch:
                link.note_restart()
            workers.take(page)

    async def _fetch(self, index: int) -> StepAssignments:
        while True:
            with anyio.CancelScope() as self._asking:
                # No version is 0, so that a list that was dropped is told at once.
                asked = 0 if self._is_dropped else index
                page = await self._client.wait_steps(self._node_id, asked, self._wait_s, self._news.find_epoch())
                self._is_dropped = False
                return self._news.note(page)
