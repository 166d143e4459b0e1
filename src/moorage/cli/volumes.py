"""``moorage volume status|deregister|delete|detach``. Never: decisions that are the server's."""

from __future__ import annotations

import argparse

from moorage.cli.flags import read_pairs, secrets_header
from moorage.cli.output import Progress, format_bytes, format_time_ns
from moorage.cli.session import Row, Session, find_node, find_volume, list_rows, volume_path, volume_query
from moorage.errors import MoorageError, NotFound

_EXTERNAL_PAGE = "30"
_EXTERNAL_PAGES_MAX = 10_000


# -- status ----------------------------------------------------------------------------------------------------------


def add_status(parser: argparse.ArgumentParser) -> None:
    """Flags of ``volume status``."""
    parser.add_argument("subject", nargs="?", metavar="ID", help="a volume's ID, or the beginning of one")
    parser.add_argument("--plugin", metavar="ID", help="only volumes of this plugin")
    parser.add_argument("--node", metavar="ID", help="only volumes in use on this node")
    parser.add_argument("--verbose", action="store_true", help="also what the drivers list themselves; full IDs")
    parser.add_argument("--short", action="store_true", help="without topologies, capabilities and uses")
    parser.add_argument("--type", choices=("csi",), default="csi", help=argparse.SUPPRESS)


def run_status(args: argparse.Namespace, session: Session) -> int:
    """List volumes or show one."""
    if args.subject is not None:
        return _show_volume(args, session)
    query = {"type": "csi", "plugin_id": args.plugin or "", "node_id": args.node or ""}
    answer = session.client.get("/v1/volumes", query)
    if session.wants_json:
        session.output.json(answer)
        return 0
    rows: list[Row] = answer.json() or []
    if rows:
        _list_volumes(session, rows)
    else:
        session.output.note("No volumes")
    return _list_external(session, args.plugin) if args.verbose else 0


def _list_volumes(session: Session, rows: list[Row]) -> None:
    session.output.table(
        ("ID", "Name", "Namespace", "Plugin ID", "Schedulable", "Access Mode", "Readers", "Writers"),
        [
            (
                row.get("ID"),
                row.get("Name"),
                row.get("Namespace"),
                row.get("PluginID"),
                bool(row.get("Schedulable")),
                row.get("AccessMode"),
                row.get("CurrentReaders", 0),
                row.get("CurrentWriters", 0),
            )
            for row in sorted(rows, key=lambda row: (str(row.get("Namespace")), str(row.get("ID"))))
        ],
    )


def _list_external(session: Session, plugin_id: str | None) -> int:
    """What drivers with a controller list themselves; 1 when one of them failed, after all were asked."""
    code = 0
    for plugin in list_rows(session, "/v1/plugins", type="csi"):
        name = str(plugin.get("ID", ""))
        wanted = plugin_id in (None, name) and plugin.get("ControllerRequired") and plugin.get("ControllersHealthy")
        if not wanted:
            continue
        session.output.section(f"At the driver of plugin {name}")
        try:
            rows = _read_external(session, name)
        except MoorageError as error:
            session.output.note(f"Error listing volumes at the driver of plugin {name}: {error.message}")
            code = 1
            continue
        session.output.table(
            ("External ID", "Capacity", "Condition", "Nodes"),
            [
                (
                    row.get("ExternalID"),
                    format_bytes(row.get("CapacityBytes")),
                    f"abnormal: {row.get('Status', '')}" if row.get("IsAbnormal") else "OK",
                    ",".join(row.get("PublishedExternalNodeIDs") or ()),
                )
                for row in rows
            ],
        )
    return code


def _read_external(session: Session, plugin_id: str) -> list[Row]:
    rows: list[Row] = []
    token = ""
    for _ in range(_EXTERNAL_PAGES_MAX):
        query = {"plugin_id": plugin_id, "per_page": _EXTERNAL_PAGE, "next_token": token}
        page = session.client.get("/v1/volumes/external", query).json() or {}
        rows.extend(page.get("Volumes") or [])
        token = page.get("NextToken") or ""
        if not token:
            break
    return rows


def _show_volume(args: argparse.Namespace, session: Session) -> int:
    row = find_volume(session, args.subject)
    answer = session.client.get(volume_path(str(row["ID"])), volume_query(session, row))
    if session.wants_json:
        session.output.json(answer)
        return 0
    volume: Row = answer.json()
    options = volume.get("MountOptions") or {}
    flags = options.get("MountFlags")
    mounting = [f"fs_type: {options['FSType']}"] if options.get("FSType") else []
    mounting += [f"flags: {', '.join(flags)}"] if flags else []
    controllers = f"{volume.get('ControllersHealthy', 0)}/{volume.get('ControllersExpected', 0)}"
    session.output.details(
        [
            ("ID", volume.get("ID")),
            ("Name", volume.get("Name")),
            ("Namespace", volume.get("Namespace")),
            ("External ID", volume.get("ExternalID")),
            ("Plugin ID", volume.get("PluginID")),
            ("Provider", " ".join(filter(None, (volume.get("Provider"), volume.get("ProviderVersion"))))),
            ("Capacity", format_bytes(volume.get("Capacity"))),
            ("Requested", _describe_range(volume)),
            ("Schedulable", bool(volume.get("Schedulable"))),
            ("Controllers Healthy", controllers if volume.get("ControllerRequired") else "not needed"),
            ("Nodes Healthy", f"{volume.get('NodesHealthy', 0)}/{volume.get('NodesExpected', 0)}"),
            ("Access Mode", volume.get("AccessMode")),
            ("Attachment Mode", volume.get("AttachmentMode")),
            ("Mount Options", " ".join(mounting)),
            ("Source", volume.get("CloneID") or volume.get("SnapshotID")),
            ("Created", format_time_ns(volume.get("CreateTime"))),
        ]
    )
    if not args.short:
        _show_parts(session, volume, is_verbose=args.verbose)
    return 0


