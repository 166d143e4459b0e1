"""Real processes for each test here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from asking import ask
from dev_server import IS_GUARDED, Fleet, Program, running_fleet


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What is marked ``guarded`` runs twice: as it is, and over TLS with access control."""
    if metafunc.definition.get_closest_marker("guarded") and "fleet" in metafunc.fixturenames and not IS_GUARDED:
        metafunc.parametrize("is_guarded", [False, True], ids=["open", "guarded"])


@pytest.fixture
def is_guarded() -> bool:
    """Whether the test's fleet is guarded."""
    return IS_GUARDED


@pytest.fixture
def fleet(is_guarded: bool) -> Iterator[Fleet]:
    """A fleet of this test alone; nothing of it may outlive the test."""
    with running_fleet(is_guarded=is_guarded) as running:
        yield running


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    """One `moorage dev` for all tests of a module."""
    with running_fleet() as running:
        yield running.start_dev()


@pytest.fixture
def unharmed_url(program: Program) -> Iterator[str]:
    """The address of the module's server; after the test it still serves, and its log has nothing to be ashamed of."""
    before = len(program.log)
    yield program.url
    reply = ask(program.url, "GET", "/v1/volumes?type=csi")
    assert reply.status == 200
    logged = program.log[before:]
    assert "request.crashed" not in logged, logged[-3000:]
    assert "Traceback" not in logged, logged[-3000:]
