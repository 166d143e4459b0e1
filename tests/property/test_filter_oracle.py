"""Compiled filters against a slow, obvious evaluator; and any text at all against the promise of a clean refusal.

The evaluator walks the tree for each datum, and each selector from the root of the datum by its whole path, as the
contract tells it. It shares the parser and the literals with the compiler, and nothing else.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

from filter_texts import data, expressions, pointer
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.errors import BadRequest
from moorage.rules import filter_tree as tree
from moorage.rules.filter import compile_filter
from moorage.rules.filter_literals import LiteralError, parse_bool, parse_index, parse_int, parse_uint, quote
from moorage.rules.filter_parser import parse
from moorage.rules.filter_patterns import Pattern
from moorage.rules.filter_types import VOLUME, Kind, ListOf, MapOf, Record, Scalar, name_kind, name_type

# -- the oracle --------------------------------------------------------------------------------------------------------

READERS: dict[str, Callable[[str], object]] = {
    "string": str,
    "bool": parse_bool,
    "int": parse_int,
    "int64": parse_int,
    "uint64": parse_uint,
}
COERCE = "error getting match value in expression: "
FIND = "error finding value in datum: "


class Refused(Exception):
    """An evaluation error, without the prefix."""


class Absent(Exception):
    """The selector's last part is a key that its map lacks."""


class Found:
    """A value with its declared kind."""

    def __init__(self, kind: Kind, value: Any) -> None:
        self.kind = kind
        self.value = value

    @property
    def word(self) -> str:
        is_nil = isinstance(self.kind, Record) and self.kind.may_be_nil and self.value is None
        return "invalid" if is_nil else name_kind(self.kind)


# A loop's name: the key or index itself, or the whole path of the item.
Scope = dict[str, Found | list[str]]


def evaluate(node: tree.Node, datum: dict[str, Any], scope: Scope) -> bool:
    match node:
        case tree.Not():
            return not evaluate(node.operand, datum, scope)
        case tree.All():
            return all(evaluate(part, datum, scope) for part in node.parts)
        case tree.Any():
            return any(evaluate(part, datum, scope) for part in node.parts)
        case tree.Collection():
            return evaluate_collection(node, datum, scope)
        case tree.Match():
            try:
                found = find(node.selector, datum, scope)
            except Absent:
                return (node.operator in ("empty", "nil")) is not node.is_negated
            return evaluate_match(node, found) is not node.is_negated


def evaluate_collection(node: tree.Collection, datum: dict[str, Any], scope: Scope) -> bool:
    try:
        found = find(node.selector, datum, scope)
    except Absent:
        return node.is_all
    if not isinstance(found.kind, ListOf | MapOf):
        raise Refused(f"{node.selector.text} is not a list or a map")
    is_map = isinstance(found.kind, MapOf)
    path = full_path(node.selector, scope)
    names = node.names
    for key in list(found.value or ()) if is_map else range(len(found.value or ())):
        if names.first and names.first == names.second:
            raise Refused(f"{quote(names.first)} cannot be used as a placeholder for both the index and the value")
        known = Found(Scalar("string" if is_map else "int"), key)
        item = [*path, str(key)]
        inner = dict(scope)
        if names.single:
            inner[names.single] = known if is_map else item
        if names.first:
            inner[names.first] = known
        if names.second:
            inner[names.second] = item
        if evaluate(node.body, datum, inner) is not node.is_all:
            return not node.is_all
    return node.is_all


def full_path(selector: tree.Selector, scope: Scope) -> list[str]:
    bound = scope.get(selector.path[0])
    return [*bound, *selector.path[1:]] if isinstance(bound, list) else list(selector.path)


def find(selector: tree.Selector, datum: dict[str, Any], scope: Scope) -> Found:
    bound = scope.get(selector.path[0])
    if isinstance(bound, Found):
        if len(selector.path) > 1:
            word = "string" if bound.kind == Scalar("string") else "int"
            raise Refused(f"/{selector.path[0]} references a {word} so {pointer(selector.path)} is invalid")
        return bound
    path = full_path(selector, scope)
    found = Found(VOLUME, datum)
    for position, part in enumerate(path):
        found = step(found, part, position, path)
    return found


def step(found: Found, part: str, position: int, path: list[str]) -> Found:
    place, value = FIND + pointer(path), found.value
    match found.kind:
        case Record() as record if found.word == "struct":
            member = record.members.get(part)
            if member is None:
                text = f"couldn't find key: struct field with name {quote(part)}"
                raise Refused(f"{place} at part {position}: {text}")
            if isinstance(member, MapOf) and member.is_hidden:
                return Found(member, {})
            return Found(member, value[part])
        case MapOf(value=kind):
            if part in (value or {}):
                return Found(kind, value[part])
            if position == len(path) - 1:
                raise Absent
            raise Refused(f"{place} at part {position}: couldn't find key {quote(part)}")
        case ListOf(item=kind):
            try:
                index = parse_index(part)
            except LiteralError as error:
                raise Refused(f"{place} at part {position}: {error}") from error
            length = len(value or [])
            if not 0 <= index < length:
                raise Refused(f"{place} at part {position}: index {index} is out of range (length = {length})")
            return Found(kind, value[index])
    raise Refused(f"{place}: at part {position}, invalid value kind: {found.word}")


