"""Transports: how one request reaches a server and its answer comes back.

``HttpTransport`` speaks HTTP over TCP, TLS or a unix socket; ``CallTransport`` hands the request to a function in the
same process. Both raise Unavailable, and nothing else, when no answer came.
Never: retries, meaning of a status.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from moorage.client.tls import CUT, Stamp, Tls, explain_fault, make_context, stamp_files
from moorage.errors import BadRequest, DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    import aiohttp

log = structlog.get_logger()

ANSWER_BYTES_MAX = 256 * 1024 * 1024
CONNECT_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 64
LOOK_S = 1.0
TOKEN_HEADER = "X-Nomad-Token"


class Answer(msgspec.Struct, frozen=True):
    """A server's answer. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Carries one request. Raises Unavailable when no answer came in time."""

    async def request(
        self, method: str, path: str, *, query: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> Answer:
        """Send a request for an absolute, already escaped ``path``, and give back the whole answer."""
        ...


class CallTransport:
    """A transport to a server in this process: a plain function with the arguments of ``request``."""

    def __init__(self, handle: Callable[[str, str, Mapping[str, str], bytes | None], Awaitable[Answer]], /) -> None:
        self._handle = handle

    async def request(
        self, method: str, path: str, *, query: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> Answer:
        """Call the function. The server ends its own waits, so that no deadline is set here."""
        return await self._handle(method, path, query, body)


class HttpTransport:
    """HTTP by aiohttp. ``address``: ``http://host:port``, ``https://…`` or ``unix:///path/of/socket``.

    The session is opened with the first request and belongs to that event loop; ``aclose`` ends it.
    The token goes out as a header and is in no error and no repr.
    """

    def __init__(self, address: str, *, token: str = "", tls: Tls | None = None) -> None:
        scheme, separator, rest = address.partition("://")
        if not separator or scheme not in ("http", "https", "unix") or not rest:
            raise BadRequest(f"server address {address!r} must start with http://, https:// or unix:///")
        self._socket_path = rest if scheme == "unix" else ""
        self._base = "http://localhost" if scheme == "unix" else address.rstrip("/")
        self._address = address
        self._headers = {TOKEN_HEADER: token} if token else {}
        self._tls = tls or Tls()
        self._is_tls = scheme == "https"
        self._stamp = self._look()
        self._looked_s = 0.0
        self._session: aiohttp.ClientSession | None = None
        if self._is_tls:
            make_context(self._tls)  # what cannot be used is told at once

    def __repr__(self) -> str:
        return f"HttpTransport({self._address!r})"

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp  # late: it takes 200 ms, and embedded agents never need it

        connector: aiohttp.BaseConnector
        if self._socket_path:
            connector = aiohttp.UnixConnector(self._socket_path, limit=CONNECTIONS_MAX)
        else:
            connector = aiohttp.TCPConnector(
                limit=CONNECTIONS_MAX, ssl=make_context(self._tls) if self._is_tls else True
            )
        return aiohttp.ClientSession(connector=connector, headers=self._headers, auto_decompress=True)

    def _look(self) -> Stamp:
        return stamp_files((self._tls.ca_file, self._tls.cert_file, self._tls.key_file)) if self._is_tls else ()

    async def _find_session(self) -> aiohttp.ClientSession:
        """The session, with what the TLS files hold now. Ones that cannot be used are left until they change again;
        a standing query that the old session still carries is cut, and its caller asks anew."""
        now_s = time.monotonic()
        if self._session is not None and self._is_tls and now_s - self._looked_s > LOOK_S:
            self._looked_s = now_s
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    renewed = self._open()
                except BadRequest as error:
                    log.error("tls.reload_refused", error=error.message)
                else:
                    old, self._session = self._session, renewed
                    log.info("tls.loaded", cert_file=self._tls.cert_file, ca_file=self._tls.ca_file)
                    await old.close()
        if self._session is None:
            self._session = self._open()
        return self._session

    async def request(
        self, method: str, path: str, *, query: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> Answer:
        """Send one request; each attempt to connect is bounded too."""
        import aiohttp
        from yarl import URL

        session = await self._find_session()
        url = URL(self._base + path, encoded=True).with_query(query)
        limits = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with session.request(
                method,
                url,
                data=body,
                timeout=limits,
                allow_redirects=False,
                server_hostname=self._tls.server_name or None if self._is_tls else None,
            ) as got:
                headers = {name.lower(): value for name, value in got.headers.items()}
                return Answer(got.status, headers, await _read(got))
        except TimeoutError as e:
            raise DeadlineExceeded(f"no answer from {self._address} within {timeout_s:g} s") from e
        except (aiohttp.ClientError, OSError) as e:
            found = explain_fault(e, self._tls.server_name or url.host or "") if self._is_tls else ""
            is_cut = self._is_tls and isinstance(e, (aiohttp.ServerDisconnectedError, ConnectionResetError))
            reason = found or f"{e}{CUT if is_cut else ''}"
            raise Unavailable(f"cannot reach {self._address}: {reason}", code="tls" if found else None) from e

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()


async def _read(got: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in got.content.iter_any():
        size += len(part)
        if size > ANSWER_BYTES_MAX:
            raise Unavailable(f"the answer is longer than {ANSWER_BYTES_MAX} bytes")
        parts.append(part)
    return b"".join(parts)
