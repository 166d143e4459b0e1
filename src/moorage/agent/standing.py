"""Whether the next answer of a standing query may name only what is new.

It may when this agent has the list up to the last answer; the whole list is asked for again from time to time all the
same, so that nothing that was missed by a fault on either side stays missed.
"""

from __future__ import annotations

from typing import TypeVar

from moorage.agent.ports import Chance
from moorage.model.assignment import ClaimAssignments, StepAssignments
from moorage.waking import now_s

Page = TypeVar("Page", ClaimAssignments, StepAssignments)


class StandingNews:
    """One standing query's place. ``whole_s``: how long, about, the list is taken for right without being read whole;
    each time another length, so that agents that began together do not go on asking together."""

    def __init__(self, *, whole_s: float, random: Chance) -> None:
        self._whole_s = whole_s
        self._random = random
        self._epoch = 0
        self._right_until_s = 0.0

    def find_epoch(self) -> int:
        """What the next query says: the epoch of the list that is here, or 0 to get it whole."""
        return self._epoch if now_s() < self._right_until_s else 0

    def forget(self) -> None:
        """The list is not here any more: the next query gets it whole."""
        self._epoch = 0

    def note(self, page: Page) -> Page:
        """The answer, which is taken before the next query."""
        self._epoch = page.epoch
        if not page.is_delta:
            self._right_until_s = now_s() + self._whole_s * (0.75 + 0.5 * self._random())
        return page
