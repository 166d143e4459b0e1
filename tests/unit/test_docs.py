"""The documentation says what the program does: pages made from tables are up to date, and nothing is left out."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
CORPUS = ROOT / "tests" / "conformance" / "corpus"


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


TOOL = load_tool("write_api_docs")


@pytest.mark.parametrize("path", sorted(TOOL.pages()), ids=lambda path: path.name)
def test_made_page_is_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == TOOL.pages()[path], "run `make docs`"


def test_every_route_is_in_the_page() -> None:
    from moorage.api.routes import ROUTES

    text = (DOCS / "api.md").read_text(encoding="utf-8")
    paths = [re.sub(r":(\w+)", r"{\1}", route.pattern) for route in ROUTES]
    assert [path for path in paths if f"`{path}`" not in text] == []


def test_every_command_and_flag_is_in_the_page() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    for entry, parser in TOOL.parsers():
        assert f"`moorage {' '.join(entry.words)}`" in text
        for action in (a for a in parser._actions if a.help != argparse.SUPPRESS):
            for option in action.option_strings:
                assert option in text, f"{parser.prog} {option}"
            assert action.help, f"{parser.prog}: {action.option_strings or action.dest} has no help"


def find_differing_steps() -> set[tuple[str, int]]:
    found = set()
    for path in CORPUS.glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            step = json.loads(line)
            if "instead" in step:
                found.add((path.stem, step["n"]))
    return found


def find_explained_steps() -> set[tuple[str, int]]:
    text = (DOCS / "compatibility.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z-]+) \| ([0-9, ]+) \|", text, re.MULTILINE)
    return {(name, int(number)) for name, numbers in rows for number in numbers.split(",")}


def test_every_differing_step_is_explained() -> None:
    steps = find_differing_steps()
    assert len(steps) > 30, "the corpus was not read"
    assert steps - find_explained_steps() == set(), "add a row to docs/compatibility.md"
    assert find_explained_steps() - steps == set(), "the corpus has no such step with another answer"


def test_every_test_that_security_names_is_there() -> None:
    named = set(re.findall(r"`(tests/[a-z_/]+\.py)`", (DOCS / "security.md").read_text(encoding="utf-8")))
    assert len(named) > 12
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []
