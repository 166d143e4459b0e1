"""``moorage dev``: server, agent and the embedded driver for one host, in one process tree."""

from __future__ import annotations

import argparse
from pathlib import Path

import anyio
import anyio.abc

from moorage.client.transport import CallTransport
from moorage.errors import BadRequest
from moorage.model.ids import PluginId
from moorage.rules.plugins import measure_health
from moorage.serve.node import NodeSettings, make_handle, start_node
from moorage.serve.program import (
    Body,
    add_log_level,
    add_plugins,
    find_state_home,
    make_private,
    parse_plugins,
    run_program,
)
from moorage.serve.server import Running, open_server

READY_POLL_S = 1.0


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
    add_plugins(parser)
    add_log_level(parser)


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    data_dir: Path = (args.data_dir or find_state_home() / "moorage" / "dev").absolute()

    def make_body() -> Body:
        if not args.plugin_id or "/" in args.plugin_id:
            raise BadRequest(f"--plugin-id {args.plugin_id!r}: a name without / is needed")
        plugins = parse_plugins(args.plugin, taken=args.plugin_id)
        settings = NodeSettings(data_dir=make_private(data_dir), embedded=args.plugin_id, plugins=plugins)

        async def body(group: anyio.abc.TaskGroup) -> None:
            async with open_server(args.bind, data_dir / "server") as server, anyio.create_task_group() as inner:
                await start_node(inner, settings, CallTransport(make_handle(server.app)))
                await _wait_healthy(server, PluginId(args.plugin_id))
                print(f"ready {server.url}", flush=True)
                await anyio.sleep_forever()

        return body

    return run_program("moorage dev", args, make_body)


async def _wait_healthy(server: Running, plugin_id: PluginId) -> None:
    """Return when the plugin has a healthy node and controller."""
    while True:
        found = server.service.reads.find_plugin(plugin_id)
        if found is not None and measure_health(found.value).is_schedulable:
            return
        await server.feed.signals.wait(("plugins/",), lambda change: True, timeout_s=READY_POLL_S)
