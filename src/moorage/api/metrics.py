"""GET /v1/metrics: the recorded JSON by default, Prometheus' text with ``format=prometheus``.

The recorded server's JSON tells what happened in the last interval; ours tells totals since the start, so that nobody
who reads takes anything away from another reader: ``Count`` is a counter's total, ``Rate`` its average a second.
Source: contract clients §11; golden acl.json.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from moorage.api.http import Answer, Request, json_answer
from moorage.api.metric_catalog import BY_NAME, METRICS, Metric
from moorage.engine.service import Service
from moorage.model.meters import Histogram, Sample

if TYPE_CHECKING:
    from prometheus_client import Metric as Family

METHODS = frozenset(("GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH"))
NO_ROUTE = "none"
_BEGAN_S = time.monotonic()


class RequestMeter:
    """Counts requests by route. The labels are patterns of the route table, known methods and our own statuses."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, int]] = Counter()
        self._seconds: dict[str, Histogram] = {}

    def note(self, method: str, route: str, status: int, took_s: float | None, *, times: int = 1) -> None:
        """Count an answer, or so many that are alike; ``took_s`` None: it waited on purpose."""
        self._counts[method if method in METHODS else "other", route, status] += times
        if took_s is not None:
            found = self._seconds.get(route)
            if found is None:
                found = self._seconds[route] = Histogram()
            found.note(took_s)

    def read(self) -> Iterator[Sample]:
        """As samples."""
        for (method, route, status), count in self._counts.items():
            yield Sample("moorage_http_requests_total", count, (method, route, str(status)))
        for route, seconds in self._seconds.items():
            yield Sample("moorage_http_request_seconds", seconds, (route,))


async def read_metrics(service: Service, request: Request) -> Answer:
    """GET /v1/metrics."""
    samples = list(service.meters.read())
    if request.query.get("format") == "prometheus":
        return _write_prometheus(samples)
    return json_answer(request, write_json(samples, time.time(), time.monotonic() - _BEGAN_S))


def _group(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """By name, in the order of the catalogue; a name that is not in it is a fault of ours."""
    found: dict[str, list[Sample]] = {metric.name: [] for metric in METRICS}
    for sample in samples:
        found[sample.name].append(sample)
    return found


# -- JSON ------------------------------------------------------------------------------------------------------------


def write_json(samples: Iterable[Sample], now_s: float, up_s: float) -> dict[str, Any]:
    """The recorded server's shape; ``now_s`` since the epoch, ``up_s`` since the start."""
    counters, gauges, spreads = [], [], []
    for name, of_name in _group(samples).items():
        metric = BY_NAME[name]
        for sample in of_name:
            head = {"Name": name, "Labels": dict(zip(metric.labels, sample.labels, strict=True))}
            value = sample.value
            if isinstance(value, Histogram):
                least = value.min if value.count else 0.0
                spread = (value.count, value.total, least, value.max, value.deviation)
                spreads.append(head | _spread(*spread, up_s=up_s))
            elif metric.kind == "counter":
                counters.append(head | _spread(int(value), float(value), 1.0, 1.0, 0.0, up_s=up_s))
            else:
                gauges.append(head | {"Value": float(value)})
    return {
        "Counters": counters,
        "Gauges": gauges,
        "Points": [],
        "PrecisionGauges": [],
        "Samples": spreads,
        "Timestamp": time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime(now_s)),
    }


def _spread(count: int, total: float, *spread: float, up_s: float) -> dict[str, float]:
    least, most, deviation = spread
    return {
        "Count": count,
        "Sum": total,
        "Min": least,
        "Max": most,
        "Mean": total / count if count else 0.0,
        "Stddev": deviation,
        "Rate": total / up_s if up_s > 0 else 0.0,
    }


# -- Prometheus ------------------------------------------------------------------------------------------------------


def _write_prometheus(samples: Iterable[Sample]) -> Answer:
    # Takes longer to import than anything else here, and only some servers are scraped.
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(_group(samples)))
    return Answer(body=generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Collector:
    def __init__(self, groups: dict[str, list[Sample]]) -> None:
        self._groups = groups

    def collect(self) -> Iterator[Family]:
        return (_make_family(BY_NAME[name], samples) for name, samples in self._groups.items())


def _make_family(metric: Metric, samples: list[Sample]) -> Family:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if metric.kind == "histogram":
        spread = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        for sample in samples:
            assert isinstance(sample.value, Histogram)
            spread.add_metric(sample.labels, _buckets(sample.value), sample.value.total)
        return spread
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.meaning, labels=metric.labels)
    for sample in samples:
        assert not isinstance(sample.value, Histogram)
        family.add_metric(sample.labels, sample.value)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    found, total = [], 0
    for bound, count in zip((*(f"{b:g}" for b in histogram.bounds), "+Inf"), histogram.counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
