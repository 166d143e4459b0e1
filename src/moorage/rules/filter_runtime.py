"""What a compiled filter calls while it looks at one datum: steps that can fail, and their errors. Pure.

Every error is the caller's: the filter asks for something that this datum or its type does not have.
Source: contract volumes-api §5.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from moorage.errors import BadRequest
from moorage.rules.filter_patterns import Pattern

PREFIX = "failed to read result page: "
VISITS_MAX = 10_000


class Missing:
    """The value below a key that a map lacks: nothing equals it, it holds nothing, and it is empty."""

    def __bool__(self) -> bool:
        return False

    def __contains__(self, item: object) -> bool:
        return False


MISSING = Missing()
NOTHING: Mapping[str, Any] = {}


class Complaint(msgspec.Struct, frozen=True):
    """An error in waiting. ``path``: the parts of the place it happens at, None for one known only then; no path at all
    when the text names none. ``tail``: what follows."""

    tail: str
    path: tuple[str | None, ...] | None = None

    def fill(self, keys: Sequence[object], more: str = "") -> BadRequest:
        """The error, with the keys of this moment put into the path."""
        place = ""
        if self.path is not None:
            known = iter(keys)
            parts = [str(next(known)) if part is None else part for part in self.path]
            place = f"error finding value in datum: {join_pointer(parts)}"
        text = f"{PREFIX}{place}{self.tail}{more}"
        # Bytes that a literal spelled out may be no UTF-8; an answer must be.
        return BadRequest(text.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))


def join_pointer(parts: Iterable[str]) -> str:
    """A path as a JSON pointer."""
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def refuse(value: object, complaint: Complaint, keys: Sequence[object] = (), if_missing: bool = False) -> bool:
    """Fail, unless the value is missing: then the test has its answer."""
    if value is MISSING:
        return if_missing
    raise complaint.fill(keys)


def refuse_record(value: object, present: Complaint, absent: Complaint, if_missing: bool = False) -> bool:
    """Fail in the words for a record that is there or for one that is nil."""
    return refuse(value, absent if value is None else present, (), if_missing)


def need(value: Any, complaint: Complaint, keys: Sequence[object] = ()) -> Any:
    """The record itself; fails when it is nil."""
    if value is None:
        raise complaint.fill(keys)
    return value


def enter(value: Mapping[str, Any] | None, key: str, complaint: Complaint, keys: Sequence[object] = ()) -> Any:
    """What a map holds under a key, on the way to something below it; fails when it lacks the key."""
    if value is None or key not in value:
        raise complaint.fill(keys)
    return value[key]


def pick(value: Sequence[Any] | None, index: int, complaint: Complaint, keys: Sequence[object] = ()) -> Any:
    """The item of a list at an index; fails when the list is shorter."""
    length = len(value or ())
    if value is None or not 0 <= index < length:
        raise complaint.fill(keys, f"{length})")
    return value[index]


def is_nil(value: object) -> bool:
    """Whether a value is nil or missing."""
    return value is None or value is MISSING


def is_found(pattern: Pattern, value: Any) -> bool:
    """Whether the pattern is found in a value that may be missing."""
    return value is not MISSING and pattern.is_in(value)


class Visits:
    """Counts the items that nested collections look at, so that one filter cannot hold the server."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = VISITS_MAX

    def spend(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, one visit each; fails when the visits are used up."""
        for item in items:
            self.left -= 1
            if self.left < 0:
                _give_up()
            yield item


def _give_up() -> NoReturn:
    raise BadRequest(f"{PREFIX}the filter's nested any/all look at more than {VISITS_MAX} items; nest them less deeply")
