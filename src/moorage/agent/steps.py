"""The controller steps of one node: the standing query for them, and whether any of them may begin.

A step begins only while the server counts the node among the living: until the last renewal of its lease runs out,
counted from before it was sent. So no step begins here once the server takes this node for lost and gives its steps to
another controller. What was listed is dropped when the server had lost the node, and when it was started anew: then a
fresh list is asked for, and the new run of the server is told which calls are under way.
Units: seconds of the clock that counts the lease. Never: calls a driver (``worker`` does).
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from moorage.agent.link import Link
from moorage.agent.ports import AgentSettings, Chance, Ticks
from moorage.agent.standing import StandingNews
from moorage.agent.worker import StepWorkers
from moorage.client.api import AgentPages, follow
from moorage.model.assignment import StepAssignments
from moorage.model.ids import NodeId
from moorage.waking import Bell


class StepGate:
    """Open while the node's lease runs."""

    def __init__(self, ticks: Ticks) -> None:
        self._ticks = ticks
        self._until_s = float("-inf")
        self._opened = Bell()

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
        self._wait_s = settings.wait_s
        self._news = StandingNews(whole_s=settings.whole_list_s, random=random)
        self._drop_listed: Callable[[], None] = lambda: None
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

    def drop(self) -> None:
        """Begin nothing of what is listed, and ask for all of it anew; an answer that is under way is not taken."""
        self._is_dropped = True
        self._news.forget()
        self._drop_listed()
        if self._asking is not None:
            self._asking.cancel()

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
