"""TLS on real sockets: the command line's client, the agent's, the standard library's and python-nomad; renewal; wrong
certificates; agents that show who they are."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import nomad
import pytest
from cryptography import x509
from engine_kit import NODE
from identity_kit import PAGES, Bare, body_of, secret_of
from tls_kit import client_of, files_of, make, make_set, serving

from moorage.api.app import App
from moorage.api.limits import HttpSettings, Limits
from moorage.client.api import Client as AgentClient
from moorage.client.sync import Client, Endpoint
from moorage.client.tls import Tls, make_context
from moorage.client.transport import HttpTransport
from moorage.engine.ports import IdentitySettings
from moorage.errors import Forbidden, Unavailable
from moorage.model.ids import NodeId
from moorage.model.node import Node
from moorage.serve.connections import HEAD_GRACE_S
from moorage.serve.tls import Certificates, VerifyClient

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("tls"), "n1", "n2")


@asynccontextmanager
async def running(
    place: Path, verify_client: VerifyClient = "no", *, limits: Limits | None = None
) -> AsyncIterator[tuple[Bare, str]]:
    """A kit behind TLS, and its URL."""
    certificates = Certificates(files_of(place, verify_client=verify_client))
    is_mutual = verify_client != "no"
    kit = Bare(IdentitySettings(is_join_needed=is_mutual, is_certificate_needed=is_mutual))
    if limits is not None:
        kit.app = App(kit.service, HttpSettings(limits=limits))
    async with anyio.create_task_group() as group:
        await group.start(kit.service.run)
        await group.start(certificates.run)
        async with serving(kit.app, certificates) as url:
            yield kit, url
        group.cancel_scope.cancel()


async def ask_as_cli(url: str, tls: Tls) -> str:
    """What the command line's client gets, or the text it would show."""

    def ask() -> str:
        with Client(Endpoint(address=url, tls=tls)) as client:
            try:
                return client.get("/v1/regions").body.decode()
            except Unavailable as error:
                return error.message

    return await anyio.to_thread.run_sync(ask)


async def ask_as_agent(url: str, tls: Tls) -> str:
    """What an agent's client gets, or the text that its log would have."""
    transport = HttpTransport(url, tls=tls)
    try:
        answer = await transport.request("GET", "/v1/regions", query={}, body=None, timeout_s=20)
        return answer.body.decode()
    except Unavailable as error:
        return error.message
    finally:
        await transport.aclose()


async def test_every_client_gets_in(place: Path) -> None:
    async with running(place) as (_, url):
        assert url.startswith("https://127.0.0.1:")
        port = urlsplit(url).port
        assert await ask_as_cli(url, client_of(place)) == '["global"]'
        assert await ask_as_cli(url, Tls(skip_verify=True)) == '["global"]'
        assert await ask_as_agent(url, client_of(place)) == '["global"]'
        named = client_of(place, server_name="localhost")
        assert await ask_as_cli(url, named) == await ask_as_agent(url, named) == '["global"]'

        def ask_plainly() -> tuple[int, str | None, bytes]:
            context = ssl.create_default_context(cafile=str(place / "ca.pem"))
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
            connection.request("GET", "/v1/regions")
            answer = connection.getresponse()
            version = connection.sock.version()
            body = answer.read()
            connection.close()
            return answer.status, version, body

        assert await anyio.to_thread.run_sync(ask_plainly) == (200, "TLSv1.3", b'["global"]')
        pages = nomad.Nomad(host="127.0.0.1", port=port, secure=True, verify=str(place / "ca.pem"), timeout=20)
        assert await anyio.to_thread.run_sync(pages.regions.get_regions) == ["global"]


