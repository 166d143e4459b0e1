"""A group of transactions as SQLite gets it: how many statements, and what stands in the tables afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.model.ids import Revision
from moorage.state.sqlite_format import LOG_STRIDE, open_database, read_counters
from moorage.state.sqlite_group import GroupCommit, Txn
from moorage.state.sqlite_rows import ROWS_MAX
from moorage.state.store import Compare, Delete, Put

KEYS = [f"volumes/default/v{number}" for number in range(6)]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[apsw.Connection]:
    found = open_database(tmp_path / "store.db")
    yield found
    found.close()


def make_group(database: apsw.Connection, *, history_revisions: int = 10_000) -> GroupCommit:
    return GroupCommit(database, history_revisions=history_revisions, history_bytes=1 << 28, recent_bytes=2000)


def put(number: int) -> Txn:
    """A new key, as a register makes it."""
    key = f"volumes/default/n{number}"
    return Txn((Compare(key, Revision(0)),), (Put(key, b"x"),), ())


def count_statements(database: apsw.Connection, group: GroupCommit, transactions: list[Txn]) -> list[str]:
    """The statements that a group takes, but for those inside of triggers."""
    told: list[str] = []

    def note(event: dict[str, object]) -> None:
        # SQLite tells of what a trigger does as a comment.
        if not event["trigger"]:
            told.append(str(event["sql"])[:30])

    database.trace_v2(apsw.SQLITE_TRACE_STMT, note)
    group.run(transactions)
    database.trace_v2(0, None)
    return told


@pytest.mark.parametrize("size", [1, 2, 7, ROWS_MAX])
def test_a_group_is_one_question_and_one_statement(database: apsw.Connection, size: int) -> None:
    """Each statement gives the interpreter away: with six of them a group of six waited 0.8 ms to have it back."""
    group = make_group(database)
    group.run([put(-1)])
    told = count_statements(database, group, [put(number) for number in range(size)])
    assert [text.split()[0] for text in told] == ["SELECT", "INSERT"]


def test_a_larger_group_is_a_transaction(database: apsw.Connection) -> None:
    group = make_group(database)
    told = count_statements(database, group, [put(number) for number in range(ROWS_MAX + 1)])
    assert [text.split()[0] for text in told] == ["SELECT", "SELECT", "BEGIN", "INSERT", "INSERT", "COMMIT"]


def test_the_file_has_no_triggers(database: apsw.Connection, tmp_path: Path) -> None:
    """A version that knows nothing of them writes its tables itself."""
    make_group(database).run([put(1)])
    other = apsw.Connection(str(tmp_path / "store.db"))
    assert list(other.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")) == []
    other.close()


_OPS = st.lists(
    st.one_of(
        st.builds(Put, st.sampled_from(KEYS), st.binary(min_size=1, max_size=300)),
        st.builds(Delete, st.sampled_from(KEYS)),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda op: op.key,
)


@settings(deadline=None, max_examples=50)
@given(
    groups=st.lists(st.lists(_OPS, min_size=1, max_size=5), min_size=1, max_size=8), history=st.sampled_from([3, 99])
)
def test_the_tables_are_what_the_changes_make(groups: list[list[list[Put | Delete]]], history: int) -> None:
    """Keys, values, revisions and versions, by a plain account of all operations; the log goes back as far as it is
    to, and the newest revision is on the disk with its group."""
    with TemporaryDirectory() as place, closing(open_database(Path(place, "store.db"))) as database:
        check_tables(database, groups, history)


def check_tables(database: apsw.Connection, groups: list[list[list[Put | Delete]]], history: int) -> None:
    group = make_group(database, history_revisions=history)
    wanted: dict[str, tuple[bytes, int, int, int]] = {}
    revision = 0
    for one in groups:
        group.run([Txn((), tuple(ops), ()) for ops in one])
        for ops in one:
            changing = [op for op in ops if isinstance(op, Put) or op.key in wanted]
            revision += bool(changing)
            for op in changing:
                before = wanted.pop(op.key, None)
                if isinstance(op, Put):
                    created, version = (before[1], before[3] + 1) if before else (revision, 1)
                    wanted[op.key] = (op.value, created, revision, version)
        found = {k: tuple(rest) for k, *rest in database.execute("SELECT * FROM current")}
        assert found == wanted
        counters = read_counters(database)
        assert counters.revision == group.revision == revision
        oldest = database.execute("SELECT min(id) FROM log").get
        # The last commit may forget what is older than the history by one revision.
        assert oldest is None or oldest // LOG_STRIDE >= revision - history - 1
