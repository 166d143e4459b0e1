"""The command line: find the command, read its flags, run it, and say what went wrong.

Exit codes: 0 done, 1 failed, 2 used wrongly, 130 interrupted. What is imported here is what every start pays for.
Never: HTTP of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from moorage import __version__
from moorage.cli.commands import COMMANDS, PROGRAMS, Command, Program
from moorage.cli.flags import add_global_flags, make_endpoint, normalize_flags, split_leading_flags
from moorage.cli.hints import find_hint
from moorage.cli.output import Output
from moorage.cli.session import Ambiguous, Session
from moorage.client.sync import Client
from moorage.errors import BadRequest, MoorageError

_HELP_WORDS = ("-h", "--help", "help")
_ALL: tuple[Command | Program, ...] = (*PROGRAMS, *COMMANDS)


def main(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return the exit code."""
    output = Output(sys.stdout, sys.stderr)
    try:
        code = _dispatch(list(argv), output)
        sys.stdout.flush()
    except KeyboardInterrupt:
        output.note("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:  # argparse: -h or wrong usage
        return stop.code if isinstance(stop.code, int) else 2
    return code


def _dispatch(argv: list[str], output: Output) -> int:
    leading, rest = split_leading_flags(normalize_flags(argv))
    if rest and rest[0] in ("--version", "version"):
        output.line(f"moorage {__version__}")
        return 0
    if not rest or rest[0] in _HELP_WORDS:
        output.line(_overview(()))
        return 0 if rest else 2
    command, words = _find_command(rest)
    if command is None:
        return _explain(rest, words, output)
    rest = rest[len(words) :]
    parser = _make_parser(command)
    if isinstance(command, Program):
        return _run_program(command, parser, leading + rest)
    functions = importlib.import_module(f"moorage.cli.{command.module}")
    add: Callable[[argparse.ArgumentParser], None] = getattr(functions, f"add_{command.name}")
    run: Callable[[argparse.Namespace, Session], int] = getattr(functions, f"run_{command.name}")
    add(parser)
    add_global_flags(parser)
    args = parser.parse_intermixed_args(leading + rest)
    return _run_command(command, args, run, output)


def _find_command(rest: Sequence[str]) -> tuple[Command | Program | None, tuple[str, ...]]:
    """The command that ``rest`` begins with and its words, or None and the words that lead towards one."""
    words: tuple[str, ...] = ()
    for word in rest:
        longer = (*words, word)
        fitting = [entry for entry in _ALL if entry.words[: len(longer)] == longer]
        if not fitting:
            break
        words = longer
        if fitting[0].words == words:
            return fitting[0], words
    return None, words


def _explain(rest: Sequence[str], words: tuple[str, ...], output: Output) -> int:
    """Say what is possible where the words led to no command."""
    wrong = rest[len(words)] if len(rest) > len(words) else ""
    if wrong in _HELP_WORDS:
        output.line(_overview(words))
        return 0
    if wrong:
        import difflib

        choices = sorted({entry.words[len(words)] for entry in _ALL if entry.words[: len(words)] == words})
        near = difflib.get_close_matches(wrong, choices, n=1)
        meant = f"; did you mean `{' '.join(('moorage', *words, near[0]))}`?" if near else ""
        output.note(f"Error: there is no command `{' '.join(('moorage', *words, wrong))}`{meant}")
    output.note(_overview(words))
    return 2


def _overview(words: tuple[str, ...]) -> str:
    """The commands that begin with ``words``, a line each."""
    entries = [entry for entry in _ALL if entry.words[: len(words)] == words]
    width = max(len(" ".join(entry.words)) for entry in entries)
    lines = [f"Usage: {' '.join(('moorage', *words))} COMMAND … [flags]", ""]
    lines += [f"  {' '.join(entry.words).ljust(width)}  {entry.summary}" for entry in entries]
    lines += ["", "`moorage COMMAND -h` tells more. Flags may be written -flag or --flag."]
    if not words:
        lines += ["The server is found by MOORAGE_ADDR or NOMAD_ADDR; without them at http://127.0.0.1:4646."]
    return "\n".join(lines)


def _make_parser(command: Command | Program) -> argparse.ArgumentParser:
    more = command.more if isinstance(command, Command) else ""
    return argparse.ArgumentParser(
        prog=" ".join(("moorage", *command.words)),
        description=f"{command.summary[0].upper()}{command.summary[1:]}. {more}".rstrip(),
        epilog=f"Example: {command.example}",
        allow_abbrev=False,
    )


def _run_program(command: Program, parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Hand over to the program's module, ``moorage.serve`` mostly, which is imported only here."""
    serve = importlib.import_module(command.module)
    add: Callable[[argparse.ArgumentParser], None] | None = getattr(serve, command.add_arguments, None)
    run: Callable[[argparse.Namespace], int] | None = getattr(serve, command.run, None)
    if add is None or run is None:
        sys.stderr.write(f"Error: `moorage {' '.join(command.words)}` is not part of this version; use `moorage dev`\n")
        return 1
    add(parser)
    args = parser.parse_args(argv)
    try:
        return run(args)
    except MoorageError as error:
        sys.stderr.write(f"Error: {error.message}\n")
        return 2 if isinstance(error, BadRequest) else 1


def _run_command(
    command: Command, args: argparse.Namespace, run: Callable[[argparse.Namespace, Session], int], output: Output
) -> int:
    endpoint = make_endpoint(args)
    doing = _describe(command, args)
    try:
        with Client(endpoint) as client:
            session = Session(
                client=client,
                output=output,
                wants_json=args.json,
                is_input_terminal=sys.stdin is not None and sys.stdin.isatty(),
            )
            return run(args, session)
    except Ambiguous as error:
        output.note(f"Error {doing}: {error.message}")
        columns = [name for name in ("ID", "Name", "Namespace", "PluginID") if any(name in row for row in error.rows)]
        output.note_table(columns, [[row.get(name) for name in columns] for row in error.rows])
    except MoorageError as error:
        output.note(f"Error {doing}: {error.message}")
        hint = find_hint(error, endpoint.address)
        if hint:
            output.note(f"Hint: {hint}")
    return 1


def _describe(command: Command, args: argparse.Namespace) -> str:
    """``deleting volume data``: what was being done, for the error line."""
    verb = command.words[-1]
    doing = {
        "status": "reading",
        "list": "listing",
        "info": "reading",
        "self": "reading",
        "apply": "writing",
        "bootstrap": "bootstrapping",
        "create": "creating",
        "delete": "deleting",
        "mount": "mounting",
        "umount": "unmounting",
        "why": "explaining",
        "orphans": "looking for",
    }.get(verb, f"{verb}ing")
    what = {"alloc": "allocation", "mount": "volume", "umount": "of"}.get(command.words[0], command.words[-2:][0])
    if command.words[0] == "umount":
        what = ""
    if verb == "bootstrap":
        what = "access control"
    if verb == "orphans":
        what = "orphans"
    subject: Any = next((getattr(args, name) for name in ("subject", "volume", "plugin") if hasattr(args, name)), None)
    return " ".join(str(part) for part in (doing, what, subject) if part)
