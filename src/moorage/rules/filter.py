"""Filters of lists: a text in the recorded API's filter language, compiled once to a test of one datum. Pure.

Where this differs from the recorded server on purpose: a quoted value that begins with "/" is compared whole;
``Secrets`` cannot be asked for; a loop's name hides others only inside its own loop; length, nesting and nested loops
have limits, but nesting within them never makes the parser give up.
Source: contract volumes-api §5.2-§5.5.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from moorage.rules.filter_codegen import Predicate, Select, make, make_select
from moorage.rules.filter_exact import Exact, find_exact
from moorage.rules.filter_parser import LENGTH_MAX_BYTES, TERMS_MAX, parse
from moorage.rules.filter_types import VOLUME, Record
from moorage.rules.filter_volumes import DIRECT

FILTERS_KEPT_MAX = 128


class Filter(msgspec.Struct, frozen=True, eq=False):
    """A compiled filter.

    ``matches(datum)``: whether a datum passes; it has each of ``members``, as JSON values of the declared kinds.
    Raises BadRequest when the filter asks for what the datum or its type does not have. (A field, so that a test of
    one datum is one call.)
    ``members``: the top-level members of the datum that it reads; the others need not be there.
    ``source``: the Python source it was compiled to, for those who look into it; the caller's texts are not in it.
    """

    text: str
    matches: Predicate
    members: frozenset[str]
    source: str


class FilterLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much a filter may be: its length in bytes, and its comparisons. What one evaluation may look at is bounded
    in ``filter_runtime``, what its patterns may take in ``filter_patterns``."""

    bytes_max: int = LENGTH_MAX_BYTES
    terms_max: int = TERMS_MAX


DEFAULT_LIMITS = FilterLimits()


def check_filter(text: str, limits: FilterLimits = DEFAULT_LIMITS) -> None:
    """Refuse what is no filter, where a list is always empty and nothing will be asked. Raises BadRequest."""
    if text:
        parse(text, bytes_max=limits.bytes_max, terms_max=limits.terms_max)


@lru_cache(maxsize=FILTERS_KEPT_MAX)
def compile_filter(text: str, table: Record = VOLUME, limits: FilterLimits = DEFAULT_LIMITS) -> Filter:
    """Compile a filter for data of one type; the last filters used are kept.

    Raises BadRequest with the place in the text and what was expected there; its code is ``over_limit`` where it is
    too much.
    """
    made = make(parse(text, bytes_max=limits.bytes_max, terms_max=limits.terms_max), table)
    return Filter(text=text, matches=made.run, members=made.members, source=made.source)


class VolumeFilter(msgspec.Struct, frozen=True, eq=False):
    """A filter of volumes, compiled to one loop over their records.

    ``exact``: what all that pass have in one member, where that may be asked first.
    ``select(records, positions, whole)``: the positions of records that pass, in the given order, each looked at when
    it is asked for. ``whole`` makes the datum of a record; it is called only for members that take it.
    Raises BadRequest as a Filter does.
    """

    text: str
    select: Select
    source: str
    exact: Exact | None = None


@lru_cache(maxsize=FILTERS_KEPT_MAX)
def compile_volume_filter(text: str, limits: FilterLimits = DEFAULT_LIMITS) -> VolumeFilter:
    """Compile a filter for records of volumes; the last filters used are kept. Raises BadRequest as ``compile_filter``
    does."""
    tree = parse(text, bytes_max=limits.bytes_max, terms_max=limits.terms_max)
    made = make_select(tree, VOLUME, DIRECT)
    exact = None if made.can_fail else find_exact(tree)
    return VolumeFilter(text=text, select=made.run, source=made.source, exact=exact)
