"""Filters that name the one volume they want: found by comparing a column of texts instead of looking at each record.

Where all tests of a filter must hold and none can fail, their order does not show; so an equality of a member that is
hardly ever the same for two volumes may be asked first, of many volumes in one call. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from moorage.model.volume import Volume
from moorage.rules import filter_tree as tree

# Members of which most volumes have a value of their own, and how it is read.
COLUMNS = {"ExternalID": "external_id", "ID": "id", "Name": "name"}


class Exact(msgspec.Struct, frozen=True):
    """A member, one of ``COLUMNS``, and the text that it must be."""

    member: str
    value: str


def find_exact(node: tree.Node) -> Exact | None:
    """The equality that every volume has to pass, of a filter none of whose tests can fail."""
    for part in node.parts if isinstance(node, tree.All) else (node,):
        if not isinstance(part, tree.Match) or part.operator != "equal" or part.is_negated:
            continue
        if len(part.selector.path) == 1 and part.selector.path[0] in COLUMNS:
            return Exact(part.selector.path[0], part.value)
    return None


def read_column(member: str, volumes: Iterable[Volume]) -> list[str]:
    """The member's texts, of volumes in their order."""
    name = COLUMNS[member]
    return [getattr(volume, name) for volume in volumes]


def find_equal(column: Sequence[str], value: str, positions: range) -> list[int]:
    """Those of the positions, which follow each other up or down, at which the column has the value, in their order."""
    if not positions:
        return []
    low, high = min(positions[0], positions[-1]), max(positions[0], positions[-1]) + 1
    found: list[int] = []
    try:
        while low < high:
            found.append(low := column.index(value, low, high))
            low += 1
    except ValueError:
        pass
    return found if positions.step > 0 else found[::-1]
