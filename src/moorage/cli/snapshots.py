"""``moorage volume snapshot create|list|delete``. Never: decisions that are the server's."""

from __future__ import annotations

import argparse

from moorage.cli.flags import read_pairs, secrets_header
from moorage.cli.output import Progress, format_bytes, format_time_ns
from moorage.cli.session import Row, Session, find_volume, list_rows, pick
from moorage.errors import BadRequest, NotFound

_PAGE = 30


def add_create(parser: argparse.ArgumentParser) -> None:
    """Flags of ``volume snapshot create``."""
    parser.add_argument("volume", metavar="VOLUME", help="the volume's ID, or the beginning of one")
    parser.add_argument("name", metavar="NAME", help="a name for the snapshot")
    parser.add_argument("--secret", action="append", metavar="K=V", help="secret for the driver; may be repeated")
    parser.add_argument("--parameter", action="append", metavar="K=V", help="parameter for the driver; repeatable")


def run_create(args: argparse.Namespace, session: Session) -> int:
    """Make a snapshot; its ID is the first word of the line printed."""
    secrets = read_pairs("secret", args.secret)
    row = find_volume(session, args.volume)
    namespace = str(row.get("Namespace") or session.namespace)
    wanted = {
        "SourceVolumeID": row["ID"],
        "Name": args.name,
        "Secrets": secrets,
        "Parameters": read_pairs("parameter", args.parameter),
    }
    with Progress(session.output, f"creating snapshot {args.name} of volume {row['ID']}"):
        answer = session.client.write(
            "PUT", "/v1/volumes/snapshot", {"namespace": namespace}, body={"Snapshots": [wanted]}
        )
    if session.wants_json:
        session.output.json(answer)
        return 0
    for snapshot in (answer.json() or {}).get("Snapshots") or ():
        size = snapshot.get("SizeBytes")
        facts = [format_bytes(size)] if size else []
        facts += ["ready"] if snapshot.get("IsReady") else ["not ready yet: the driver is still at it"]
        session.output.line(f"Created snapshot {snapshot.get('ID')} of volume {row['ID']} ({', '.join(facts)})")
    return 0


def add_list(parser: argparse.ArgumentParser) -> None:
    """Flags of ``volume snapshot list``."""
    parser.add_argument("--plugin", metavar="ID", help="the plugin, or the beginning of its ID")
    parser.add_argument("--per-page", type=int, default=_PAGE, metavar="N", help=f"at most so many; {_PAGE}")
    parser.add_argument("--page-token", default="", metavar="TOKEN", help="go on where the last page ended")
    parser.add_argument("--secret", action="append", metavar="K=V", help="secret for the driver; may be repeated")
    parser.add_argument("--verbose", action="store_true", help="IDs in full")


def run_list(args: argparse.Namespace, session: Session) -> int:
    """One page of a driver's snapshots, newest first."""
    if args.per_page < 0:
        raise BadRequest("-per-page cannot be negative")
    headers = secrets_header(read_pairs("secret", args.secret))
    plugin_id = _find_plugin(session, args.plugin)
    query = {"plugin_id": plugin_id, "per_page": str(args.per_page), "next_token": args.page_token}
    answer = session.client.get("/v1/volumes/snapshot", query, headers=headers)
    if session.wants_json:
        session.output.json(answer)
        return 0
    page: Row = answer.json() or {}
    rows: list[Row] = page.get("Snapshots") or []
    if not rows:
        session.output.note(f"No snapshots at plugin {plugin_id}")
        return 0
    session.output.table(
        ("ID", "External Volume", "Size", "Created", "Ready"),
        [
            (
                row.get("ID"),
                row.get("ExternalSourceVolumeID"),
                format_bytes(row.get("SizeBytes")),
                format_time_ns((row.get("CreateTime") or 0) * 1_000_000_000),
                bool(row.get("IsReady")),
            )
            for row in sorted(rows, key=lambda row: row.get("CreateTime") or 0, reverse=True)
        ],
    )
    if page.get("NextToken"):
        session.output.note(f"There are more: go on with -page-token {page['NextToken']}")
    return 0


def _find_plugin(session: Session, prefix: str | None) -> str:
    plugins = list_rows(session, "/v1/plugins", type="csi", prefix=prefix or "")
    if not prefix and not plugins:
        raise NotFound("no plugin is known yet")
    if not prefix and len(plugins) > 1:
        names = ", ".join(sorted(str(row.get("ID")) for row in plugins))
        raise BadRequest(f"there are several plugins, name one with -plugin: {names}")
    return str((pick(plugins, prefix, "plugin") if prefix else plugins[0])["ID"])


def add_delete(parser: argparse.ArgumentParser) -> None:
    """Flags of ``volume snapshot delete``."""
    parser.add_argument("plugin", metavar="PLUGIN", help="the plugin's ID")
    parser.add_argument("snapshot", metavar="SNAPSHOT", help="the snapshot's ID at the driver")
    parser.add_argument("--secret", action="append", metavar="K=V", help="secret for the driver; may be repeated")


def run_delete(args: argparse.Namespace, session: Session) -> int:
    """Delete a snapshot; a snapshot that is gone already is no error, as drivers have it."""
    headers = secrets_header(read_pairs("secret", args.secret))
    query = {"plugin_id": args.plugin, "snapshot_id": args.snapshot}
    with Progress(session.output, f"deleting snapshot {args.snapshot}"):
        answer = session.client.write("DELETE", "/v1/volumes/snapshot", query, headers=headers)
    if session.wants_json:
        session.output.raw_json(answer.body.decode("utf-8", "replace") if answer.body.strip() else "{}")
    else:
        session.output.line(f"Deleted snapshot {args.snapshot}")
    return 0
