"""Pages of what a driver lists, where the driver gives more than it was asked for. Pure.

A driver must not exceed ``max_entries``, but some do (the host-path driver of the recordings gives everything and no
token). A caller that asked for a page gets one all the same, and the rest is not lost: the next page's token is then
ours, and holds the driver's token that the page began with and how much of it has been handed out.
Source: CSI spec 1.12, ListVolumes; contract volumes-api §2.8, §2.11.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

T = TypeVar("T")

_OURS = re.compile(r"moorage-skip:([0-9]{1,9}):(.*)", re.DOTALL)


class Place(msgspec.Struct, frozen=True):
    """Where a page begins: with the driver's ``token``, ``skip`` entries further."""

    token: str
    skip: int = 0


def parse_place(token: str) -> Place:
    """The place that a caller's token names; any token but ours is the driver's."""
    found = _OURS.fullmatch(token)
    return Place(found[2], int(found[1])) if found else Place(token)


def cut_page(entries: tuple[T, ...], place: Place, *, entries_max: int, next_token: str) -> tuple[tuple[T, ...], str]:
    """The page at a place, from what the driver gave for the place's token, and the token of the page after it.

    ``entries_max`` 0: no cap; ``next_token``: the driver's, empty on its last page.
    """
    rest = entries[place.skip :]
    if entries_max <= 0 or len(rest) <= entries_max:
        return rest, next_token
    return rest[:entries_max], f"moorage-skip:{place.skip + entries_max}:{place.token}"
