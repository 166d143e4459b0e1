"""``moorage dev``: server, agent and the embedded driver for one host, in one process tree."""

from __future__ import annotations

import argparse

import anyio
import anyio.abc

from moorage import config
from moorage.engine.reads import PLUGINS
from moorage.log import configure_logging
from moorage.model.ids import PluginId
from moorage.rules.plugins import measure_health
from moorage.serve.embedded import EmbeddedClient
from moorage.serve.node import choose_node, start_node
from moorage.serve.program import Body, add_plugins, choose_place, run_program
from moorage.serve.server import Running, choose_engine, choose_hook, open_server

PLUGIN_ID = "local"
READY_POLL_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.description = (
        "Run server, agent and the embedded driver for this host in one process tree. Prints `ready http://…` once it "
        "serves and the driver is healthy; SIGTERM or Ctrl-C stops it; mounted volumes stay mounted."
    )
    config.add_flags(parser, "dev")
    add_plugins(parser)


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""

    def make_body() -> Body:
        settings = config.load("dev", args)
        configure_logging(settings.server.log_level)
        plugin_id = settings.agent.plugin_id or PLUGIN_ID
        data_dir = choose_place(settings.server.data_dir, "dev")
        hook = choose_hook(settings)
        node = choose_node(settings, data_dir, flags=args.plugin, embedded=plugin_id)

        async def body(group: anyio.abc.TaskGroup) -> None:
            bind, engine = settings.server.bind, choose_engine(settings)
            running = open_server(bind, data_dir / "server", engine, hook=hook, settings=settings)
            async with running as server, anyio.create_task_group() as inner:
                await start_node(inner, node, lambda secret: EmbeddedClient(server.app, server.service, secret))
                await _wait_healthy(server, PluginId(plugin_id))
                print(f"ready {server.url}", flush=True)
                await anyio.sleep_forever()

        return body

    return run_program("moorage dev", make_body)


async def _wait_healthy(server: Running, plugin_id: PluginId) -> None:
    """Return when the plugin has a healthy node and controller."""
    while True:
        found = server.service.reads.find_plugin(plugin_id)
        if found is not None and measure_health(found.value).is_schedulable:
            return
        await server.feed.signals.wait((PLUGINS,), lambda change: True, timeout_s=READY_POLL_S)
