"""``moorage volume orphans``: drivers' volumes against the records. Never: decisions that are the server's.

Adopting is a register with that external ID; deleting is a register, then a delete, so that the intent is on record
before the driver is called.
"""

from __future__ import annotations

import argparse
from typing import Any

from moorage.cli.flags import read_pairs, secrets_header
from moorage.cli.output import Progress, format_bytes
from moorage.cli.session import Row, Session, volume_path
from moorage.errors import BadRequest, Conflict, NotFound
from moorage.model.ids import check_volume_id

_LISTING_S = 600.0


def add_orphans(parser: argparse.ArgumentParser) -> None:
    """Flags of ``volume orphans``."""
    parser.add_argument("--plugin", metavar="ID", help="only this plugin's driver")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--adopt", metavar="EXTERNAL_ID", help="register this backend volume")
    chosen.add_argument("--delete", metavar="EXTERNAL_ID", help="delete this backend volume and its data")
    parser.add_argument("--id", metavar="NAME", help="the ID to register it under; the external ID if not given")
    parser.add_argument("--access-mode", action="append", metavar="MODE", help="repeatable; single-node-writer")
    parser.add_argument("--attachment-mode", metavar="MODE", help="file-system (default) or block-device")
    parser.add_argument("--secret", action="append", metavar="K=V", help="secret for the driver; repeatable")
    parser.add_argument("--force", action="store_true", help="also one that a create under way may be making")
    parser.add_argument("--yes", action="store_true", help="delete without asking")


def run_orphans(args: argparse.Namespace, session: Session) -> int:
    """List what does not fit together, or adopt or delete one backend volume."""
    with Progress(session.output, "listing the volumes at the drivers"):
        answer = session.client.get("/v1/volumes/orphans", {"plugin_id": args.plugin or ""}, timeout_s=_LISTING_S)
    plugins: list[Row] = (answer.json() or {}).get("Plugins") or []
    if args.adopt is not None:
        return _adopt(args, session, plugins)
    if args.delete is not None:
        return _delete(args, session, plugins)
    if session.wants_json:
        session.output.json(answer)
    else:
        _show(session, plugins)
    return 1 if any(plugin.get("Error") for plugin in plugins) else 0


# -- listing ---------------------------------------------------------------------------------------------------------


def _show(session: Session, plugins: list[Row]) -> None:
    output = session.output
    if not plugins:
        output.note("No plugins")
    for number, plugin in enumerate(plugins):
        name = str(plugin.get("PluginID"))
        if number:
            output.line()
        if plugin.get("Error"):
            output.note(f"Error listing volumes at the driver of plugin {name}: {plugin['Error']}")
        found = [row for kind in (_find_orphans, _find_lost, _find_doubles, _find_leaks) for row in kind(plugin)]
        output.line(f"Plugin {name}: volumes at the driver: {plugin.get('VolumesListed', 0)}, findings: {len(found)}")
        if found:
            output.table(("Finding", "External ID", "Volume", "What It Means"), found)


def _find_orphans(plugin: Row) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for row in plugin.get("Orphans") or ():
        size = format_bytes(row.get("CapacityBytes"))
        uncertain = "; a create that is under way may be making it: look again" if row.get("MayBeCreating") else ""
        nodes = ", ".join(row.get("PublishedExternalNodeIDs") or ())
        attached = f", attached to {nodes}" if nodes else ""
        rows.append(("orphan", row.get("ExternalID"), "-", f"nobody registered it; {size}{attached}{uncertain}"))
    return rows


def _find_lost(plugin: Row) -> list[tuple[object, ...]]:
    text = "the driver does not have it (any more)"
    return [("lost", row.get("ExternalID"), _name(row), text) for row in plugin.get("Lost") or ()]


def _find_doubles(plugin: Row) -> list[tuple[object, ...]]:
    text = "one disk, several records: their claims are admitted together"
    return [
        ("double", row.get("ExternalID"), ", ".join(_name(v) for v in row.get("Volumes") or ()), text)
        for row in plugin.get("Doubles") or ()
    ]


def _find_leaks(plugin: Row) -> list[tuple[object, ...]]:
    return [
        ("leaked", row.get("ExternalID"), _name(row.get("Volume") or {}), f"attached to {node} without a claim{cure}")
        for row in plugin.get("LeakedAttachments") or ()
        for node, cure in ((row.get("ExternalNodeID"), _cure(row)),)
    ]


