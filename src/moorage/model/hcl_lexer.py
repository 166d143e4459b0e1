"""Tokens of HCL 1 and of JSON, for the grammar in ``hcl``.

Written by hand because quotes nest inside ``${…}`` and a heredoc ends at a word of the writer's choice: neither is a
regular language. Never: I/O, clock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from lark import Token
from lark.lexer import Lexer

from moorage.errors import BadRequest

DEPTH_MAX = 64

_SKIPPED = re.compile(r"(?:[ \t\r\n]+|\#[^\n]*|//[^\n]*|/\*.*?\*/)+", re.DOTALL)
_JSON_SKIPPED = re.compile(r"[ \t\r\n]+")
_NUMBER = re.compile(r"(?:-?0[xX][0-9a-fA-F]+|(?:-?[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![0-9.])")
_IDENT = re.compile(r"[^\W\d][\w.\-]*")
_HEREDOC = re.compile(r"<<(-?)(\w+)\r?\n")
_PLAIN_TEXT = re.compile(r'[^"\\\n$]+')
_JSON_TEXT = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_ESCAPE = re.compile(r'\\(?:([abfnrtv\\"])|([0-7]{3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))')
_ESCAPED = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"'}
_PUNCTUATION = {"{": "LBRACE", "}": "RBRACE", "[": "LBRACK", "]": "RBRACK", ",": "COMMA"}


def refuse(text: str, position: int, what: str) -> NoReturn:
    """Raise BadRequest that names the line and column of ``position`` (0-based) in ``text``."""
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    raise BadRequest(f"line {line}, column {column}: {what}", code="bad_spec", line=str(line), column=str(column))


class _Lexer(Lexer):
    """What both languages share: positions, punctuation, and the bound on nesting."""

    punctuation = _PUNCTUATION
    skipped = _SKIPPED

    def __init__(self, lexer_conf: Any) -> None:
        """lark hands its settings over; there is nothing in them that we need."""

    def lex(self, data: str) -> Iterator[Token]:  # type: ignore[override]
        """All tokens of ``data``, each with its position; raises BadRequest where there is none."""
        position, line, line_start, depth = 0, 1, 0, 0
        while True:
            skipped = self.skipped.match(data, position)
            end = skipped.end() if skipped else position
            line += data.count("\n", position, end)
            line_start = data.rfind("\n", 0, end) + 1 if "\n" in data[position:end] else line_start
            position = end
            if position >= len(data):
                return
            kind, value, end = self.read(data, position)
            if kind in ("LBRACE", "LBRACK"):
                depth += 1
                if depth > DEPTH_MAX:
                    refuse(data, position, f"nested deeper than {DEPTH_MAX} levels")
            elif kind in ("RBRACE", "RBRACK"):
                depth -= 1
            yield Token(kind, value, position, line, position - line_start + 1)
            line += data.count("\n", position, end)
            line_start = data.rfind("\n", 0, end) + 1 if "\n" in data[position:end] else line_start
            position = end

    def read(self, data: str, position: int) -> tuple[str, str, int]:
        """The token at ``position``: kind, value, and where it ends."""
        raise NotImplementedError


class HclLexer(_Lexer):
    """Tokens of HCL 1; strings and heredocs come out with their escapes resolved."""

    def read(self, data: str, position: int) -> tuple[str, str, int]:
        """See ``_Lexer.read``."""
        char = data[position]
        if char == '"':
            return _read_string(data, position)
        if char == "=":
            return "EQUAL", char, position + 1
        if char in _PUNCTUATION:
            return _PUNCTUATION[char], char, position + 1
        number = _NUMBER.match(data, position)
        if number:
            return "NUMBER", number.group(), number.end()
        ident = _IDENT.match(data, position)
        if ident:
            kind = "BOOL" if ident.group() in ("true", "false") else "IDENT"
            return kind, ident.group(), ident.end()
        if data.startswith("<<", position):
            return _read_heredoc(data, position)
        if data.startswith("/*", position):
            refuse(data, position, "the comment has no end: */ is missing")
        refuse(data, position, f"the character {char!r} has no meaning here; put text into quotes")


class JsonLexer(_Lexer):
    """Tokens of JSON."""

    skipped = _JSON_SKIPPED

    def read(self, data: str, position: int) -> tuple[str, str, int]:
        """See ``_Lexer.read``."""
        char = data[position]
        if char == '"':
            found = _JSON_TEXT.match(data, position)
            if not found:
                refuse(data, position, 'the text has no end: a " is missing, or a line break stands for \\n')
            try:
                value = str(json.loads(found.group()))
            except ValueError:
                refuse(data, position, "the text holds an escape that JSON does not know")
            _check_encodable(data, position, value)
            return "STRING", value, found.end()
        if char == ":":
            return "COLON", char, position + 1
        if char in _PUNCTUATION:
            return _PUNCTUATION[char], char, position + 1
        number = _JSON_NUMBER.match(data, position)
        if number:
            return "NUMBER", number.group(), number.end()
        for word, kind in (("true", "BOOL"), ("false", "BOOL"), ("null", "NULL")):
            if data.startswith(word, position):
                return kind, word, position + len(word)
        refuse(data, position, f"the character {char!r} has no meaning in JSON here; comments and bare words are HCL's")


def _check_encodable(data: str, position: int, value: str) -> None:
    if any("\ud800" <= char <= "\udfff" for char in value):
        refuse(data, position, "the text holds half of a surrogate pair, which is no character")


def _read_string(data: str, start: int) -> tuple[str, str, int]:
    """A quoted text: escapes resolved, ``${…}`` kept as it is, whatever stands in it."""
    pieces: list[str] = []
    position = start + 1
    while True:
        plain = _PLAIN_TEXT.match(data, position)
        if plain:
            pieces.append(plain.group())
            position = plain.end()
        char = data[position : position + 1]
        if char == '"':
            return "STRING", "".join(pieces), position + 1
        if char == "\\":
            piece, position = _read_escape(data, position)
        elif data.startswith("${", position):
            end = _find_brace(data, start, position)
            piece, position = data[position:end], end
        elif char == "$":
            piece, position = char, position + 1
        elif char == "\n":
            refuse(data, position, "a text in quotes ends in its own line; write \\n, or <<EOF for several lines")
        else:
            refuse(data, start, 'the text has no end: a " is missing')
        pieces.append(piece)


def _read_escape(data: str, position: int) -> tuple[str, int]:
    found = _ESCAPE.match(data, position)
    if not found:
        refuse(data, position, "this escape is not known; a backslash itself is written \\\\")
    letter, octal, short, *unicodes = found.groups()
    if letter:
        return _ESCAPED[letter], found.end()
    code = int(octal, 8) if octal else int(short or unicodes[0] or unicodes[1], 16)
    if (octal or short) and code > 0x7F:
        refuse(data, position, f"this escape names a byte, not a character; write \\u{code:04x}")
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF or code == 0:
        refuse(data, position, "this escape names no character that is allowed")
    return chr(code), found.end()


def _find_brace(data: str, start: int, position: int) -> int:
    """Where the ``${`` at ``position`` is closed."""
    depth = 0
    for found in re.compile(r"[{}]").finditer(data, position):
        depth += 1 if found.group() == "{" else -1
        if depth == 0:
            return found.end()
    refuse(data, start, "the text has no end: a } for ${ is missing")


def _read_heredoc(data: str, start: int) -> tuple[str, str, int]:
    """``<<TAG``: the lines up to one that holds only TAG; with ``<<-`` less the indentation of that last line."""
    head = _HEREDOC.match(data, start)
    if not head:
        refuse(data, start, "after << comes a word of letters and digits, and then a new line")
    dash, tag = head.groups()
    closing = re.compile(rf"^([ \t]*){re.escape(tag)}\r*$", re.MULTILINE).search(data, head.end())
    if not closing:
        refuse(data, start, f"the text that begins here has no end: a line with only {tag} is missing")
    text = data[head.end() : closing.start()].replace("\r\n", "\n")
    indentation = closing.group(1)
    if not dash:
        return "HEREDOC", text + indentation, closing.end()
    lines = text.split("\n")
    if all(line.startswith(indentation) for line in lines[:-1]):
        lines = [line.removeprefix(indentation) for line in lines]
    return "HEREDOC", "\n".join(lines), closing.end()
