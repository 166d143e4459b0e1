"""All open connections of the HTTP server: who may have one, and which of them are over their time.

One sweep looks at all of them: each waits in the line of what it is at, and only the fronts of the lines are looked at,
so that thousands of silent connections cost nothing but their memory.
Never: reads or writes a socket itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import inf
from typing import Literal, Protocol

import anyio
import structlog

from moorage.api.limits import Hits, Limits
from moorage.serve.lines import Line
from moorage.waking import Bell

log = structlog.get_logger()

# A connection that waits for a request's head may be ended for a new one after this long.
HEAD_GRACE_S = 1.0
BODY_LOOK_S = 10.0
# For how long, and for how many at a time, a refusal waits for its reader to close; who is cut off may never read it.
LINGER_S = 2.0
LINGERERS_MAX = 256
# The pause between two sweeps, where something is due so soon.
SWEEP_S = 0.1
# How many connections one turn of the loop may look at, and the pause until the next.
SWEPT_MAX = 8
SWEEP_PAUSE_S = 0.002
SAY_AGAIN_S = 60.0

Overdue = Literal["handshake_time", "head_time", "body_time", "idle_time", "write_time"]
Refused = Literal["connections", "connections_per_client"]


class Connection(Protocol):
    """A connection as the book sees it."""

    client_key: str

    def end(self, why: Overdue | Literal["room"]) -> None:
        """Say why where that can be said, and close."""
        ...

    def cut(self) -> None:
        """Close at once, whatever has not been sent yet."""
        ...

    def has_unsent(self) -> bool:
        """Whether its reader has not taken everything yet."""
        ...

    def is_reader_overdue(self, wait_s: float) -> bool:
        """Whether the reader has taken too little in ``wait_s``, which is when this was last asked; at first not."""
        ...

    def is_body_overdue(self, now_s: float) -> bool:
        """Whether the body in hand came too slowly since this was last asked, or for too long altogether."""
        ...


class Client:
    """The connections of one address."""

    __slots__ = ("count", "idle")

    def __init__(self) -> None:
        self.count = 0
        self.idle: OrderedDict[Connection, None] = OrderedDict()


class Connections:
    """The book of connections. ``hits`` counts what the limits refused or ended; ``new_id``: for answers before any
    request is whole."""

    def __init__(
        self, limits: Limits, hits: Hits, *, new_id: Callable[[], str], connections_max: int | None = None
    ) -> None:
        self.limits = limits
        self.new_id = new_id
        self.hits = hits
        self.connections_max = min(limits.connections_max, connections_max or limits.connections_max)
        self.count = 0
        self.accepted = 0
        self.handshakes: Line[Connection] = Line(limits.handshake_s)
        self.heads: Line[Connection] = Line(limits.head_s)
        self.bodies: Line[Connection] = Line(min(BODY_LOOK_S, limits.body_s))
        self.idle: Line[Connection] = Line(limits.idle_s)
        # Those whose reader has not taken all: of an answer that cannot be written on, or that is all written.
        # Each is looked at twice: at the second look it shows whether the reader has taken anything since the first.
        self.unsent: Line[Connection] = Line(limits.write_s / 2)
        self.lingering: Line[Connection] = Line(LINGER_S)
        self._clients: dict[str, Client] = {}
        self._said_at_s = float("-inf")
        self._has_come = Bell()
        self._looks: tuple[tuple[Line[Connection], Callable[[Connection, float], None]], ...] = (
            (self.handshakes, self._look_at_handshake),
            (self.heads, self._look_at_head),
            (self.bodies, self._look_at_body),
            (self.idle, lambda connection, now_s: connection.end("idle_time")),
            (self.unsent, self._look_at_reader),
            (self.lingering, lambda connection, now_s: connection.cut()),
        )

    @property
    def clients(self) -> int:
        """How many addresses have a connection."""
        return len(self._clients)

    # -- coming and going --------------------------------------------------------------------------------------------

    def admit(self, connection: Connection, now_s: float) -> Refused | None:
        """Enter a new connection; or None is not returned, and the newest is to be refused for that limit.

        Room is made first: by an idle connection of the same address, or of anybody; by one that has not ended its
        handshake, or sent its request's head, for a while.
        """
        self.accepted += 1
        if not self.count:
            self._has_come.ring()
        client = self._clients.setdefault(connection.client_key, Client())
        client.count += 1
        self.count += 1
        refused: Refused | None = None
        if client.count > self.limits.connections_per_client_max:
            if client.idle:
                next(iter(client.idle)).end("room")
            else:
                refused = "connections_per_client"
        elif self.count > self.connections_max and not self._make_room(now_s):
            refused = "connections"
        if refused:
            self.hit(refused, now_s)
        return refused

    def _make_room(self, now_s: float) -> bool:
        idle = self.idle.find_first()
        if idle is not None:
            idle[0].end("room")
            return True
        for line in (self.handshakes, self.heads):
            first = line.find_first()
            if first is not None and first[1] + HEAD_GRACE_S <= now_s:
                line.leave(first[0])
                first[0].cut()
                self.hit("connections", now_s)
                return True
        return False

    def replace(self, before: Connection, after: Connection) -> None:
        """A handshake is done: what it was is ``after`` from now on, with its place in all counts."""
        self.handshakes.leave(before)
        after.client_key = before.client_key

    def leave(self, connection: Connection) -> None:
        """The connection is gone."""
        self.count -= 1
        client = self._clients[connection.client_key]
        client.count -= 1
        client.idle.pop(connection, None)
        if not client.count:
            del self._clients[connection.client_key]
        for line, _ in self._looks:
            line.leave(connection)

    def rest(self, connection: Connection, now_s: float) -> None:
        """Nothing is asked on the connection."""
        self.idle.enter(connection, now_s)
        self._clients[connection.client_key].idle[connection] = None

    def rise(self, connection: Connection) -> None:
        """Something is asked again."""
        self.idle.leave(connection)
        self._clients[connection.client_key].idle.pop(connection, None)

    def linger(self, connection: Connection, now_s: float) -> bool:
        """Whether the connection may wait for its reader to close."""
        if len(self.lingering) >= LINGERERS_MAX:
            return False
        self.lingering.enter(connection, now_s)
        return True

    def hit(self, limit: str, now_s: float) -> None:
        """Count, and say so in the log, but not for every one of thousands."""
        self.hits[limit] += 1
        if now_s - self._said_at_s >= SAY_AGAIN_S:
            self._said_at_s = now_s
            log.warning("limits.reached", limit=limit, connections=self.count, clients=self.clients)

    # -- time --------------------------------------------------------------------------------------------------------

    def sweep(self, now_s: float, at_most: int = SWEPT_MAX) -> int:
        """End what is over its time; how many connections were looked at."""
        looked = 0
        for line, look in self._looks:
            for connection in line.pop_due(now_s, at_most - looked):
                looked += 1
                look(connection, now_s)
        return looked

    def _look_at_handshake(self, connection: Connection, now_s: float) -> None:
        self.hit("handshake_time", now_s)
        connection.cut()

    def _look_at_head(self, connection: Connection, now_s: float) -> None:
        self.hit("head_time", now_s)
        connection.end("head_time")

    def _look_at_body(self, connection: Connection, now_s: float) -> None:
        if connection.is_body_overdue(now_s):
            self.hit("body_time", now_s)
            connection.end("body_time")
        else:
            self.bodies.enter(connection, now_s)

    def _look_at_reader(self, connection: Connection, now_s: float) -> None:
        if not connection.has_unsent():
            return
        if connection.is_reader_overdue(self.unsent.wait_s):
            self.hit("write_time", now_s)
            connection.cut()
        else:
            self.unsent.enter(connection, now_s)

    def find_pause_s(self, now_s: float) -> float:
        """How long nothing has to be swept: until the first of those that wait is due. Who comes meanwhile is not due
        before the shortest of all waits is over."""
        lines = [line for line, _ in self._looks]
        shortest_s = min(line.wait_s for line in lines)
        firsts = [(line, line.find_first()) for line in lines]
        due_s = min([first[1] + line.wait_s for line, first in firsts if first is not None], default=inf)
        return max(min(SWEEP_S, shortest_s / 2), min(shortest_s, due_s - now_s))

    async def run(self) -> None:
        """Sweep until cancelled; while there is no connection there is nothing to look at."""
        while True:
            while not self.count:
                await self._has_come.wait()
            await anyio.sleep(self.find_pause_s(anyio.current_time()))
            # Thousands may be due at once, and everybody else waits for each turn.
            while self.sweep(anyio.current_time()) == SWEPT_MAX:  # noqa: ASYNC110
                await anyio.sleep(SWEEP_PAUSE_S)
