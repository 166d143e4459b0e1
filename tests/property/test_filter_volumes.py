"""Filters over records against filters over data: the loop reads members from the record, changes the order of tests
that cannot fail and compares plain patterns itself; none of that may show."""

from __future__ import annotations

from typing import Any

import pytest
from filter_texts import WORDS, expressions
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.api import answers
from moorage.engine.reads import VolumeRead
from moorage.errors import BadRequest
from moorage.model.ids import NamespaceName, PluginId, Revision, VolumeId
from moorage.model.volume import Capability, MountOptions, Topology, TopologyRequest, Volume
from moorage.rules.filter import compile_filter, compile_volume_filter
from moorage.rules.filter_exact import Exact, find_equal, read_column
from moorage.rules.filter_patterns import Pattern, find_plain
from moorage.rules.filter_volumes import DIRECT
from moorage.rules.plugins import Health
from moorage.state.view import Record

word = st.sampled_from(WORDS)
number = st.integers(0, 8)
text_map = st.dictionaries(word, word, max_size=3)
topologies = st.lists(st.builds(Topology, segments=text_map), max_size=2).map(tuple)
volumes = st.builds(
    Volume,
    id=word.map(VolumeId),
    namespace=word.map(NamespaceName),
    plugin_id=word.map(PluginId),
    name=word,
    external_id=word,
    capacity_bytes=number,
    requested_min_bytes=number,
    requested_max_bytes=number,
    capabilities=st.none() | st.lists(st.builds(Capability, access_mode=word), max_size=2).map(tuple),
    mount_options=st.none() | st.builds(MountOptions, fs_type=word),
    parameters=text_map,
    context=text_map,
    requested_topologies=st.none() | st.builds(TopologyRequest, required=st.none() | topologies),
    topologies=topologies,
    clone_id=word,
    snapshot_id=word,
    access_mode=word,
    attachment_mode=word,
    shown_access_mode=word,
    shown_attachment_mode=word,
    provider=word,
    controller_required=st.booleans(),
    created_at_ns=number,
    modified_at_ns=number,
)
records = st.builds(Record, volumes, number.map(Revision), number.map(Revision))
HEALTH = Health(nodes_healthy=1, nodes_expected=2, provider_version="7")


def datum_of(record: Record[Volume]) -> dict[str, Any]:
    """What a list shows a filter."""
    read = VolumeRead(record=record, claims=(), health=HEALTH)
    return answers.volume(read) | answers.counters(read)


def outcome_by_datum(text: str, found: list[Record[Volume]]) -> list[int] | str:
    try:
        chosen = compile_filter(text)
        return [at for at, record in enumerate(found) if chosen.matches(datum_of(record))]
    except BadRequest as error:
        return error.message


def outcome_by_record(text: str, found: list[Record[Volume]]) -> list[int] | str:
    try:
        chosen, positions = compile_volume_filter(text), range(len(found))
        if chosen.exact is None:
            return list(chosen.select(found, positions, datum_of))
        column = read_column(chosen.exact.member, (record.value for record in found))
        return list(chosen.select(found, find_equal(column, chosen.exact.value, positions), datum_of))
    except BadRequest as error:
        return error.message


@settings(max_examples=1500, deadline=None)
@given(expressions, st.lists(records, max_size=3))
def test_the_loop_does_what_the_test_of_one_datum_does(text: str, found: list[Record[Volume]]) -> None:
    assert outcome_by_record(text, found) == outcome_by_datum(text, found)


@settings(max_examples=800, deadline=None)
@given(
    st.sampled_from(["ID", "Name", "ExternalID"]),
    st.sampled_from(WORDS),
    st.sampled_from(["", " and Capacity != 3", " and ID matches `a`", " and Context is empty", " and Nothing == 1"]),
    st.lists(records, max_size=6),
)
def test_who_is_named_is_found_as_by_looking_at_each(
    member: str, value: str, more: str, found: list[Record[Volume]]
) -> None:
    text = f'{member} == "{value}"{more}'
    assert outcome_by_record(text, found) == outcome_by_datum(text, found)
    if not isinstance(outcome_by_record(text, found), str) and "Nothing" not in text:
        assert compile_volume_filter(text).exact == Exact(member, value)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from("ab"), max_size=9), st.data())
def test_equal_texts_are_found_in_every_order(column: list[str], data: st.DataObject) -> None:
    low, high = sorted(data.draw(st.tuples(st.integers(0, len(column)), st.integers(0, len(column)))))
    for positions in (range(low, high), range(high - 1, low - 1, -1)):
        assert find_equal(column, "a", positions) == [at for at in positions if column[at] == "a"]


@pytest.mark.parametrize(
    "text",
    [
        "Name == a or ID == b",
        "Name != a",
        "not (Name == a)",
        "PluginID == a",
        "Name == a and Nothing == 1",
        "Name == a and (any Topologies as t { t.Segments is empty })",
        "Context.Name == a",
    ],
)
def test_where_a_name_alone_does_not_decide_each_volume_is_looked_at(text: str) -> None:
    assert compile_volume_filter(text).exact is None


@settings(max_examples=200, deadline=None)
@given(records)
def test_what_is_read_from_the_record_is_what_the_answer_shows(record: Record[Volume]) -> None:
    shown = datum_of(record)
    for member, code in DIRECT.items():
        assert eval(code, {"r": record, "v": record.value}) == shown[member], member


@settings(max_examples=1500, deadline=None)
@given(
    st.text("^$ab.\\*/-_ é\n(", max_size=6)
    | st.builds("{}a{}".format, st.sampled_from(["", "^"]), st.text("b$", max_size=2)),
    st.text("ab./-_ é\n", max_size=8),
)
def test_a_plain_pattern_finds_what_the_engine_finds(pattern: str, text: str) -> None:
    plain = find_plain(pattern)
    if plain is None:
        return
    found = eval(plain.code.format(text="t", value="v"), {"t": plain.text, "v": text})
    assert found == Pattern(pattern).is_in(text)


@pytest.mark.parametrize(
    ("pattern", "is_plain"),
    [("123$", True), ("^vol-", True), ("^a\\.b$", True), ("a.c", False), ("", False), ("(?i)a", False), ("a$b", False)],
)
def test_which_patterns_are_plain(pattern: str, is_plain: bool) -> None:
    assert (find_plain(pattern) is not None) is is_plain


def test_cheap_tests_come_first_only_where_none_can_fail() -> None:
    source = compile_volume_filter(
        "ID matches `a.c` and (any Topologies as t { t.Segments is empty }) and Name == a"
    ).source
    # t may be nil, which is an error: the caller's order stays.
    assert source.index("v.id") < source.index("v.name")
    source = compile_volume_filter("ID matches `a.c` and Name == a").source
    assert source.index("v.name") < source.index("v.id")


def test_the_loop_looks_at_no_volume_that_is_not_asked_for() -> None:
    made = []

    def whole(record: Record[Volume]) -> dict[str, Any]:
        made.append(record)
        return datum_of(record)

    volume = Volume(id=VolumeId("a"), namespace=NamespaceName("d"), plugin_id=PluginId("p"))
    found = [Record(volume, Revision(1), Revision(1))] * 9
    chosen = compile_volume_filter("NodesHealthy == 1 and NodesExpected == 2 and NodesHealthy != 3").select(
        found, range(9), whole
    )
    assert [next(chosen), next(chosen)] == [0, 1]
    assert len(made) == 2
    assert list(compile_volume_filter("ID == b or Context is empty").select(found, range(9), whole)) == list(range(9))
    assert len(made) == 2
