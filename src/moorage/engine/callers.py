"""Which node makes the controller calls of a volume: one at a time, also over restarts of the server.

A volume's calls stay with the controller that had the last one, as long as it is healthy. One that is reported sick may
still be at a call: its node names those in the same report, and begins no other (``PluginReport.calling``). They are
left there, and nobody else is given that volume, until the node tells otherwise or is lost.
A server that was just started knows neither. So where a plugin has several controllers, nothing is handed out until
each of their nodes has told this run of the server what it is calling (``NodeRegistration.calling``), or is lost. Who
tells that has dropped what an earlier run handed to it, so that it begins nothing else.
Shapes: serial keys are those of ``StepAssignment``. All state is of one run. Never: I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from moorage.engine.plugin_facts import Facts
from moorage.model.ids import NodeId
from moorage.rules.plugins import choose_controller

# Volumes whose last controller is remembered.
CALLERS_MAX = 10_000


class Callers:
    """The callers of one server. ``is_lost``: whether a node is out of the server's sight."""

    def __init__(self, is_lost: Callable[[NodeId], bool] = lambda node_id: False) -> None:
        self._is_lost = is_lost
        # The node that had the last call of a serial key, the newest last.
        self._last: OrderedDict[str, NodeId] = OrderedDict()
        self._heard: set[NodeId] = set()
        self._told: set[NodeId] = set()
        # The node that is at a call of a serial key, by its own last word; and the same by node.
        self._busy: dict[str, NodeId] = {}
        self._busy_with: dict[NodeId, frozenset[str]] = {}

    def choose(self, facts: Facts, serial: str) -> NodeId | None:
        """The node that makes the next call; None while nobody can, or while it is not known who is at one, or while
        a node is at one that can make no other. A call without a serial key is about no volume."""
        if serial and not self.is_known(facts):
            return None
        busy = self._busy.get(serial)
        if busy is not None and busy not in facts.controllers:
            return None
        node_id = choose_controller(facts.controllers, serial, busy=busy or self._last.get(serial))
        if node_id is not None and serial:
            self._keep(serial, node_id)
        return node_id

    def is_known(self, facts: Facts) -> bool:
        """Whether all who may be at a call of the plugin have told; one alone needs not."""
        if not facts.is_heard:
            # Once so it stays so: a node that has told is not forgotten, one that was lost may call what it likes, and
            # another record has other facts.
            facts.is_heard = len(facts.makers) < 2 or all(n in self._heard or self._is_lost(n) for n in facts.makers)
            facts.is_waited = facts.is_waited or not facts.is_heard
        return facts.is_heard

    def has_opened(self, facts: Facts) -> bool:
        """Whether calls of the plugin were kept waiting until now, and are not any more. Told once."""
        is_open = facts.is_waited and self.is_known(facts)
        facts.is_waited = facts.is_waited and not is_open
        return is_open

    def find_silent(self, facts: Facts) -> list[NodeId]:
        """The nodes that keep the plugin's calls waiting."""
        if self.is_known(facts):
            return []
        return [n for n in facts.makers if n not in self._heard and not self._is_lost(n)]

    def find_busy(self, facts: Facts, serial: str) -> NodeId | None:
        """The node that keeps this volume's calls waiting: it is at one, and its driver is sick."""
        busy = self._busy.get(serial)
        return None if busy in facts.controllers else busy

    def hear(self, node_id: NodeId, calling: Iterable[str]) -> bool:
        """A node tells this run for the first time the serial keys that it is at a call of. Whether it is so."""
        if node_id in self._heard:
            return False
        self._heard.add(node_id)
        if node_id not in self._told:
            self._note_busy(node_id, calling)
        return True

    def tell(self, node_id: NodeId, calling: Iterable[str]) -> bool:
        """A node tells with its drivers' health which serial keys it is at a call of. Whether one of before is not."""
        self._told.add(node_id)
        return self._note_busy(node_id, calling)

    def release(self, node_id: NodeId) -> bool:
        """The node is lost: what it is at goes on anywhere. Whether it was busy."""
        return self._note_busy(node_id, ())

    def _note_busy(self, node_id: NodeId, calling: Iterable[str]) -> bool:
        # What this run has given to another one since counts: then the node that tells was out of its sight until now.
        own = frozenset(serial for serial in calling if serial and self._last.get(serial, node_id) == node_id)
        left = self._busy_with.pop(node_id, frozenset()) - own
        for serial in left:
            del self._busy[serial]
        for serial in own:
            self._busy[serial] = node_id
            self._keep(serial, node_id)
        if own:
            self._busy_with[node_id] = own
        return bool(left)

    def _keep(self, serial: str, node_id: NodeId) -> None:
        self._last[serial] = node_id
        self._last.move_to_end(serial)
        if len(self._last) > CALLERS_MAX:
            self._last.popitem(last=False)
