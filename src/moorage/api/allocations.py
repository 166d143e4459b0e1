"""Handlers of allocations: uses of volumes on nodes."""

from __future__ import annotations

import re

from moorage.api import answers
from moorage.api.bodies import AllocationBody, StartBody, decode
from moorage.api.http import Answer, Meta, Request, json_answer, text_answer
from moorage.api.nodes import cut_rows
from moorage.api.params import check_page_size, parse_namespace, parse_read
from moorage.api.volumes import mount_options, wait_for_change
from moorage.engine.reads import ALLOCATIONS
from moorage.engine.service import Service
from moorage.errors import BadRequest
from moorage.model.claim import Allocation, VolumeRequest
from moorage.model.ids import AllocationId, NamespaceName, NodeId, VolumeId
from moorage.rules.authorize import MOUNT, READ_ALLOCATION, STOP_ALLOCATION, demand
from moorage.rules.filter import compile_filter
from moorage.rules.filter_types import ALLOCATION_STUB

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


async def list_allocations(service: Service, request: Request) -> Answer:
    """GET /v1/allocations."""
    options = parse_read(request)
    check_page_size(options)
    chosen = compile_filter(options.filter, ALLOCATION_STUB, service.settings.filters) if options.filter else None
    reads = service.reads
    await wait_for_change(service, options, (ALLOCATIONS,), lambda: reads.table_index(ALLOCATIONS))
    is_seen = request.access.chooser(READ_ALLOCATION)
    rows = (
        answers.allocation_row(r.value, r.created, r.modified, service.reads.claims_of(r.value))
        for r in reads.list_allocations(options.namespace, options.prefix)
        if is_seen(r.value.namespace)
    )
    page, next_token = cut_rows(rows, options, chosen)
    headers = {"X-Nomad-NextToken": next_token} if next_token else {}
    return json_answer(request, page, Meta(index=reads.table_index(ALLOCATIONS)), **headers)


async def read_allocation(service: Service, request: Request, allocation_id: str) -> Answer:
    """GET /v1/allocation/:id."""
    options = parse_read(request)
    reads = service.reads
    await wait_for_change(service, options, (ALLOCATIONS + allocation_id,), lambda: reads.table_index(ALLOCATIONS))
    return _whole(service, request, allocation_id) or text_answer(404, "alloc not found")


def _whole(service: Service, request: Request, allocation_id: str) -> Answer | None:
    found = service.reads.find_allocation(allocation_id)
    if found is None or not request.access.may(found.value.namespace, READ_ALLOCATION):
        return None
    claims = service.reads.claims_of(found.value)
    body = answers.allocation_whole(found.value, found.created, found.modified, claims)
    return json_answer(request, body, Meta(index=service.reads.table_index(ALLOCATIONS)))


async def start(service: Service, request: Request) -> Answer:
    """PUT or POST /v1/allocations."""
    body = decode(StartBody, request.body)
    if body.allocation is None:
        raise BadRequest('the body must hold an "Allocation" object')
    asked = _allocation(body.allocation, parse_namespace(request))
    demand(request.access.may_in_one(asked.namespace, MOUNT))
    started = await service.allocations.start(asked)
    # An ID that was taken gives what has it, which may be somebody else's.
    demand(request.access.may(started.value.namespace, MOUNT))
    answer = _whole(service, request, started.value.id)
    assert answer is not None
    return answer


def _allocation(body: AllocationBody, namespace: str) -> Allocation:
    if body.id and not _UUID.fullmatch(body.id):
        raise BadRequest(f"Allocation.ID {body.id[:64]!r} is not a UUID (lower case, 36 characters)")
    for position, request in enumerate(body.volumes or []):
        if request.target and not request.target.startswith("/"):
            where = f"Allocation.Volumes[{position}].Target"
            raise BadRequest(f"{where} {request.target[:200]!r} is not an absolute path")
    return Allocation(
        id=AllocationId(body.id),
        namespace=NamespaceName(body.namespace or namespace),
        node_id=NodeId(body.node_id),
        name=body.name,
        job_id=body.job_id,
        task_group=body.task_group,
        tasks=tuple(body.tasks or ()),
        volumes=tuple(
            VolumeRequest(
                name=v.name,
                source=VolumeId(v.source),
                per_alloc=v.per_alloc,
                read_only=v.read_only,
                access_mode=v.access_mode,
                attachment_mode=v.attachment_mode,
                mount_options=mount_options(v.mount_options),
                target=v.target,
            )
            for v in body.volumes or ()
        ),
    )


async def stop(service: Service, request: Request, allocation_id: str) -> Answer:
    """PUT or POST /v1/allocation/:id/stop."""
    found = service.reads.find_allocation(allocation_id)
    if found is not None:
        demand(request.access.may(found.value.namespace, STOP_ALLOCATION))
    revision = await service.allocations.stop(allocation_id)
    return json_answer(request, {"EvalID": "", "Index": revision}, Meta(index=revision))
