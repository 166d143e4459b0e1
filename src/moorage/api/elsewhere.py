"""Pages that clients ask and where moorage has no such thing: it answers as a server would on which there is none.

Jobs, evaluations, deployments and host volumes are a scheduler's; so are their writes, which are refused.
Source: golden around.jsonl; contract volumes-api §2.14, §2.15, clients §2, §10.
"""

from __future__ import annotations

from msgspec import Struct, field

from moorage.api.agents import identify
from moorage.api.answers import enveloped
from moorage.api.bodies import decode
from moorage.api.http import Answer, Meta, Request, empty_answer, json_answer, text_answer
from moorage.api.params import check_region, parse_bool, parse_read
from moorage.api.volumes import wait_for_change
from moorage.engine.service import Service
from moorage.errors import BadRequest, NotFound, Rejected
from moorage.rules.filter import check_filter

# Tables that are never written: the index of an empty one, so that a client that waits on it does not spin.
NOTHING_YET = Meta(index=1)


# -- lists that are always empty -------------------------------------------------------------------------------------


async def list_nothing(service: Service, request: Request) -> Answer:
    """GET of jobs, evaluations, deployments, host volumes and claims on them."""
    options = parse_read(request)
    check_filter(options.filter, service.settings.filters)
    # Nothing here will ever change: a client that waits is kept until its time is up.
    await wait_for_change(service, options, (), lambda: NOTHING_YET.index)
    return json_answer(request, [], NOTHING_YET)


# -- operator --------------------------------------------------------------------------------------------------------


async def read_raft(service: Service, request: Request) -> Answer:
    """GET /v1/operator/raft/configuration: one server, which leads."""
    check_region(request.query)
    server = identify(request)
    row = {
        "Address": server.address,
        "ID": server.id,
        "Leader": True,
        "Node": server.member_name,
        "RaftProtocol": "3",
        "Voter": True,
    }
    return json_answer(request, {"Index": 0, "Servers": [row]})


async def read_scheduler(service: Service, request: Request) -> Answer:
    """GET /v1/operator/scheduler/configuration: the recorded server's defaults; nothing here is scheduled."""
    check_region(request.query)
    index = NOTHING_YET.index
    kinds = ("BatchScheduler", "ServiceScheduler", "SysBatchScheduler", "SystemScheduler")
    config = {
        "CreateIndex": index,
        "MemoryOversubscriptionEnabled": False,
        "ModifyIndex": index,
        "NodeLimitForFeasibilityChecks": 0,
        "PauseEvalBroker": False,
        "PreemptionConfig": {f"{kind}Enabled": kind == "SystemScheduler" for kind in kinds},
        "RejectJobRegistration": False,
        "SchedulerAlgorithm": "binpack",
    }
    return json_answer(request, enveloped(index, SchedulerConfig=config), NOTHING_YET)


async def collect_garbage(service: Service, request: Request) -> Answer:
    """PUT /v1/system/gc: records that have ended go by themselves, so there is nothing to do."""
    check_region(request.query)
    return empty_answer()


# -- host volumes ----------------------------------------------------------------------------------------------------


class HostVolumeBody(Struct):
    """A host volume, as far as a refusal needs it."""

    name: str = field(default="", name="Name")


class HostVolumesBody(Struct):
    """Body of host volume create and register."""

    volume: HostVolumeBody | None = field(default=None, name="Volume")


async def create_host_volume(service: Service, request: Request) -> Answer:
    """PUT or POST /v1/volume/host/create and register: there is no node that could have it."""
    body = decode(HostVolumesBody, request.body)
    check_region(request.query)
    if body.volume is None:
        raise Rejected("missing volume definition", code="validation")
    name = body.volume.name
    if not name:
        raise Rejected("volume validation failed: missing name", code="validation")
    text = f'could not place volume "{name[:128]}": this server has CSI volumes only; use a volume of type csi'
    raise Rejected(text, code="unsupported")


async def read_host_volume(service: Service, request: Request, volume_id: str) -> Answer:
    """GET /v1/volume/host/:id."""
    parse_read(request)
    return text_answer(404, "volume not found", NOTHING_YET)


async def delete_host_volume(service: Service, request: Request, volume_id: str) -> Answer:
    """DELETE /v1/volume/host/:id."""
    if parse_bool(request.query.get("force", "") or "false") is None:
        raise BadRequest("invalid force value")
    raise NotFound(f"no such volume: {volume_id}", code="volume_missing", volume=volume_id)


async def delete_host_claim(service: Service, request: Request, claim_id: str) -> Answer:
    """DELETE /v1/volumes/claim/:id."""
    raise NotFound("task group volume claim does not exist", code="claim_missing", claim=claim_id)


# -- nodes -----------------------------------------------------------------------------------------------------------
