"""Write docs/api.md from the API's description and docs/cli.md from the commands' parsers; ``--check`` only compares.

Nothing in those pages is written by hand: a route, a parameter, a command or a flag that changes is changed in its own
table, and this program writes the pages anew (``make docs``).
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moorage.api.metric_catalog import METRICS
from moorage.api.openapi import REFUSALS, describe
from moorage.cli.commands import COMMANDS, PROGRAMS, Command, Program
from moorage.cli.flags import add_global_flags

DOCS = Path(__file__).resolve().parent.parent / "docs"
MADE = "<!-- Made by tools/write_api_docs.py; do not edit: `make docs` writes it anew. -->"

API_HEAD = f"""# The HTTP API

{MADE}

The same as OpenAPI 3.1 is served at `GET /v1/openapi.json`. Where moorage answers differently from recorded servers on
purpose is in [compatibility.md](compatibility.md).
"""
CLI_HEAD = f"""# Commands and flags

{MADE}

A flag may be written `-flag` or `--flag`. Exit codes: 0 done, 1 failed, 2 used wrongly, 130 interrupted.
"""


# -- the API -----------------------------------------------------------------------------------------------------------


def render_api() -> str:
    """The text of docs/api.md."""
    document = describe()
    lines = [API_HEAD, document["info"]["description"].split("\n\n", 1)[1].strip(), ""]
    lines += ["## Refusals", "", "| Status | Meaning |", "|---|---|"]
    lines += [
        f"| {status} | {meaning}{'' if is_plain else ' Only as a problem.'} |" for status, meaning, is_plain in REFUSALS
    ]
    for group, rows in _group(document).items():
        lines += ["", f"## {group}"]
        for path, methods, operation in rows:
            lines += ["", *_operation(document, path, methods, operation)]
    lines += [
        "",
        "## Objects",
        "",
        "What bodies and answers are made of. Names in a body match without regard to case.",
    ]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += ["", *_schema(name, schema)]
    return "\n".join(lines) + "\n"


def _group(document: dict[str, Any]) -> dict[str, list[tuple[str, list[str], dict[str, Any]]]]:
    """Operations by group; methods of a path that do the same are one row."""
    groups: dict[str, list[tuple[str, list[str], dict[str, Any]]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            rows = groups.setdefault(operation["tags"][0], [])
            same = {k: v for k, v in operation.items() if k != "operationId"}
            if rows and rows[-1][0] == path and {k: v for k, v in rows[-1][2].items() if k != "operationId"} == same:
                rows[-1][1].append(method.upper())
            else:
                rows.append((path, [method.upper()], operation))
    return groups


def _operation(document: dict[str, Any], path: str, methods: list[str], operation: dict[str, Any]) -> Iterator[str]:
    yield f"### {', '.join(methods)} `{path}`"
    yield ""
    summary = operation["summary"]
    notes = operation.get("description", "")
    yield f"{summary[0].upper()}{summary[1:]}. {notes}".rstrip()
    if operation.get("x-internal"):
        yield "*Internal: for moorage's own agents.*"
    if "x-moorage-extension" in operation:
        yield f"*Extension: {operation['x-moorage-extension']}*"
    yield ""
    yield f"Needs: {operation['x-moorage-grant']}."
    parameters = [_resolve(document, p) for p in operation["parameters"]]
    if parameters:
        yield from ("", "| Parameter | In | Meaning |", "|---|---|---|")
        for parameter in parameters:
            needed = ", required" if parameter["required"] and parameter["in"] != "path" else ""
            yield f"| `{parameter['name']}` | {parameter['in']}{needed} | {_cell(parameter['description'])} |"
    body = operation.get("requestBody")
    if body:
        yield from ("", f"Body: {_type_of(body['content']['application/json']['schema'])}.")
    yield from ("", _answer(operation))


def _answer(operation: dict[str, Any]) -> str:
    success = operation["responses"].get("200")
    if success is None:
        return "Answer: always a refusal."
    content = next(iter(success.get("content", {}).values()), None)
    text = "empty" if content is None else _type_of(content["schema"])
    if operation.get("x-moorage-stream"):
        text = "a JSON object a line, without end"
    headers = ", ".join(f"`{name}`" for name in success.get("headers", {}))
    return f"Answer: 200, {text}{f'; headers {headers}' if headers else ''}."


def _resolve(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    found: Any = document
    for name in part.get("$ref", "").removeprefix("#/").split("/"):
        found = found[name] if name else part
    return dict(found)


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"### {name}"
    yield ""
    if schema.get("description"):
        yield " ".join(schema["description"].split())
    if "properties" in schema:
        yield from ("", "| Member | Type | Meaning |", "|---|---|---|")
        for member, kind in sorted(schema["properties"].items()):
            yield f"| `{member}` | {_cell(_type_of(kind))} | {_cell(kind.get('description', ''))} |"
    elif not schema.get("description"):
        yield f"{_type_of(schema)}."


def _type_of(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower().replace('.', '')})"
    for word in ("oneOf", "anyOf"):
        if word in schema:
            return " or ".join(_type_of(s) for s in schema[word])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kinds = schema.get("type", "anything")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return " or ".join(_kind(kind, schema) for kind in kinds)


def _kind(kind: str, schema: dict[str, Any]) -> str:
    if kind == "array":
        return f"list of {_type_of(schema['items'])}" if "items" in schema else "list"
    inner = schema.get("additionalProperties")
    if kind == "object" and isinstance(inner, dict) and inner:
        return f"map of {_type_of(inner)}"
    return {"integer": "integer", "boolean": "truth value", "string": "text"}.get(kind, kind)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# -- the commands ------------------------------------------------------------------------------------------------------


def parsers() -> Iterator[tuple[Command | Program, argparse.ArgumentParser]]:
    """Every command with its parser, without the flags that all commands share."""
    for entry in (*PROGRAMS, *COMMANDS):
        parser = argparse.ArgumentParser(prog=f"moorage {' '.join(entry.words)}", add_help=False)
        if isinstance(entry, Program):
            add = getattr(importlib.import_module(entry.module), entry.add_arguments, None)
        else:
            add = getattr(importlib.import_module(f"moorage.cli.{entry.module}"), f"add_{entry.name}")
        if add is not None:
            add(parser)
        yield entry, parser


def render_cli() -> str:
    """The text of docs/cli.md."""
    lines = [CLI_HEAD]
    for entry, parser in parsers():
        more = entry.more if isinstance(entry, Command) else ""
        lines += [f"## `{parser.prog}`", ""]
        lines += [f"{entry.summary[0].upper()}{entry.summary[1:]}. {more}".rstrip(), "", f"    {entry.example}", ""]
        lines += _flags(parser)
    shared = argparse.ArgumentParser(add_help=False)
    add_global_flags(shared)
    lines += ["## Flags of every command that talks to a server", "", *_flags(shared)]
    return "\n".join(lines).rstrip() + "\n"


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    rows = [_flag(action) for action in parser._actions if action.help != argparse.SUPPRESS]
    return ["| Argument | Meaning |", "|---|---|", *rows, ""] if rows else []


def _flag(action: argparse.Action) -> str:
    choices = "|".join(str(c) for c in action.choices) if action.choices else ""
    value = action.metavar or choices or action.dest.upper()
    value = value if isinstance(value, str) else " ".join(value)
    if action.option_strings:
        name = ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {value}")
    else:
        name = value
    meaning = re.sub(r"%\((\w+)\)s", lambda m: str(getattr(action, m[1], "")), action.help or "").replace("%%", "%")
    return f"| `{_cell(name)}` | {_cell(meaning)} |"


# -- the metrics -------------------------------------------------------------------------------------------------------

_METRICS_HEAD = """# Metrics

