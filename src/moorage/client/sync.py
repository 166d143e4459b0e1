"""A blocking client of the HTTP API for programs that start, ask and end: the CLI and scripts.

Only the standard library, and of it as little as will do: start-up time is what users of a CLI feel. TCP, TLS and
unix sockets. Never: retries of writes, decisions about volumes, printing.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from moorage.client.tls import CUT, NO_TLS, Tls, explain_fault, make_context
from moorage.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    MoorageError,
    NotFound,
    Unavailable,
)

if TYPE_CHECKING:
    import ssl

DEFAULT_ADDRESS = "http://127.0.0.1:4646"
READ_TIMEOUT_S = 60.0
WRITE_TIMEOUT_S = 660.0  # a create answers when the driver is done; the server's own limit ends first
ANSWER_BYTES_MAX = 512 * 1024 * 1024

_STATUS_ERRORS: dict[int, type[MoorageError]] = {
    400: BadRequest,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: BadRequest,
    429: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the server is and what every request carries. ``repr`` leaves the token out."""

    address: str = DEFAULT_ADDRESS
    token: str = field(default="", repr=False)
    namespace: str = ""
    region: str = ""
    tls: Tls = NO_TLS


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A successful answer. ``index`` is 0 when the server sent none; ``next_token`` is empty on the last page.

    ``warnings`` is for people: what the server accepted but finds odd.
    """

    body: bytes
    index: int = 0
    next_token: str = ""
    warnings: str = ""

    def json(self) -> Any:
        """The body as JSON; None for an empty body. Raises MoorageError when it is something else."""
        if not self.body.strip():
            return None
        try:
            return json.loads(self.body)
        except ValueError as error:
            text = "the answer is not JSON: is this the address of a moorage server?"
            raise MoorageError(text, code="bad_answer") from error


def path_of(*parts: str) -> str:
    """A request path of ``parts``, each percent-encoded as one segment: ``path_of("volume", "csi", "a[0]")``."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, socket_path: str, *, timeout: float) -> None:
        super().__init__("127.0.0.1", timeout=timeout)
        self._socket_path = socket_path

    def connect(self) -> None:
        """Connect to the socket's path instead of a host."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self._socket_path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


class _NamedTlsConnection(http.client.HTTPSConnection):
    """HTTPS to a host whose certificate bears another name."""

    def __init__(self, host: str, port: int | None, *, timeout: float, context: ssl.SSLContext, name: str) -> None:
        super().__init__(host, port, timeout=timeout, context=context)
        self._tls_context = context
        self._tls_name = name

    def connect(self) -> None:
        """Connect, then speak TLS with the name the certificate bears."""
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls_context.wrap_socket(self.sock, server_hostname=self._tls_name)


class Client:
    """A connection to one server; not for use from several threads at once.

    Raises, from every call: BadRequest, Forbidden, NotFound, Conflict for what the caller must change; Unavailable
    (code ``unreachable`` when there is no connection) and DeadlineExceeded; MoorageError for all other answers, with
    the server's text as message and the HTTP status in ``fields["status"]``.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._kept: http.client.HTTPConnection | None = None
        self._tls_context: ssl.SSLContext | None = None
        parts = urlsplit(endpoint.address)
        if parts.scheme not in ("http", "https", "unix"):
            raise BadRequest(
                f"address {endpoint.address!r} needs a scheme: http://HOST:PORT, https://… or unix:///PATH"
            )
        if not (parts.path if parts.scheme == "unix" else parts.hostname):
            raise BadRequest(f"address {endpoint.address!r} names no {'path' if parts.scheme == 'unix' else 'host'}")
        try:
            self._port = parts.port
        except ValueError as error:
            raise BadRequest(f"address {endpoint.address!r} has no valid port: {error}") from error
        self._parts = parts

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the client may be used again."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def get(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> Answer:
        """GET ``path``; asked once more when a kept connection turns out to be closed."""
        target = self._target(path, query)
        was_kept = self._kept is not None
        try:
            return self._send("GET", target, b"", headers=headers, timeout_s=timeout_s)
        except Unavailable as error:
            if not was_kept or error.code != "unreachable":
                raise
        return self._send("GET", target, b"", headers=headers, timeout_s=timeout_s)

    def write(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = WRITE_TIMEOUT_S,
    ) -> Answer:
        """PUT, POST or DELETE, on a fresh connection and exactly once; ``body`` goes as JSON unless None."""
        self.close()
        data = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
        return self._send(method, self._target(path, query), data, headers=headers, timeout_s=timeout_s)

    def watch(self, path: str, query: Mapping[str, str] | None = None, *, index: int, wait_s: float) -> Answer:
        """GET ``path`` as a blocking query: it answers when something changed after ``index``, or after ``wait_s``."""
        blocking = {**(query or {}), "index": str(index), "wait": f"{int(wait_s * 1000)}ms"}
        return self.get(path, blocking, timeout_s=wait_s * 1.1 + 15.0)

    def _target(self, path: str, query: Mapping[str, str] | None) -> str:
        common = {"namespace": self.endpoint.namespace, "region": self.endpoint.region}
        pairs = {key: value for key, value in {**common, **(query or {})}.items() if value}
        return f"{path}?{urlencode(pairs, quote_via=quote)}" if pairs else path

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        parts = self._parts
        if parts.scheme == "unix":
            return _UnixConnection(parts.path, timeout=timeout_s)
        host = parts.hostname or ""
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, self._port, timeout=timeout_s)
        tls = self.endpoint.tls
        if self._tls_context is None:
            self._tls_context = make_context(tls)
        return _NamedTlsConnection(
            host, self._port, timeout=timeout_s, context=self._tls_context, name=tls.server_name or host
        )

    def _send(
        self, method: str, target: str, data: bytes, *, headers: Mapping[str, str] | None, timeout_s: float
    ) -> Answer:
        connection = self._kept or self._connect(timeout_s)
        self._kept = None
        connection.timeout = timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        sent = {"User-Agent": "moorage", "Accept": "application/json", **(headers or {})}
        if self.endpoint.token:
            sent["X-Nomad-Token"] = self.endpoint.token
        if data:
            sent["Content-Type"] = "application/json"
        encoded = {name: value.encode() for name, value in sent.items()}
        started_s = time.monotonic()
        try:
            connection.request(method, target, body=data or None, headers=encoded)
            response = connection.getresponse()
            body = response.read(ANSWER_BYTES_MAX)
        except TimeoutError as error:
            connection.close()
            elapsed_s = time.monotonic() - started_s
            raise DeadlineExceeded(f"no answer from {self.endpoint.address} within {elapsed_s:.0f} s") from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from error
        except ValueError as error:  # a header with a line break, a path with a blank
            connection.close()
            text = "the token, a secret or the address holds a character that HTTP cannot carry, such as a line break"
            raise BadRequest(text) from error
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self._kept = connection
        return _read_answer(response, body)

    def _unreachable(self, error: Exception) -> Unavailable:
        """What to say where no answer came; ``tls`` as code where TLS is at fault."""
        parts, tls = self._parts, self.endpoint.tls
        found = explain_fault(error, tls.server_name or parts.hostname or "") if parts.scheme == "https" else ""
        reason = found or str(error) or type(error).__name__
        if isinstance(error, (http.client.BadStatusLine, ConnectionResetError)):
            reason += {"http": "; if it serves TLS, use https://", "https": CUT}.get(parts.scheme, "")
        return Unavailable(f"cannot reach {self.endpoint.address}: {reason}", code="tls" if found else "unreachable")


def _read_answer(response: http.client.HTTPResponse, body: bytes) -> Answer:
    """The answer, if its status is 200; else raise the error it stands for."""
    if response.status == 200:
        index_text = response.getheader("X-Nomad-Index", "0")
        return Answer(
            body=body,
            index=int(index_text) if index_text.isdigit() else 0,
            next_token=response.getheader("X-Nomad-NextToken", ""),
            warnings=response.getheader("X-Moorage-Warnings", ""),
        )
    text = body.decode("utf-8", "replace").strip()
    code = ""
    if response.getheader("Content-Type", "").startswith("application/problem+json"):
        with contextlib.suppress(ValueError, AttributeError):
            problem = json.loads(body)
            text = str(problem.get("detail") or problem.get("title") or text)
            code = str(problem.get("code") or "")
    kind = _STATUS_ERRORS.get(response.status, MoorageError)
    message = text or f"the server answered {response.status} {response.reason}".rstrip()
    if not code:
        code = "server_error" if kind is MoorageError else kind.code
    raise kind(message, code=code, status=str(response.status))
