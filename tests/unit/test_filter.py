"""The filter language by tables: expression and result, or expression and error."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.errors import BadRequest
from moorage.rules.filter import FILTERS_KEPT_MAX, FilterLimits, compile_filter
from moorage.rules.filter_parser import LENGTH_MAX_BYTES, NESTING_MAX
from moorage.rules.filter_types import BOOL, FLOAT64, STRING, STRINGS, TIME, ListOf, MapOf, Record, Scalar

PARSE = "failed to create result paginator: failed to read filter expression: "
EVALUATE = "failed to read result page: "

VOLUME: dict[str, Any] = {
    "AccessMode": "",
    "Capacity": 1024,
    "Context": None,
    "CreateIndex": 18446744073709551615,
    "CurrentReaders": 2,
    "CurrentWriters": 0,
    "ExternalID": "/srv/é",
    "ID": "db-00",
    "MountOptions": {"FSType": "xfs", "MountFlags": ["[REDACTED]"]},
    "Name": "db 00 disk",
    "Parameters": {"tier": "fast", "a.b": "dotted", "k/x": "slashed", "none": ""},
    "PluginID": "hostpath",
    "ReadAllocs": {"6b9a": None},
    "RequestedCapabilities": [
        {"AccessMode": "single-node-writer", "AttachmentMode": "file-system"},
        {"AccessMode": "single-node-reader-only", "AttachmentMode": "file-system"},
    ],
    "RequestedTopologies": None,
    "ResourceExhausted": None,
    "Schedulable": True,
    "Topologies": [{"Segments": {"zone": "z1", "rack": "r1"}}, {"Segments": {"zone": "z2"}}, None],
    "Version": "v1",
}


@pytest.mark.parametrize(
    "text",
    [
        'ID == "db-00"',
        "ID == `db-00`",
        'ID=="db-00"',
        "PluginID == hostpath",
        'ID != "x" and PluginID == hostpath or Nope == 1',
        "(ID == x or PluginID == hostpath) and Schedulable == T",
        "not ID == x",
        "not not ID == `db-00`",
        "not (ID == x)",
        "Capacity == 1024",
        'Capacity == "0x400"',
        'Capacity == "0b10000000000"',
        'Capacity == "1_024"',
        "CreateIndex == 18446744073709551615",
        "CurrentReaders == 2",
        "Version == v1",
        'ID == "d\\u0062-\\x30\\060"',
        'ExternalID == "/srv/\\xc3\\xa9"',
        'ID contains "b-0"',
        '"b-0" in ID',
        "x not in ID",
        '"" in ID',
        "ID matches `^db-0[0-9]$`",
        "ID matches `B-0` or Name matches `(?i)DISK$`",
        "ID not matches `^log`",
        "Parameters.tier == fast",
        'Parameters["a.b"] == dotted',
        '"/Parameters/k~1x" == slashed',
        "Parameters.none is empty and Parameters.none == ``",
        "tier in Parameters",
        "Parameters contains tier",
        "Context is empty and Context is nil",
        "Parameters is not nil and Parameters is not empty",
        "Context.tier is empty and Context.tier != x and Context.tier not matches x and x not in Context.tier",
        "Context.tier is nil",
        "not Context.tier matches `.*`",
        "RequestedCapabilities.0.AccessMode == single or RequestedCapabilities[`1`].AttachmentMode == `file-system`",
        'any RequestedCapabilities as c { c.AccessMode == "single-node-writer" }',
        'all RequestedCapabilities as c { c.AttachmentMode == "file-system" }',
        "any Parameters as k { k == tier }",
        "any Parameters as k, v { k == tier and v == fast }",
        "any Parameters as _, v { v == dotted }",
        "any RequestedCapabilities as i, _ { i == 1 }",
        "any RequestedCapabilities as i, c { i == 1 and c.AccessMode matches reader }",
        "any Topologies as t { any t.Segments as k, v { k == rack and v == r1 } }",
        "any Parameters as x { any RequestedCapabilities as x { x.AccessMode matches reader } }",
        # A loop's name hides a member only for the body; the recorded server mixes the two up here.
        "any Topologies as Topologies, t { t.Segments.zone == z1 }",
        "all Context as k { Nope == 1 }",
        "not (any Context as k { Nope == 1 })",
        "MountOptions.FSType == xfs and MountOptions is not nil",
        "`[REDACTED]` in MountOptions.MountFlags",
        "RequestedTopologies is nil and ResourceExhausted is not nil",
        "ReadAllocs contains `6b9a`",
        'ReadAllocs["6b9a"] is nil and ReadAllocs.x is nil',
        "ReadClaims is empty and WriteClaims is empty and PastClaims is not nil",
        "Topologies.2 is nil and Topologies.0 is not nil",
    ],
)
def test_a_filter_that_passes(text: str) -> None:
    assert compile_filter(text).matches(VOLUME) is True


@pytest.mark.parametrize(
    "text",
    [
        'ID == "db-0"',
        "Context.tier == x",
        "Context.tier matches `.*`",
        '"" in Context.tier',
        "Context.tier is not empty",
        "any Context.tier as x { ID == x }",
        "any RequestedCapabilities as c { c.AccessMode == x }",
        "ID == 5",
        "ID == true",
        "Schedulable == false",
        "ID is empty",
        # A quoted value that looks like a pointer keeps its slash; the recorded server compares with "a/b".
        'Name == "/db"',
    ],
)
def test_a_filter_that_does_not_pass(text: str) -> None:
    assert compile_filter(text).matches(VOLUME) is False


def test_a_quoted_value_that_looks_like_a_pointer_is_compared_whole() -> None:
    assert compile_filter('ExternalID == "/srv/é"').matches(VOLUME)
    assert not compile_filter("ExternalID == `srv/é`").matches(VOLUME)
    assert compile_filter('"/srv" in ExternalID').matches(VOLUME)
    assert not compile_filter('"/rv" in ExternalID').matches(VOLUME)


START = '"(", "-", "0", "\\"", "`", "all", "any", "not", [ \\t\\r\\n], [1-9] or [a-zA-Z]'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", f"1:1 (0): no match found, expected: {START}"),
        (" ", f"1:2 (1): no match found, expected: {START}"),
        ("ID", '1:3 (2): no match found, expected: "!=", ".", "==", "[", [ \\t\\r\\n] or [a-zA-Z0-9_/]'),
        ('ID is "x"', '1:7 (6): no match found, expected: "empty", "nil", "not" or [ \\t\\r\\n]'),
        ("(ID == a", '1:9 (8): rule "grouping": Unmatched parentheses'),
        ("((ID == a) and ID == b", '1:23 (22): rule "grouping": Unmatched parentheses'),
        ('ID == "abc', '1:11 (10): rule "string": Unterminated string literal'),
        ("ID == `abc", '1:11 (10): rule "string": Unterminated string literal'),
        ('ID == "a\\q"', '1:7 (6): rule "string": invalid syntax'),
        ('ID == "a\nb"', '1:7 (6): rule "string": invalid syntax'),
        ("Capacity == 5x", '1:14 (13): rule "number": Invalid number literal'),
        ("Parameters[x] == 1", '1:12 (11): rule "index": Invalid index'),
        ('Parameters["x" == 1', '1:16 (15): rule "index": Unclosed index expression'),
        ('ID in "x"', '1:7 (6): rule "match": Invalid selector'),
        ('ID == "é" AND', '1:11 (11): no match found, expected: "and", "or", [ \\t\\r\\n] or EOF'),
        ("ID == a\n  and ?", None),
        ("(ID == a)and(ID == b)", None),
    ],
)
def test_a_filter_that_cannot_be_read(text: str, fault: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        compile_filter(text)
    assert caught.value.message.startswith(PARSE)
    if fault is not None:
        assert caught.value.message == PARSE + fault


def test_a_place_counts_lines_and_characters_from_one_and_bytes_from_zero() -> None:
    with pytest.raises(BadRequest, match=r"2:7 \(19\): ") as caught:
        compile_filter('ID == "éé"\n  and ?')
    assert caught.value.message.startswith(PARSE)


FIND = "error finding value in datum: "
NO_FIELD = "couldn't find key: struct field with name"
NO_TEST = "cannot perform"
NO_EMPTY = "cannot perform is-empty operations on type"
NIL = "invalid value kind: invalid"
NO_REGEXP = "failed to compile regular expression"
COERCE = "error getting match value in expression: strconv."


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Foo == 1", f'{FIND}/Foo at part 0: {NO_FIELD} "Foo"'),
        ("id == 1", f'{FIND}/id at part 0: {NO_FIELD} "id"'),
        ("Allocations is empty", f'{FIND}/Allocations at part 0: {NO_FIELD} "Allocations"'),
        ("Parameters.x.y == 1", f'{FIND}/Parameters/x/y at part 1: couldn\'t find key "x"'),
        ("ID.foo == 1", f"{FIND}/ID/foo: at part 1, invalid value kind: string"),
        ("RequestedTopologies.Required is empty", f"{FIND}/RequestedTopologies/Required: at part 1, {NIL}"),
        (
            "Topologies.9.Segments is nil",
            f"{FIND}/Topologies/9/Segments at part 1: index 9 is out of range (length = 3)",
        ),
        ("Topologies.2.Segments is empty", f"{FIND}/Topologies/2/Segments: at part 2, {NIL}"),
        ("Topologies.x is empty", f'{FIND}/Topologies/x at part 1: couldn\'t convert value "x" to type int'),
        ("Capacity == abc", f'{COERCE}ParseInt: parsing "abc": invalid syntax'),
        ("Capacity == 5.0", f'{COERCE}ParseInt: parsing "5.0": invalid syntax'),
        ("CreateIndex == -1", f'{COERCE}ParseUint: parsing "-1": invalid syntax'),
        ("Schedulable == yes", f'{COERCE}ParseBool: parsing "yes": invalid syntax'),
        ("Capacity == 9223372036854775808", f'{COERCE}ParseInt: parsing "9223372036854775808": value out of range'),
        ("Topologies == x", "unable to find suitable primitive comparison function for matching"),
        ("ResourceExhausted != x", "unable to find suitable primitive comparison function for matching"),
        ("x in Topologies", 'unable to find suitable primitive comparison function for "in" comparison'),
        ("1 in Capacity", f'{NO_TEST} in/contains operations on type int64 for selector: "Capacity"'),
        ("x in Capacity", f'{COERCE}ParseInt: parsing "x": invalid syntax'),
        ("Capacity is empty", f'{NO_EMPTY} int64 for selector: "Capacity"'),
        (
            "ResourceExhausted is empty",
            f'{NO_EMPTY} struct for selector: "ResourceExhausted"',
        ),
        (
            "RequestedTopologies is empty",
            f'{NO_EMPTY} invalid for selector: "RequestedTopologies"',
        ),
        ('"/MountOptions" is empty', f'{NO_EMPTY} struct for selector: "MountOptions"'),
        ("ID is nil", f'{NO_TEST} is-nil operations on type string for selector: "ID"'),
        ("MountOptions.MountFlags matches x", "value of type []string is not convertible to []byte"),
        ("ID matches `[`", f'{NO_REGEXP} "[": error parsing regexp: missing closing ]: `[`'),
        ("ID matches `\\C`", f'{NO_REGEXP} "\\\\C": error parsing regexp: invalid escape sequence: `\\C`'),
        ("any ID as x { x == 1 }", "ID is not a list or a map"),
        ("any Parameters as x, x { x == 1 }", '"x" cannot be used as a placeholder for both the index and the value'),
        ("any Parameters as k { k.x == 1 }", "/k references a string so /k/x is invalid"),
        ("any Topologies as i, t { i.x == 1 }", "/i references a int so /i/x is invalid"),
        ("all Topologies as t { t.Segments is not empty }", f"{FIND}/Topologies/2/Segments: at part 2, {NIL}"),
    ],
)
def test_a_filter_that_fails_on_a_datum(text: str, fault: str) -> None:
    compiled = compile_filter(text)
    with pytest.raises(BadRequest) as caught:
        compiled.matches(VOLUME)
    assert caught.value.message == EVALUATE + fault


def test_a_failing_test_that_is_not_reached_does_no_harm() -> None:
    assert compile_filter("ID == `db-00` or ID matches `[`").matches(VOLUME)
    assert not compile_filter("ID == x and Foo == 1").matches(VOLUME)
    assert not compile_filter("Context.tier matches `[`").matches(VOLUME)


@pytest.mark.parametrize("rest", ["", ".x", ' == "s3"', " is nil", " matches `[`"])
def test_a_secret_that_exists_is_treated_like_one_that_does_not(rest: str) -> None:
    def outcome(key: str, secrets: object) -> str:
        test = rest if " " in rest else f"{rest} == 1"
        try:
            return str(compile_filter(f"Secrets.{key}{test}").matches(VOLUME | {"Secrets": secrets}))
        except BadRequest as error:
            return error.message.replace(key, "KEY")

    stored = {"password": "s3"}
    assert outcome("password", stored) == outcome("missing", stored) == outcome("password", None)


def test_the_callers_texts_are_not_in_the_source() -> None:
    compiled = compile_filter('Parameters["__import__(1)"] == "exit()" or Zonk.y == 1')
    assert "import" not in compiled.source
    assert "exit" not in compiled.source
    assert "Zonk" not in compiled.source
    assert compiled.members == {"Parameters"}


def test_the_same_text_is_compiled_once_and_few_are_kept() -> None:
    compile_filter.cache_clear()
    first = compile_filter("ID == once")
    assert compile_filter("ID == once") is first
    for number in range(FILTERS_KEPT_MAX):
        compile_filter(f"ID == x{number}")
    assert compile_filter("ID == once") is not first
    assert compile_filter.cache_info().currsize == FILTERS_KEPT_MAX


def test_a_text_that_is_too_long_is_refused() -> None:
    with pytest.raises(
        BadRequest, match=rf"1:1 \(0\): the expression is longer than {LENGTH_MAX_BYTES} bytes"
    ) as caught:
        compile_filter("ID == " + "é" * (LENGTH_MAX_BYTES // 2))
    assert caught.value.message.startswith(PARSE)


def test_the_longest_filters_compile() -> None:
    many = FilterLimits(terms_max=2000)
    assert compile_filter(" or ".join(["ID==x"] * 1500 + ["ID==`db-00`"]), limits=many).matches(VOLUME)
    assert compile_filter("not " * 4000 + "ID==x").matches(VOLUME) is False
    assert compile_filter("not " * 4001 + "ID==x").matches(VOLUME) is True


def test_length_and_comparisons_are_limited() -> None:
    limits = FilterLimits(bytes_max=100, terms_max=3)
    assert compile_filter("ID==a or not ID==b or any Parameters as k { k == c }", limits=limits).source
    for text, limit in (("ID == " + "x" * 100, "filter_bytes"), ("ID==a or ID==b or ID==c or ID==d", "filter_terms")):
        with pytest.raises(BadRequest, match=r"longer than 100 bytes|more than 3 comparisons") as caught:
            compile_filter(text, limits=limits)
        assert (caught.value.code, caught.value.fields["limit"]) == ("over_limit", limit)


@pytest.mark.parametrize("opening", ["(", "(ID == x or ", "not (", "any Topologies as t {"])
def test_nesting_has_a_limit(opening: str) -> None:
    closing = "}" if opening.endswith("{") else ")"

    def nested(levels: int) -> str:
        return opening * levels + "ID == `db-00` " + f" {closing}" * levels

    assert compile_filter(nested(NESTING_MAX - 1)).source
    with pytest.raises(BadRequest, match=f"nested more than {NESTING_MAX} levels deep"):
        compile_filter(nested(NESTING_MAX + 1))


def test_nested_loops_have_a_limit() -> None:
    text = "any Parameters as a { " * 4 + "ID == x " + "}" * 4
    volume = VOLUME | {"Parameters": {str(n): "" for n in range(60)}}
    with pytest.raises(BadRequest, match="look at more than 10000 items") as caught:
        compile_filter(text).matches(volume)
    assert caught.value.message.startswith(EVALUATE)


def test_a_hostile_pattern_takes_linear_time() -> None:
    assert not compile_filter("ID matches `(a*)*(a*)*b$`").matches(VOLUME | {"ID": "a" * 20_000})


NODE = Record(
    "structs.Node",
    {
        "Load": FLOAT64,
        "Drained": BOOL,
        "Seen": TIME,
        "Ports": ListOf(Scalar("int"), "[]int"),
        "Plugins": MapOf(Record("structs.Info", {"Name": STRING, "Tags": STRINGS}), "map[string]structs.Info"),
    },
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Load == 1.5", True),
        ('Load == "15e-1"', True),
        ("80 in Ports", True),
        ('"0x51" in Ports', False),
        ("Plugins.a.Name == alpha and x in Plugins.a.Tags", True),
        ("any Plugins as _, p { p.Tags is empty }", True),
        ("Plugins.z is nil", True),
    ],
)
def test_another_table_serves_as_well(text: str, expected: bool) -> None:
    plugins = {"a": {"Name": "alpha", "Tags": ["x"]}, "b": {"Name": "", "Tags": None}}
    node = {"Load": 1.5, "Drained": False, "Seen": "", "Ports": [80], "Plugins": plugins}
    assert compile_filter(text, NODE).matches(node) is expected


@pytest.mark.parametrize("text", ["x in Ports", "Load == x", "Plugins.z.Name == 1", "Plugins == 1"])
def test_another_table_fails_in_the_same_words(text: str) -> None:
    with pytest.raises(BadRequest, match=r"^failed to read result page: (error|unable)"):
        compile_filter(text, NODE).matches({"Load": 0.0, "Ports": [], "Plugins": {}})


def test_bytes_that_are_no_text_do_not_spoil_the_answer() -> None:
    with pytest.raises(BadRequest) as caught:
        compile_filter('any Parameters["\\xff"].x as k { k == 1 }').matches(VOLUME)
    caught.value.message.encode()
