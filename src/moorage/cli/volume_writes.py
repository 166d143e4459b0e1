"""``moorage volume create|register``: from a file or from flags to the API. Never: decisions that are the server's.

lark comes with ``model.spec`` and is imported only when there is a specification to read.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from moorage.cli.flags import read_pairs
from moorage.cli.output import Progress, format_bytes, format_elapsed
from moorage.cli.session import Row, Session, volume_path
from moorage.errors import BadRequest, Forbidden, NotFound

_SPEC_BYTES_MAX = 4 * 1024 * 1024


def add_create(parser: argparse.ArgumentParser) -> None:
    """Flags of ``volume create``."""
    parser.add_argument("subject", metavar="FILE|-|NAME", help="a specification; with -plugin the volume's ID and name")
    group = parser.add_argument_group("a volume from flags instead of a file")
    group.add_argument("--plugin", metavar="ID", help="the plugin that makes it")
    group.add_argument("--size", metavar="SIZE", help="at least so big: 500MB, 10GiB")
    group.add_argument("--size-max", metavar="SIZE", help="at most so big")
    group.add_argument("--access-mode", action="append", metavar="MODE", help="repeatable; single-node-writer")
    group.add_argument("--attachment-mode", metavar="MODE", help="file-system (default) or block-device")
    group.add_argument("--fs-type", metavar="TYPE", help="filesystem, where the driver makes one")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--snapshot", metavar="ID", help="filled from this snapshot (its ID at the driver)")
    source.add_argument("--clone", metavar="ID", help="filled from this volume (its external ID)")
    group.add_argument("--parameter", action="append", metavar="K=V", help="parameter for the driver; repeatable")
    group.add_argument("--secret", action="append", metavar="K=V", help="secret for the driver; repeatable")


def run_create(args: argparse.Namespace, session: Session) -> int:
    """Create a volume, or make an existing one bigger."""
    if not args.plugin:
        _refuse_flags_without_plugin(args)
        volume = _read_volume(args.subject, session, "-plugin creates one from flags")
        return _send(session, volume, is_create=True)
    volume = _make_volume(args)
    before = _find_before(session, volume)
    if before is not None:
        _keep_unsaid(volume, before, args)
    return _send(session, volume, is_create=True, before=before)


def add_register(parser: argparse.ArgumentParser) -> None:
    """Flags of ``volume register``."""
    parser.add_argument("subject", metavar="FILE|-", help="a specification in HCL or JSON, or - for standard input")


def run_register(args: argparse.Namespace, session: Session) -> int:
    """Register a volume, or change one that is."""
    return _send(session, _read_volume(args.subject, session, ""), is_create=False)


def _refuse_flags_without_plugin(args: argparse.Namespace) -> None:
    names = (
        "size",
        "size_max",
        "access_mode",
        "attachment_mode",
        "fs_type",
        "snapshot",
        "clone",
        "parameter",
        "secret",
    )
    for name in names:
        if getattr(args, name) is not None:
            flag = name.replace("_", "-")
            raise BadRequest(f"-{flag} goes with -plugin; with a file, write it into the file")


def _keep_unsaid(volume: Row, before: Row, args: argparse.Namespace) -> None:
    """What no flag says stays as it is: without it, the API would take it for a wish to change."""
    if args.access_mode is None and args.attachment_mode is None:
        volume["RequestedCapabilities"] = before.get("RequestedCapabilities") or volume["RequestedCapabilities"]
    if args.fs_type is None:
        volume["MountOptions"] = before.get("MountOptions")
    if args.size is None:
        volume["RequestedCapacityMin"] = before.get("RequestedCapacityMin") or 0
    if args.size_max is None:
        most = before.get("RequestedCapacityMax") or 0
        volume["RequestedCapacityMax"] = most if most >= volume["RequestedCapacityMin"] else 0
    volume["RequestedTopologies"] = before.get("RequestedTopologies")


def _make_volume(args: argparse.Namespace) -> Row:
    """The volume that the flags describe."""
    from moorage.model.spec import parse_size

    sizes = {}
    for flag, text in (("size", args.size), ("size-max", args.size_max)):
        try:
            sizes[flag] = parse_size(text or "")
        except BadRequest as error:
            raise BadRequest(f"-{flag}: {error.message}") from error
    attachment = args.attachment_mode or "file-system"
    modes = args.access_mode or ["single-node-writer"]
    return {
        "ID": args.subject,
        "Name": args.subject,
        "PluginID": args.plugin,
        "RequestedCapacityMin": sizes["size"],
        "RequestedCapacityMax": sizes["size-max"],
        "RequestedCapabilities": [{"AccessMode": mode, "AttachmentMode": attachment} for mode in modes],
        "MountOptions": {"FSType": args.fs_type, "MountFlags": None} if args.fs_type else None,
        "SnapshotID": args.snapshot or "",
        "CloneID": args.clone or "",
        "Parameters": read_pairs("parameter", args.parameter) or None,
        "Secrets": read_pairs("secret", args.secret) or None,
    }


def _read_volume(name: str, session: Session, advice: str) -> Row:
    """The volume that a file, or standard input, describes."""
    from moorage.model.spec import read_spec

    try:
        if name == "-":
            data = sys.stdin.buffer.read(_SPEC_BYTES_MAX + 1)
        else:
            with open(name, "rb") as file:
                data = file.read(_SPEC_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise BadRequest(f"there is no file {name!r}" + (f"; {advice}" if advice else "")) from error
    except OSError as error:
        raise BadRequest(f"cannot read {name!r}: {error.strerror}") from error
    if len(data) > _SPEC_BYTES_MAX:
        raise BadRequest(f"{name} is longer than {_SPEC_BYTES_MAX} bytes: this is no specification")
    shown = "standard input" if name == "-" else name
    try:
        spec = read_spec(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRequest(f"{shown}: byte {error.start + 1} is not UTF-8 text") from error
    except BadRequest as error:
        raise BadRequest(f"{shown}: {error.message}", code=error.code) from error
    for note in spec.notes:
        session.output.note(f"Note: {shown}: {note}")
    if not spec.body["ID"]:
        raise BadRequest(f'{shown}: the volume has no id: add id = "…"')
    return spec.body


def _query(session: Session, volume: Row) -> dict[str, str]:
    return {"namespace": str(volume.get("Namespace") or session.namespace)}


def _find_before(session: Session, volume: Row) -> Row | None:
    """The volume as it is before the write; None when there is none that may be seen."""
    try:
        found = session.client.get(volume_path(str(volume["ID"])), _query(session, volume)).json()
    except (NotFound, Forbidden):
        return None
    return found if isinstance(found, dict) else None


def _send(session: Session, volume: Row, *, is_create: bool, before: Row | None = None) -> int:
    volume_id = str(volume["ID"])
    query = _query(session, volume)
    if before is None and not session.wants_json:
        before = _find_before(session, volume)
    path = volume_path(volume_id, "create") if is_create else volume_path(volume_id)
    verb = "creating" if is_create else "registering"
    with Progress(session.output, f"{'updating' if before else verb} volume {volume_id}") as progress:
        answer = session.client.write("PUT", path, query, body={"Volumes": [volume]})
    if session.wants_json:
        session.output.json(answer)
        return 0
    body: Any = answer.json() or {}
    warnings = answer.warnings or body.get("Warnings")
    if warnings:
        session.output.note(f"Warning: {warnings}")
    for made in body.get("Volumes") or [volume]:
        session.output.line(_describe(made, before, is_create=is_create, elapsed_s=progress.elapsed_s))
    return 0


def _describe(made: Row, before: Row | None, *, is_create: bool, elapsed_s: float) -> str:
    """What came of it, in a line."""
    size = made.get("Capacity") or 0
    if before is None:
        verb = "Created" if is_create else "Registered"
        external = f" as {made['ExternalID']} at the driver" if made.get("ExternalID") else ""
        shown = f", {format_bytes(size)}" if size else ""
        return f"{verb} volume {made.get('ID')}{external}{shown} ({format_elapsed(elapsed_s)})"
    old = before.get("Capacity") or 0
    if size > old:
        return f"Expanded volume {made.get('ID')}: {format_bytes(old)} → {format_bytes(size)}"
    return f"Updated volume {made.get('ID')}"
