"""The house's rules that a machine can count: sizes, names, docstrings, no addresses of package registries.

A limit here is not raised to let a change in: the module is split, the function is cut.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES_MAX = 400
FUNCTION_LINES_MAX = 70
POSITIONAL_MAX = 4
EMPTY_NAMES = frozenset(("utils", "util", "helpers", "helper", "common", "base", "manager", "managers", "misc"))
GENERATED = frozenset(("csi_pb2.py",))
# In parts: this file is looked through too.
REGISTRIES = tuple(f"{name}.{end}" for name, end in (
    ("py" + "pi", "org"),
    ("files.python" + "hosted", "org"),
    ("registry." + "npmjs", "org"),
    ("registry." + "yarnpkg", "com"),
    ("proxy." + "golang", "org"),
    ("static." + "crates", "io"),
))  # fmt: skip

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def list_files() -> tuple[Path, ...]:
    """What the project holds: the files git keeps or would keep; without git, those in its directories."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        names = listed.stdout.decode().split("\0")
        return tuple(path for name in names if name and (path := ROOT / name).is_file())
    places = ("src", "tests", "tools", "docs", "requirements")
    found = [path for place in places for path in (ROOT / place).rglob("*") if "__pycache__" not in path.parts]
    return tuple(path for path in [*found, *ROOT.glob("*")] if path.is_file())


def list_modules(*places: str) -> list[Path]:
    """Modules below directories of the project, without generated ones."""
    return sorted(
        path
        for path in list_files()
        if path.suffix == ".py" and path.name not in GENERATED and path.relative_to(ROOT).parts[0] in places
    )


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def list_functions(path: Path) -> Iterator[tuple[str, Function, bool]]:
    """Each function with its name and line, and whether it is a method (its first parameter is then the object)."""
    for parent in ast.walk(parse(path)):
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, Function):
                is_static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
                is_method = isinstance(parent, ast.ClassDef) and not is_static
                yield f"{name_of(path)}:{node.lineno} {node.name}", node, is_method


# -- decisions -------------------------------------------------------------------------------------------------------


def count_lines(function: Function) -> int:
    """Lines from `def` to the end."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def count_positional(function: Function, *, is_method: bool) -> int:
    """Parameters that may be given by position; `self` and `cls` are not counted."""
    return len(function.args.posonlyargs) + len(function.args.args) - is_method


def find_undocumented(module: ast.Module) -> list[str]:
    """The module, public classes, their public methods and public functions without a docstring.

    An overload needs none of its own; the name of a test says what it shows.
    """
    found = [] if ast.get_docstring(module) else ["the module"]
    for node in module.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            if not ast.get_docstring(node) and not _is_overload(node):
                found.append(f"{node.name} (line {node.lineno})")
            if isinstance(node, ast.ClassDef):
                found += [f"{node.name}.{name}" for name in _find_undocumented_methods(node)]
    return found


def _find_undocumented_methods(node: ast.ClassDef) -> Iterator[str]:
    for method in node.body:
        if (
            isinstance(method, Function)
            and not method.name.startswith(("_", "test_"))
            and not ast.get_docstring(method)
        ):
            yield f"{method.name} (line {method.lineno})"


def _is_overload(node: ast.AST) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "overload" for d in getattr(node, "decorator_list", ()))


def check_none(found: Iterable[str]) -> None:
    """Fail with all that was found, a line each."""
    lines = sorted(found)
    assert not lines, f"{len(lines)} against the rules:\n" + "\n".join(lines)


# -- the tree --------------------------------------------------------------------------------------------------------


def test_modules_are_short() -> None:
    lengths = {name_of(p): p.read_text(encoding="utf-8").count("\n") for p in list_modules("src", "tests", "tools")}
    assert len(lengths) > 50, "the modules were not found"
    check_none(f"{name}: {lines} lines" for name, lines in lengths.items() if lines > LINES_MAX)


def test_functions_are_short() -> None:
    modules = list_modules("src", "tests", "tools")
    lengths = {name: count_lines(node) for path in modules for name, node, _ in list_functions(path)}
    check_none(f"{name}: {lines} lines" for name, lines in lengths.items() if lines > FUNCTION_LINES_MAX)


def test_functions_take_few_positional_parameters() -> None:
    modules = list_modules("src", "tools")
    counts = {
        name: count_positional(node, is_method=is_method)
        for path in modules
        for name, node, is_method in list_functions(path)
    }
    check_none(f"{name}: {count} positional parameters" for name, count in counts.items() if count > POSITIONAL_MAX)


def test_no_module_is_named_after_nothing() -> None:
    parts = {path: {path.stem, *path.relative_to(ROOT).parent.parts} for path in list_modules("src", "tests", "tools")}
    check_none(name_of(path) for path, words in parts.items() if words & EMPTY_NAMES)


def test_everything_public_says_what_it_is() -> None:
    check_none(
        f"{name_of(path)}: {found}"
        for path in list_modules("src")
        if path.read_text(encoding="utf-8").strip()
        for found in find_undocumented(parse(path))
    )


def test_no_file_names_a_package_registry() -> None:
    named = []
    for path in list_files():
        content = path.read_bytes().lower()
        named += [f"{name_of(path)}: {host}" for host in REGISTRIES if host.encode() in content]
    check_none(named)
    assert any(name_of(path).startswith("requirements/") for path in list_files())


# -- the counting itself ---------------------------------------------------------------------------------------------


def first_function(source: str) -> Function:
    found = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, Function))
    assert isinstance(found, Function)
    return found


def test_lines_are_counted_to_the_end_of_the_body() -> None:
    assert count_lines(first_function("@x\ndef f(\n    a,\n):\n    return a\n\n")) == 4


@pytest.mark.parametrize(
    ("parameters", "is_method", "count"),
    [("a, b, c, d, e", False, 5), ("self, a, b, c, d", True, 4), ("a, /, b, *, c, d", False, 2), ("*a, **b", False, 0)],
)
def test_positional_parameters_are_counted(parameters: str, is_method: bool, count: int) -> None:
    assert count_positional(first_function(f"def f({parameters}): ..."), is_method=is_method) == count


def test_missing_docstrings_are_found() -> None:
    source = (
        'class A:\n    def b(self): ...\n    def _c(self): ...\ndef d(): ...\ndef _e(): ...\ndef f():\n    "says"\n'
    )
    assert find_undocumented(ast.parse(source)) == ["the module", "A (line 1)", "A.b (line 2)", "d (line 4)"]
