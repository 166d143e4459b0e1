"""What a server can tell about its own work: recent driver calls, its log, its settings without secrets.

All of it is bounded and in memory only. Never: a secret; drivers' texts come scrubbed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from moorage.model.assignment import MountedReport, MountFailedReport, Report, StepReport, UnmountedReport
from moorage.model.ids import NodeId
from moorage.model.steps import Failed
from moorage.model.volume import Fault

CALLS_MAX = 1000


class RecentCall(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent reported of one call. ``record``: the store key it was made for; ``at_ns``: when the report came.

    ``outcome``: the kind of outcome; ``status``, ``method`` and ``message`` are a failed call's.
    """

    at_ns: int
    node_id: str
    record: str
    outcome: str
    method: str = ""
    status: str = ""
    message: str = ""


class Diagnostics:
    """One server's. ``settings``: as they are in force, secrets redacted; ``read_log``: the newest lines of the log."""

    def __init__(self, settings: Mapping[str, Any] | None = None, read_log: Callable[[], list[str]] = list) -> None:
        self.settings = dict(settings or {})
        self._read_log = read_log
        self._calls: deque[RecentCall] = deque(maxlen=CALLS_MAX)

    @property
    def calls(self) -> list[RecentCall]:
        """The newest calls, oldest first."""
        return list(self._calls)

    def read_log(self) -> list[str]:
        """The newest lines of the log, oldest first."""
        return self._read_log()

    def note(self, node_id: NodeId, reports: Iterable[Report], *, now_ns: int) -> None:
        """Keep what an agent reported."""
        for report in reports:
            self._calls.append(_describe(node_id, report, now_ns))


def _describe(node_id: NodeId, report: Report, now_ns: int) -> RecentCall:
    record = report.key if isinstance(report, StepReport) else f"claims/{report.claim_id}"
    fault: Fault | None = None
    match report:
        case StepReport(outcome=Failed(fault=failed)):
            outcome, fault = "Failed", failed
        case StepReport(outcome=other):
            outcome = type(other).__name__
        case MountedReport():
            outcome = "Mounted"
        case UnmountedReport():
            outcome = "Unmounted"
        case MountFailedReport(fault=failed):
            outcome, fault = "MountFailed", failed
    return RecentCall(
        at_ns=now_ns,
        node_id=node_id,
        record=record,
        outcome=outcome,
        method=fault.method if fault else "",
        status=fault.status if fault else "",
        message=fault.message if fault else "",
    )
