"""``moorage node join-token …`` and ``node reset-identity``. Never: decisions that are the server's."""

from __future__ import annotations

import argparse

from moorage.cli.nodes import find_user, get_node_id
from moorage.cli.session import Row, Session, list_rows, pick
from moorage.client.sync import path_of


def add_create(parser: argparse.ArgumentParser) -> None:
    """Flags of ``node join-token create``."""
    parser.add_argument("--ttl", default="1h", metavar="DURATION", help="how long it counts, such as 30m; default 1h")
    parser.add_argument("--uses", type=int, default=1, metavar="N", help="how many nodes may join with it; default 1")
    parser.add_argument("--note", default="", metavar="TEXT", help="what it is for; the list shows it")


def run_create(args: argparse.Namespace, session: Session) -> int:
    """Make a join token and print it."""
    body = {"TTL": args.ttl, "Uses": args.uses, "Note": args.note}
    answer = session.client.write("PUT", "/v1/nodes/join-tokens", body=body)
    if session.wants_json:
        session.output.json(answer)
        return 0
    made: Row = answer.json()
    session.output.line(str(made["Token"]))
    session.output.note(
        f"Join token {made['ID']}: lets {made['Uses']} node(s) join until {made['ExpirationTime']}. On the node, put "
        "it into a file of mode 0600 and name that file as agent.join_token_file."
    )
    return 0


def add_list(parser: argparse.ArgumentParser) -> None:
    """Flags of ``node join-token list``."""


def run_list(args: argparse.Namespace, session: Session) -> int:
    """List the join tokens."""
    answer = session.client.get("/v1/nodes/join-tokens")
    if session.wants_json:
        session.output.json(answer)
        return 0
    rows: list[Row] = answer.json() or []
    if not rows:
        session.output.note("No join tokens")
        return 0
    columns = ("ID", "Uses", "UsesLeft", "CreateTime", "ExpirationTime", "Note")
    session.output.table(columns, [tuple(row.get(name) for name in columns) for row in rows])
    return 0


def add_delete(parser: argparse.ArgumentParser) -> None:
    """Flags of ``node join-token delete``."""
    parser.add_argument("subject", metavar="ID", help="a join token's ID or the beginning of one")


def run_delete(args: argparse.Namespace, session: Session) -> int:
    """Make a join token useless."""
    row = pick(list_rows(session, "/v1/nodes/join-tokens"), args.subject, "join token")
    session.client.write("DELETE", path_of("nodes", "join-token", str(row["ID"])))
    session.output.line(f"Join token {row['ID']} lets nobody in any more")
    return 0


def add_reset(parser: argparse.ArgumentParser) -> None:
    """Flags of ``node reset-identity``."""
    parser.add_argument("subject", metavar="NODE", help="a node's ID, the beginning of one, or its name")
    parser.add_argument("--reason", required=True, help="why; it is kept with the record")


def run_reset(args: argparse.Namespace, session: Session) -> int:
    """Take a node's secret away."""
    node_id = get_node_id(session, args.subject)
    body = {"Reason": args.reason, "By": find_user()}
    answer = session.client.write("PUT", path_of("node", node_id, "reset-identity"), body=body)
    if session.wants_json:
        session.output.json(answer)
        return 0
    session.output.line(f"Node {node_id} has no secret any more: its agent joins anew with another one")
    return 0
