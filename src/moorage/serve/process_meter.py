"""What the server's process and its store take of the host, as metrics."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from moorage import __version__
from moorage.api.door import Door
from moorage.model.meters import Sample
from moorage.serve.audit_writer import AuditWriter
from moorage.serve.connections import Connections
from moorage.state.feed import Feed
from moorage.state.sqlite import SqliteStore

_STATM = Path("/proc/self/statm")
_OPEN = Path("/proc/self/fd")


class ProcessMeter:
    """Figures of this process and of its audit log, if it has one; it began when this was made, near enough."""

    def __init__(self, audit: AuditWriter | None) -> None:
        self._began_s = time.time()
        self._audit = audit

    def read(self) -> Iterator[Sample]:
        """As samples."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
        yield Sample("moorage_process_resident_bytes", pages * resource.getpagesize())
        yield Sample("moorage_process_cpu_seconds_total", used.ru_utime + used.ru_stime)
        yield Sample("moorage_process_open_files", len(os.listdir(_OPEN)))
        yield Sample("moorage_process_open_files_max", resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        yield Sample("moorage_process_start_time_seconds", self._began_s)
        yield Sample("moorage_audit_lines_total", self._audit.lines if self._audit is not None else 0)
        yield Sample("moorage_audit_dropped_total", self._audit.dropped if self._audit is not None else 0)
        yield Sample("moorage_build_info", 1, (__version__, platform.python_version()))


class StoreMeter:
    """Figures of the store and of what reads are answered from."""

    def __init__(self, store: SqliteStore, feed: Feed) -> None:
        self._store = store
        self._feed = feed

    def read(self) -> Iterator[Sample]:
        """As samples."""
        store = self._store
        yield Sample("moorage_store_commits_total", store.commits)
        yield Sample("moorage_store_transactions_total", store.transactions)
        yield Sample("moorage_store_queued_writes", store.queued)
        yield Sample("moorage_store_revision", store.newest)
        yield Sample("moorage_feed_lag_revisions", max(0, store.newest - self._feed.view.revision))
        for file, path in (("database", store.path), ("log", store.path.with_name(f"{store.path.name}-wal"))):
            yield Sample("moorage_store_bytes", path.stat().st_size if path.exists() else 0, (file,))


class HttpMeter:
    """Figures of the connections and limits."""

    def __init__(self, door: Door, connections: Connections) -> None:
        self._door = door
        self._connections = connections

    def read(self) -> Iterator[Sample]:
        """As samples."""
        door, connections = self._door, self._connections
        yield Sample("moorage_http_waiters", door.waiters)
        yield Sample("moorage_http_connections", connections.count)
        yield Sample("moorage_http_connections_max", connections.connections_max)
        yield Sample("moorage_http_connections_accepted_total", connections.accepted)
        yield Sample("moorage_http_clients", connections.clients)
        yield Sample("moorage_http_unsent_bytes", door.unsent_bytes)
        for limit, count in sorted(door.hits.items()):
            yield Sample("moorage_limit_hits_total", count, (limit,))
