"""``moorage audit verify``: reads audit logs where they lie; no server is asked."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from moorage.cli.session import Session
from moorage.errors import BadRequest, NotFound
from moorage.rules.audit import START, Broken, Head, follow

_KNOWN = re.compile(r"(\d+):([0-9a-f]{64})")


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Flags of ``audit verify``."""
    parser.add_argument(
        "file", nargs="*", metavar="FILE", help="the log that is written to; older files beside it are read too"
    )
    parser.add_argument(
        "--known",
        default="",
        metavar="NUMBER:HASH",
        help="a line that an earlier run told, kept elsewhere: it must be there, so that a log that was made anew or "
        "cut off before it is found",
    )


def run_verify(args: argparse.Namespace, session: Session) -> int:
    """Say whether each chain holds, or where it breaks."""
    known = _KNOWN.fullmatch(args.known)
    if args.known and known is None:
        raise BadRequest(f"--known {args.known[:100]!r} is not NUMBER:HASH")
    wanted = Head(int(known[1]), known[2]) if known is not None else None
    results = [_verify(Path(name), wanted) for name in args.file or _find_logs()]
    if session.wants_json:
        session.output.raw_json(json.dumps(results))
    else:
        for result in results:
            session.output.line(str(result["Text"]))
    return 0 if all(result["Holds"] for result in results) else 1


def _verify(path: Path, wanted: Head | None) -> dict[str, object]:
    files = list_files(path)
    if not files:
        raise NotFound(f"{path}: there is no such audit log", code="audit_missing")
    places: list[tuple[Path, int]] = []
    head, first, is_known = Head(), 0, wanted is None
    try:
        for found in follow(_read(files, places)):
            if isinstance(found, Broken):
                file, line = places[found.line - 1]
                text = f"{file}, line {line}: the chain breaks: {found.reason}"
                return _tell(path, text, head, holds=False)
            head, first = found, first or found.seq
            is_known = is_known or found == wanted
    except OSError as error:
        raise BadRequest(f"{error.filename or path}: {error.strerror}") from error
    if not is_known and wanted is not None:
        text = f"{path}: line {wanted.seq} with hash {wanted.hash} is not there: the log was cut off or made anew"
        return _tell(path, text, head, holds=False)
    if not head.seq:
        return _tell(path, f"{path}: empty", head, holds=True)
    since = "" if first == 1 else " (older ones are gone)"
    text = f"{path}: lines {first} to {head.seq} hold{since}; head {head.seq}:{head.hash}"
    return _tell(path, text, head, holds=True)


def _tell(path: Path, text: str, head: Head, *, holds: bool) -> dict[str, object]:
    return {"File": str(path), "Holds": holds, "LastLine": head.seq, "Hash": head.hash or START, "Text": text}


def _read(files: list[Path], places: list[tuple[Path, int]]) -> Iterator[bytes]:
    """All lines; their places go into ``places``."""
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                places.append((file, number))
                yield line


def list_files(path: Path) -> list[Path]:
    """The files of a log, oldest first."""
    from moorage.serve.audit_writer import list_files as find

    try:
        return find(path)
    except OSError:
        return []


def _find_logs() -> list[str]:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "moorage"
    found = [path for path in (state / "server/audit.log", state / "dev/server/audit.log") if list_files(path)]
    if not found:
        raise NotFound(f"no audit log below {state}: name the file", code="audit_missing")
    return [str(path) for path in found]
