"""``moorage alloc status``: uses of volumes. Never: decisions that are the server's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from moorage.cli.output import format_time_ns
from moorage.cli.session import Row, Session, list_rows, pick
from moorage.client.sync import path_of


def add_status(parser: argparse.ArgumentParser) -> None:
    """Flags of ``alloc status``."""
    parser.add_argument("subject", nargs="?", metavar="ID", help="an allocation's ID, or the beginning of one")
    parser.add_argument("--verbose", action="store_true", help="IDs in full")


def run_status(args: argparse.Namespace, session: Session) -> int:
    """List uses of volumes, or show one with what happened to it."""
    if args.subject is not None:
        return _show_allocation(args, session)
    answer = session.client.get("/v1/allocations")
    if session.wants_json:
        session.output.json(answer)
        return 0
    list_uses(session, answer.json() or [], is_verbose=args.verbose)
    return 0


def list_uses(session: Session, rows: Sequence[Row], *, is_verbose: bool) -> None:
    """A table of allocations, or a note that there are none."""
    if not rows:
        session.output.note("No uses of volumes")
        return
    cut = None if is_verbose else 8
    session.output.table(
        ("ID", "Name", "Node", "Desired", "Status", "Volumes", "Since"),
        [
            (
                str(row.get("ID", ""))[:cut],
                row.get("Name"),
                row.get("NodeName") or str(row.get("NodeID", ""))[:cut],
                row.get("DesiredStatus"),
                row.get("ClientStatus"),
                ", ".join(str(mount.get("Volume")) for mount in row.get("Mounts") or ()),
                format_time_ns(row.get("CreateTime")),
            )
            for row in rows
        ],
    )


def find_events(allocation: Row) -> list[Row]:
    """What happened to an allocation's tasks, oldest first."""
    events = [
        event
        for state in (allocation.get("TaskStates") or {}).values()
        for event in (state or {}).get("Events") or ()
        if isinstance(event, dict)
    ]
    return sorted(events, key=lambda event: event.get("Time") or 0)


def describe_event(event: Row) -> str:
    """An event's text for people."""
    return str(event.get("DisplayMessage") or event.get("Message") or event.get("Type") or "")


def describe_trouble(allocation: Row) -> str:
    """The last error of a mount that is not there yet, with how often it was tried; empty when there is none."""
    for mount in allocation.get("Mounts") or ():
        if mount.get("LastError"):
            return f"{mount['LastError']} (tried {mount.get('Attempts') or 1} times)"
    return ""


def _show_allocation(args: argparse.Namespace, session: Session) -> int:
    rows = list_rows(session, "/v1/allocations", prefix=args.subject)
    row = pick(rows, args.subject, "allocation")
    query = {"namespace": str(row.get("Namespace") or session.namespace)}
    answer = session.client.get(path_of("allocation", str(row["ID"])), query)
    if session.wants_json:
        session.output.json(answer)
        return 0
    allocation: Row = answer.json()
    session.output.details(
        [
            ("ID", allocation.get("ID")),
            ("Name", allocation.get("Name")),
            ("Namespace", allocation.get("Namespace")),
            ("Node", f"{allocation.get('NodeName') or '-'} ({allocation.get('NodeID')})"),
            ("Desired", allocation.get("DesiredStatus")),
            ("Status", allocation.get("ClientStatus")),
            ("Description", allocation.get("ClientDescription")),
            ("Created", format_time_ns(allocation.get("CreateTime"))),
        ]
    )
    mounts = allocation.get("Mounts") or []
    if mounts:
        session.output.section("Mounts")
        session.output.table(
            ("Volume", "State", "Path", "Asked for"),
            [(mount.get("Volume"), mount.get("State"), mount.get("Path"), mount.get("Target")) for mount in mounts],
        )
    trouble = describe_trouble(allocation)
    if trouble:
        session.output.section("Last error")
        session.output.line(f"  {trouble}")
    events = find_events(allocation)
    if events:
        session.output.section("Events")
        session.output.table(
            ("Time", "Type", "What"),
            [(format_time_ns(event.get("Time")), event.get("Type"), describe_event(event)) for event in events],
        )
    return 0
