"""``moorage dev``: server, agent and the embedded driver for one host, in one process tree."""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog

from moorage.agent import main as agent
from moorage.agent.host import describe_host
from moorage.agent.ports import DriverSpec
from moorage.api.app import App
from moorage.api.http import Request
from moorage.client.api import Client
from moorage.client.transport import Answer as ClientAnswer
from moorage.client.transport import CallTransport
from moorage.engine.service import Service
from moorage.errors import BadRequest, MoorageError
from moorage.log import configure_logging
from moorage.model.ids import PluginId
from moorage.rules.plugins import measure_health
from moorage.serve.drivers import ChildDriver, supervise
from moorage.serve.http import address_of, open_socket, serve_http
from moorage.state.feed import Feed
from moorage.state.repo import Repo
from moorage.state.sqlite import SqliteStore

log = structlog.get_logger()

SOCKET_BYTES_MAX = 100
READY_POLL_S = 1.0


class RealClock:
    """The host's clock."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return time.time_ns()


class RealChance:
    """The host's randomness."""

    def new_id(self) -> str:
        """A random UUID."""
        return str(uuid.uuid4())

    def jitter(self) -> float:
        """A number in [0, 1)."""
        return random.random()


class DevSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What ``moorage dev`` was asked for: ``plugins`` maps IDs to sockets of drivers that somebody else runs."""

    bind: str
    data_dir: Path
    plugin_id: PluginId
    plugins: Mapping[PluginId, str] = {}
    log_level: str = "info"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.description = (
        "Run server, agent and the embedded driver for this host in one process tree. Prints `ready http://…` once it "
        "serves and the driver is healthy; SIGTERM or Ctrl-C stops it; mounted volumes stay mounted."
    )
    parser.add_argument(
        "--bind", default="127.0.0.1:4646", metavar="HOST:PORT", help="where to serve (port 0: a free one)"
    )
    parser.add_argument("--data-dir", type=Path, default=None, metavar="DIR", help="where records and volumes lie")
    parser.add_argument("--plugin-id", default="local", metavar="NAME", help="the embedded driver's plugin ID")
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="NAME=unix:///SOCKET",
        help="a driver that somebody else runs, by plugin ID; may be repeated",
    )
    parser.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error"), help="what to log"
    )


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT. 0: stopped cleanly; 2: bad arguments; 1: could not start or failed."""
    configure_logging(args.log_level)
    found: list[MoorageError] = []
    try:
        anyio.run(_run, parse_settings(args), backend_options={"use_uvloop": True})
    except* MoorageError as group:
        found = _flatten(group)
    for error in found:
        print(f"moorage dev: {error.message}", file=sys.stderr)
    if not found:
        return 0
    return 2 if isinstance(found[0], BadRequest) else 1


def _flatten(error: BaseException) -> list[MoorageError]:
    if isinstance(error, BaseExceptionGroup):
        return [inner for part in error.exceptions for inner in _flatten(part)]
    return [error] if isinstance(error, MoorageError) else []


def parse_settings(args: argparse.Namespace) -> DevSettings:
    """The settings from the arguments. Raises BadRequest that names the argument."""
    plugins: dict[PluginId, str] = {}
    for text in args.plugin:
        name, equals, endpoint = text.partition("=")
        if not name or not equals or not endpoint.startswith("unix:///"):
            raise BadRequest(f"--plugin {text!r} is not NAME=unix:///SOCKET")
        if name == args.plugin_id or name in plugins:
            raise BadRequest(f"--plugin {text!r}: the plugin ID {name!r} is taken; give it another name")
        plugins[PluginId(name)] = endpoint.removeprefix("unix://")
    if not args.plugin_id or "/" in args.plugin_id:
        raise BadRequest(f"--plugin-id {args.plugin_id!r}: a name without / is needed")
    data_dir = args.data_dir or default_data_dir()
    return DevSettings(
        bind=args.bind,
        data_dir=data_dir.absolute(),
        plugin_id=PluginId(args.plugin_id),
        plugins=plugins,
        log_level=args.log_level,
    )


