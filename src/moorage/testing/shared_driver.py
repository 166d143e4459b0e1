"""A CSI driver for tests with several nodes: volumes are directories in one directory that all nodes reach.

    python -m moorage.testing.shared_driver --endpoint unix:///csi.sock --data DIR --node-id N

Shapes: one process a node (and more, for controllers by themselves); all agree by a file in DIR. Volumes reach a node
    by bind mounts, so that the node's process needs root.
Returns 0 after SIGTERM or SIGINT, 2 for arguments that cannot be used.
Limits: no sizes, snapshots, block volumes; a detached node can still write to what is mounted there, as on most NAS.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
import structlog

from moorage.csi.local.publishing import Publisher
from moorage.csi.local.server import make_server, parse_endpoint
from moorage.errors import BadRequest
from moorage.testing.shared_services import SharedController, SharedIdentity, SharedNode, may_mount
from moorage.testing.shared_state import SharedStorage

STOP_GRACE_S = 2.0
Role = Literal["monolith", "controller", "node"]
_NODE_ID = re.compile("[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


async def serve(*, endpoint: str, data_dir: Path, node_id: str, role: Role = "monolith") -> None:
    """Serve until cancelled; prints ``ready`` when the socket answers. Raises BadRequest, OSError."""
    path = parse_endpoint(endpoint)
    if not _NODE_ID.fullmatch(node_id):
        raise BadRequest(f"node id {node_id!r} needs 1 to 63 letters, digits, '-', '_' or '.'")
    storage = SharedStorage(data_dir, node_id=node_id)
    is_node = role != "controller"
    await anyio.to_thread.run_sync(partial(storage.prepare, is_node=is_node))
    parts: list[object] = [SharedIdentity()]
    if role != "node":
        parts.append(SharedController(storage))
    if is_node:
        publisher = Publisher(storage, may_mount=await anyio.to_thread.run_sync(may_mount))
        await anyio.to_thread.run_sync(publisher.clean)
        parts.append(SharedNode(storage, publisher, node_id=node_id))
    server = make_server(tuple(parts))
    with suppress(FileNotFoundError):
        os.unlink(path)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    print(f"ready endpoint=unix://{path}", flush=True)
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(2 * STOP_GRACE_S):
            await server.stop(STOP_GRACE_S)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m moorage.testing.shared_driver", description=__doc__)
    parser.add_argument("--endpoint", required=True, metavar="unix:///PATH.sock", help="the socket to serve")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="the directory that all nodes reach")
    parser.add_argument("--node-id", required=True, metavar="ID", help="this node's ID")
    parser.add_argument("--role", choices=("monolith", "controller", "node"), default="monolith")
    args = parser.parse_args(argv)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    code = 0
    run = partial(_serve_until_signal, endpoint=args.endpoint, data_dir=args.data, node_id=args.node_id, role=args.role)
    try:
        anyio.run(run)
    except* (BadRequest, OSError) as errors:
        code = 2
        for error in errors.exceptions:
            print(f"shared_driver: {error}", file=sys.stderr)
    return code


async def _serve_until_signal(*, endpoint: str, data_dir: Path, node_id: str, role: Role) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as group:
            group.start_soon(partial(serve, endpoint=endpoint, data_dir=data_dir, node_id=node_id, role=role))
            async for _ in signals:
                group.cancel_scope.cancel()
                break


if __name__ == "__main__":
    sys.exit(main())
