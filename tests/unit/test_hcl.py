"""HCL 1: the same trees and refusals as the reference's parser on recorded inputs, and where we differ on purpose."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.errors import BadRequest
from moorage.model.hcl import INPUT_CHARACTERS_MAX, Body, Listing, Scalar, Value, parse, to_plain
from moorage.model.hcl_lexer import DEPTH_MAX

JUDGED = json.loads((Path(__file__).parent / "data" / "hcl" / "judged.json").read_text())


def tree(value: Value) -> Any:
    """In the form of judged.json."""
    if isinstance(value, Body):
        return {"items": [[[item.key, *item.labels], tree(item.value)] for item in value.items]}
    if isinstance(value, Listing):
        return [tree(entry) for entry in value.values]
    if isinstance(value.value, int | float) and not isinstance(value.value, bool):
        return {"number": value.value}
    return "" if value.value is None else value.value


@pytest.mark.parametrize("case", [case for case in JUDGED if case["tree"] is not None], ids=lambda c: repr(c["input"]))
def test_accepted_with_the_same_tree(case: dict[str, Any]) -> None:
    assert tree(parse(case["input"])) == case["tree"]


@pytest.mark.parametrize("case", [case for case in JUDGED if case["tree"] is None], ids=lambda c: repr(c["input"]))
def test_refused_with_line_and_column(case: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=r"^line \d+, column \d+: "):
        parse(case["input"])


def test_enough_cases_of_both_kinds() -> None:
    assert sum(case["tree"] is not None for case in JUDGED) > 60
    assert sum(case["tree"] is None for case in JUDGED) > 40


# -- on purpose otherwise --------------------------------------------------------------------------------------------


def test_heredoc_may_end_with_the_text() -> None:
    assert to_plain(parse("a = <<EOF\nhi\nEOF")) == {"a": "hi\n"}


@pytest.mark.parametrize("text", ["a =", '{"a": 1} x', "{", "a = [,1]", "a = [1,,2]", '{"a": "\t"}'])
def test_stricter_than_the_reference(text: str) -> None:
    with pytest.raises(BadRequest):
        parse(text)


def test_json_escapes_are_those_of_json() -> None:
    assert to_plain(parse('{"a": "\\ud83d\\ude00\\/", "b": [null]}')) == {"a": "😀/", "b": [None]}


# -- positions and texts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "column", "part"),
    [
        ("a = b", 1, 5, "put text into quotes"),
        ("a = null", 1, 5, "leave the key out"),
        ("# c\na = 1\nb {\n  c = 2\n", 4, 8, "ends too early; expected"),
        ("a = 10GiB", 1, 5, 'goes into quotes: "10GiB"'),
        ("a = 10 GiB\nb = 1", 1, 5, 'goes into quotes: "10 GiB"'),
        ('a = "x', 1, 5, 'a " is missing'),
        ('a = "x\ny"', 1, 7, "write \\n"),
        ("a = 08", 1, 5, "octal"),
        ("a = 1e999", 1, 5, "too large"),
        ("a = 99999999999999999999", 1, 5, "too large"),
        ("\n\na: 1", 3, 2, "':'"),
        ("a = <<EOF\nx", 1, 5, "only EOF"),
        ("/* x", 1, 1, "*/ is missing"),
        ('a = "\\q"', 1, 6, "escape is not known"),
        ('a = "\\ud800"', 1, 6, "no character"),
        ('{"a": "\\ud800"}', 1, 7, "surrogate"),
        ('{"a": 1, b: 2}', 1, 10, "JSON"),
        ("a = 1\nb = \x00", 2, 5, "NUL"),
        ("a = <<E\nx\nE\nb = c", 4, 5, "put text into quotes"),
    ],
)
def test_errors_say_where_and_what(text: str, line: int, column: int, part: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(text)
    assert (caught.value.fields["line"], caught.value.fields["column"]) == (str(line), str(column))
    assert part in caught.value.message


def test_misplaced_text_is_not_repeated() -> None:
    with pytest.raises(BadRequest) as caught:
        parse('secrets { password = "x" "hush" }')
    assert "hush" not in caught.value.message


def test_items_know_where_they_stood() -> None:
    body = parse('a = 1\n  b "c" {\n    d = [true]\n  }\n')
    assert [(item.key, item.line, item.column) for item in body.items] == [("a", 1, 1), ("b", 2, 3)]
    block = body.find("b")[0].value
    assert isinstance(block, Body)
    inner = block.items[0].value
    assert isinstance(inner, Listing)
    assert inner.values == (Scalar(value=True, line=3, column=10),)


# -- bounds ----------------------------------------------------------------------------------------------------------


def test_nesting_is_bounded() -> None:
    parse("a = " + "[" * DEPTH_MAX + "]" * DEPTH_MAX)
    with pytest.raises(BadRequest, match="nested deeper"):
        parse("a = " + "[" * (DEPTH_MAX + 1))
    with pytest.raises(BadRequest, match="nested deeper"):
        parse('{"a":' * 100_000)


def test_size_is_bounded() -> None:
    parse("#" * INPUT_CHARACTERS_MAX)
    with pytest.raises(BadRequest, match="longer than"):
        parse("#" * (INPUT_CHARACTERS_MAX + 1))


@pytest.mark.parametrize("piece", ['a="${', "a=<<E\n", "/*", '"', "${{", "\\", "<<a\n", "a{"])
def test_hostile_repetition_ends(piece: str) -> None:
    with pytest.raises(BadRequest):
        parse(piece * 20_000)


# -- plain -----------------------------------------------------------------------------------------------------------


def test_repeated_blocks_become_a_list_in_order() -> None:
    assert to_plain(parse('n "d" { p = 1 }\nn "d" { p = 2 }\nn "e" {}')) == {
        "n": [{"d": {"p": 1}}, {"d": {"p": 2}}, {"e": {}}]
    }


def test_scalar_given_twice_counts_as_given_last() -> None:
    assert to_plain(parse("a = 1, a = 2")) == {"a": 2}


# -- anything --------------------------------------------------------------------------------------------------------

FRAGMENTS = r"""a b.c = { } [ ] , "x" "${y}" 1 0x1f 1.5 true null # // " ${ /* */ - é : \ << <<E <<E~q~E~ ~ 08 'x'"""
PIECES = st.sampled_from([" ", "\t", "\ud800", "\x00", *(piece.replace("~", "\n") for piece in FRAGMENTS.split())])


@given(st.lists(PIECES, max_size=12).map("".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(BadRequest):
        assert isinstance(to_plain(parse(text)), dict)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abcé", max_size=3), JSON, max_size=4))
def test_json_documents_come_back(document: dict[str, Any]) -> None:
    if "\\u0000" in json.dumps(document):
        return
    assert to_plain(parse(json.dumps(document))) == document
