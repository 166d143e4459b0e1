"""Certificates for tests, by the very commands that users have; and handshakes without a socket."""

from __future__ import annotations

import contextlib
import io
import ssl
from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from moorage.api.app import App
from moorage.cli.certificates import Pair, Role, issue, make_ca
from moorage.cli.main import main
from moorage.client.tls import Tls
from moorage.serve.http import address_of, open_socket, serve_http
from moorage.serve.tls import Certificates, TlsFiles, VerifyClient


def make(place: Path, *words: str) -> str:
    """What `moorage tls WORDS` prints; it must succeed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["tls", *words, "-dir", str(place)]) == 0, words
    return out.getvalue()


def make_set(place: Path, *agents: str) -> Path:
    """A CA, a server's certificate, one for each agent, and one for the client anna."""
    make(place, "ca")
    make(place, "server")
    make(place, "client", "anna")
    for name in agents:
        make(place, "agent", name)
    return place


def issue_at(place: Path, now: datetime, *, role: Role = "server", days: int = 1, stem: str = "server") -> None:
    """A certificate as it would have been made at another time, with a CA of its own, in files."""
    ca = make_ca("another", days=20 * 365, now=now)
    pair = issue(ca, role, stem, ["127.0.0.1", "localhost"], days=days, now=now)
    put_pair(place, stem, pair)
    (place / "ca.pem").write_bytes(ca.certificate)


def put_pair(place: Path, stem: str, pair: Pair) -> None:
    """A certificate and its key in files."""
    place.mkdir(exist_ok=True)
    (place / f"{stem}.pem").write_bytes(pair.certificate)
    key = place / f"{stem}-key.pem"
    key.touch(0o600)
    key.write_bytes(pair.key)


def files_of(place: Path, *, verify_client: VerifyClient = "no", stem: str = "server") -> TlsFiles:
    """A server's files."""
    return TlsFiles(
        cert_file=str(place / f"{stem}.pem"),
        key_file=str(place / f"{stem}-key.pem"),
        ca_file=str(place / "ca.pem"),
        verify_client=verify_client,
    )


def client_of(place: Path, stem: str = "", **more: str) -> Tls:
    """A client that trusts the CA there, and shows the certificate ``stem``."""
    cert = {"cert_file": str(place / f"{stem}.pem"), "key_file": str(place / f"{stem}-key.pem")} if stem else {}
    return Tls(ca_file=str(place / "ca.pem"), **cert, **more)


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A handshake in memory. Raises what a client would meet."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(8):
        with contextlib.suppress(ssl.SSLWantReadError):
            theirs.do_handshake()
            ours.do_handshake()
            return
        with contextlib.suppress(ssl.SSLWantReadError):
            ours.do_handshake()
    raise AssertionError("no end")


@contextlib.asynccontextmanager
async def serving(app: App, certificates: Certificates | None) -> AsyncIterator[str]:
    """The app on a loopback port, with TLS; its URL."""
    listener = open_socket("127.0.0.1:0")
    context = certificates.context if certificates else None
    async with anyio.create_task_group() as group:
        await group.start(partial(serve_http, app, listener, context=context))
        yield address_of(listener, is_tls=context is not None)
        group.cancel_scope.cancel()
    listener.close()
