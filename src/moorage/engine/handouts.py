"""What is handed to one node, by version: an answer to its agent then names only what is new.

A list of claims or steps is as long as the node has them, and changes as often: told whole each time, it costs the
square of that. So each change is noted under the version that it made, and an agent that says which version it has is
told what came after. Shapes: keys are claims' IDs or records' keys. Never: holds what is handed out, only its keys.
"""

from __future__ import annotations

from collections import OrderedDict

# Changes that are remembered for an agent that does not ask; with more, it is told the whole list again.
CHANGES_MAX = 100_000


class Handouts:
    """The versions of one list of one node. ``version`` moves with each change."""

    __slots__ = ("_changed", "_floor", "version")

    def __init__(self, first_version: int) -> None:
        self.version = first_version
        # Below this version nobody can be told what is new.
        self._floor = first_version
        # Key → the version of its last change, the newest last. An OrderedDict, because it is taken from at the front:
        # a dict walks over all that were taken before.
        self._changed: OrderedDict[str, int] = OrderedDict()

    def note(self, key: str = "") -> None:
        """This key's entry came, went or changed; no key: something that every answer tells did."""
        self.version += 1
        if not key:
            return
        self._changed[key] = self.version
        self._changed.move_to_end(key)
        if len(self._changed) > CHANGES_MAX:
            self._drop_first()

    def find_since(self, index: int) -> tuple[str, ...] | None:
        """Keys that changed after a version, the oldest change first; None: that is not known any more."""
        if not self._floor <= index <= self.version:
            return None
        found: list[str] = []
        for key in reversed(self._changed):
            if self._changed[key] <= index:
                break
            found.append(key)
        return tuple(reversed(found))

    def forget(self, index: int) -> None:
        """The agent has what is up to this version: nobody else will ask for it."""
        while self._changed and next(iter(self._changed.values())) <= index:
            self._drop_first()
        self._floor = max(self._floor, min(index, self.version))

    def _drop_first(self) -> None:
        _, version = self._changed.popitem(last=False)
        self._floor = max(self._floor, version)

    def __len__(self) -> int:
        return len(self._changed)