def evaluate_match(node: tree.Match, found: Found) -> bool:
    """The test itself, before any negation."""
    kind, value = found.kind, found.value
    unfit = f" operations on type {found.word} for selector: {quote(node.selector.text)}"
    is_text = kind == Scalar("string")
    match node.operator:
        case "equal":
            if isinstance(kind, Scalar):
                return bool(value == coerce(kind, node.value))
            raise Refused("unable to find suitable primitive comparison function for matching")
        case "in":
            return evaluate_in(node, found, f"cannot perform in/contains{unfit}")
        case "empty":
            if isinstance(kind, ListOf | MapOf) or is_text:
                return not value
            raise Refused(f"cannot perform is-empty{unfit}")
        case "nil":
            if isinstance(kind, Scalar):
                raise Refused(f"cannot perform is-nil{unfit}")
            return value is None and not (isinstance(kind, Record) and not kind.may_be_nil)
        case "matches":
            if not is_text:
                raise Refused(f"value of type {name_type(kind)} is not convertible to []byte")
            try:
                return Pattern(node.value).is_in(value)
            except BadRequest as error:
                text = f"failed to compile regular expression {quote(node.value)}: error parsing regexp: "
                raise Refused(text + error.message) from error


def evaluate_in(node: tree.Match, found: Found, unfit: str) -> bool:
    match found.kind:
        case MapOf():
            return node.value in (found.value or {})
        case ListOf(item=Scalar() as item):
            return coerce(item, node.value) in (found.value or [])
        case ListOf():
            raise Refused('unable to find suitable primitive comparison function for "in" comparison')
        case Scalar(kind="string"):
            return node.value in found.value
        case Scalar():
            coerce(found.kind, node.value)
    raise Refused(unfit)


def coerce(kind: Scalar, text: str) -> Any:
    try:
        return READERS[kind.kind](text)
    except LiteralError as error:
        raise Refused(f"{COERCE}{error}") from error


# -- the tests ---------------------------------------------------------------------------------------------------------


def _outcome(text: str, datum: dict[str, Any]) -> bool | str:
    try:
        return compile_filter(text).matches(datum)
    except BadRequest as error:
        return error.message


def _expected(text: str, datum: dict[str, Any]) -> bool | str:
    try:
        return evaluate(parse(text), datum, {})
    except Refused as refused:
        return f"failed to read result page: {refused}"


@settings(max_examples=1500, deadline=None)
@given(expressions, data)
def test_the_compiled_filter_does_what_the_oracle_does(text: str, datum: dict[str, Any]) -> None:
    parse(text)
    assert _outcome(text, datum) == _expected(text, datum)


FAULT = re.compile(
    r"failed to create result paginator: failed to read filter expression: \d+:\d+ \(\d+\): .+", re.DOTALL
)
tokens = st.lists(
    st.sampled_from(
        [
            *'()[]{}"`\\/.,=!-_ \n\té0',
            "not ",
            "and ",
            " or ",
            "any ",
            "all ",
            " as x{",
            "ID",
            "==a",
            " in ",
            " is ",
            "empty",
        ]
    ),
    max_size=40,
).map("".join)


@settings(max_examples=600, deadline=None)
@given(st.text(st.characters(), max_size=60) | tokens | st.builds("{}{}".format, expressions, tokens))
def test_any_text_compiles_or_is_refused_with_a_place(text: str) -> None:
    fault, members = "", frozenset[str]()
    try:
        members = compile_filter(text).members
    except BadRequest as error:
        fault = error.message
    fault.encode()
    assert members <= set(VOLUME.members)
    assert not fault or FAULT.fullmatch(fault)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["(", "not ", "ID==", "any x as y{", '"', "`", "a.", "a[", '"/', "x or ", "not(", "\\", "é"]),
    st.data(),
)
def test_reading_is_linear_in_what_is_repeated(piece: str, more: st.DataObject) -> None:
    """The farthest a parser can be driven: no text of the allowed length costs more steps than a few per character."""
    times = more.draw(st.integers(1, 16_000 // len(piece.encode())))
    text = piece * times + more.draw(st.sampled_from(["", "ID == a", ")", '"']))
    counted = _Counting(text)
    with contextlib.suppress(BadRequest):
        parse(counted)
    assert counted.steps <= 60 * len(text) + 200


class _Counting(str):
    """A text that counts how often a word is looked for in it."""

    steps = 0

    def startswith(self, *args: Any) -> bool:
        self.steps += 1
        return super().startswith(*args)
