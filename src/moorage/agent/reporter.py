"""Reports on their way to the server: batched, in order, repeated until the server took them.

A report is lost only with the process, and then its step is handed out again. Reports are idempotent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import anyio
import structlog

from moorage.agent.ports import AgentSettings, Chance
from moorage.client.api import retry_delay_s
from moorage.errors import Rejected, Unavailable
from moorage.model.assignment import Report, StepReport
from moorage.waking import Bell

log = structlog.get_logger()

Taken = Callable[[bool], None]
"""Told once: whether the server took the report; False when it will never take it."""


class ReportSink(Protocol):
    """Where reports go."""

    async def report(self, reports: tuple[Report, ...]) -> None:
        """Raises Unavailable (repeat it) or Rejected (never)."""
        ...


class Reporter:
    """Collects reports and sends them; ``run`` must be running."""

    def __init__(self, sink: ReportSink, settings: AgentSettings, *, random: Chance) -> None:
        self._sink = sink
        self._batch = settings.reports_batch
        self._kept_max = settings.reports_kept_max
        self._random = random
        self._kept: deque[tuple[Report, Taken]] = deque()
        self._has_come, self._has_room = Bell(), Bell()

    async def send(self, report: Report, taken: Taken = lambda is_taken: None) -> None:
        """Hand a report over; waits only while too many are on their way."""
        while len(self._kept) >= self._kept_max:
            await self._has_room.wait()
        self._kept.append((report, taken))
        self._has_come.ring()

    async def run(self) -> None:
        """Send what comes, for ever."""
        kept = self._kept
        while True:
            while not kept:
                await self._has_come.wait()
            batch = [kept.popleft() for _ in range(min(len(kept), self._batch))]
            self._has_room.ring()
            await self._deliver(batch)

    async def _deliver(self, batch: list[tuple[Report, Taken]]) -> None:
        failures = 0
        while True:
            try:
                await self._sink.report(tuple(report for report, _ in batch))
            except Unavailable as e:
                failures += 1
                if failures == 1:
                    log.warning("reports.waiting", count=len(batch), code=e.code, error=e.message)
                await anyio.sleep(retry_delay_s(failures, self._random()))
                continue
            except Rejected as e:
                if len(batch) > 1:
                    # One of them is at fault; the others must not suffer for it.
                    for one in batch:
                        await self._deliver([one])
                    return
                log.error("report.rejected", about=_about(batch[0][0]), code=e.code, error=e.message)
                batch[0][1](False)
                return
            for _, taken in batch:
                taken(True)
            return


def _about(report: Report) -> str:
    return report.key if isinstance(report, StepReport) else report.claim_id