async def test_a_read_that_waits_is_answered_over_tls(place: Path) -> None:
    async with running(place) as (kit, url):
        context = ssl.create_default_context(cafile=str(place / "ca.pem"))
        port = urlsplit(url).port
        assert port is not None
        await kit.service.nodes.register(Node(id=NODE, name="n1", boot_id="b1"))
        index = kit.service.reads.table_index("nodes/")
        async with await anyio.connect_tcp(
            "127.0.0.1", port, tls=True, ssl_context=context, tls_standard_compatible=False
        ) as stream:
            await stream.send(f"GET /v1/nodes?index={index}&wait=60s HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            with anyio.fail_after(20):
                while not len(kit.service.reads.waiters):
                    await anyio.sleep(0.01)
                await kit.service.nodes.register(Node(id=NODE, name="n1", boot_id="b1", version="9"))
                got = b""
                while not got.endswith(b"]"):
                    got += await stream.receive()
        assert got.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b'"Version":"9"' in got
        assert kit.app.held.answered == 1


async def test_a_wrong_ca_and_a_wrong_name_are_told(place: Path, tmp_path: Path) -> None:
    other = make_set(tmp_path)
    async with running(place) as (_, url):
        for ask in (ask_as_cli, ask_as_agent):
            assert "not signed by a CA that is trusted here" in await ask(url, client_of(other))
            assert "does not bear the name x.example" in await ask(url, client_of(place, server_name="x.example"))
        plain = url.replace("https", "http")
        assert "if it serves TLS, use https://" in await ask_as_cli(plain, Tls())


async def test_everybody_shows_a_certificate_where_all_must(place: Path, tmp_path: Path) -> None:
    other = make_set(tmp_path)
    stranger = client_of(other, "client-anna")
    stranger = Tls(ca_file=str(place / "ca.pem"), cert_file=stranger.cert_file, key_file=stranger.key_file)
    async with running(place, "all") as (_, url):
        for ask in (ask_as_cli, ask_as_agent):
            assert await ask(url, client_of(place, "client-anna")) == '["global"]'
            for bad in (client_of(place), stranger):
                said = await ask(url, bad)
                assert "client certificate" in said, said


async def test_agents_show_their_nodes_certificate_and_others_need_none(place: Path) -> None:
    async with running(place, "agents") as (kit, url):
        assert await ask_as_cli(url, client_of(place)) == '["global"]'
        said: dict[str, str] = {}
        for stem in ("", "client-anna", "agent-n2", "agent-n1"):
            transport = HttpTransport(url, token=secret_of("a"), tls=client_of(place, stem))
            client = AgentClient(transport)
            try:
                joined = await client.join(NODE, "n1")
                said[stem] = joined.joined_by
                await client.register_node(Node(id=NODE, name="n1", boot_id="b1"))
            except Forbidden as error:
                said[stem] = error.message
            finally:
                await transport.aclose()
        assert "`moorage tls agent`" in said[""]
        assert "`moorage tls agent`" in said["client-anna"]
        assert "is of n2, not of node" in said["agent-n2"]
        assert said["agent-n1"] == "certificate"
        assert kit.service.reads.find_node(NODE) is not None
        for method, page in PAGES:
            body = body_of(page)
            content = None if body is None else json.dumps(body).encode()
            for stem, status in (("agent-n1", 200), ("agent-n2", 403), ("", 403)):
                transport = HttpTransport(url, token=secret_of("a"), tls=client_of(place, stem))
                path = f"/v1/node/{NODE}/{page}"
                answer = await transport.request(method, path, query={}, body=content, timeout_s=20)
                await transport.aclose()
                assert answer.status == status, (page, stem)


def serial_of(url: str, place: Path) -> int:
    port = urlsplit(url).port
    assert port is not None
    pem = ssl.get_server_certificate(("127.0.0.1", port), ca_certs=str(place / "ca.pem"), timeout=20)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


async def test_a_new_certificate_is_shown_while_open_connections_go_on(tmp_path: Path) -> None:
    make_set(tmp_path)
    async with running(tmp_path) as (_, url):
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        kept = http.client.HTTPSConnection("127.0.0.1", urlsplit(url).port or 0, timeout=20, context=context)

        def ask_kept() -> bytes:
            kept.request("GET", "/v1/regions")
            return kept.getresponse().read()

        assert await anyio.to_thread.run_sync(ask_kept) == b'["global"]'
        socket_before = kept.sock
        first = await anyio.to_thread.run_sync(serial_of, url, tmp_path)
        make(tmp_path, "server", "-force")
        wanted = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes()).serial_number
        with anyio.fail_after(20):
            while await anyio.to_thread.run_sync(serial_of, url, tmp_path) == first:
                await anyio.sleep(0.05)
        assert await anyio.to_thread.run_sync(serial_of, url, tmp_path) == wanted
        assert await anyio.to_thread.run_sync(ask_kept) == b'["global"]'
        assert kept.sock is socket_before, "the open connection was closed"
        # What cannot be used changes nothing; SIGHUP does not end anything either.
        (tmp_path / "server-key.pem").write_bytes(b"rubbish")
        os.kill(os.getpid(), signal.SIGHUP)
        await anyio.sleep(0.2)
        assert await anyio.to_thread.run_sync(serial_of, url, tmp_path) == wanted
        assert await anyio.to_thread.run_sync(ask_kept) == b'["global"]'
        kept.close()


