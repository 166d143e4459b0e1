"""Which node makes the controller calls of a volume: one at a time, also over restarts of the server.

A volume's calls stay with the controller that had the last one, as long as it is healthy. A server that was just
started does not know which one that is. So where a plugin has several controllers, nothing is handed out until each of
their nodes has told this run of the server what it is calling (``NodeRegistration.calling``), or is lost. A node that
tells has dropped what an earlier run handed to it, so that it begins nothing else.
Shapes: serial keys are those of ``StepAssignment``. All state is of one run. Never: I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from moorage.engine.plugin_facts import Facts
from moorage.model.ids import NodeId
from moorage.rules.plugins import choose_controller

# Volumes whose last controller is remembered.
CALLERS_MAX = 10_000


class Callers:
    """The callers of one server."""

    def __init__(self) -> None:
        # The node that had the last call of a serial key, the newest last.
        self._last: OrderedDict[str, NodeId] = OrderedDict()
        self._heard: set[NodeId] = set()

    def choose(self, facts: Facts, serial: str) -> NodeId | None:
        """The node that makes the next call; None while nobody can, or while it is not known who is at one. A call
        without a serial key is about no volume."""
        if serial and not self.is_known(facts):
            return None
        node_id = choose_controller(facts.controllers, serial, busy=self._last.get(serial))
        if node_id is not None and serial:
            self._keep(serial, node_id)
        return node_id

    def is_known(self, facts: Facts) -> bool:
        """Whether all who may be at a call of the plugin have told; one alone needs not."""
        if not facts.is_heard:
            # Once so it stays so: a node that has told is not forgotten, and another record has other facts.
            facts.is_heard = len(facts.controllers) < 2 or facts.controllers.keys() <= self._heard
        return facts.is_heard

    def find_silent(self, facts: Facts) -> list[NodeId]:
        """The nodes that keep the plugin's calls waiting."""
        return [] if self.is_known(facts) else [n for n in facts.controllers if n not in self._heard]

    def has_heard(self, node_id: NodeId) -> bool:
        """Whether the node has told already."""
        return node_id in self._heard

    def hear(self, node_id: NodeId, calling: Iterable[str]) -> bool:
        """A node tells the serial keys that it is at a call of. Whether it is the first time in this run."""
        if node_id in self._heard:
            return False
        self._heard.add(node_id)
        for serial in calling:
            # What this run has given out counts: then the node that tells was out of its sight until now.
            if serial not in self._last:
                self._keep(serial, node_id)
        return True

    def _keep(self, serial: str, node_id: NodeId) -> None:
        self._last[serial] = node_id
        self._last.move_to_end(serial)
        if len(self._last) > CALLERS_MAX:
            self._last.popitem(last=False)
