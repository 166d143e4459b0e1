"""``moorage server``: records and API, without an agent; and the same server as a part of ``moorage dev``."""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from moorage import config
from moorage.api.app import App
from moorage.api.limits import HttpSettings, Limits
from moorage.config import Settings
from moorage.drawing import RandomIds
from moorage.engine.diagnostics import Diagnostics
from moorage.engine.ports import AclSettings, EngineSettings, FenceHook, IdentitySettings
from moorage.engine.service import Service
from moorage.errors import BadRequest
from moorage.log import configure_logging, list_recent
from moorage.rules.filter import FilterLimits
from moorage.rules.nodes import FencingSettings
from moorage.serve.addresses import UNIX, is_local
from moorage.serve.audit_writer import open_audit
from moorage.serve.collecting import Collector
from moorage.serve.connections import Connections
from moorage.serve.hooks import ProgramHook
from moorage.serve.http import address_of, open_socket, serve_http
from moorage.serve.open_files import bound_connections, raise_open_files
from moorage.serve.process_meter import HttpMeter, ProcessMeter, StoreMeter
from moorage.serve.program import Body, choose_place, make_private, run_program
from moorage.serve.secret_keys import Keys
from moorage.serve.settings_view import show_settings
from moorage.serve.tls import Certificates, TlsFiles
from moorage.state.codec import Records
from moorage.state.feed import Feed
from moorage.state.repo import Repo
from moorage.state.resealing import Resealing
from moorage.state.sealing import Sealer
from moorage.state.sqlite import SqliteStore

RESET_NAME = "acl-bootstrap-reset"


class RealClock:
    """The host's clock."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """Nanoseconds of a clock that nobody sets."""
        return time.monotonic_ns()


class RealChance(RandomIds):
    """The host's randomness. Of one thread."""

    def jitter(self) -> float:
        """A number in [0, 1)."""
        return random.random()


class ResetFile:
    """A file in the data directory by which whoever owns the host allows a second bootstrap."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def read_index(self) -> int | None:
        """The number in the file, or None where there is no such file or no number in it."""
        try:
            text = await anyio.Path(self._path).read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        return int(text[:32]) if text.strip().isdigit() else None


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A server that serves: its base URL, and its parts for those in the same process."""

    url: str
    app: App
    service: Service
    feed: Feed


@asynccontextmanager
async def open_server(
    bind: str,
    data_dir: Path,
    engine: EngineSettings | None = None,
    *,
    hook: FenceHook | None = None,
    settings: Settings | None = None,
) -> AsyncIterator[Running]:
    """A server that runs while the block does. Raises BadRequest, StoreUnavailable.

    The store is closed last, after everything that may still write to it has ended.
    """
    settings = settings or Settings()
    certificates = await anyio.to_thread.run_sync(open_certificates, settings, bind)
    listener = open_socket(bind)
    try:
        store = await SqliteStore.open(make_private(data_dir) / "state.db")
        try:
            keys = Keys(settings.secrets, data_dir)
            records = Records(Sealer(await keys.open(store), keys.describe()))
            feed = Feed(store, records)
            sealing = Resealing(store, records, keys)
            reset = ResetFile(data_dir / RESET_NAME)
            service = Service(
                Repo(store, feed),
                RealClock(),
                RealChance(),
                engine,
                hook=hook,
                sealing=sealing,
                reset=reset,
                diagnostics=Diagnostics(show_settings(settings), list_recent),
            )
            audited = open_audit(settings.audit, data_dir)
            collector = Collector(lambda: feed.view.count)
            with collector.open():
                async with audited as audit, anyio.create_task_group() as group:
                    app = App(service, choose_http(settings), audit=audit)
                    connections = make_book(app)
                    http, process = HttpMeter(app.door, connections), ProcessMeter(audit)
                    for meter in (http, StoreMeter(store, feed), process):
                        service.meters.add(meter.read)
                    await group.start(service.run)
                    collector.freeze()
                    group.start_soon(collector.run)
                    await group.start(sealing.run)
                    if certificates is not None:
                        await group.start(certificates.run)
                    context = certificates.context if certificates else None
                    await group.start(partial(serve_http, app, listener, connections, context=context))
                    url = address_of(listener, is_tls=certificates is not None)
                    yield Running(url=url, app=app, service=service, feed=feed)
                    group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await store.close()
    finally:
        listener.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.description = "Keep the records and serve the API. Agents on the hosts that mount volumes register with it."
    config.add_flags(parser, "server")


