"""HCL version 1, and JSON documents in its place: text to a tree that knows where everything stood.

The language of volume specifications and access policies. No interpolation, no variables: ``${…}`` stays text.
Input is bounded in size and in nesting. Never: I/O, clock.
Source: judged against the reference's parser on recorded and generated inputs; where we are kinder or stricter than
it, docs/compatibility.md says so.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any, NoReturn, cast

import msgspec
from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedToken

from moorage.errors import BadRequest
from moorage.model.hcl_lexer import HclLexer, JsonLexer, refuse

INPUT_CHARACTERS_MAX = 1024 * 1024
_INTEGER_MAX = 2**63 - 1

_HCL_GRAMMAR = """
    start: item*
    item: key EQUAL value COMMA?    -> attribute
        | keys object COMMA?        -> block
    keys: key+
    key: IDENT | STRING
    ?value: STRING | HEREDOC | NUMBER | BOOL | object | list
    object: LBRACE item* RBRACE
    list: LBRACK (value (COMMA value)* COMMA?)? RBRACK
    %declare IDENT STRING HEREDOC NUMBER BOOL EQUAL COMMA LBRACE RBRACE LBRACK RBRACK
"""
_JSON_GRAMMAR = """
    start: object
    object: LBRACE (member (COMMA member)* COMMA?)? RBRACE
    member: key COLON value         -> attribute
    key: STRING
    ?value: STRING | NUMBER | BOOL | NULL | object | list
    list: LBRACK (value (COMMA value)* COMMA?)? RBRACK
    %declare STRING NUMBER BOOL NULL COLON COMMA LBRACE RBRACE LBRACK RBRACK
