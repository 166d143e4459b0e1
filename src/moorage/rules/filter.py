"""Filters of lists: a text in the recorded API's filter language, compiled once to a test of one datum. Pure.

Where this differs from the recorded server on purpose: a quoted value that begins with "/" is compared whole;
``Secrets`` is always empty; length, nesting and nested loops have limits.
Source: contract volumes-api §5.2-§5.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from moorage.rules.filter_codegen import Predicate, make
from moorage.rules.filter_parser import parse
from moorage.rules.filter_types import VOLUME, Record

FILTERS_KEPT_MAX = 128


class Filter(msgspec.Struct, frozen=True, eq=False):
    """A compiled filter.

    ``members``: the top-level members of the datum that it reads; the others need not be there.
    ``source``: the Python source it was compiled to, for those who look into it; the caller's texts are not in it.
    """

    text: str
    members: frozenset[str]
    source: str
    test: Predicate

    def matches(self, datum: Mapping[str, Any]) -> bool:
        """Whether a datum passes.

        Shapes: ``datum`` has each of ``members``, as JSON values of the kinds in the type table.
        Raises BadRequest when the filter asks for what the datum or its type does not have.
        """
        return self.test(datum)


@lru_cache(maxsize=FILTERS_KEPT_MAX)
def compile_filter(text: str, table: Record = VOLUME) -> Filter:
    """Compile a filter for data of one type; the last filters used are kept.

    Raises BadRequest with the place in the text and what was expected there.
    """
    made = make(parse(text), table)
    return Filter(text=text, members=made.members, source=made.source, test=made.run)
