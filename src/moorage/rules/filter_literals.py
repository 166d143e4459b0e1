"""Literals of filters: quoted texts and numbers as Go reads them. Pure.

Source: contract volumes-api §5.3 (string, coercion); the forms were checked against Go 1.26.
"""

from __future__ import annotations

import re

_ESCAPE = re.compile(r'\\(?:([abfnrtv\\"])|([0-3][0-7]{2})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))')
_NAMED = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, '"': 34}
_SHOWN = {7: "\\a", 8: "\\b", 12: "\\f", 10: "\\n", 13: "\\r", 9: "\\t", 11: "\\v", 92: "\\\\", 34: '\\"'}
_INTEGER = re.compile(r"(?:0[xX](_?[0-9a-fA-F])+|0[bB](_?[01])+|0[oO]?(_?[0-7])+|[1-9](_?[0-9])*|0)", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(?:\d(?:_?\d)*\.?(?:\d(?:_?\d)*)?|\.\d(?:_?\d)*)(?:[eE][+-]?\d(?:_?\d)*)?", re.ASCII)
_HEXADECIMAL = re.compile(r"[+-]?0[xX](?:_?[0-9a-fA-F])*\.?[0-9a-fA-F_]*[pP][+-]?\d+", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?inf(?:inity)?|nan", re.IGNORECASE | re.ASCII)
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_RANGES = {"Int": (-(2**63), 2**63 - 1), "Uint": (0, 2**64 - 1)}
_DIGITS_MAX = 4000  # beyond it Python refuses the conversion; far outside every range anyway


class LiteralError(ValueError):
    """A text that is no literal of the kind asked for. The text says why; it never leaves the rules of filters."""


def quote(text: str) -> str:
    """A text in double quotes, with what does not print escaped."""
    return f'"{"".join(map(_show, text))}"'


def _show(char: str) -> str:
    code = ord(char)
    if code in _SHOWN:
        return _SHOWN[code]
    if char.isprintable():
        return char
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def unquote(text: str) -> str:
    """The text between double quotes with its escapes undone; bytes that are no UTF-8 become lone surrogates.

    Raises LiteralError.
    """
    if "\\" not in text:
        if "\n" in text:
            raise LiteralError("invalid syntax")
        return text
    made, at = bytearray(), 0
    while at < len(text):
        slash = text.find("\\", at)
        plain = text[at:] if slash < 0 else text[at:slash]
        if "\n" in plain:
            raise LiteralError("invalid syntax")
        made += plain.encode("utf-8", "surrogatepass")
        if slash < 0:
            break
        found = _ESCAPE.match(text, slash)
        if found is None:
            raise LiteralError("invalid syntax")
        made += _undo(found)
        at = found.end()
    return made.decode("utf-8", "surrogateescape")


def _undo(found: re.Match[str]) -> bytes:
    named, octal, byte, short, long = found.groups()
    if named:
        return bytes([_NAMED[named]])
    if octal:
        return bytes([int(octal, 8)])
    if byte:
        return bytes([int(byte, 16)])
    code = int(short or long, 16)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise LiteralError("invalid syntax")
    return chr(code).encode()


def parse_int(text: str) -> int:
    """A signed integer of 64 bits in any base that a prefix names. Raises LiteralError."""
    sign = text[:1] if text[:1] in ("+", "-") else ""
    return _parse_whole("Int", text, text[len(sign) :], is_negative=sign == "-")


def parse_uint(text: str) -> int:
    """An integer of 64 bits without a sign. Raises LiteralError."""
    return _parse_whole("Uint", text, text, is_negative=False)


def _parse_whole(name: str, text: str, digits: str, *, is_negative: bool) -> int:
    if _INTEGER.fullmatch(digits) is None:
        raise LiteralError(f"strconv.Parse{name}: parsing {quote(text)}: invalid syntax")
    low, high = _RANGES[name]
    plain = digits.replace("_", "").lower()
    if len(plain) <= _DIGITS_MAX:
        octal = plain[:1] == "0" and plain[1:2].isdigit()
        number = int(plain, 8) if octal else int(plain, 0)
        number = -number if is_negative else number
        if low <= number <= high:
            return number
    raise LiteralError(f"strconv.Parse{name}: parsing {quote(text)}: value out of range")


def parse_bool(text: str) -> bool:
    """A truth value in one of twelve spellings. Raises LiteralError."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise LiteralError(f"strconv.ParseBool: parsing {quote(text)}: invalid syntax")


def parse_float(text: str) -> float:
    """A floating-point number. Raises LiteralError."""
    plain = text.replace("_", "")
    if _NOT_FINITE.fullmatch(text):
        return float(text)
    try:
        if _DECIMAL.fullmatch(text):
            number = float(plain)
        elif _HEXADECIMAL.fullmatch(text) and "__" not in text:
            number = float.fromhex(plain)
        else:
            raise ValueError
    except OverflowError:
        number = float("inf")
    except ValueError as error:
        raise LiteralError(f"strconv.ParseFloat: parsing {quote(text)}: invalid syntax") from error
    if number in (float("inf"), float("-inf")):
        raise LiteralError(f"strconv.ParseFloat: parsing {quote(text)}: value out of range")
    return number


def parse_index(text: str) -> int:
    """The position that a selector's part names in a list. Raises LiteralError."""
    try:
        return parse_int(text or "0")
    except LiteralError as error:
        raise LiteralError(f"couldn't convert value {quote(text)} to type int") from error