"""


class Scalar(msgspec.Struct, frozen=True, kw_only=True):
    """A text, number, boolean, or (in JSON) null, and where it began: line and column count from 1."""

    value: str | int | float | bool | None
    line: int
    column: int


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """``[…]``."""

    values: tuple[Value, ...]
    line: int
    column: int


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """``key = value`` or ``key "label" {…}``: the key, the labels of a block, the value."""

    key: str
    labels: tuple[str, ...] = ()
    value: Value
    line: int
    column: int


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """``{…}``, or the whole document: items in order, of which several may have the same key."""

    items: tuple[Item, ...]
    line: int = 1
    column: int = 1

    def find(self, key: str) -> list[Item]:
        """The items with this key, in order."""
        return [item for item in self.items if item.key == key]


Value = Scalar | Listing | Body


def parse(text: str) -> Body:
    """Read a document: HCL, or JSON when its first character is ``{``.

    Raises BadRequest with line, column and what was expected; ``fields`` hold ``line`` and ``column``.
    """
    if len(text) > INPUT_CHARACTERS_MAX:
        raise BadRequest(f"the text is longer than {INPUT_CHARACTERS_MAX} characters", code="spec_too_large")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        refuse(text, error.start, "half of a surrogate pair is no character")
    nul = text.find("\x00")
    if nul >= 0:
        refuse(text, nul, "a NUL character is not allowed")
    parser = _json_parser() if text.lstrip()[:1] == "{" else _hcl_parser()
    try:
        body = cast(Body, parser.parse(text))
    except UnexpectedToken as error:
        _refuse_token(text, error)
    return body


def to_plain(body: Body) -> dict[str, Any]:
    """The tree as plain dicts and lists: labels become nested dicts, repeated blocks a list in order.

    A scalar that is given twice counts as given last.
    """
    plain: dict[str, Any] = {}
    for item in body.items:
        value = _to_plain_value(item.value)
        for label in reversed(item.labels):
            value = {label: value}
        held = plain.get(item.key)
        if isinstance(value, dict) and isinstance(held, dict):
            plain[item.key] = [held, value]
        elif isinstance(value, dict) and isinstance(held, list):
            held.append(value)
        else:
            plain[item.key] = value
    return plain


def _to_plain_value(value: Value) -> Any:
    if isinstance(value, Scalar):
        return value.value
    if isinstance(value, Listing):
        return [_to_plain_value(entry) for entry in value.values]
    return to_plain(value)


# -- from tokens to the tree -----------------------------------------------------------------------------------------


def _read_number(token: Token) -> int | float:
    text = str(token)
    digits = text.removeprefix("-")
    sign = -1 if digits != text else 1
    number: int | float
    try:
        if digits[:2] in ("0x", "0X"):
            number = sign * int(digits, 16)
        elif not digits.isdigit():
            number = sign * float(digits)
        elif len(digits) > 1 and digits[0] == "0":
            number = sign * int(digits, 8)
        else:
            number = sign * int(digits)
    except ValueError:
        _refuse_number(token, "a number that begins with 0 is octal: only 0 to 7 may follow")
    if not math.isfinite(number) or (isinstance(number, int) and abs(number) > _INTEGER_MAX):
        _refuse_number(token, "the number is too large")
    return number


def _refuse_number(token: Token, what: str) -> NoReturn:
    line, column = token.line or 1, token.column or 1
    raise BadRequest(f"line {line}, column {column}: {what}", code="bad_spec", line=str(line), column=str(column))


class _Builder(Transformer[Token, Body]):
    """Makes the tree while the parser runs. Method names are those of the grammar."""

    def start(self, children: list[Any]) -> Body:
        if len(children) == 1 and isinstance(children[0], Body):
            return children[0]
        return Body(items=tuple(children))

    def key(self, children: list[Token]) -> Token:
        return children[0]

    def keys(self, children: list[Token]) -> list[Token]:
        return children

    def attribute(self, children: list[Any]) -> Item:
        key = children[0]
        return Item(key=str(key), value=_make_value(children[2]), line=key.line, column=key.column)

    def block(self, children: list[Any]) -> Item:
        first, *labels = children[0]
        texts = tuple(str(label) for label in labels)
        return Item(key=str(first), labels=texts, value=children[1], line=first.line, column=first.column)

    def object(self, children: list[Any]) -> Body:
        opening = children[0]
        items = tuple(child for child in children if isinstance(child, Item))
        return Body(items=items, line=opening.line, column=opening.column)

    def list(self, children: list[Any]) -> Listing:
        opening = children[0]
        values = tuple(_make_value(child) for child in children if not _is_punctuation(child))
        return Listing(values=values, line=opening.line, column=opening.column)


def _is_punctuation(child: Any) -> bool:
    return isinstance(child, Token) and child.type in ("LBRACK", "RBRACK", "COMMA")


def _make_value(child: Any) -> Value:
    if isinstance(child, Scalar | Listing | Body):
        return child
    token: Token = child
    value: str | int | float | bool | None = str(token)
    if token.type == "NUMBER":
        value = _read_number(token)
    elif token.type == "BOOL":
        value = str(token) == "true"
    elif token.type == "NULL":
        value = None
    return Scalar(value=value, line=token.line or 1, column=token.column or 1)


@cache
def _hcl_parser() -> Lark:
    return Lark(_HCL_GRAMMAR, parser="lalr", lexer=HclLexer, transformer=_Builder())


@cache
def _json_parser() -> Lark:
    return Lark(_JSON_GRAMMAR, parser="lalr", lexer=JsonLexer, transformer=_Builder())


# -- what was wrong --------------------------------------------------------------------------------------------------

_VALUES = frozenset({"STRING", "NUMBER", "BOOL", "LBRACE", "LBRACK"})
_UNIT = re.compile(r"=\s*([0-9.]+[ \t]*[kmgtpe]i?b?)\s*[\w.-]*\s*$", re.IGNORECASE)
_NAMES = {
    "IDENT": "a name",
    "STRING": "text in quotes",
    "NUMBER": "a number",
    "EQUAL": "=",
    "COLON": ":",
    "COMMA": ",",
    "LBRACE": "{",
    "RBRACE": "}",
    "LBRACK": "[",
    "RBRACK": "]",
    "$END": "the end",
}


def _refuse_token(text: str, error: UnexpectedToken) -> NoReturn:
    token = error.token
    expected = set(error.interactive_parser.accepts())  # type: ignore[no-untyped-call]
    parts = []
    if expected >= _VALUES:
        expected -= _VALUES | {"HEREDOC", "NULL"}
        parts.append('a value ("text", number, true, false, [list] or {object})')
    parts += [_NAMES[name] for name in _NAMES if name in expected]
    wanted = " or ".join(parts)
    position = len(text.rstrip()) if token.type == "$END" else token.start_pos or 0
    unit = _UNIT.search(text, max(0, position - 200), position)
    if unit:
        refuse(text, unit.start(1), f'a number with a unit goes into quotes: "{unit.group(1)}"')
    if token.type == "$END":
        refuse(text, position, f"the text ends too early; expected {wanted}")
    found = {"STRING": "the text", "IDENT": "the bare word", "NUMBER": "the number"}.get(token.type, "")
    shown = str(token) if len(str(token)) <= 40 else str(token)[:40] + "…"
    # A text may be a secret whose quotes were misplaced: only names, numbers and punctuation are repeated.
    shown = "" if token.type in ("STRING", "HEREDOC") else shown
    advice = ""
    if token.type == "IDENT" and parts and parts[0].startswith("a value"):
        advice = "; leave the key out instead" if shown == "null" else "; put text into quotes"
    what = " ".join(part for part in (found, shown) if part) or "text"
    refuse(text, position, f"expected {wanted}, found {what}{advice}")
