"""``moorage agent``: mounts volumes on this host for a server elsewhere; and the embedded agent of ``moorage dev``."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from moorage.agent import main as agent
from moorage.agent.host import describe_host
from moorage.agent.ports import DriverSpec
from moorage.api.app import App
from moorage.api.http import Request
from moorage.client.api import Client
from moorage.client.transport import Answer as ClientAnswer
from moorage.client.transport import HttpTransport, Transport
from moorage.errors import BadRequest
from moorage.model.ids import PluginId
from moorage.serve.drivers import ChildDriver, supervise
from moorage.serve.program import (
    Body,
    add_log_level,
    add_plugins,
    find_state_home,
    make_private,
    parse_plugins,
    run_program,
)

SOCKET_BYTES_MAX = 100
DRIVER_START_S = 10.0
DRIVER_LOOK_S = 0.02


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's place and drivers: ``embedded`` is the plugin ID of the embedded driver, or empty for none."""

    data_dir: Path
    embedded: str = ""
    plugins: Mapping[PluginId, str] = {}


def choose_socket(data_dir: Path, plugin_id: str) -> Path:
    """Where the embedded driver's socket lies: under the data directory, or, where that path is too long for a
    socket, under a private directory of this user whose name is made of it."""
    socket = data_dir / "run" / f"{plugin_id}.sock"
    if len(os.fsencode(socket)) <= SOCKET_BYTES_MAX:
        return socket
    digest = hashlib.sha256(os.fsencode(socket)).hexdigest()[:16]
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"moorage-{os.getuid()}-{digest}" / "csi.sock"


async def start_node(group: anyio.abc.TaskGroup, settings: NodeSettings, transport: Transport) -> None:
    """Start the embedded driver (if any) and the agent; returns once the server knows the node."""
    state_dir = make_private(settings.data_dir / "node")
    node = await anyio.to_thread.run_sync(describe_host, state_dir)
    drivers = {name: DriverSpec(socket=path) for name, path in settings.plugins.items()}
    if settings.embedded:
        socket = choose_socket(settings.data_dir, settings.embedded)
        make_private(socket.parent)
        data_dir = make_private(settings.data_dir / "drivers" / settings.embedded)
        group.start_soon(supervise, ChildDriver(socket=socket, data_dir=data_dir, node_id=node.id))
        drivers[PluginId(settings.embedded)] = DriverSpec(socket=str(socket))
        await _wait_serving(socket)
    await group.start(partial(agent.run, Client(transport), drivers, state_dir=state_dir, node=node))


async def _wait_serving(socket: Path) -> None:
    """Return when the driver takes connections, so that the agent's first probe finds it well. One that does not
    come up in time is the probes' to tell."""
    with anyio.move_on_after(DRIVER_START_S):
        while True:
            with suppress(OSError):
                async with await anyio.connect_unix(socket):
                    return
            await anyio.sleep(DRIVER_LOOK_S)


Handle = Callable[[str, str, Mapping[str, str], bytes | None], Awaitable[ClientAnswer]]


def make_handle(app: App) -> Handle:
    """The app as a function of method, path, query and body: the embedded agent asks it without a socket."""

    async def handle(method: str, path: str, query: Mapping[str, str], body: bytes | None) -> ClientAnswer:
        request = Request(
            method=method, path=path, parts=tuple(unquote(path).split("/")[1:]), query=query, body=body or b""
        )
        answer = await app.answer(request)
        return ClientAnswer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.body)

    return handle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.description = (
        "Mount volumes on this host for a server. Stopping it disturbs no mounted volume; started again it goes on."
    )
    address = os.environ.get("MOORAGE_ADDR") or os.environ.get("NOMAD_ADDR") or "http://127.0.0.1:4646"
    parser.add_argument("--server", default=address, metavar="URL", help="the server (default: %(default)s)")
    parser.add_argument("--data-dir", type=Path, default=None, metavar="DIR", help="where the agent keeps its state")
    parser.add_argument(
        "--plugin-id", default="", metavar="NAME", help="run the embedded driver too, by this plugin ID"
    )
    add_plugins(parser)
    add_log_level(parser)


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    data_dir: Path = (args.data_dir or find_state_home() / "moorage" / "agent").absolute()

    def make_body() -> Body:
        plugins = parse_plugins(args.plugin, taken=args.plugin_id)
        if not plugins and not args.plugin_id:
            raise BadRequest("name at least one driver, by --plugin NAME=unix:///SOCKET or --plugin-id NAME")
        settings = NodeSettings(data_dir=make_private(data_dir), embedded=args.plugin_id, plugins=plugins)

        async def body(group: anyio.abc.TaskGroup) -> None:
            transport = HttpTransport(args.server)
            try:
                async with anyio.create_task_group() as inner:
                    await start_node(inner, settings, transport)
                    print(f"ready {args.server}", flush=True)
                    await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                    await transport.aclose()

        return body

    return run_program("moorage agent", args, make_body)