async def test_an_agent_takes_its_new_certificate_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moorage.client.transport.LOOK_S", 0.0)
    make_set(tmp_path, "n1")
    other = make_set(tmp_path / "other", "n1")
    async with running(tmp_path, "all") as (_, url):
        tls = client_of(tmp_path, "agent-n1")
        transport = HttpTransport(url, tls=tls)
        ask = partial(transport.request, "GET", "/v1/regions", query={}, body=None, timeout_s=20)
        assert (await ask()).status == 200
        names = ("agent-n1.pem", "agent-n1-key.pem")
        before = {name: (tmp_path / name).read_bytes() for name in names}
        for name in names:
            (tmp_path / name).write_bytes((other / name).read_bytes())
        with pytest.raises(Unavailable, match="client certificate"):
            await ask()
        for name, content in before.items():
            (tmp_path / name).write_bytes(content)
        assert (await ask()).status == 200
        (tmp_path / names[0]).write_bytes(b"rubbish")
        assert (await ask()).status == 200, "files that cannot be used end nothing"
        await transport.aclose()


async def expect_closed(stream: anyio.abc.ByteReceiveStream) -> None:
    with anyio.fail_after(20), contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            await stream.receive()


async def test_a_handshake_that_does_not_go_on_is_ended(place: Path) -> None:
    async with running(place, limits=Limits(handshake_s=0.2)) as (kit, url):
        port = urlsplit(url).port or 0
        for sent in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                if sent:
                    await stream.send(sent)
                await expect_closed(stream)
        assert kit.app.door.hits == {"handshake_time": 2}, "what is no TLS at all is ended at once"
        assert await ask_as_cli(url, client_of(place)) == '["global"]'


async def test_half_open_handshakes_count_as_connections(place: Path) -> None:
    """One address with nothing but half-open handshakes has its share of the connections, and another one is served."""
    limits = Limits(connections_per_client_max=20, connections_max=40)
    files_before = count_files()
    async with running(place, limits=limits) as (kit, url):
        port = urlsplit(url).port or 0
        async with anyio.create_task_group() as group, contextlib.AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(await anyio.connect_tcp("127.0.0.1", port)) for _ in range(30)]
            for stream in streams[20:]:
                await expect_closed(stream)
            assert kit.app.door.hits == {"connections_per_client": 10}
            # From there nobody gets in, by its own doing; from elsewhere everybody does.
            with pytest.raises(OSError):
                await ask_from("127.0.0.1", port, place)
            served = [await ask_from("127.0.0.2", port, place) for _ in range(5)]
            assert served == ['["global"]'] * 5
            group.cancel_scope.cancel()
        with anyio.fail_after(20):
            while await ask_as_cli(url, client_of(place)) != '["global"]':
                await anyio.sleep(0.02)
    assert count_files() <= files_before


async def test_a_handshake_that_waits_makes_room_for_a_new_connection(place: Path) -> None:
    async with running(place, limits=Limits(connections_max=3)) as (kit, url):
        port = urlsplit(url).port or 0
        async with contextlib.AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(await anyio.connect_tcp("127.0.0.1", port)) for _ in range(3)]
            await anyio.sleep(HEAD_GRACE_S + 0.1)
            assert await ask_from("127.0.0.2", port, place) == '["global"]'
            assert kit.app.door.hits == {"connections": 1}
            await expect_closed(streams[0])


async def test_a_server_that_stops_cuts_off_handshakes(place: Path) -> None:
    files_before = count_files()
    async with contextlib.AsyncExitStack() as stack:
        async with running(place) as (_, url):
            port = urlsplit(url).port or 0
            streams = [await stack.enter_async_context(await anyio.connect_tcp("127.0.0.1", port)) for _ in range(5)]
            await streams[0].send(b"\x16\x03\x01")
            await anyio.sleep(0.05)
        for stream in streams:
            await expect_closed(stream)
    assert count_files() <= files_before


def count_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def ask_from(address: str, port: int, place: Path) -> str:
    """Ask from another address of this host; the answer's body."""

    def ask() -> str:
        context = make_context(client_of(place))
        plain = socket.create_connection(("127.0.0.1", port), 20, source_address=(address, 0))
        with plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as stream:
            stream.sendall(b"GET /v1/regions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            found = b"".join(iter(lambda: stream.recv(65536), b""))
            return found.partition(b"\r\n\r\n")[2].decode()

    return await anyio.to_thread.run_sync(ask)


async def test_a_node_may_be_named_by_its_id(tmp_path: Path) -> None:
    make_set(tmp_path, NODE)
    async with running(tmp_path, "agents") as (_, url):
        transport = HttpTransport(url, token=secret_of("a"), tls=client_of(tmp_path, f"agent-{NODE}"))
        client = AgentClient(transport)
        assert (await client.join(NODE, "whatever")).joined_by == "certificate"
        with pytest.raises(Forbidden):
            await client.join(NodeId("2" + NODE[1:]), "whatever")
        await transport.aclose()
    assert make_context(client_of(tmp_path)).verify_mode is ssl.CERT_REQUIRED