def default_data_dir() -> Path:
    """A directory under the user's state directory."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "moorage" / "dev"


def _make_private(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise BadRequest(f"--data-dir: cannot make {path}: {error.strerror}") from error
    return path


def choose_socket(data_dir: Path, plugin_id: str) -> Path:
    """Where the embedded driver's socket lies: under the data directory, or, where that path is too long for a
    socket, under a private directory of this user whose name is made of it."""
    socket = data_dir / "run" / f"{plugin_id}.sock"
    if len(os.fsencode(socket)) <= SOCKET_BYTES_MAX:
        return socket
    digest = hashlib.sha256(os.fsencode(socket)).hexdigest()[:16]
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"moorage-{os.getuid()}-{digest}" / "csi.sock"


async def _run(settings: DevSettings) -> None:
    listener = open_socket(settings.bind)
    data_dir = _make_private(settings.data_dir)
    store = await SqliteStore.open(_make_private(data_dir / "server") / "state.db")
    try:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with anyio.create_task_group() as group:

                async def stop_on_signal() -> None:
                    async for number in signals:
                        log.info("stopping", signal=signal.Signals(number).name)
                        group.cancel_scope.cancel()
                        break

                group.start_soon(stop_on_signal)
                feed = Feed(store)
                service = Service(Repo(store, feed), RealClock(), RealChance())
                await group.start(service.run)
                app = App(service)
                await group.start(serve_http, app, listener)
                await _start_agent(group, settings, app)
                await _wait_healthy(service, feed, {settings.plugin_id})
                print(f"ready {address_of(listener)}", flush=True)
    finally:
        with anyio.CancelScope(shield=True):
            await store.close()
        listener.close()


async def _start_agent(group: anyio.abc.TaskGroup, settings: DevSettings, app: App) -> None:
    state_dir = _make_private(settings.data_dir / "node")
    socket = choose_socket(settings.data_dir, settings.plugin_id)
    _make_private(socket.parent)
    node = await anyio.to_thread.run_sync(describe_host, state_dir)
    child = ChildDriver(
        socket=socket, data_dir=_make_private(settings.data_dir / "drivers" / settings.plugin_id), node_id=node.id
    )
    group.start_soon(supervise, child)
    drivers = {settings.plugin_id: DriverSpec(socket=str(socket))}
    drivers |= {name: DriverSpec(socket=path) for name, path in settings.plugins.items()}
    client = Client(CallTransport(_make_handle(app)))
    await group.start(partial(agent.run, client, drivers, state_dir=state_dir, node=node))


Handle = Callable[[str, str, Mapping[str, str], bytes | None], Awaitable[ClientAnswer]]


def _make_handle(app: App) -> Handle:
    """The app as a function of method, path, query and body: the embedded agent asks it without a socket."""

    async def handle(method: str, path: str, query: Mapping[str, str], body: bytes | None) -> ClientAnswer:
        request = Request(
            method=method,
            path=path,
            parts=tuple(unquote(p) for p in path.split("/")[1:]),
            query=query,
            body=body or b"",
        )
        answer = await app.answer(request)
        return ClientAnswer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.body)

    return handle


async def _wait_healthy(service: Service, feed: Feed, plugins: set[PluginId]) -> None:
    """Return when each plugin has a healthy controller and node; says every few seconds what it waits for."""
    while True:
        lacking = [p for p in plugins if not _is_healthy(service, p)]
        if not lacking:
            return
        await feed.signals.wait(("plugins/",), lambda change: True, timeout_s=READY_POLL_S)


def _is_healthy(service: Service, plugin_id: PluginId) -> bool:
    found = service.reads.find_plugin(plugin_id)
    return found is not None and measure_health(found.value).is_schedulable
