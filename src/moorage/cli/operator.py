"""``moorage operator …``: the keys of the seal, and the bundle for finding faults. Never: decides anything."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from moorage.cli.debug_bundle import gather, write_bundle
from moorage.cli.output import Progress
from moorage.cli.session import Row, Session
from moorage.errors import BadRequest

POLL_S = 0.2


def add_secrets_status(parser: argparse.ArgumentParser) -> None:
    """Flags of ``operator secrets status``."""


def run_secrets_status(args: argparse.Namespace, session: Session) -> int:
    """Show which key seals."""
    answer = session.client.get("/v1/operator/secrets")
    if session.wants_json:
        session.output.json(answer)
        return 0
    _show(session, answer.json())
    return 0


def add_secrets_rotate(parser: argparse.ArgumentParser) -> None:
    """Flags of ``operator secrets rotate``."""
    parser.add_argument("--detach", action="store_true", help="do not wait until everything is sealed anew")


def run_secrets_rotate(args: argparse.Namespace, session: Session) -> int:
    """Take a new key, and wait until everything is sealed with it."""
    answer = session.client.write("PUT", "/v1/operator/secrets/rotate")
    row: Row = answer.json()
    if not args.detach and not row["IsDone"]:
        with Progress(session.output, "sealing secrets anew") as progress:
            while not row["IsDone"]:
                time.sleep(POLL_S)
                answer = session.client.get("/v1/operator/secrets")
                row = answer.json()
                progress.step(f"{row['Phase']}: {row['Sealed']} of {row['Total']} {row['LastError']}".rstrip())
    if session.wants_json:
        session.output.json(answer)
        return 0
    _show(session, row)
    return 0


def _show(session: Session, row: Row) -> None:
    session.output.details(
        [
            ("Active key", row["ActiveKey"]),
            ("Old keys", ", ".join(row["OldKeys"]) or "none"),
            ("Place", row["Where"]),
            ("Phase", row["Phase"]),
            ("Sealed", f"{row['Sealed']} of {row['Total']}"),
        ]
    )
    if row["LastError"]:
        session.output.note(f"Held up: {row['LastError']}")
    session.output.line(str(row["Text"]))


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Flags of ``operator debug``."""
    parser.add_argument("--output", default="", metavar="FILE", help="where; moorage-debug-TIME.tar.gz without it")


def run_debug(args: argparse.Namespace, session: Session) -> int:
    """Gather what helps into a file."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = Path(args.output or f"moorage-debug-{stamp}.tar.gz")
    bundle = gather(session.client)
    try:
        write_bundle(path, bundle, stamp)
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}") from error
    missing = [page for page in bundle.pages if page.error]
    for page in missing:
        session.output.note(f"Left out: {page.path}: {page.error}")
    session.output.line(f"{path}: {len(bundle.pages) - len(missing)} pages, {len(missing)} left out")
    return 0
