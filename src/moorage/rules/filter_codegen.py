"""From the tree of a filter to one Python function over a datum. Pure.

The source holds only names of ours, member names of the type table and the shapes of expressions; whatever the
caller wrote (values, keys, indexes, error texts) is bound to names in the function's namespace.
Each test follows the declared kind. A test that cannot succeed on its kind becomes a call that fails when reached.
Source: contract volumes-api §5.2, §5.3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from moorage.errors import BadRequest
from moorage.rules import filter_runtime as runtime
from moorage.rules import filter_tree as tree
from moorage.rules.filter_literals import (
    LiteralError,
    parse_bool,
    parse_float,
    parse_index,
    parse_int,
    parse_uint,
    quote,
)
from moorage.rules.filter_patterns import Pattern, find_plain
from moorage.rules.filter_runtime import Complaint
from moorage.rules.filter_types import (
    INT,
    STRING,
    Kind,
    ListOf,
    MapOf,
    Record,
    Scalar,
    name_kind,
    name_type,
)

_CALLS: Mapping[str, object] = {
    "__builtins__": {"any": any, "all": all, "enumerate": enumerate},
    "_enter": runtime.enter,
    "_found": runtime.is_found,
    "_missing": runtime.MISSING,
    "_need": runtime.need,
    "_nil": runtime.is_nil,
    "_nothing": runtime.NOTHING,
    "_pick": runtime.pick,
    "_refuse": runtime.refuse,
    "_refuse_record": runtime.refuse_record,
    "_visits": runtime.Visits,
}
_COERCIONS: Mapping[str, Callable[[str], object]] = {
    "string": str,
    "bool": parse_bool,
    "int": parse_int,
    "int64": parse_int,
    "uint64": parse_uint,
    "float64": parse_float,
}

Predicate = Callable[[Mapping[str, Any]], bool]
# Of records, the positions to look at, and what makes a record's datum: the positions of those that pass, lazily.
Select = Callable[[Sequence[Any], Any, Callable[[Any], Mapping[str, Any]]], Iterator[int]]
# Where a whole datum is read, until it is known how often; no name of ours, so nothing else can be taken for it.
_WHOLE = "@"
# Steps that can fail or look at many things: only tests without any may change places.
_RISKS = re.compile(r"\b(?:_refuse|_refuse_record|_need|_enter|_pick|visits)\b")
_COSTS = (re.compile(r"\bp[0-9]+\(|_found\("), re.compile(r"\b(?:any|all)\(|@"))


class _Spot(msgspec.Struct, frozen=True):
    """A place in the datum, as code and as words.

    ``code`` yields the value; ``kind`` None: it always fails instead. ``path``: the parts of its pointer, None where a
    loop's key belongs; ``keys``: the names of those keys. ``may_miss``: the last step was into a map.
    ``is_key``: a loop's key or index, which has nothing below it.
    """

    code: str
    kind: Kind | None
    path: tuple[str | None, ...] = ()
    keys: tuple[str, ...] = ()
    may_miss: bool = False
    is_key: bool = False


_Scope = tuple[tuple[str, _Spot], ...]


class Made(msgspec.Struct, frozen=True):
    """A compiled filter: the function, its source, and the top-level members that it reads."""

    run: Predicate
    source: str
    members: frozenset[str]


class Selecting(msgspec.Struct, frozen=True):
    """A filter compiled to one loop over records; ``can_fail``: a test in it may."""

    run: Select
    source: str
    can_fail: bool


def make(node: tree.Node, table: Record) -> Made:
    """Compile a filter's tree for data of one type."""
    return _Generator(node, table).make()


def make_select(node: tree.Node, table: Record, direct: Mapping[str, str]) -> Selecting:
    """Compile a filter's tree to a loop over records. ``direct``: expressions over a record ``r`` and its value ``v``
    for members of the datum that can be had without making it; only these are read where nothing else is asked for."""
    return _Generator(node, table, direct).make_select()


