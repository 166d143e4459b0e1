"""``moorage why``: why a volume, a use, a plugin or a node is not ready. Never: decisions that are the server's."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from moorage.cli.output import format_elapsed
from moorage.cli.session import Row, Session, list_rows
from moorage.client.sync import path_of
from moorage.errors import NotFound

KINDS = ("volume", "allocation", "plugin", "node")
_SHORT = 8


def add_why(parser: argparse.ArgumentParser) -> None:
    """Flags of ``why``."""
    parser.add_argument("subject", metavar="NAME", help="a volume, an allocation, a plugin or a node; see below")
    parser.add_argument("--kind", choices=KINDS, help="what NAME is, where it could be several things")


def run_why(args: argparse.Namespace, session: Session) -> int:
    """Find what is meant, and show why it is in the state it is in."""
    found = find_meant(session, args.subject, args.kind)
    if not found:
        what = args.kind or "volume, allocation, plugin or node"
        raise NotFound(f"no {what} has the ID, name or prefix {args.subject!r}", code="why_not_found")
    if len(found) > 1:
        session.output.note(f"{args.subject!r} may mean {len(found)} things: give a whole ID, or -kind")
        session.output.note_table(
            ("Kind", "ID", "Name", "Namespace"),
            [(kind, row.get("ID"), row.get("Name"), row.get("Namespace")) for kind, row in found],
        )
        return 1
    kind, row = found[0]
    query = {"namespace": str(row.get("Namespace") or session.namespace)}
    answer = session.client.get(_path(kind, str(row["ID"])), query)
    if session.wants_json:
        session.output.json(answer)
        return 0
    show(session, answer.json() or {})
    return 0


# -- what is meant ---------------------------------------------------------------------------------------------------


def find_meant(session: Session, text: str, kind: str | None) -> list[tuple[str, Row]]:
    """What ``text`` may mean, each with its kind: all of that ID or name, else all whose ID begins with it.

    A volume that is being created, and a plugin that nobody reports, are in no list: they are asked for by their ID.
    """
    kinds = (kind,) if kind else KINDS
    listed = [(k, row) for k in kinds for row in _list(session, k, text)]
    exact = [(k, row) for k, row in listed if text in (row.get("ID"), row.get("Name") if k == "node" else None)]
    for hidden in ("volume", "plugin"):
        if hidden in kinds and not any(k == hidden for k, _ in exact):
            exact += _find_hidden(session, hidden, text)
    return exact or listed


def _list(session: Session, kind: str, text: str) -> list[Row]:
    match kind:
        case "volume":
            return list_rows(session, "/v1/volumes", type="csi", prefix=text)
        case "allocation":
            return list_rows(session, "/v1/allocations", prefix=text)
        case "plugin":
            return list_rows(session, "/v1/plugins", type="csi", prefix=text)
    rows = list_rows(session, "/v1/nodes")
    return [row for row in rows if row.get("Name") == text or str(row.get("ID", "")).startswith(text)]


def _find_hidden(session: Session, kind: str, text: str) -> list[tuple[str, Row]]:
    if not text or "/" in text:
        return []
    try:
        found = session.client.get(_path(kind, text)).json()
    except NotFound:
        return []
    return [(kind, found)] if isinstance(found, dict) else []


def _path(kind: str, subject: str) -> str:
    parts = (kind, subject) if kind in ("allocation", "node") else (kind, "csi", subject)
    return path_of(*parts, "why")


# -- for people ------------------------------------------------------------------------------------------------------


def show(session: Session, found: Row) -> None:
    """An explanation in sections."""
    output = session.output
    output.line(str(found.get("Summary")))
    output.line()
    queue = found.get("Queue") or {}
    pairs: list[tuple[str, object]] = [
        (str(found.get("Kind", "")).capitalize(), found.get("ID")),
        ("State", found.get("State")),
        ("Since", show_time(found.get("Since"))),
    ]
    if found.get("Namespace"):
        pairs.insert(1, ("Namespace", found["Namespace"]))
    if found.get("NextTry"):
        pairs.append(("Next Try", show_time(found["NextTry"])))
    if queue:
        where = queue.get("NodeName") or queue.get("NodeID")
        text = f"{queue.get('Step')} at node {where}, {queue.get('Position')} of {queue.get('Length')}"
        pairs.append(("In Flight", f"{text}, since {show_time(queue.get('InFlightSince'))}"))
        pairs += [("Goes First", f"{a.get('Step')} of {a.get('Of')}") for a in queue.get("Ahead") or ()]
    output.details(pairs)
    _show_last_call(session, found.get("LastCall"))
    _show_lines(session, "What Blocks", [str(text) for text in found.get("Blocks") or ()])
    _show_holders(session, found.get("Holders") or [])
    helps = [f"{c.get('Command')}\n      {c.get('Why')}" for c in found.get("Commands") or ()]
    _show_lines(session, "Commands That Help", helps)


def _show_last_call(session: Session, call: Row | None) -> None:
    if not call:
        return
    session.output.section("Last Call That Failed")
    end = "final: it is over" if call.get("Final") else "not final: it may still be running"
    session.output.details(
        [
            ("Method", call.get("Method")),
            ("Status", f"{call.get('Status') or '-'} ({end})"),
            ("Message", call.get("Message")),
            ("At", show_time(call.get("At"))),
            ("Attempts", call.get("Attempts")),
        ]
    )


def _show_lines(session: Session, title: str, lines: list[str]) -> None:
    if lines:
        session.output.section(title)
        for line in lines:
            session.output.line(f"  - {line}")


def _show_holders(session: Session, holders: list[Row]) -> None:
    if not holders:
        return
    session.output.section("Held By")
    session.output.table(
        ("Volume", "Allocation", "Name", "Node", "Mode", "State", "Path", "Since"),
        [
            (
                h.get("VolumeID"),
                str(h.get("AllocationID", ""))[:_SHORT],
                h.get("Name"),
                h.get("NodeName") or str(h.get("NodeID", ""))[:_SHORT],
                h.get("Mode"),
                h.get("State"),
                h.get("Path"),
                show_time(h.get("Since")),
            )
            for h in holders
        ],
    )


def show_time(text: object, *, now: datetime | None = None) -> str:
    """An RFC 3339 time as ``3 min 5 s ago (2026-…)``; ``-`` for none."""
    if not isinstance(text, str) or not text:
        return "-"
    whole, _, _ = text.removesuffix("Z").partition(".")
    try:
        moment = datetime.fromisoformat(whole).replace(tzinfo=UTC)
    except ValueError:
        return text
    elapsed_s = ((now or datetime.now(UTC)) - moment).total_seconds()
    shown = moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    distance = _describe_distance(abs(elapsed_s))
    return f"{distance} ago ({shown})" if elapsed_s >= 0 else f"in {distance} ({shown})"


def _describe_distance(seconds: float) -> str:
    if seconds < 3600:
        return format_elapsed(float(int(seconds))).replace(".0 s", " s")
    hours = int(seconds) // 3600
    return f"{hours} h {int(seconds) % 3600 // 60} min" if hours < 48 else f"{hours // 24} days"
