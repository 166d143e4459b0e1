"""The parts of a parsed filter. Structs only; pure."""

from __future__ import annotations

from typing import Literal

import msgspec

Operator = Literal["equal", "in", "empty", "nil", "matches"]


class Selector(msgspec.Struct, frozen=True):
    """Where a value is found: the parts of its path. ``is_pointer``: it was written as a JSON pointer."""

    path: tuple[str, ...]
    is_pointer: bool = False

    @property
    def text(self) -> str:
        """The selector as error texts and bare-word values spell it."""
        return ("/" if self.is_pointer else ".").join(self.path)


class Match(msgspec.Struct, frozen=True):
    """One test of one selected value. ``value`` is the text to compare with; ``nil`` and ``empty`` have none."""

    selector: Selector
    operator: Operator
    is_negated: bool = False
    value: str = ""


class Not(msgspec.Struct, frozen=True):
    """True when its operand is false."""

    operand: Node


class All(msgspec.Struct, frozen=True):
    """Parts joined by ``and``, tried in order."""

    parts: tuple[Node, ...]


class Any(msgspec.Struct, frozen=True):
    """Parts joined by ``or``, tried in order."""

    parts: tuple[Node, ...]


class Names(msgspec.Struct, frozen=True):
    """What a collection's body calls its items.

    ``single``: one name was given (a map's key, a list's item). Else ``first`` (key or index) and ``second`` (item);
    either is empty when it was written as ``_``.
    """

    single: str = ""
    first: str = ""
    second: str = ""


class Collection(msgspec.Struct, frozen=True):
    """``any`` (``is_all`` false) or ``all`` over the items of a list or a map."""

    is_all: bool
    selector: Selector
    names: Names
    body: Node


Node = Match | Not | All | Any | Collection
