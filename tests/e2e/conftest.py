"""Real processes for each test here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dev_server import Fleet, running_fleet


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A fleet of this test alone; nothing of it may outlive the test."""
    with running_fleet() as running:
        yield running
