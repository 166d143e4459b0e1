"""Accepting connections that speak TLS: each is in the book of connections from its accept on.

The loop's own server makes the handshake before any protocol of ours hears of the connection, so that half-open
handshakes would be limited by the open files alone. Here the book admits a connection before its handshake, and
the connection's protocol takes the place over when that is done. Who is refused, or too slow, is cut off: before the
handshake there is no way to say why.
Never: more than one place in the book for a connection.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable

import anyio
import structlog
from anyio.abc import TaskGroup

from moorage.api.limits import client_of
from moorage.serve.connections import Connections
from moorage.serve.protocol import LimitedProtocol

log = structlog.get_logger()

# There are no files left, or no memory: others must end first.
_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
FULL_PAUSE_S = 0.5
SAY_AGAIN_S = 60.0


class Handshake:
    """A connection on its way to a protocol: what the book knows of it until then."""

    def __init__(self, client_key: str) -> None:
        self.client_key = client_key
        self.scope = anyio.CancelScope()

    def end(self, why: str) -> None:
        """Close."""
        self.scope.cancel()

    def cut(self) -> None:
        """Close."""
        self.scope.cancel()

    def has_unsent(self) -> bool:
        """Nothing is sent by us."""
        return False

    def is_reader_overdue(self, wait_s: float) -> bool:
        """Nothing waits to be read."""
        return False

    def is_body_overdue(self, now_s: float) -> bool:
        """There is no body."""
        return False


class TlsListener:
    """Accepts on one socket, which stays its owner's. ``make``: a connection's protocol; ``context``: of all."""

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], LimitedProtocol],
        context: ssl.SSLContext,
        book: Connections,
    ) -> None:
        # Its own handle: the owner may close the other one while this one is still waited for.
        self._listener = listener.dup()
        self._listener.setblocking(False)
        self._make = make
        self._context = context
        self._book = book
        # Accepted, and nobody's yet.
        self._accepted: dict[Handshake, socket.socket] = {}
        self._scope = anyio.CancelScope()
        self._ended = asyncio.Event()
        self._said_at_s = float("-inf")

    async def run(self) -> None:
        """Accept until closed; then handshakes that are not done are cut off."""
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    while True:
                        await self._accept(group)
        finally:
            for entry, accepted in self._accepted.items():
                self._book.leave(entry)
                accepted.close()
            self._accepted.clear()
            self._listener.close()
            self._ended.set()

    def close(self) -> None:
        """Accept no more. (What uvicorn asks of a server.)"""
        self._scope.cancel()

    async def wait_closed(self) -> None:
        """Until nothing is accepted any more."""
        await self._ended.wait()

    async def _accept(self, group: TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        try:
            accepted, address = await loop.sock_accept(self._listener)
        except OSError as error:
            if error.errno in _FULL:
                if loop.time() - self._said_at_s >= SAY_AGAIN_S:
                    self._said_at_s = loop.time()
                    log.error("connections.not_accepted", error=error.strerror, connections=self._book.count)
                await anyio.sleep(FULL_PAUSE_S)
            return
        entry = Handshake(client_of(address[0]) if isinstance(address, tuple) else "")
        if self._book.admit(entry, loop.time()) is not None:
            self._book.leave(entry)
            accepted.close()
            return
        self._book.handshakes.enter(entry, loop.time())
        self._accepted[entry] = accepted
        group.start_soon(self._shake, entry)

    async def _shake(self, entry: Handshake) -> None:
        accepted = self._accepted.pop(entry)
        protocol = self._make()
        protocol.handshake = entry
        loop = asyncio.get_running_loop()
        try:
            with entry.scope:
                await loop.connect_accepted_socket(
                    lambda: protocol,
                    accepted,
                    ssl=self._context,
                    # The book ends it before; this is for a book that is not swept.
                    ssl_handshake_timeout=2 * self._book.limits.handshake_s,
                )
        except OSError:
            # The client went away, or does not speak TLS, or not ours: a scanner is no news.
            return
        finally:
            if protocol.handshake is entry:
                protocol.handshake = None
                self._book.leave(entry)
