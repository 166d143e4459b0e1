"""``moorage plugin status``. Never: decisions that are the server's."""

from __future__ import annotations

import argparse

from moorage.cli.output import format_time_ns
from moorage.cli.session import Row, Session, list_rows, pick
from moorage.client.sync import path_of


def add_status(parser: argparse.ArgumentParser) -> None:
    """Flags of ``plugin status``."""
    parser.add_argument("subject", nargs="?", metavar="ID", help="a plugin's ID, or the beginning of one")
    parser.add_argument("--verbose", action="store_true", help="also what each instance can do")
    parser.add_argument("--type", choices=("csi",), default="csi", help=argparse.SUPPRESS)


def run_status(args: argparse.Namespace, session: Session) -> int:
    """List plugins or show one."""
    if args.subject is not None:
        return _show_plugin(args, session)
    answer = session.client.get("/v1/plugins", {"type": "csi"})
    if session.wants_json:
        session.output.json(answer)
        return 0
    rows: list[Row] = answer.json() or []
    if not rows:
        session.output.note("No plugins")
        return 0
    session.output.table(
        ("ID", "Provider", "Controllers Healthy/Expected", "Nodes Healthy/Expected"),
        [
            (row.get("ID"), row.get("Provider"), _count_controllers(row), _count(row, "Nodes"))
            for row in sorted(rows, key=lambda row: str(row.get("ID")))
        ],
    )
    return 0


def _count(row: Row, what: str) -> str:
    return f"{row.get(f'{what}Healthy', 0)}/{row.get(f'{what}Expected', 0)}"


def _count_controllers(row: Row) -> str:
    return _count(row, "Controllers") if row.get("ControllerRequired") else "not needed"


def _show_plugin(args: argparse.Namespace, session: Session) -> int:
    rows = list_rows(session, "/v1/plugins", type="csi", prefix=args.subject)
    plugin_id = str(pick(rows, args.subject, "plugin")["ID"])
    answer = session.client.get(path_of("plugin", "csi", plugin_id))
    if session.wants_json:
        session.output.json(answer)
        return 0
    plugin: Row = answer.json()
    session.output.details(
        [
            ("ID", plugin.get("ID")),
            ("Provider", plugin.get("Provider")),
            ("Version", plugin.get("Version")),
            ("Controllers Healthy", _count_controllers(plugin)),
            ("Nodes Healthy", _count(plugin, "Nodes")),
        ]
    )
    _show_instances(session, plugin, is_verbose=args.verbose)
    return 0


def _show_instances(session: Session, plugin: Row, *, is_verbose: bool) -> None:
    parts = (("Controllers", "ControllerInfo"), ("Nodes", "NodeInfo"))
    rows = [
        (side[:-1].lower(), node_id, instance)
        for side, _ in parts
        for node_id, instance in sorted((plugin.get(side) or {}).items())
    ]
    if rows:
        session.output.section("Instances")
        session.output.table(
            ("Side", "Node", "Healthy", "Condition", "Since"),
            [
                (
                    side,
                    node_id,
                    bool(instance.get("Healthy")),
                    instance.get("HealthDescription"),
                    _show_time(instance.get("UpdateTime")),
                )
                for side, node_id, instance in rows
            ],
        )
    if not is_verbose:
        return
    for side, info_name in parts:
        for node_id, instance in sorted((plugin.get(side) or {}).items()):
            info = instance.get(info_name) or {}
            can = sorted(name for name, value in info.items() if value is True)
            session.output.section(f"{side[:-1]} on {node_id} can")
            for name in can or ["(nothing is said)"]:
                session.output.line(f"  {name}")
            segments = (info.get("AccessibleTopology") or {}).get("Segments") or {}
            for key, value in sorted(segments.items()):
                session.output.line(f"  topology {key}={value}")


def _show_time(value: object) -> object:
    return format_time_ns(value) if isinstance(value, int) else value
