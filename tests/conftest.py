"""Shared fixtures. A test that needs root is skipped by name and counted elsewhere."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, as the program does."""
    return "asyncio"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root where there is none."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: mounts and namespaces")
    for item in items:
        if "root" in item.keywords:
            item.add_marker(skip)
