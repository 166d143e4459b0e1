"""Drivers' calls as agents report them, counted for the metrics page.

The labels come from closed sets only, whatever an agent or a driver writes into a report.
"""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from moorage.engine.planning import Planned
from moorage.model.assignment import MountedReport, MountFailedReport, Report, StepReport, UnmountedReport
from moorage.model.meters import Histogram, Sample
from moorage.model.steps import Failed, Step

METHODS = frozenset(kind.__name__ for part in typing.get_args(Step) for kind in (typing.get_args(part) or (part,)))
MOUNTING = ("Mount", "Unmount")
# gRPC's codes, and what is wrong before any call.
STATUSES = frozenset(
    (
        *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
        *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE"),
        *("UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED", "plugin_unavailable"),
    )
)
OTHER = "other"


class DriverCalls:
    """Drivers' calls, as agents report them: how many by method and status, and how long a controller's took."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.seconds: dict[str, Histogram] = {}

    def note(self, reports: Iterable[Report], assigned: Mapping[str, Planned]) -> None:
        """Count what an agent reports; before it is folded, since a step's method is known while it is assigned."""
        for report in reports:
            match report:
                case StepReport(key=key):
                    planned = assigned.get(key)
                    self.note_step(planned.assignment.step if planned is not None else None, report)
                case MountFailedReport(fault=fault):
                    self._count(fault.method, fault.status)
                case MountedReport():
                    self._count("Mount", "OK")
                case UnmountedReport():
                    self._count("Unmount", "OK")

    def note_step(self, step: Step | None, report: StepReport) -> None:
        """Count one step's report; None: it is not known which step it was."""
        outcome = report.outcome
        if isinstance(outcome, Failed):
            method = outcome.fault.method
            self._count(method, outcome.fault.status)
        else:
            method = type(step).__name__ if step is not None else OTHER
            self._count(method, "OK")
        if report.took_s > 0:
            method = _bound(method)
            seconds = self.seconds.get(method)
            if seconds is None:
                seconds = self.seconds[method] = Histogram()
            seconds.note(report.took_s)

    def _count(self, method: str, status: str) -> None:
        self.calls[_bound(method), status if status in STATUSES else OTHER] += 1

    def read(self) -> Iterator[Sample]:
        """As samples."""
        for labels, count in self.calls.items():
            yield Sample("moorage_driver_calls_total", count, labels)
        for method, seconds in self.seconds.items():
            yield Sample("moorage_driver_call_seconds", seconds, (method,))


def _bound(method: str) -> str:
    return method if method in METHODS or method in MOUNTING else OTHER
