"""Runs of the fence hook: for which lost node, how many at a time, and when again.

A node that holds nothing that waits for evidence is left alone: nobody gains by its being switched off. What came of
the tries is kept in memory for those who ask why; a server that starts anew begins with the first try.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from anyio.abc import TaskGroup

from moorage.engine.ports import Chance, Clock, FenceHook, HookAnswer
from moorage.errors import MoorageError
from moorage.model.ids import NodeId
from moorage.model.node import HookTries, Node
from moorage.rules.backoff import delay_s
from moorage.rules.nodes import FencingSettings, replace

log = structlog.get_logger()
_SECOND = 1_000_000_000

OnFenced = Callable[[Node, str], Awaitable[None]]
"""Writes the evidence: for the node as it was when the hook was started, with the hook's text."""


class FenceHooks:
    """Starts the hook for lost nodes. ``hook`` None: there is none, and nothing ever happens here."""

    def __init__(self, hook: FenceHook | None, clock: Clock, chance: Chance, settings: FencingSettings) -> None:
        self._hook = hook
        self._clock = clock
        self._chance = chance
        self._settings = settings
        self._tries: dict[NodeId, HookTries] = {}
        # Those whose tries are running: counted for each lost node at each look.
        self._running: set[NodeId] = set()

    def find(self, node_id: NodeId) -> HookTries | None:
        """What came of the hook for a node that is lost; None: nothing was tried."""
        return self._tries.get(node_id)

    def forget(self, node_id: NodeId) -> None:
        """The node is back. A run that still goes on for it says nothing any more."""
        self._tries.pop(node_id, None)
        self._running.discard(node_id)

    def start_due(self, node: Node, group: TaskGroup, on_fenced: OnFenced) -> None:
        """Start the hook for a lost node without evidence, if it is due and not too many runs go on."""
        if self._hook is None:
            return
        tries = self._tries.get(node.id)
        if tries is None or tries.lost_at_ns != node.lost_at_ns:
            tries = HookTries(lost_at_ns=node.lost_at_ns)
        now_ns = self._clock.now_ns()
        if tries.is_running or tries.next_try_ns > now_ns or len(self._running) >= self._settings.hook_runs_max:
            return
        begun = replace(tries, attempts=tries.attempts + 1, is_running=True, began_at_ns=now_ns, next_try_ns=0)
        self._tries[node.id] = begun
        self._running.add(node.id)
        group.start_soon(self._run, self._hook, node, begun, on_fenced, name=f"fence hook for {node.id}")

    async def _run(self, hook: FenceHook, node: Node, begun: HookTries, on_fenced: OnFenced) -> None:
        log.info("fence_hook.started", node=node.id, name=node.name, attempt=begun.attempts)
        answer = await hook.fence(node)
        if answer.is_fenced:
            answer = await self._tell(node, answer, on_fenced)
        pause_s = delay_s(
            begun.attempts,
            self._chance.jitter(),
            first_s=min(self._settings.hook_retry_first_s, self._settings.hook_retry_cap_s),
            cap_s=self._settings.hook_retry_cap_s,
        )
        if not answer.is_fenced:
            log.warning(
                "fence_hook.failed", node=node.id, name=node.name, exit_code=answer.exit_code, text=answer.text,
                attempts=begun.attempts, again_in_s=round(pause_s, 1),
            )  # fmt: skip
        if self._tries.get(node.id) == begun:
            after_ns = self._clock.now_ns() + int(pause_s * _SECOND)
            told = replace(begun, is_running=False, exit_code=answer.exit_code, text=answer.text, next_try_ns=after_ns)
            self._tries[node.id] = told
            self._running.discard(node.id)

    async def _tell(self, node: Node, answer: HookAnswer, on_fenced: OnFenced) -> HookAnswer:
        try:
            await on_fenced(node, answer.text)
        except MoorageError as error:
            # The hook did its work, but that is on no record: it has to be asked again.
            return replace(answer, is_fenced=False, text=f"it could not be put on record: {error.message}")
        return answer
