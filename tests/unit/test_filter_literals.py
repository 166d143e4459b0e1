"""Literals of filters: numbers and quoted texts as Go reads them."""

from __future__ import annotations

import pytest

from moorage.rules.filter_literals import LiteralError, parse_float, parse_int, parse_uint, quote, unquote


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("010", 8),
        ("0_1", 1),
        ("0x_1F", 31),
        ("-0b1", -1),
        ("+5", 5),
        ("00", 0),
        ("0o17", 15),
        ("1_000", 1000),
    ],
)
def test_integers_in_every_base(text: str, number: int) -> None:
    assert parse_int(text) == number


@pytest.mark.parametrize("text", ["", "_1", "1_", "1__0", "08", "0x", " 5", "５", "--5", "0_x1", "5 ", "1e3"])
def test_texts_that_are_no_integers(text: str) -> None:
    with pytest.raises(LiteralError, match="invalid syntax"):
        parse_int(text)


def test_integers_end_at_64_bits() -> None:
    assert parse_uint("18446744073709551615") == 2**64 - 1
    with pytest.raises(LiteralError, match="out of range"):
        parse_uint("18446744073709551616")
    with pytest.raises(LiteralError, match="out of range"):
        parse_int("9" * 5000)
    with pytest.raises(LiteralError, match="invalid syntax"):
        parse_uint("+1")


@pytest.mark.parametrize(("text", "number"), [("1.5", 1.5), (".5", 0.5), ("5.", 5), ("1e5", 1e5), ("0x1.8p1", 3)])
def test_floats(text: str, number: float) -> None:
    assert parse_float(text) == number


@pytest.mark.parametrize("text", ["", "x", "0x1", "1e400", " 1", "0b1"])
def test_texts_that_are_no_floats(text: str) -> None:
    with pytest.raises(LiteralError, match=r"invalid syntax|out of range"):
        parse_float(text)


@pytest.mark.parametrize(
    ("inner", "text"), [("\\101\\n", "A\n"), ("\\xff", "\udcff"), ("\\U0001F600", "😀"), ("a\tb", "a\tb")]
)
def test_escapes(inner: str, text: str) -> None:
    assert unquote(inner) == text


@pytest.mark.parametrize("inner", ["\\", "\\'", "\\400", "\\ud800", "\\U00110000", "\\x4", "\\e", "a\nb", "\\n\n"])
def test_bad_escapes(inner: str) -> None:
    with pytest.raises(LiteralError):
        unquote(inner)


def test_what_does_not_print_is_shown_escaped() -> None:
    assert quote('a"\\\n\x01é\u200b\U000e0001\udcff') == '"a\\"\\\\\\n\\x01é\\u200b\\U000e0001\\xff"'