class _Generator:
    def __init__(self, node: tree.Node, table: Record, direct: Mapping[str, str] | None = None) -> None:
        self._node = node
        self._table = table
        self._direct = direct
        self._root = "d" if direct is None else "r"
        self._names: dict[str, Any] = dict(_CALLS)
        self._members: set[str] = set()
        self._loops = 0
        self._loop_depth = 0
        self._has_inner_loops = False
        self._pattern_share = 1 / max(_count_patterns(node), 1)

    def make(self) -> Made:
        test = self._node_code(self._node, ())
        visits = "    visits = _visits()\n" if self._has_inner_loops else ""
        source = f"def test(d):\n{visits}    return {test}\n"
        exec(compile(source, "<filter>", "exec"), self._names)  # the source is ours; see the module's first lines
        return Made(self._names["test"], source, frozenset(self._members))

    def make_select(self) -> Selecting:
        test = self._node_code(self._node, ())
        lines = [
            "def select(records, positions, whole):",
            " for at in positions:",
            "  r = records[at]",
            "  v = r.value",
        ]
        if test.count(_WHOLE) > 1:
            lines.append("  d = whole(r)")
        if self._has_inner_loops:
            lines.append("  visits = _visits()")
        lines += [f"  if {test.replace(_WHOLE, 'd' if test.count(_WHOLE) > 1 else 'whole(r)')}:", "   yield at", ""]
        source = "\n".join(lines)
        exec(compile(source, "<filter>", "exec"), self._names)  # the source is ours; see the module's first lines
        return Selecting(self._names["select"], source, _RISKS.search(test) is not None)

    def _bind(self, value: object, kind: str = "c") -> str:
        """A name in the namespace for something the caller wrote."""
        name = f"{kind}{len(self._names)}"
        self._names[name] = value
        return name

    # -- structure -----------------------------------------------------------------------------------------------------

    def _node_code(self, node: tree.Node, scope: _Scope) -> str:
        match node:
            case tree.Match():
                return self._match_code(node, scope)
            case tree.Not():
                return f"(not {self._node_code(node.operand, scope)})"
            case tree.All():
                return f"({' and '.join(self._part_codes(node.parts, scope))})"
            case tree.Any():
                return f"({' or '.join(self._part_codes(node.parts, scope))})"
            case tree.Collection():
                return self._collection_code(node, scope)

    def _part_codes(self, parts: Sequence[tree.Node], scope: _Scope) -> list[str]:
        """Tests joined by one word: the cheap ones first where none of them can fail, else in the caller's order."""
        codes = [self._node_code(part, scope) for part in parts]
        if any(_RISKS.search(code) for code in codes):
            return codes
        return sorted(codes, key=lambda code: [bool(cost.search(code)) for cost in _COSTS])

    def _collection_code(self, node: tree.Collection, scope: _Scope) -> str:
        spot = self._find(node.selector, scope)
        if not isinstance(spot.kind, ListOf | MapOf):
            text = f"{node.selector.text} is not a list or a map"
            return self._refusal(spot, text, if_missing=node.is_all)
        number = self._loops
        self._loops += 1
        key, item = f"k{number}", f"e{number}"
        is_map = isinstance(spot.kind, MapOf)
        names = node.names
        if names.first and names.first == names.second:
            text = f"{quote(names.first)} cannot be used as a placeholder for both the index and the value"
            body = f"_refuse(None, {self._bind(Complaint(text))})"
        else:
            inner = spot.kind.value if isinstance(spot.kind, MapOf) else spot.kind.item
            at_key = _Spot(key, STRING if is_map else INT, is_key=True)
            at_item = _Spot(item, inner, (*spot.path, None), (*spot.keys, key))
            bound = ((names.single, at_key if is_map else at_item), (names.first, at_key), (names.second, at_item))
            self._loop_depth += 1
            body = self._node_code(node.body, (*scope, *(b for b in bound if b[0])))
            self._loop_depth -= 1
        items = f"({spot.code} or _nothing).items()" if is_map else f"enumerate({spot.code} or ())"
        if self._loop_depth:
            self._has_inner_loops = True
            items = f"visits.spend({items})"
        return f"{'all' if node.is_all else 'any'}({body} for {key}, {item} in {items})"

    # -- places --------------------------------------------------------------------------------------------------------

    def _find(self, selector: tree.Selector, scope: _Scope) -> _Spot:
        """The place a selector means: a name of a loop around it, else a member of the datum."""
        spot, rest = _Spot(self._root, self._table), selector.path
        for name, known in reversed(scope):
            if name == rest[0]:
                spot, rest = known, rest[1:]
                if known.is_key and rest:
                    whole = runtime.join_pointer(selector.path)
                    word = "string" if known.kind is STRING else "int"
                    text = f"/{name} references a {word} so {whole} is invalid"
                    return _Spot(f"_refuse(0, {self._bind(Complaint(text))})", None)
                break
        # The texts name the whole path, also what comes after the part that fails.
        full = (*spot.path, *rest)
        for position, part in enumerate(rest, start=len(spot.path)):
            spot = self._step(spot, part, position, full)
            if spot.kind is None:
                break
        return spot

    def _step(self, spot: _Spot, part: str, position: int, full: tuple[str | None, ...]) -> _Spot:
        kind = spot.kind
        match kind:
            case Record():
                return self._step_record(spot, kind, part, full)
            case MapOf():
                absent = f" at part {position}: couldn't find key {quote(part)}"
                bound = self._bind(part)
                is_last = position == len(full) - 1
                if is_last:
                    code = f"({spot.code} or _nothing).get({bound}, _missing)"
                else:
                    code = f"_enter({spot.code}, {bound}, {self._complain(absent, full, spot.keys)})"
                return _Spot(code, kind.value, full[: position + 1], spot.keys, may_miss=is_last)
            case ListOf():
                try:
                    index = parse_index(part)
                except LiteralError as error:
                    return self._dead(spot, f" at part {position}: {error}", full)
                outside = f" at part {position}: index {index} is out of range (length = "
                complaint = self._complain(outside, full, spot.keys)
                code = f"_pick({spot.code}, {self._bind(index)}, {complaint})"
                return _Spot(code, kind.item, full[: position + 1], spot.keys)
            case _:
                assert isinstance(kind, Scalar)
                return self._dead(spot, f": at part {position}, invalid value kind: {name_kind(kind)}", full)

    def _step_record(self, spot: _Spot, kind: Record, part: str, full: tuple[str | None, ...]) -> _Spot:
        position = len(spot.path)
        if kind.may_be_nil:
            nil = f": at part {position}, invalid value kind: invalid"
            code = f"_need({spot.code}, {self._complain(nil, full, spot.keys)})"
            spot = msgspec.structs.replace(spot, code=code)
        member = kind.members.get(part)
        if member is None:
            absent = f" at part {position}: couldn't find key: struct field with name {quote(part)}"
            return self._dead(spot, absent, full)
        path = full[: position + 1]
        if isinstance(member, MapOf) and member.is_hidden:
            return _Spot("_nothing", member, path, spot.keys)
        if spot.code == self._root:
            self._members.add(part)
            if self._direct is not None:
                return _Spot(self._direct.get(part) or f'{_WHOLE}["{part}"]', member, path, spot.keys)
        # Not the caller's text: a name that the type table has.
        return _Spot(f'{spot.code}["{part}"]', member, path, spot.keys)

    def _dead(self, spot: _Spot, tail: str, full: tuple[str | None, ...]) -> _Spot:
        """A place that cannot be reached: what is before it is walked first, since that may fail earlier."""
        return _Spot(f"_refuse({spot.code}, {self._complain(tail, full, spot.keys)})", None)

    def _complain(self, tail: str, full: tuple[str | None, ...], keys: tuple[str, ...]) -> str:
        """The arguments of a call that may fail: the complaint, and the keys its path needs."""
        bound = self._bind(Complaint(tail, full))
        return f"{bound}, ({', '.join(keys)},)" if keys else bound

    def _refusal(self, spot: _Spot, text: str, *, if_missing: bool = False) -> str:
        """A test that fails when it is reached, unless the value is missing."""
        if spot.kind is None:
            return spot.code
        return f"_refuse({spot.code}, {self._bind(Complaint(text))}, (), {if_missing})"

    # -- tests ---------------------------------------------------------------------------------------------------------

    def _match_code(self, node: tree.Match, scope: _Scope) -> str:
        spot = self._find(node.selector, scope)
        if spot.kind is None:
            return spot.code
        if node.operator == "equal" and isinstance(spot.kind, Scalar):
            return self._equal_code(spot, spot.kind, node)
        match node.operator:
            case "equal":
                code = self._refusal(spot, "unable to find suitable primitive comparison function for matching")
            case "in":
                code = self._in_code(spot, spot.kind, node)
            case "empty":
                code = self._empty_code(spot, spot.kind, node)
            case "nil":
                code = self._nil_code(spot, spot.kind, node)
            case "matches":
                code = self._pattern_code(spot, spot.kind, node.value)
        return f"(not {code})" if node.is_negated else code

    def _equal_code(self, spot: _Spot, kind: Scalar, node: tree.Match) -> str:
        value = self._coerce(kind, node.value)
        if isinstance(value, LiteralError):
            code = self._refusal(spot, f"error getting match value in expression: {value}")
            return f"(not {code})" if node.is_negated else code
        return f"{spot.code} {'!=' if node.is_negated else '=='} {self._bind(value)}"

    def _coerce(self, kind: Scalar, text: str) -> object:
        """The literal as a value of the kind, or the error, which is due only when the test is reached."""
        try:
            return _COERCIONS[kind.kind](text)
        except LiteralError as error:
            return error

    def _in_code(self, spot: _Spot, kind: Kind, node: tree.Match) -> str:
        match kind:
            case MapOf():
                return f"({self._bind(node.value)} in ({spot.code} or _nothing))"
            case ListOf(item=Scalar() as item):
                value = self._coerce(item, node.value)
                if isinstance(value, LiteralError):
                    return self._refusal(spot, f"error getting match value in expression: {value}")
                return f"({self._bind(value)} in ({spot.code} or ()))"
            case ListOf():
                text = 'unable to find suitable primitive comparison function for "in" comparison'
                return self._refusal(spot, text)
            case Scalar(kind="string"):
                return f"({self._bind(node.value)} in {spot.code})"
            case Scalar():
                value = self._coerce(kind, node.value)
                if isinstance(value, LiteralError):
                    return self._refusal(spot, f"error getting match value in expression: {value}")
        return self._unfit(spot, "in/contains", node.selector)

    def _empty_code(self, spot: _Spot, kind: Kind, node: tree.Match) -> str:
        if isinstance(kind, Record) or (isinstance(kind, Scalar) and kind.kind != "string"):
            return self._unfit(spot, "is-empty", node.selector, if_missing=True)
        return f"(not {spot.code})"

    def _nil_code(self, spot: _Spot, kind: Kind, node: tree.Match) -> str:
        if isinstance(kind, Scalar):
            return self._unfit(spot, "is-nil", node.selector, if_missing=True)
        if isinstance(kind, Record) and not kind.may_be_nil:
            return f"({spot.code} is _missing)"
        return f"_nil({spot.code})"

    def _pattern_code(self, spot: _Spot, kind: Kind, text: str) -> str:
        if not isinstance(kind, Scalar) or kind.kind != "string":
            return self._refusal(spot, f"value of type {name_type(kind)} is not convertible to []byte")
        plain = None if spot.may_miss else find_plain(text)
        if plain is not None:
            return f"({plain.code.format(text=self._bind(plain.text), value=spot.code)})"
        try:
            pattern = Pattern(text, self._pattern_share)
        except BadRequest as error:
            finding = f"failed to compile regular expression {quote(text)}: error parsing regexp: {error.message}"
            return self._refusal(spot, finding)
        if spot.may_miss:
            return f"_found({self._bind(pattern)}, {spot.code})"
        return f"{self._bind(pattern.is_in, 'p')}({spot.code})"

    def _unfit(self, spot: _Spot, operation: str, selector: tree.Selector, *, if_missing: bool = False) -> str:
        """A test that the kind does not have."""
        assert spot.kind is not None
        head, tail = f"cannot perform {operation} operations on type ", f" for selector: {quote(selector.text)}"
        text = f"{head}{name_kind(spot.kind)}{tail}"
        if not (isinstance(spot.kind, Record) and spot.kind.may_be_nil):
            return self._refusal(spot, text, if_missing=if_missing)
        present, absent = self._bind(Complaint(text)), self._bind(Complaint(f"{head}invalid{tail}"))
        return f"_refuse_record({spot.code}, {present}, {absent}, {if_missing})"


def _count_patterns(node: tree.Node) -> int:
    match node:
        case tree.Match():
            return node.operator == "matches"
        case tree.Not():
            return _count_patterns(node.operand)
        case tree.Collection():
            return _count_patterns(node.body)
        case _:
            return sum(_count_patterns(part) for part in node.parts)