def _describe_range(volume: Row) -> str:
    least, most = volume.get("RequestedCapacityMin") or 0, volume.get("RequestedCapacityMax") or 0
    if not least and not most:
        return "-"
    return f"{format_bytes(least)} to {format_bytes(most)}" if most else f"at least {format_bytes(least)}"


def _show_parts(session: Session, volume: Row, *, is_verbose: bool) -> None:
    """Topologies, capabilities and uses."""
    output = session.output
    topologies = [topology for topology in volume.get("Topologies") or () if topology]
    if topologies:
        output.section("Topologies")
        for topology in topologies:
            segments = topology.get("Segments") or {}
            output.line("  " + ", ".join(f"{key}={value}" for key, value in sorted(segments.items())))
    capabilities = volume.get("RequestedCapabilities") or []
    if capabilities:
        output.section("Capabilities")
        rows = [(entry.get("AccessMode"), entry.get("AttachmentMode")) for entry in capabilities]
        output.table(("Access Mode", "Attachment Mode"), rows)
    output.section("Uses")
    uses = volume.get("Allocations") or []
    if not uses:
        output.line("nobody uses it")
        return
    cut = None if is_verbose else 8
    output.table(
        ("Allocation", "Name", "Node", "Desired", "Status", "Since"),
        [
            (
                str(use.get("ID", ""))[:cut],
                use.get("Name"),
                use.get("NodeName") or str(use.get("NodeID", ""))[:cut],
                use.get("DesiredStatus"),
                use.get("ClientStatus"),
                format_time_ns(use.get("CreateTime")),
            )
            for use in uses
        ],
    )


# -- deregister, delete, detach --------------------------------------------------------------------------------------


def add_deregister(parser: argparse.ArgumentParser) -> None:
    """Flags of ``volume deregister``."""
    parser.add_argument("subject", metavar="ID", help="a volume's ID, or the beginning of one")
    parser.add_argument("--force", action="store_true", help="also when finished allocations still hold it")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run_deregister(args: argparse.Namespace, session: Session) -> int:
    """Forget a volume; -force asks on a terminal."""
    row = find_volume(session, args.subject)
    if args.force and not args.yes and session.is_input_terminal:
        session.output.note(f"Force the deregistration of volume {row['ID']}? Claims on it are dropped. [y/N]")
        try:
            said = session.read_input().strip()
        except EOFError:
            said = ""
        if said != "y":
            session.output.note("Nothing was done")
            return 1
    query = {**volume_query(session, row), "force": "true" if args.force else "false"}
    answer = session.client.write("DELETE", volume_path(str(row["ID"])), query)
    return _report(session, answer.body, f"Deregistered volume {row['ID']}; its data are still at the driver")


def add_delete(parser: argparse.ArgumentParser) -> None:
    """Flags of ``volume delete``."""
    parser.add_argument("subject", metavar="ID", help="a volume's ID, or the beginning of one")
    parser.add_argument("--secret", action="append", metavar="K=V", help="secret for the driver; may be repeated")
    parser.add_argument("--type", choices=("csi",), default="csi", help=argparse.SUPPRESS)


def run_delete(args: argparse.Namespace, session: Session) -> int:
    """Delete a volume and its data."""
    headers = secrets_header(read_pairs("secret", args.secret))
    row = find_volume(session, args.subject)
    with Progress(session.output, f"deleting volume {row['ID']}"):
        answer = session.client.write(
            "DELETE", volume_path(str(row["ID"]), "delete"), volume_query(session, row), headers=headers
        )
    return _report(session, answer.body, f"Deleted volume {row['ID']}")


def add_detach(parser: argparse.ArgumentParser) -> None:
    """Flags of ``volume detach``."""
    parser.add_argument("subject", metavar="ID", help="a volume's ID, or the beginning of one")
    parser.add_argument("node", metavar="NODE", help="a node's ID, the beginning of one, or its name")


def run_detach(args: argparse.Namespace, session: Session) -> int:
    """Detach a volume from a node; a node that is not known any more is taken from the volume's uses."""
    row = find_volume(session, args.subject)
    node = find_node(session, args.node)
    node_id = str(node["ID"]) if node else _find_used_node(session, row, args.node)
    query = {**volume_query(session, row), "node": node_id}
    with Progress(session.output, f"detaching volume {row['ID']} from {args.node}"):
        answer = session.client.write("DELETE", volume_path(str(row["ID"]), "detach"), query)
    return _report(session, answer.body, f"Detached volume {row['ID']} from node {node_id}")


def _find_used_node(session: Session, row: Row, prefix: str) -> str:
    volume = session.client.get(volume_path(str(row["ID"])), volume_query(session, row)).json() or {}
    nodes = {str(use.get("NodeID", "")) for use in volume.get("Allocations") or ()}
    fitting = sorted(node for node in nodes if node.startswith(prefix))
    if len(fitting) > 1:
        raise NotFound(f"the node prefix {prefix!r} fits several nodes that use the volume: {', '.join(fitting)}")
    return fitting[0] if fitting else prefix


def _report(session: Session, body: bytes, text: str) -> int:
    """End of a write: the API's own JSON, where it sent one, or a line."""
    if session.wants_json:
        session.output.raw_json(body.decode("utf-8", "replace") if body.strip() else "{}")
    else:
        session.output.line(text)
    return 0
