"""``moorage agent``: mounts volumes on this host for a server elsewhere; and the embedded agent of ``moorage dev``."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog

from moorage import config
from moorage.agent import main as agent
from moorage.agent.host import describe_host
from moorage.agent.joining import load_secret, read_join_token
from moorage.agent.ports import AgentSettings, CallLimits, DriverSpec
from moorage.agent.sockets import CSI_SOCKET
from moorage.client.api import AgentPages, Client
from moorage.client.tls import Tls
from moorage.client.transport import HttpTransport
from moorage.config import DriverTable, PluginTable, Settings
from moorage.errors import BadRequest
from moorage.log import configure_logging
from moorage.model.ids import PluginId
from moorage.serve.addresses import is_local
from moorage.serve.drivers import RestartPolicy, SupervisedDriver, embed_driver, supervise
from moorage.serve.program import (
    Body,
    add_plugins,
    choose_place,
    make_private,
    parse_plugins,
    run_program,
)

log = structlog.get_logger()
SOCKET_BYTES_MAX = 100
DRIVER_START_S = 10.0
DRIVER_LOOK_S = 0.02


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's place and drivers: ``embedded`` is the plugin ID of the embedded driver, or empty for none;
    ``drivers`` are run here, ``plugins`` by somebody else, by plugin ID."""

    data_dir: Path
    embedded: str = ""
    drivers: tuple[DriverTable, ...] = ()
    plugins: Mapping[PluginId, DriverSpec] = {}
    agent: AgentSettings = AgentSettings()
    join_token_file: str = ""


def choose_node(settings: Settings, data_dir: Path, *, flags: Sequence[str], embedded: str) -> NodeSettings:
    """What settings and ``--plugin`` flags say about this node. Raises BadRequest; makes the data directory."""
    taken = {embedded, *(driver.name for driver in settings.driver), *(plugin.name for plugin in settings.plugin)}
    plugins = {
        PluginId(p.name): DriverSpec(socket=p.socket, role=p.role, limits=_choose_limits(p)) for p in settings.plugin
    }
    plugins |= {name: DriverSpec(socket=path) for name, path in parse_plugins(flags, taken=taken).items()}
    given = settings.agent
    chosen = AgentSettings(
        clean_first_s=given.clean_first_s,
        retry_cap_s=given.retry_cap_s,
        mount_probe_s=given.mount_probe_s,
        mount_hang_s=given.mount_hang_s,
        controller_calls_max=given.controller_calls_max,
        node_calls_max=given.node_calls_max,
        slow_calls_max=given.slow_calls_max,
        slow_after_s=given.slow_after_s,
        plugin_dirs=tuple(os.path.abspath(path) for path in given.plugin_dirs),
        plugin_gone_s=given.plugin_gone_s,
        is_self_fencing=given.self_fence,
        secret_dirs=tuple(os.path.abspath(path) for path in given.secret_dirs),
        secret_env=given.secret_env,
        secret_credentials=given.secret_credentials,
        secret_read_s=given.secret_read_s,
    )
    return NodeSettings(
        data_dir=make_private(data_dir),
        embedded=embedded,
        drivers=settings.driver,
        plugins=plugins,
        agent=chosen,
        join_token_file=os.path.abspath(given.join_token_file) if given.join_token_file else "",
    )


def _choose_limits(table: DriverTable | PluginTable) -> CallLimits:
    return CallLimits(
        controller_calls_max=_own(table.controller_calls_max),
        node_calls_max=_own(table.node_calls_max),
        slow_calls_max=_own(table.slow_calls_max),
    )


def _own(number: int) -> int | None:
    return None if number < 0 else number


def choose_socket(data_dir: Path, plugin_id: str) -> Path:
    """Where the embedded driver's socket lies: under the data directory, or, where that path is too long for a
    socket, under a private directory of this user whose name is made of it."""
    socket = data_dir / "run" / f"{plugin_id}.sock"
    if len(os.fsencode(socket)) <= SOCKET_BYTES_MAX:
        return socket
    digest = hashlib.sha256(os.fsencode(socket)).hexdigest()[:16]
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"moorage-{os.getuid()}-{digest}" / "csi.sock"


