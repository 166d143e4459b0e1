"""Allocations: what their claims make of them. Pure.

wanted  claims                              status
run     all mounted                         running
run     one refused for good                failed, and wanted becomes stop
run     else                                as it was (pending, or running while a mount is repaired)
stop    none left                           complete, or failed if it had failed
stop    some left                           as it was
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from moorage.errors import BadRequest
from moorage.model.claim import Allocation, Claim, Mounted, TaskEvent, VolumeRequest
from moorage.model.ids import VolumeId
from moorage.model.volume import Fault

replace = msgspec.structs.replace
EVENTS_MAX = 20
_INDEX = re.compile(r"\[[0-9]+\]\Z")


def fold_claims(allocation: Allocation, claims: Sequence[Claim], *, now_ns: int) -> Allocation:
    """The allocation as its claims (those that still exist) make it; the same object when nothing changes."""
    refused = _find_refused(claims)
    if allocation.wanted == "run" and refused is not None:
        text = f"{refused.method}: {refused.message}" if refused.method else refused.message
        failed = replace(allocation, wanted="stop", status="failed", description=text, finished_at_ns=now_ns)
        return add_event(failed, TaskEvent(type="Setup Failure", at_ns=now_ns, message=text))
    if allocation.wanted == "run" and claims and all(isinstance(c.state, Mounted) for c in claims):
        paths = {c.name: c.state.path for c in claims if isinstance(c.state, Mounted)}
        if allocation.status == "running" and paths == allocation.paths:
            return allocation
        running = replace(
            allocation,
            status="running",
            description="Volumes are mounted",
            paths=paths,
            started_at_ns=allocation.started_at_ns or now_ns,
        )
        return add_event(running, TaskEvent(type="Started", at_ns=now_ns, message="All volumes are mounted"))
    if allocation.wanted == "stop" and not claims and allocation.status not in ("complete", "failed", "lost"):
        done = replace(
            allocation, status="complete", description="Volumes are released", paths={}, finished_at_ns=now_ns
        )
        return add_event(done, TaskEvent(type="Terminated", at_ns=now_ns, message="All volumes are released"))
    if allocation.wanted == "stop" and not claims and allocation.paths:
        return replace(allocation, paths={}, modified_at_ns=now_ns)
    return allocation


def choose_volume(request: VolumeRequest, allocation_name: str) -> VolumeId:
    """The volume that a request means: its source, or, with ``per_alloc``, its source with the allocation's index.

    Raises BadRequest, without the member's path, for a request that means none.
    Source: the recorded server names allocations ``JOB.GROUP[INDEX]`` and the volumes of a group ``SOURCE[INDEX]``.
    """
    if not request.per_alloc:
        return request.source
    if _INDEX.search(request.source):
        text = f"Source {request.source[:200]!r} has an index already: with PerAlloc, name it without"
        raise BadRequest(f"{text}, or leave PerAlloc out")
    found = _INDEX.search(allocation_name)
    if found is None:
        text = f"PerAlloc takes the index from the allocation's Name, such as web.db[3], and {allocation_name[:200]!r}"
        raise BadRequest(f"{text} has none: name the allocation so, or leave PerAlloc out")
    return VolumeId(request.source + found.group())


def _find_refused(claims: Sequence[Claim]) -> Fault | None:
    for claim in claims:
        fault = claim.progress.last_fault
        if claim.wanted == "released" and fault is not None and fault.final:
            return fault
    return None


def add_event(allocation: Allocation, event: TaskEvent) -> Allocation:
    """The allocation with one more event; only the newest EVENTS_MAX are kept."""
    events = (*allocation.events, event)[-EVENTS_MAX:]
    return replace(allocation, events=events, modified_at_ns=event.at_ns)


def is_terminal(allocation: Allocation) -> bool:
    """Whether it has ended or was told to end: desired stop, or complete, failed, lost."""
    return allocation.wanted == "stop" or allocation.status in ("complete", "failed", "lost")
