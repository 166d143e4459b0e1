"""Requests that no decent client sends, and what every answer to them must be like."""

from __future__ import annotations

import http.client
import socket
from urllib.parse import urlsplit

from asking import Reply


def check_reply(reply: Reply, what: str) -> None:
    """An answer of ours, in words for people."""
    assert 200 <= reply.status < 600, what
    for word in ("Traceback", "internal error", 'File "'):
        assert word not in reply.text, f"{what}: {reply.status} {reply.text[:300]}"
    if reply.status >= 400 and reply.status != 404:
        assert len(reply.text.strip()) > 3, f"{what}: {reply.status} says nothing"


class Line:
    """A connection that is kept: a server that drops it fails the test."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
        self._connection.connect()
        self._connection.auto_open = 0

    def ask(self, method: str, path: str, body: bytes | None = None) -> Reply:
        """The answer. Of one without a length, a stream, only the head: its connection is given up for a new one."""
        self._connection.request(method, path, body=body)
        answer = self._connection.getresponse()
        headers = {k.lower(): v for k, v in answer.getheaders()}
        is_stream = answer.status == 200 and "content-length" not in headers
        content = b"" if is_stream else answer.read()
        if is_stream:
            self._connection.close()
            self._connection.connect()
        return Reply(status=answer.status, headers=headers, body=content)

    def close(self) -> None:
        self._connection.close()


def send_raw(url: str, content: bytes, *, is_half: bool = False, is_all: bool = False) -> bytes:
    """All that comes back for these bytes until the server closes; empty when it closes at once.

    ``is_half``: leave without reading. ``is_all``: say that nothing more will come, for what asks for no end.
    """
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(content)
        if is_half:
            return b""
        if is_all:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionResetError:
            pass
        return received
