"""Every metric there is: its name, type, labels and meaning, and when it is worth waking somebody.

The metrics page tells no other, and `docs/metrics.md` is made from here. Each label has few values, whatever clients,
drivers and agents send.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]


class Metric(msgspec.Struct, frozen=True):
    """A metric. A counter's name ends in ``_total``. ``alert``: what to be woken for, as a PromQL expression."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    alert: str = ""


_HTTP = (
    Metric(
        "moorage_http_requests_total",
        "counter",
        "requests that were answered, the embedded agent's too, but for its standing queries and reports; `route` is a "
        "pattern, or `none` where no route fits",
        ("method", "route", "status"),
        'rate(moorage_http_requests_total{status=~"500|503"}[5m]) > 1',
    ),
    Metric(
        "moorage_http_request_seconds",
        "histogram",
        "time from the whole request to the answer, without blocking queries and streams",
        ("route",),
        'histogram_quantile(0.99, rate(moorage_http_request_seconds_bucket{route="/v1/volumes"}[5m])) > 1',
    ),
    Metric("moorage_http_waiters", "gauge", "blocking queries and event streams that are open"),
    Metric(
        "moorage_http_connections",
        "gauge",
        "open connections",
        alert="moorage_http_connections > 0.8 * moorage_http_connections_max",
    ),
    Metric("moorage_http_connections_max", "gauge", "how many connections there may be, see [limits](limits.md)"),
    Metric("moorage_http_connections_accepted_total", "counter", "connections that came, refused ones among them"),
    Metric("moorage_http_clients", "gauge", "addresses that have a connection"),
    Metric("moorage_http_unsent_bytes", "gauge", "what long answers hold that their readers have not taken"),
    Metric(
        "moorage_limit_hits_total",
        "counter",
        "requests refused and connections ended by a limit, see [limits](limits.md)",
        ("limit",),
        'rate(moorage_limit_hits_total{limit=~"connections|waiters_per_client|unsent_bytes"}[5m]) > 0.1',
    ),
)
_STORE = (
    Metric("moorage_store_commits_total", "counter", "commits to the disk"),
    Metric(
        "moorage_store_transactions_total", "counter", "transactions settled; divided by the commits, the group's size"
    ),
    Metric(
        "moorage_store_queued_writes",
        "gauge",
        "transactions that wait for the disk",
        alert="min_over_time(moorage_store_queued_writes[5m]) > 100",
    ),
    Metric("moorage_store_bytes", "gauge", "size of the database and of its write-ahead log", ("file",)),
    Metric("moorage_store_revision", "gauge", "the newest revision on the disk"),
    Metric("moorage_feed_revision", "gauge", "the revision that reads are answered from (`X-Nomad-Index`)"),
    Metric(
        "moorage_feed_lag_revisions",
        "gauge",
        "revisions on the disk that reads do not show yet",
        alert="min_over_time(moorage_feed_lag_revisions[2m]) > 0",
    ),
    Metric(
        "moorage_feed_waiters",
        "gauge",
        "those who wait for a change: queries, handlers, agents; one that is a task counts once for each topic",
    ),
)
_ENGINE = (
    Metric(
        "moorage_reconciler_queue",
        "gauge",
        "records that wait: `to_write` for a write of our own, `unfinished` for any step, `assigned` for a driver's "
        "answer, `due_later` for a time",
        ("queue",),
        'min_over_time(moorage_reconciler_queue{queue="unfinished"}[30m]) > 0',
    ),
    Metric(
        "moorage_driver_calls_total",
        "counter",
        "calls that agents reported, by step and gRPC status; of mounting steps the failures by step, and `Mount` and "
        "`Unmount` for what succeeded as a whole",
        ("method", "status"),
        'rate(moorage_driver_calls_total{status!="OK"}[15m]) > 0.05',
    ),
    Metric(
        "moorage_driver_call_seconds",
        "histogram",
        "time that controllers' calls took, as agents measured it, with the wait for a turn",
        ("method",),
    ),
    Metric(
        "moorage_volumes",
        "gauge",
        "volumes by state",
        ("state",),
        'min_over_time(moorage_volumes{state!="ready"}[30m]) > 0',
    ),
    Metric(
        "moorage_claims",
        "gauge",
        "claims by state",
        ("state",),
        'min_over_time(moorage_claims{state="taken"}[15m]) > 0',
    ),
    Metric("moorage_allocations", "gauge", "allocations by status", ("status",)),
    Metric(
        "moorage_nodes", "gauge", "nodes by status; `down` is lost", ("status",), 'moorage_nodes{status="down"} > 0'
    ),
    Metric(
        "moorage_plugins",
        "gauge",
        "plugins by health: `schedulable` ones have what it takes for a volume to be made and mounted",
        ("health",),
        'min_over_time(moorage_plugins{health="unhealthy"}[5m]) > 0',
    ),
    Metric("moorage_event_buffer_revisions", "gauge", "revisions that the event stream can still tell"),
    Metric("moorage_event_readers", "gauge", "open event streams"),
)
_PROCESS = (
    Metric("moorage_audit_lines_total", "counter", "lines written to the audit log"),
    Metric(
        "moorage_audit_dropped_total",
        "counter",
        "requests that the audit log could not take in time",
        alert="increase(moorage_audit_dropped_total[10m]) > 0",
    ),
    Metric("moorage_process_resident_bytes", "gauge", "memory of the server's process"),
    Metric("moorage_process_cpu_seconds_total", "counter", "processor time of the server's process"),
    Metric(
        "moorage_process_open_files",
        "gauge",
        "open files",
        alert="moorage_process_open_files > 0.8 * moorage_process_open_files_max",
    ),
    Metric("moorage_process_open_files_max", "gauge", "how many files may be open"),
    Metric("moorage_process_start_time_seconds", "gauge", "when the process began, in seconds since the epoch"),
    Metric("moorage_build_info", "gauge", "always 1; the versions are in the labels", ("version", "python")),
)

METRICS: tuple[Metric, ...] = (*_HTTP, *_STORE, *_ENGINE, *_PROCESS)
BY_NAME = {metric.name: metric for metric in METRICS}
