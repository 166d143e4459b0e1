"""A CSI driver for tests with several nodes: volumes are directories in one directory that all nodes reach.

    python -m moorage.testing.shared_driver --endpoint unix:///csi.sock --data DIR --node-id N

Shapes: one process a node (and more, for controllers by themselves); all agree by a file in DIR. Volumes reach a node
    by bind mounts, so that the node's process needs root.
Returns 0 after SIGTERM or SIGINT, 2 for arguments that cannot be used.
    ``--delay`` and ``--delay-answer`` make every call of a method slow: what a test has to hit in the middle of a call.
Limits: no sizes, snapshots, block volumes; a detached node can still write to what is mounted there, as on most NAS.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.to_thread
import structlog

from moorage.csi.calls import RPCS
from moorage.csi.local.publishing import Publisher
from moorage.csi.local.server import make_server, parse_endpoint
from moorage.errors import BadRequest
from moorage.testing.shared_services import SharedController, SharedIdentity, SharedNode, may_mount
from moorage.testing.shared_state import SharedStorage

STOP_GRACE_S = 2.0
Role = Literal["monolith", "controller", "node"]
_NODE_ID = re.compile("[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


class Slow:
    """A part of the driver whose calls wait: ``before_s`` their work, ``after_s`` it; seconds by the bare method."""

    def __init__(self, part: object, before_s: Mapping[str, float], after_s: Mapping[str, float]) -> None:
        self._part = part
        self._before_s = {_to_snake(method): seconds for method, seconds in before_s.items()}
        self._after_s = {_to_snake(method): seconds for method, seconds in after_s.items()}

    def __getattr__(self, name: str) -> Any:
        answer = getattr(self._part, name)

        async def wait_and_answer(request: Any) -> Any:
            await anyio.sleep(self._before_s.get(name, 0))
            answered = await answer(request)
            await anyio.sleep(self._after_s.get(name, 0))
            return answered

        return wait_and_answer


async def serve(
    *,
    endpoint: str,
    data_dir: Path,
    node_id: str,
    role: Role = "monolith",
    before_s: Mapping[str, float] | None = None,
    after_s: Mapping[str, float] | None = None,
) -> None:
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
    if before_s or after_s:
        parts = [Slow(part, before_s or {}, after_s or {}) for part in parts]
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
    for name, text in (("--delay", "before its work"), ("--delay-answer", "between its work and its answer")):
        parser.add_argument(
            name, action="append", default=[], type=_parse_delay, metavar="METHOD=SECONDS",
            help=f"let every call of a method wait {text}; may be given several times",
        )  # fmt: skip
    args = parser.parse_args(argv)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    code = 0
    program = partial(
        serve, endpoint=args.endpoint, data_dir=args.data, node_id=args.node_id, role=args.role,
        before_s=dict(args.delay), after_s=dict(args.delay_answer),
    )  # fmt: skip
    try:
        anyio.run(_run_until_signal, program)
    except* (BadRequest, OSError) as errors:
        code = 2
        for error in errors.exceptions:
            print(f"shared_driver: {error}", file=sys.stderr)
    return code


def _parse_delay(text: str) -> tuple[str, float]:
    method, _, seconds = text.partition("=")
    if method not in {rpc.name for rpc in RPCS.values()}:
        raise argparse.ArgumentTypeError(f"{method!r} is no method of CSI")
    try:
        return method, float(seconds)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{seconds!r} is no number of seconds") from None


def _to_snake(method: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in method).lstrip("_")


async def _run_until_signal(program: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as group:
            group.start_soon(program)
            async for _ in signals:
                group.cancel_scope.cancel()
                break


if __name__ == "__main__":
    sys.exit(main())
