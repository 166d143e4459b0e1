"""Real processes for each test here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from asking import ask
from dev_server import Fleet, Program, running_fleet


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A fleet of this test alone; nothing of it may outlive the test."""
    with running_fleet() as running:
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
