"""What agents say of their drivers, folded into the plugins' records.

A plugin's record has an instance for each node, so that each write of it costs as much as there are nodes. Agents that
report at the same time (all do, when a server has started) are therefore folded together: while one write is under way
the next one gathers.
"""

from __future__ import annotations

from collections.abc import Mapping

import anyio
import msgspec

from moorage.engine.ports import Clock
from moorage.engine.retrying import TRIES_MAX_CROWDED, decide_again
from moorage.model.ids import NodeId, PluginId
from moorage.model.plugin import Instance
from moorage.rules.plugins import fold_report
from moorage.state import keys
from moorage.state.repo import Repo, Write

# The pause between two writes, for each instance of the largest plugin: so that a write that costs more is made less
# often, and those who report in the meantime share the next one.
PAUSE_S = 0.0001
PAUSE_MAX_S = 0.5

Instances = Mapping[PluginId, Instance]


class _Batch:
    """Reports to be written together; a node's newest counts. ``is_done``: they are."""

    def __init__(self) -> None:
        self.reports: dict[NodeId, Instances] = {}
        self.is_done = False


class PluginReports:
    """Takes reports; each returns once what it says is on record."""

    def __init__(self, repo: Repo, clock: Clock, *, first: int = 0) -> None:
        self._repo = repo
        self._clock = clock
        # The last report of each node that was taken; ``first`` names this run of the server, so that no count of an
        # earlier one is met again.
        self._first = first
        self._counts: dict[NodeId, int] = {}
        self._gathering = _Batch()
        self._writing = anyio.Lock()
        # The loop's time from which on the next write may be made.
        self._free_s = 0.0

    def find_count(self, node_id: NodeId) -> int:
        """The count of the node's last report; that of the server's run where none was taken."""
        return self._counts.get(node_id, self._first)

    def count(self, node_id: NodeId, after: int | None) -> int | None:
        """The count of the node's next report; None where the one that comes is not the next one: a request that was
        given up may arrive later than those sent after it, and what it says is no longer so."""
        last = self.find_count(node_id)
        if after is not None and after != last:
            return None
        self._counts[node_id] = last + 1
        return last + 1

    async def take(self, node_id: NodeId, instances: Instances) -> None:
        """Put the node's instances on record. Raises Unavailable."""
        batch = self._gathering
        batch.reports[node_id] = {k: msgspec.structs.replace(i, node_id=node_id) for k, i in instances.items()}
        async with self._writing:
            # Whoever comes first writes for all; when that is cut off, the next one does, and nothing is written twice.
            if batch.is_done:
                return
            await anyio.sleep_until(self._free_s)
            if self._gathering is batch:
                self._gathering = _Batch()
            text = "the plugins keep changing; report again"
            await decide_again(lambda: self._write(batch), text, tries_max=TRIES_MAX_CROWDED)
            batch.is_done = True
            instances_max = max((len(r.value.instances) for r in self._repo.view.plugins), default=0)
            self._free_s = anyio.current_time() + min(PAUSE_MAX_S, instances_max * PAUSE_S)

    async def _write(self, batch: _Batch) -> None:
        found = {r.value.id: r for r in self._repo.view.plugins}
        records = {k: r.value for k, r in found.items()}
        now_ns = self._clock.now_ns()
        changed: set[PluginId] = set()
        for node_id, instances in batch.reports.items():
            for plugin_id, plugin in fold_report(records, node_id, instances, now_ns=now_ns).items():
                changed.add(plugin_id)
                if plugin is None:
                    del records[plugin_id]
                else:
                    records[plugin_id] = plugin
        write = Write()
        for plugin_id in sorted(changed):
            key, revision = keys.plugin_key(plugin_id), found[plugin_id].modified if plugin_id in found else 0
            if plugin_id in records:
                write.put(key, records[plugin_id], revision=revision)
            elif revision:
                write.delete(key, revision=revision)
        if write.ops:
            await self._repo.commit_parts(write)