async def start_node(group: anyio.abc.TaskGroup, settings: NodeSettings, connect: Callable[[str], AgentPages]) -> None:
    """Start the drivers that are run here (if any) and the agent; returns once the server knows the node.

    ``connect`` gets the node's own secret, which goes with every request.
    """
    state_dir = make_private(settings.data_dir / "node")
    client = connect(await anyio.to_thread.run_sync(load_secret, state_dir))
    node = await anyio.to_thread.run_sync(describe_host, state_dir)
    drivers = dict(settings.plugins)
    run_here = [_describe_driver(table, settings.data_dir) for table in settings.drivers]
    for table, driver in zip(settings.drivers, run_here, strict=True):
        drivers[PluginId(driver.name)] = DriverSpec(
            socket=str(driver.socket), role=table.role, limits=_choose_limits(table)
        )
    if settings.embedded:
        socket = choose_socket(settings.data_dir, settings.embedded)
        make_private(socket.parent)
        data_dir = make_private(settings.data_dir / "drivers" / settings.embedded)
        run_here.append(embed_driver(settings.embedded, socket=socket, data_dir=data_dir, node_id=node.id))
        drivers[PluginId(settings.embedded)] = DriverSpec(socket=str(socket))
    for driver in run_here:
        group.start_soon(supervise, driver, name=f"driver {driver.name}")
    if settings.embedded:
        await _wait_serving(socket)
    find_join_token = partial(read_join_token, settings.join_token_file)
    run = partial(agent.run, settings=settings.agent, state_dir=state_dir, node=node, find_join_token=find_join_token)
    await group.start(run, client, drivers)


def _describe_driver(table: DriverTable, data_dir: Path) -> SupervisedDriver:
    if table.socket:
        socket = Path(table.socket)
        socket.parent.mkdir(parents=True, exist_ok=True)
    elif table.socket_dir:
        socket = Path(table.socket_dir) / CSI_SOCKET
        socket.parent.mkdir(parents=True, exist_ok=True)
    else:
        socket = choose_socket(data_dir, table.name)
        make_private(socket.parent)
    if len(os.fsencode(socket)) > SOCKET_BYTES_MAX:
        raise BadRequest(f"driver {table.name!r}: the socket path {socket} is longer than {SOCKET_BYTES_MAX} bytes")
    restart = RestartPolicy(
        first_s=table.restart_first_s, cap_s=table.restart_cap_s, steady_s=table.steady_s, stop_s=table.stop_s
    )
    return SupervisedDriver(
        name=table.name, command=table.command, socket=socket, environment=table.environment, restart=restart
    )


async def _wait_serving(socket: Path) -> None:
    """Return when the driver takes connections, so that the agent's first probe finds it well. One that does not
    come up in time is the probes' to tell."""
    with anyio.move_on_after(DRIVER_START_S):
        while True:
            with suppress(OSError):
                async with await anyio.connect_unix(socket):
                    return
            await anyio.sleep(DRIVER_LOOK_S)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.description = (
        "Mount volumes on this host for a server. Stopping it disturbs no mounted volume; started again it goes on."
    )
    config.add_flags(parser, "agent")
    add_plugins(parser)


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""

    def make_body() -> Body:
        settings = config.load("agent", args)
        configure_logging(settings.agent.log_level)
        data_dir = choose_place(settings.agent.data_dir, "agent")
        chosen = choose_node(settings, data_dir, flags=args.plugin, embedded=settings.agent.plugin_id)
        if not (chosen.embedded or chosen.drivers or chosen.plugins or chosen.agent.plugin_dirs):
            raise BadRequest(
                "name at least one driver, by --plugin NAME=unix:///SOCKET, --plugin-id NAME or --plugin-dir DIR, "
                "or in the settings"
            )
        server, given = settings.agent.server, settings.agent
        tls = Tls(
            ca_file=given.ca_file,
            cert_file=given.cert_file,
            key_file=given.key_file,
            server_name=given.tls_server_name,
        )

        async def body(group: anyio.abc.TaskGroup) -> None:
            opened: list[HttpTransport] = []
            parts = urlsplit(server)
            if parts.scheme == "http" and not is_local(f"{parts.hostname or ''}:"):
                log.warning("server.plain_http", server=server, risk="the node's secret and its volumes' can be read")

            def connect(secret: str) -> AgentPages:
                opened.append(HttpTransport(server, token=secret, tls=tls))
                return Client(opened[0])

            try:
                async with anyio.create_task_group() as inner:
                    await start_node(inner, chosen, connect)
                    print(f"ready {server}", flush=True)
                    await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                    for transport in opened:
                        await transport.aclose()

        return body

    return run_program("moorage agent", make_body)
