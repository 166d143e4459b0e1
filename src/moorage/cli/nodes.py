"""``moorage node status``. Never: decisions that are the server's."""

from __future__ import annotations

import argparse
import getpass

from moorage.cli.allocations import list_uses
from moorage.cli.session import Row, Session, find_node
from moorage.client.sync import path_of
from moorage.errors import NotFound


def add_status(parser: argparse.ArgumentParser) -> None:
    """Flags of ``node status``."""
    parser.add_argument("subject", nargs="?", metavar="ID", help="a node's ID, the beginning of one, or its name")
    parser.add_argument("--verbose", action="store_true", help="IDs in full, and the node's attributes")


def run_status(args: argparse.Namespace, session: Session) -> int:
    """List nodes or show one."""
    if args.subject is not None:
        return _show_node(args, session)
    answer = session.client.get("/v1/nodes")
    if session.wants_json:
        session.output.json(answer)
        return 0
    rows: list[Row] = answer.json() or []
    if not rows:
        session.output.note("No nodes")
        return 0
    cut = None if args.verbose else 8
    session.output.table(
        ("ID", "Name", "Datacenter", "Address", "Version", "Status"),
        [
            (
                str(row.get("ID", ""))[:cut],
                row.get("Name"),
                row.get("Datacenter"),
                row.get("Address"),
                row.get("Version"),
                row.get("Status"),
            )
            for row in sorted(rows, key=lambda row: str(row.get("Name")))
        ],
    )
    return 0


def _show_node(args: argparse.Namespace, session: Session) -> int:
    row = find_node(session, args.subject)
    if row is None:
        raise NotFound(f"no node has the ID, prefix or name {args.subject!r}", code="node_not_found")
    answer = session.client.get(path_of("node", str(row["ID"])))
    if session.wants_json:
        session.output.json(answer)
        return 0
    node: Row = answer.json()
    session.output.details(
        [
            ("ID", node.get("ID")),
            ("Name", node.get("Name")),
            ("Datacenter", node.get("Datacenter")),
            ("Pool", node.get("NodePool")),
            ("Status", node.get("Status")),
            *([("Description", text)] if (text := node.get("StatusDescription")) else ()),
            ("Drivers", _describe_drivers(node)),
        ]
    )
    if args.verbose:
        session.output.section("Attributes")
        session.output.details(sorted((node.get("Attributes") or {}).items()))
    uses = session.client.get(path_of("node", str(row["ID"]), "allocations")).json() or []
    session.output.section("Uses")
    list_uses(session, uses, is_verbose=args.verbose)
    return 0


def _describe_drivers(node: Row) -> str:
    names: dict[str, bool] = {}
    for side in ("CSIControllerPlugins", "CSINodePlugins"):
        for name, instance in (node.get(side) or {}).items():
            names[name] = names.get(name, True) and bool((instance or {}).get("Healthy"))
    return ", ".join(f"{name} ({'healthy' if is_healthy else 'unhealthy'})" for name, is_healthy in names.items())


def get_node_id(session: Session, subject: str) -> str:
    """The ID of the node that a text means. Raises NotFound."""
    row = find_node(session, subject)
    if row is None:
        raise NotFound(f"no node has the ID, prefix or name {subject!r}", code="node_not_found")
    return str(row["ID"])


def add_drain(parser: argparse.ArgumentParser) -> None:
    """Flags of ``node drain``."""
    parser.add_argument("subject", metavar="NODE", help="a node's ID, the beginning of one, or its name")
    parser.add_argument("--disable", action="store_true", help="end the drain: the node takes uses again")


def run_drain(args: argparse.Namespace, session: Session) -> int:
    """Take no new uses on a node and release the running ones, or take uses again."""
    node_id = get_node_id(session, args.subject)
    body: Row = {"DrainSpec": None, "MarkEligible": True} if args.disable else {"DrainSpec": {}}
    answer = session.client.write("PUT", path_of("node", node_id, "drain"), body=body)
    if session.wants_json:
        session.output.json(answer)
        return 0
    done = "takes uses again" if args.disable else "takes no new uses; the running ones are released one by one"
    session.output.line(f"Node {node_id} {done}")
    return 0


def add_fence(parser: argparse.ArgumentParser) -> None:
    """Flags of ``node fence``."""
    parser.add_argument("subject", metavar="NODE", help="a lost node's ID, the beginning of one, or its name")
    parser.add_argument("--reason", required=True, help="why you are sure that it can no longer write; it is kept")
    parser.add_argument("--force", action="store_true", help="even though the node is alive to the server")


def run_fence(args: argparse.Namespace, session: Session) -> int:
    """Say that a lost node can no longer write, so that its volumes may be used elsewhere."""
    node_id = get_node_id(session, args.subject)
    body = {"Reason": args.reason, "Force": args.force, "By": find_user()}
    answer = session.client.write("PUT", path_of("node", node_id, "fence"), body=body)
    if session.wants_json:
        session.output.json(answer)
        return 0
    session.output.line(f"Node {node_id} is fenced: what it held is released")
    return 0


def find_user() -> str:
    """Who runs this command, for the record; empty where nobody knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
