"""Who waits: blocking queries and event streams that are open, by client, and how many one client may have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from moorage.api.limits import Hits
from moorage.api.refusals import Refusal, of_crowd

LIMIT = "waiters_per_client"


class Crowd:
    """Counts them. ``hits`` counts refusals."""

    def __init__(self, waiters_per_client_max: int, hits: Hits) -> None:
        self._limit = waiters_per_client_max
        self._hits = hits
        self._counts: Hits = Hits()

    def __len__(self) -> int:
        """All that wait."""
        return self._counts.total()

    def is_full(self, client: str) -> bool:
        """Whether the client may not wait for one thing more."""
        return self._counts[client] >= self._limit

    def refuse(self, client: str) -> Refusal | None:
        """Why the client may not wait for one thing more; counted."""
        if not self.is_full(client):
            return None
        self._hits[LIMIT] += 1
        text = f"{self._limit} blocking queries and event streams of this address are open, which is the limit"
        return of_crowd(429, "too_many_waiters", f"{text}: end one, or ask again later", self._limit)

    def enter(self, client: str) -> None:
        """The client waits for one thing more."""
        self._counts[client] += 1

    def leave(self, client: str, count: int = 1) -> None:
        """And for one less, or for so many."""
        self._counts[client] -= count
        if not self._counts[client]:
            del self._counts[client]

    @contextmanager
    def counted(self, client: str) -> Iterator[None]:
        """Count the block as one that waits for the client."""
        self.enter(client)
        try:
            yield
        finally:
            self.leave(client)
