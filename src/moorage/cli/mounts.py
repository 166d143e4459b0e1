"""``moorage mount`` and ``moorage umount``: a use of one volume at one path, from asking for it until it is there.

A mount is an allocation whose ID is chosen here, so that asking again is harmless. Never: mounting anything itself.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moorage.cli.allocations import describe_event, describe_trouble, find_events
from moorage.cli.output import Progress, format_elapsed
from moorage.cli.session import Row, Session, find_node, find_volume, list_rows, volume_path, volume_query
from moorage.client.sync import path_of
from moorage.errors import BadRequest, DeadlineExceeded, NotFound, PluginUnavailable

_READER_MODES = frozenset({"single-node-reader-only", "multi-node-reader-only"})
_FILE_SYSTEM = "file-system"
_OVER = frozenset({"complete", "failed", "lost"})
_WAIT_S = 10.0
_TIMEOUT_S = 300.0


# -- mount -----------------------------------------------------------------------------------------------------------


def add_mount(parser: argparse.ArgumentParser) -> None:
    """Flags of ``mount``."""
    parser.add_argument("volume", metavar="VOLUME", help="the volume's ID, or the beginning of one")
    parser.add_argument("path", metavar="PATH", help="where it shall appear on the node")
    parser.add_argument("--read-only", action="store_true", help="for reading only")
    parser.add_argument("--access-mode", metavar="MODE", help="one of the volume's; the first that fits")
    parser.add_argument("--node", metavar="NODE", help="the node's ID or name; this host, or the only ready node")
    parser.add_argument("--timeout", type=float, default=_TIMEOUT_S, metavar="SECONDS", help="how long to wait; 300")


def run_mount(args: argparse.Namespace, session: Session) -> int:
    """Ask for the mount, wait until the volume is at its path, and print the path."""
    target = os.path.abspath(args.path)
    row = find_volume(session, args.volume)
    query = volume_query(session, row)
    volume: Row = session.client.get(volume_path(str(row["ID"])), query).json()
    node = choose_node(list_rows(session, "/v1/nodes"), socket.gethostname()) if not args.node else None
    if args.node:
        node = find_node(session, args.node)
        if node is None:
            raise NotFound(f"no node has the ID, prefix or name {args.node!r}", code="node_not_found")
    node_id = str((node or {})["ID"])
    same = _find_mounted(session, query, volume_id=str(volume["ID"]), target=target, node_id=node_id)
    if same:
        session.output.note(f"Volume {volume['ID']} is mounted there already, by allocation {same['ID']}")
        return _print_mounted(session, same)
    capability = choose_capability(volume, is_read_only=args.read_only, access_mode=args.access_mode)
    allocation_id = str(uuid.uuid4())
    request = {
        "Name": "data",
        "Source": volume["ID"],
        "Target": target,
        "ReadOnly": args.read_only,
        "AccessMode": capability["AccessMode"],
        "AttachmentMode": capability["AttachmentMode"],
    }
    body = {
        "Allocation": {
            "ID": allocation_id,
            "Name": f"mount.{volume['ID']}",
            "Namespace": volume.get("Namespace") or session.namespace,
            "JobID": "mount",
            "TaskGroup": "mount",
            "NodeID": node_id,
            "Tasks": ["mount"],
            "Volumes": [request],
        }
    }
    with Progress(session.output, f"mounting {volume['ID']}: asking") as progress:
        try:
            session.client.write("PUT", "/v1/allocations", query, body=body)
            allocation = _wait(
                session, allocation_id, query, progress=progress, timeout_s=args.timeout, is_there=_is_settled
            )
        except KeyboardInterrupt:
            progress.step("interrupted")
            session.output.note(f"The mount goes on without us as allocation {allocation_id}")
            session.output.note(f"`moorage alloc status {allocation_id}` shows it, `moorage umount` ends it")
            raise
    if allocation is not None and allocation.get("ClientStatus") == "running":
        return _print_mounted(session, allocation)
    reason = _describe_end(allocation)
    session.output.note(f"Error mounting volume {volume['ID']}: {reason}")
    session.output.note(f"Hint: `moorage alloc status {allocation_id}` tells all that happened")
    return 1


def choose_capability(volume: Row, *, is_read_only: bool, access_mode: str | None) -> dict[str, str]:
    """The pair of modes to claim: the one named, else the one in use if it fits, else the first that fits.

    Raises BadRequest when the volume has none that fits.
    """
    offered = [
        {
            "AccessMode": str(entry.get("AccessMode") or ""),
            "AttachmentMode": str(entry.get("AttachmentMode") or _FILE_SYSTEM),
        }
        for entry in volume.get("RequestedCapabilities") or ()
    ]
    offered.sort(key=lambda entry: entry["AttachmentMode"] != _FILE_SYSTEM)
    if access_mode:
        named = [entry for entry in offered if entry["AccessMode"] == access_mode]
        return named[0] if named else {"AccessMode": access_mode, "AttachmentMode": _FILE_SYSTEM}
    if len(offered) == 1 and (is_read_only or offered[0]["AccessMode"] not in _READER_MODES):
        return offered[0]
    readers = [entry for entry in offered if entry["AccessMode"] in _READER_MODES]
    writers = [entry for entry in offered if entry["AccessMode"] not in _READER_MODES]
    fitting = readers + writers if is_read_only else writers
    in_use = [entry for entry in fitting if entry["AccessMode"] == volume.get("AccessMode")]
    if in_use:
        return in_use[0]
    if not fitting:
        text = "has only modes for reading: add -read-only" if readers else "names no capability: give -access-mode"
        raise BadRequest(f"volume {volume.get('ID')} {text}")
    return fitting[0]


def choose_node(nodes: Sequence[Row], host_name: str) -> Row:
    """The only ready node, or the ready one named like this host; raises BadRequest or PluginUnavailable."""
    ready = [node for node in nodes if node.get("Status") == "ready"]
    if not ready:
        raise PluginUnavailable("no node is ready: is an agent running?")
    if len(ready) == 1:
        return ready[0]
    short = host_name.partition(".")[0]
    here = [node for node in ready if node.get("Name") in (host_name, short)]
    if len(here) != 1:
        names = ", ".join(sorted(str(node.get("Name")) for node in ready))
        raise BadRequest(f"there are {len(ready)} ready nodes, name one with -node: {names}")
    return here[0]


def _find_mounted(session: Session, query: Mapping[str, str], *, volume_id: str, target: str, node_id: str) -> Row:
    """The live allocation that has the volume at this path already, or an empty dict."""
    for row in _list_live(session, query):
        is_same = any(
            mount.get("Volume") == volume_id and target in (mount.get("Target"), mount.get("Path"))
            for mount in row.get("Mounts") or ()
        )
        if is_same and row.get("NodeID") == node_id and row.get("ClientStatus") == "running":
            return row
    return {}


def _list_live(session: Session, query: Mapping[str, str]) -> list[Row]:
    rows = list_rows(session, "/v1/allocations", **query)
    return [row for row in rows if row.get("DesiredStatus") != "stop" and row.get("ClientStatus") != "complete"]


def _print_mounted(session: Session, allocation: Row) -> int:
    if session.wants_json:
        answer = session.client.get(
            path_of("allocation", str(allocation["ID"])),
            {"namespace": str(allocation.get("Namespace") or session.namespace)},
        )
        session.output.json(answer)
        return 0
    for mount in allocation.get("Mounts") or ():
        session.output.line(str(mount.get("Path") or mount.get("Target")))
    return 0


def _is_settled(allocation: Row) -> bool:
    return allocation.get("ClientStatus") == "running" or allocation.get("ClientStatus") in _OVER


def _describe_end(allocation: Row | None) -> str:
    """Why an allocation came to its end, as far as it says."""
    if allocation is None:
        return "the allocation is gone: it was stopped meanwhile"
    status = str(allocation.get("ClientStatus"))
    said = describe_trouble(allocation) or str(allocation.get("ClientDescription") or "")
    events = find_events(allocation)
    return said or (describe_event(events[-1]) if events else "") or f"it is {status}"


# -- umount ----------------------------------------------------------------------------------------------------------


def add_umount(parser: argparse.ArgumentParser) -> None:
    """Flags of ``umount``."""
    parser.add_argument("subject", metavar="PATH|VOLUME|ALLOCATION", help="what to unmount")
    parser.add_argument("--node", metavar="NODE", help="only on this node, by ID or name")
    parser.add_argument("--timeout", type=float, default=_TIMEOUT_S, metavar="SECONDS", help="how long to wait; 300")


def run_umount(args: argparse.Namespace, session: Session) -> int:
    """Stop the allocations that are meant and wait until nothing of them is left."""
    query = {"namespace": session.namespace}
    rows = _list_live(session, query)
    if args.node:
        rows = [row for row in rows if args.node in (row.get("NodeID"), row.get("NodeName"))]
    meant = find_meant(rows, args.subject)
    if not meant:
        raise NotFound(
            f"nothing is mounted that {args.subject!r} could mean; `moorage alloc status` lists what is",
            code="allocation_not_found",
        )
    code = 0
    for row in meant:
        code = max(code, _stop(session, row, timeout_s=args.timeout))
    return code


def find_meant(rows: Sequence[Row], subject: str) -> list[Row]:
    """The allocations that ``subject`` means: by ID, else by path, else by volume, else by the beginning of an ID."""
    by_id = [row for row in rows if row.get("ID") == subject]
    path = os.path.abspath(subject)
    by_path = [row for row in rows if any(path in (m.get("Path"), m.get("Target")) for m in row.get("Mounts") or ())]
    by_volume = [row for row in rows if any(m.get("Volume") == subject for m in row.get("Mounts") or ())]
    by_prefix = [row for row in rows if subject and str(row.get("ID", "")).startswith(subject)]
    if by_id or by_path or by_volume:
        return by_id or by_path or by_volume
    if len(by_prefix) > 1:
        raise BadRequest(f"{subject!r} begins the IDs of {len(by_prefix)} allocations: give more of it")
    return by_prefix


def _stop(session: Session, row: Row, *, timeout_s: float) -> int:
    allocation_id = str(row["ID"])
    query = {"namespace": str(row.get("Namespace") or session.namespace)}
    names = [
        f"{mount.get('Volume')} at {mount.get('Path') or mount.get('Target')}" for mount in row.get("Mounts") or ()
    ]
    what = ", ".join(names) or f"allocation {allocation_id}"
    with Progress(session.output, f"unmounting {what}") as progress:
        answer = session.client.write("PUT", path_of("allocation", allocation_id, "stop"), query, body={})
        end = _wait(session, allocation_id, query, progress=progress, timeout_s=timeout_s, is_there=_is_over)
    if end is not None and end.get("ClientStatus") == "lost":
        session.output.note(f"Error unmounting {what}: {_describe_end(end)}")
        return 1
    if session.wants_json:
        session.output.raw_json(answer.body.decode("utf-8", "replace") if answer.body.strip() else "{}")
    else:
        session.output.line(f"Unmounted {what}")
    return 0


def _is_over(allocation: Row) -> bool:
    return allocation.get("ClientStatus") in _OVER


# -- both ------------------------------------------------------------------------------------------------------------


def _wait(
    session: Session,
    allocation_id: str,
    query: Mapping[str, str],
    *,
    progress: Progress,
    timeout_s: float,
    is_there: Callable[[Row], bool],
) -> Row | None:
    """The allocation as soon as ``is_there`` says so, by blocking queries; None when it is gone.

    Raises DeadlineExceeded when the time is up; the work goes on without us.
    """
    path = path_of("allocation", allocation_id)
    ends_s = time.monotonic() + timeout_s
    index = 0
    while True:
        left_s = ends_s - time.monotonic()
        try:
            if index:
                answer = session.client.watch(path, query, index=index, wait_s=max(0.1, min(_WAIT_S, left_s)))
            else:
                answer = session.client.get(path, query)
        except NotFound:
            return None
        allocation: Any = answer.json() or {}
        if is_there(allocation):
            return dict(allocation)
        progress.step(_describe_step(progress, allocation))
        if left_s <= 0:
            last = _describe_end(allocation)
            raise DeadlineExceeded(
                f"allocation {allocation_id} is not there after {format_elapsed(timeout_s)} ({last}); it goes on"
            )
        if answer.index <= index:  # a server that does not block must not be asked in a tight loop
            time.sleep(0.2)
        index = answer.index


def _describe_step(progress: Progress, allocation: Row) -> str:
    events = find_events(allocation)
    last = describe_event(events[-1]) if events else str(allocation.get("ClientDescription") or "")
    last = describe_trouble(allocation) or last
    return f"{progress.first_text}: {last or allocation.get('ClientStatus') or 'waiting'}"
