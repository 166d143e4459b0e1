"""Handlers of what operators do with nodes: drain, close, fence."""

from __future__ import annotations

from moorage.api.bodies import DrainBody, EligibilityBody, FenceBody, decode
from moorage.api.http import Answer, Meta, Request, json_answer
from moorage.api.params import check_region
from moorage.engine.service import Service
from moorage.errors import BadRequest
from moorage.model.node import NodeWanted


async def drain(service: Service, request: Request, node_id: str) -> Answer:
    """PUT or POST /v1/node/:id/drain. A drain that ends leaves the node closed, unless it is marked eligible."""
    body = decode(DrainBody, request.body)
    check_region(request.query)
    wanted: NodeWanted = "draining" if body.spec is not None else "active" if body.mark_eligible else "closed"
    return _changed(request, await service.nodes.set_wanted(node_id, wanted))


async def set_eligibility(service: Service, request: Request, node_id: str) -> Answer:
    """PUT or POST /v1/node/:id/eligibility."""
    body = decode(EligibilityBody, request.body)
    check_region(request.query)
    if body.eligibility not in ("eligible", "ineligible"):
        raise BadRequest(f'Eligibility {body.eligibility[:64]!r} is neither "eligible" nor "ineligible"')
    wanted: NodeWanted = "active" if body.eligibility == "eligible" else "closed"
    return _changed(request, await service.nodes.set_wanted(node_id, wanted))


async def fence(service: Service, request: Request, node_id: str) -> Answer:
    """PUT or POST /v1/node/:id/fence: somebody's word, kept, that a lost node can no longer write."""
    body = decode(FenceBody, request.body)
    check_region(request.query)
    revision = await service.leases.fence(node_id, reason=body.reason, by=body.by, is_forced=body.is_forced)
    return _changed(request, revision)


def _changed(request: Request, revision: int) -> Answer:
    body = {"EvalCreateIndex": 0, "EvalIDs": [], "Index": revision, "NodeModifyIndex": revision}
    return json_answer(request, body, Meta(index=revision))
