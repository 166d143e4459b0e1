"""The composition root: picks the store, builds engine, API, agent and drivers, and runs them in one task group.

The only room that knows all others. ``cli`` calls the functions here; each imports what it needs when it is called.
"""

from __future__ import annotations

import argparse
import importlib
import sys


def _load_structlog() -> None:
    """Load structlog without rich: it takes it for a console's tracebacks, which no program here writes, and that is a
    tenth of an idle agent's memory."""
    if "structlog" in sys.modules or "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # what Python itself takes for "not to be found"
    try:
        importlib.import_module("structlog")
    finally:
        del sys.modules["rich"]


_load_structlog()


def add_dev_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of ``moorage dev``."""
    from moorage.serve.dev import add_arguments

    add_arguments(parser)


def run_dev(args: argparse.Namespace) -> int:
    """Run ``moorage dev`` until it is told to stop; returns the exit code."""
    from moorage.serve.dev import run

    return run(args)


def add_driver_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of ``moorage driver local``."""
    from moorage.csi.local.program import add_arguments

    add_arguments(parser)


def run_driver(args: argparse.Namespace) -> int:
    """Run the embedded driver until it is told to stop; returns the exit code."""
    from moorage.csi.local.program import run

    return run(args)


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of ``moorage server``."""
    from moorage.serve.server import add_arguments

    add_arguments(parser)


def run_server(args: argparse.Namespace) -> int:
    """Run ``moorage server`` until it is told to stop; returns the exit code."""
    from moorage.serve.server import run

    return run(args)


def add_agent_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of ``moorage agent``."""
    from moorage.serve.node import add_arguments

    add_arguments(parser)


def run_agent(args: argparse.Namespace) -> int:
    """Run ``moorage agent`` until it is told to stop; returns the exit code."""
    from moorage.serve.node import run

    return run(args)
