"""Filters and data for them, made at random: more often than not they name what is there."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import strategies as st

from moorage.rules.filter_types import VOLUME, Kind, ListOf, MapOf, Record, Scalar


def pointer(path: Any) -> str:
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)


WORDS = ["a", "b", "fast", "zone", "tier", "0", "1", "7", "true", "F", "", "x/y", "~", "é", "0x7", "_1"]
PATTERNS = ["^a", "b$", "(", "[", ".", "é", "(?i)FAST", "a**", ""]
NAMES = ["x", "y", "ID"]
text_map = st.none() | st.dictionaries(st.sampled_from(WORDS), st.sampled_from(WORDS), max_size=3)
topologies = st.none() | st.lists(st.none() | st.fixed_dictionaries({"Segments": text_map}), max_size=3)
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "Context": text_map,
    "Parameters": text_map,
    "MountOptions": st.none()
    | st.fixed_dictionaries(
        {"FSType": st.sampled_from(WORDS), "MountFlags": st.sampled_from([None, [], ["[REDACTED]"]])}
    ),
    "ReadAllocs": st.sampled_from([None, {}, {"a": None}]),
    "WriteAllocs": st.sampled_from([None, {}, {"b": None}]),
    "RequestedCapabilities": st.none()
    | st.lists(
        st.none()
        | st.fixed_dictionaries({"AccessMode": st.sampled_from(WORDS), "AttachmentMode": st.sampled_from(WORDS)}),
        max_size=2,
    ),
    "RequestedTopologies": st.none() | st.fixed_dictionaries({"Required": topologies, "Preferred": topologies}),
    "ResourceExhausted": st.none(),
    "Topologies": topologies,
}


def _member(name: str, kind: Kind) -> st.SearchStrategy[Any]:
    if name in BY_NAME:
        return BY_NAME[name]
    if not isinstance(kind, Scalar):
        return st.none()
    return {"string": st.sampled_from(WORDS), "bool": st.booleans()}.get(kind.kind, st.integers(-1, 8))


data = st.fixed_dictionaries({name: _member(name, kind) for name, kind in VOLUME.members.items()})
PARTS = [*WORDS, "Segments", "AccessMode", "FSType", "MountFlags", "Required", "Nope"]
bare = re.compile(r"[a-zA-Z][a-zA-Z0-9_/]*|[0-9]+")


SIMPLE = ["ID", "Name", "Capacity", "CreateIndex", "Schedulable"]
# "@" becomes a name of the loop around it, where there is one.
heads = st.sampled_from(["@", *BY_NAME, *SIMPLE] * 4 + ["x", "Nope", *VOLUME.members])


@st.composite
def selectors(draw: st.DrawFn) -> str:
    """A path that more often than not leads somewhere, written in one of the three ways."""
    path = [draw(heads)]
    kind: Kind | None = VOLUME.members.get(path[0])
    while draw(st.booleans()) and len(path) < 5:
        likely = PARTS
        match kind:
            case Record(members=members) if members:
                likely = list(members)
            case ListOf():
                likely = ["0", "1"]
            case Scalar() if draw(st.integers(0, 5)):
                break
        path.append(draw(st.sampled_from(likely * 3) | st.sampled_from(PARTS)))
        match kind:
            case Record(members=members):
                kind = members.get(path[-1])
            case ListOf(item=inner) | MapOf(value=inner):
                kind = inner
            case _:
                kind = None
    if all(path) and draw(st.integers(0, 5)) == 0:
        return f'"{pointer(path)}"'
    return path[0] + "".join(f".{p}" if bare.fullmatch(p) and draw(st.booleans()) else f'["{p}"]' for p in path[1:])


values = st.sampled_from(WORDS).map('"{}"'.format) | st.sampled_from(["a", "true", "7", "-1", "0.5", "a.b"])
patterns = st.sampled_from(PATTERNS).map("`{}`".format)
negation = st.sampled_from(["", "not "])
matches = st.one_of(
    st.builds("{} {} {}".format, selectors(), st.sampled_from(["==", "!=", "contains", "not contains"]), values),
    st.builds("{} {}matches {}".format, selectors(), negation, patterns),
    st.builds("{} is {}{}".format, selectors(), negation, st.sampled_from(["empty", "nil"])),
    st.builds("{} {}in {}".format, values, negation, selectors()),
)
names = st.sampled_from(NAMES)
LISTS = ["Parameters", "Topologies", "RequestedCapabilities", "@.Segments", "@", "Context.a", "ReadAllocs.a"]
lists = selectors() | st.sampled_from(LISTS) | st.sampled_from(LISTS)


def _loop(word: str, items: str, one: str, two: str, body: str) -> str:
    """A loop whose body speaks of its names; equal names and "_" come up as well."""
    binding = {"xx": "x", "xy": "x, y", "yx": "_, x", "yy": "y, _"}.get(one + two, f"{one}, {two}")
    return f"({word} {items} as {binding} {{ {body.replace('@', one, 1).replace('@', two, 1)} }})"


def _grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner),
        st.builds("not ({} )".format, inner),
        st.builds(_loop, st.sampled_from(["any", "all"]), lists, names, names, inner),
    )


expressions = st.recursive(matches, _grow, max_leaves=6).map(lambda text: text.replace("@", "Parameters"))
