"""A server that answers all requests with the same bytes: what loop, kernel and client cost without ours."""

from __future__ import annotations

import asyncio
from typing import cast

import uvloop

BODY = b"x" * 900
ANSWER = b"HTTP/1.1 200 OK\r\nx-request-id: 0\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Same(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer; the client sends one request at a time."""
        if data.endswith(b"\r\n\r\n"):
            self._transport.write(ANSWER)


async def main() -> None:
    """Serve until terminated; prints the port."""
    server = await asyncio.get_running_loop().create_server(Same, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
