"""Shared fixtures. A test that needs root is skipped by name and counted elsewhere. At the end of a run: what the
search for secrets saw of all fleets, and the run's failure where it was blind."""

from __future__ import annotations

import os
from typing import Any

import pytest
from canary_marks import LEARNT, MARKED
from canary_watch import PLACES, TOTALS

CANARIES = "canaries"


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, as the program does."""
    return "asyncio"


def pytest_configure(config: pytest.Config) -> None:
    """With several processes, theirs hand over what they counted."""
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(_Workers())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root where there is none."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: mounts and namespaces")
    for item in items:
        if "root" in item.keywords:
            item.add_marker(skip)


class _Workers:
    """The side of a run with several processes that hears of their ends."""

    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take what a process counted."""
        TOTALS.take(getattr(node, "workeroutput", {}).get(CANARIES, {"counts": {}, "went_in": {}}))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand over; or fail a whole run whose search could not have found anything."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[CANARIES] = TOTALS.give()
    elif find_blind_spots(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def find_blind_spots(config: pytest.Config) -> list[str]:
    """What was not seen in a run of everything by root; of a part of the tests nothing is expected."""
    is_part = config.args_source is not pytest.Config.ArgsSource.TESTPATHS or config.option.keyword
    if is_part or config.option.markexpr or config.option.collectonly or os.geteuid() != 0:
        return []
    return TOTALS.find_blind_spots([*MARKED, *LEARNT], PLACES)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One paragraph."""
    if not TOTALS.counts["fleets"]:
        return
    terminalreporter.section("search for secrets")
    for line in TOTALS.describe():
        terminalreporter.write_line(line)
    for spot in find_blind_spots(config):
        terminalreporter.write_line(f"BLIND: {spot}", red=True)
