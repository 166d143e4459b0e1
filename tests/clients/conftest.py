"""A `moorage dev` for the clients of a module: they are other people's programs, so it runs as its own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dev_server import Program, running_fleet


@pytest.fixture(scope="module")
def dev() -> Iterator[Program]:
    """A server with an agent and the plugin `hostpath`."""
    with running_fleet() as fleet:
        yield fleet.start_dev()
