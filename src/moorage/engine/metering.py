"""What the engine tells about itself as metrics: records by state, queues, the event buffer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from moorage.engine.events import Events
from moorage.engine.reconciler import Reconciler
from moorage.engine.waiters import Waiters
from moorage.model.meters import Sample
from moorage.model.plugin import Plugin
from moorage.rules.plugins import measure_health
from moorage.state.repo import Repo


class EngineMeter:
    """The engine's figures, counted when they are asked for."""

    def __init__(self, repo: Repo, reconciler: Reconciler, events: Events, waiters: Waiters) -> None:
        self._view = repo.view
        self._feed = repo.feed
        self._reconciler = reconciler
        self._events = events
        self._waiters = waiters

    def read(self) -> Iterator[Sample]:
        """As samples. Walks over all records once."""
        yield from self._read_records()
        queues = self._reconciler.measure_queues()
        for queue, length in queues.items():
            yield Sample("moorage_reconciler_queue", length, (queue,))
        yield Sample("moorage_feed_revision", self._view.revision)
        signals = self._feed.signals.count() + self._reconciler.signals.count()
        yield Sample("moorage_feed_waiters", signals + len(self._waiters))
        yield Sample("moorage_event_buffer_revisions", self._events.kept)
        yield Sample("moorage_event_readers", self._events.readers)

    def _read_records(self) -> Iterator[Sample]:
        view = self._view
        volumes = Counter(record.value.state for record in view.volumes)
        claims = Counter(str(type(record.value.state).__struct_config__.tag) for record in view.claims)
        allocations = Counter(record.value.status for record in view.allocations)
        nodes = Counter(record.value.status for record in view.nodes)
        plugins = Counter(_health(record.value) for record in view.plugins)
        for name, found in (
            ("moorage_volumes", volumes),
            ("moorage_claims", claims),
            ("moorage_allocations", allocations),
            ("moorage_nodes", nodes),
            ("moorage_plugins", plugins),
        ):
            for label, count in found.items():
                yield Sample(name, count, (label,))


def _health(plugin: Plugin) -> str:
    return "schedulable" if measure_health(plugin).is_schedulable else "unhealthy"