`GET /v1/metrics` on every server: JSON in the shape of the recorded servers, for tools that read those, and the text
format of Prometheus with `?format=prometheus`. With access control on it takes a token whose policies give agent `read`
or operator `read`. Numbers are totals since the start of the process: in the JSON, `Count` and `Sum` are totals and
`Rate` is the average a second since then, so that two readers do not take anything from each other.

Made from `src/moorage/api/metric_catalog.py` by `make docs`. Each label has few values, whatever clients, drivers and
agents send; what is outside of its set is `other`.

```yaml
scrape_configs:
  - job_name: moorage
    metrics_path: /v1/metrics
    params: {format: [prometheus]}
    static_configs: [{targets: ["storage-1:4646"]}]
```

| Metric | Type | Labels | Meaning |
|---|---|---|---|
"""
_METRICS_ALERTS = """
## What to be woken for

Also when a server cannot be scraped at all (`up == 0`). The numbers are where to begin, not where to end.

| Expression | Metric |
|---|---|
"""


def render_metrics() -> str:
    """The page of all metrics."""
    rows = [
        f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels) or '–'} | {_cell(m.meaning)} |"
        for m in METRICS
    ]
    alerts = [f"| `{_cell(m.alert)}` | `{m.name}` |" for m in METRICS if m.alert]
    return _METRICS_HEAD + "\n".join(rows) + "\n" + _METRICS_ALERTS + "\n".join(alerts) + "\n"


# -- writing -----------------------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Every page that is made, with its text."""
    return {DOCS / "api.md": render_api(), DOCS / "cli.md": render_cli(), DOCS / "metrics.md": render_metrics()}


def main() -> int:
    """Write the pages, or say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    args = parser.parse_args()
    stale = [p for p, text in pages().items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        if args.check:
            print(f"{path.name} is out of date: run `make docs`")
        else:
            path.write_text(pages()[path], encoding="utf-8")
            print(f"wrote {path.name}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