def choose_engine(settings: Settings) -> EngineSettings:
    """The engine's settings as the program's settings have them."""
    given = settings.fencing
    is_timed = given.takeover == "timeout"
    fencing = FencingSettings(
        lease_s=given.lease_s,
        grace_s=given.grace_s,
        is_takeover_timed=is_timed,
        hook_retry_cap_s=given.hook_retry_cap_s,
        hook_runs_max=given.hook_runs_max,
        is_freeing_on_reboot=given.reboot == "free",
    )
    acl = AclSettings(enabled=settings.acl.enabled, strict=settings.acl.strict)
    filters = FilterLimits(bytes_max=settings.limits.filter_bytes_max, terms_max=settings.limits.filter_terms_max)
    return EngineSettings(fencing=fencing, acl=acl, identity=choose_identity(settings), filters=filters)


def choose_identity(settings: Settings) -> IdentitySettings:
    """What nodes must show to join, as the program's settings have it."""
    given = settings.server
    is_mutual = bool(settings.tls.cert_file) and settings.tls.verify_client != "no"
    is_needed = is_mutual or given.join == "token" or (given.join == "auto" and not is_local(given.bind))
    return IdentitySettings(is_join_needed=is_needed, is_certificate_needed=is_mutual)


def open_certificates(settings: Settings, bind: str) -> Certificates | None:
    """The certificates that the settings name; None where the API is served without TLS. Blocks.

    Raises BadRequest for files that cannot be used, and for plain HTTP to others than this host that nobody asked for.
    """
    given = settings.tls
    if bool(given.cert_file) != bool(given.key_file):
        raise BadRequest("tls.cert_file and tls.key_file are only of use together: set both or neither")
    if given.cert_file:
        if bind.startswith(UNIX):
            raise BadRequest("server.bind is a unix socket, which needs no TLS: leave [tls] out, or bind HOST:PORT")
        return Certificates(
            TlsFiles(
                cert_file=given.cert_file,
                key_file=given.key_file,
                ca_file=given.ca_file,
                verify_client=given.verify_client,
            )
        )
    if given.ca_file or given.verify_client != "no":
        raise BadRequest("tls.ca_file and tls.verify_client need tls.cert_file and tls.key_file: set these too")
    if not is_local(bind) and not settings.server.allow_plain_http:
        raise BadRequest(
            f"server.bind {bind} would serve plain HTTP to the network, where tokens and secrets can be read. Make "
            "certificates with `moorage tls ca` and `moorage tls server` and name them in [tls]; or bind 127.0.0.1; "
            "or, where every listener is trusted, set server.allow_plain_http = true"
        )
    return None


def choose_http(settings: Settings) -> HttpSettings:
    """The HTTP side's settings as the program's settings have them."""
    given = msgspec.structs.asdict(settings.limits)
    return HttpSettings(
        limits=Limits(**{name: value for name, value in given.items() if name in Limits.__struct_fields__})
    )


def make_book(app: App) -> Connections:
    """The book of connections to an app, as many as this process may have."""
    limits = app.door.limits
    connections_max = bound_connections(limits.connections_max, raise_open_files())
    return Connections(limits, app.door.hits, new_id=app.door.new_id, connections_max=connections_max)


def choose_hook(settings: Settings) -> FenceHook | None:
    """The fence hook that the settings name. Raises BadRequest for one that cannot be started."""
    command = settings.fencing.hook
    if not command:
        return None
    if shutil.which(command[0]) is None:
        raise BadRequest(f"fencing.hook: {command[0]!r} is not a program that can be started")
    return ProgramHook(command, timeout_s=settings.fencing.hook_timeout_s)


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""

    def make_body() -> Body:
        settings = config.load("server", args)
        configure_logging(settings.server.log_level)
        data_dir = choose_place(settings.server.data_dir, "server")
        hook = choose_hook(settings)

        async def body(group: anyio.abc.TaskGroup) -> None:
            engine, bind = choose_engine(settings), settings.server.bind
            async with open_server(bind, data_dir, engine, hook=hook, settings=settings) as server:
                print(f"ready {server.url}", flush=True)
                await anyio.sleep_forever()

        return body

    return run_program("moorage server", make_body)