def _cure(row: Row) -> str:
    """The command that undoes a leaked attachment, where the node is one of ours."""
    volume, node_id = row.get("Volume") or {}, str(row.get("NodeID") or "")
    namespace = str(volume.get("Namespace") or "default")
    words = ["moorage volume detach", *([f"-namespace {namespace}"] if namespace != "default" else ())]
    return f": {' '.join(words)} {volume.get('ID')} {node_id}" if node_id else ", and no node here is called so"


def _name(volume: Row) -> str:
    namespace = volume.get("Namespace")
    return str(volume.get("ID")) if namespace == "default" else f"{namespace}/{volume.get('ID')}"


# -- one backend volume ----------------------------------------------------------------------------------------------


def _pick(args: argparse.Namespace, plugins: list[Row], external_id: str) -> tuple[str, Row]:
    """The plugin and the orphan of an external ID. Raises NotFound, Conflict."""
    found = [
        (str(plugin.get("PluginID")), row)
        for plugin in plugins
        for row in plugin.get("Orphans") or ()
        if row.get("ExternalID") == external_id
    ]
    if not found:
        failed = [f"{p.get('PluginID')}: {p['Error']}" for p in plugins if p.get("Error")]
        more = f"; not all drivers could be asked ({'; '.join(failed)})" if failed else ""
        raise NotFound(f"no driver has an unregistered volume {external_id!r}{more}", code="orphan_not_found")
    if len(found) > 1:
        names = ", ".join(name for name, _ in found)
        raise Conflict(f"plugins {names} all have a volume {external_id!r}: name one with -plugin", code="ambiguous")
    name, row = found[0]
    if row.get("MayBeCreating") and not args.force:
        text = f"volume {external_id!r} may be what a create under way is making: look again later, or give -force"
        raise Conflict(text, code="may_be_creating")
    return name, row


def _register(args: argparse.Namespace, session: Session, plugin_id: str, external_id: str) -> str:
    """Register it; returns its ID."""
    volume_id = args.id or external_id
    try:
        check_volume_id(volume_id)
    except BadRequest as error:
        raise BadRequest(f"{error.message}; name it with -id") from error
    attachment = args.attachment_mode or "file-system"
    modes = args.access_mode or ["single-node-writer"]
    volume: dict[str, Any] = {
        "ID": volume_id,
        "Name": volume_id,
        "PluginID": plugin_id,
        "ExternalID": external_id,
        "RequestedCapabilities": [{"AccessMode": mode, "AttachmentMode": attachment} for mode in modes],
        "Secrets": read_pairs("secret", args.secret) or None,
    }
    query = {"namespace": session.namespace}
    if _is_taken(session, volume_id, query):
        raise Conflict(f"there is a volume {volume_id!r} already: choose another ID with -id", code="id_taken")
    session.client.write("PUT", volume_path(volume_id), query, body={"Volumes": [volume]})
    return volume_id


def _is_taken(session: Session, volume_id: str, query: dict[str, str]) -> bool:
    try:
        session.client.get(volume_path(volume_id, "why"), query)
    except NotFound:
        return False
    return True


def _adopt(args: argparse.Namespace, session: Session, plugins: list[Row]) -> int:
    plugin_id, row = _pick(args, plugins, args.adopt)
    volume_id = _register(args, session, plugin_id, args.adopt)
    if session.wants_json:
        session.output.json(session.client.get(volume_path(volume_id), {"namespace": session.namespace}))
    else:
        size = format_bytes(row.get("CapacityBytes"))
        session.output.line(f"Adopted {args.adopt} ({size}) of plugin {plugin_id} as volume {volume_id}")
    return 0


def _delete(args: argparse.Namespace, session: Session, plugins: list[Row]) -> int:
    plugin_id, row = _pick(args, plugins, args.delete)
    if not args.yes and not _is_confirmed(session, plugin_id, row):
        session.output.note("Nothing was done")
        return 1
    volume_id = _register(args, session, plugin_id, args.delete)
    headers = secrets_header(read_pairs("secret", args.secret))
    query = {"namespace": session.namespace}
    with Progress(session.output, f"deleting {args.delete} of plugin {plugin_id}"):
        session.client.write("DELETE", volume_path(volume_id, "delete"), query, headers=headers)
    if session.wants_json:
        session.output.raw_json("{}")
    else:
        session.output.line(f"Deleted {args.delete} of plugin {plugin_id} and its data")
    return 0


def _is_confirmed(session: Session, plugin_id: str, row: Row) -> bool:
    """Whether somebody typed yes."""
    size = format_bytes(row.get("CapacityBytes"))
    session.output.note(f"Delete {row.get('ExternalID')} ({size}) of plugin {plugin_id} with all its data? Type yes:")
    try:
        return session.read_input().strip() == "yes"
    except EOFError:
        return False
