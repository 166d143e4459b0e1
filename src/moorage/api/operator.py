"""Handlers of operators' own pages: the keys of the seal, and what a server can tell about its work."""

from __future__ import annotations

from typing import Any

import msgspec

from moorage.api.http import NO_TABLE, Answer, Request, json_answer
from moorage.api.openapi_parts import Operation, Operations
from moorage.api.params import check_region
from moorage.api.schema_parts import BOOL, COUNT, TEXT, TIME, Schema, list_of, map_of, record
from moorage.engine.service import Service
from moorage.errors import NotFound
from moorage.model.times import format_time


async def read_secrets(service: Service, request: Request) -> Answer:
    """GET /v1/operator/secrets: which key seals, and how far sealing is."""
    check_region(request.query)
    if service.sealing is None:
        raise NotFound("this server does not seal secrets", code="no_sealing")
    return json_answer(request, _describe(service.sealing.progress), NO_TABLE)


async def rotate_secrets(service: Service, request: Request) -> Answer:
    """PUT or POST /v1/operator/secrets/rotate: a new key from now on; everything is sealed anew beside other work."""
    check_region(request.query)
    if service.sealing is None:
        raise NotFound("this server does not seal secrets", code="no_sealing")
    return json_answer(request, _describe(await service.sealing.rotate()), NO_TABLE)


async def read_calls(service: Service, request: Request) -> Answer:
    """GET /v1/operator/calls."""
    check_region(request.query)
    rows = [
        {
            "Time": format_time(call.at_ns),
            "NodeID": call.node_id,
            "Record": call.record,
            "Outcome": call.outcome,
            "Method": call.method,
            "Status": call.status,
            "Message": call.message,
        }
        for call in service.diagnostics.calls
    ]
    return json_answer(request, rows, NO_TABLE)


async def read_log(service: Service, request: Request) -> Answer:
    """GET /v1/operator/log."""
    check_region(request.query)
    return json_answer(request, service.diagnostics.read_log(), NO_TABLE)


async def read_settings(service: Service, request: Request) -> Answer:
    """GET /v1/operator/settings."""
    check_region(request.query)
    return json_answer(request, service.diagnostics.settings, NO_TABLE)


def _describe(progress: msgspec.Struct) -> dict[str, Any]:
    names = {
        "phase": "Phase",
        "active_key": "ActiveKey",
        "old_keys": "OldKeys",
        "where": "Where",
        "done": "Sealed",
        "total": "Total",
        "last_error": "LastError",
        "text": "Text",
    }
    found = msgspec.structs.asdict(progress)
    return {name: found[field] for field, name in names.items()} | {"IsDone": found["phase"] == "done"}


# -- their description -----------------------------------------------------------------------------------------------

_OWN = "moorage's own"
_SEALING: Schema = record(
    "How far sealing is.",
    {
        "Phase": TEXT | {"description": "sealing, scrubbing (what was there before is overwritten) or done"},
        "IsDone": BOOL | {"description": "whether everything is under the active key"},
        "ActiveKey": TEXT | {"description": "the ID of the key that seals"},
        "OldKeys": list_of(TEXT) | {"description": "IDs of the other keys at hand"},
        "Where": TEXT | {"description": "where the keys are"},
        "Sealed": COUNT | {"description": "how many records are under the active key"},
        "Total": COUNT | {"description": "of how many that hide something"},
        "LastError": TEXT | {"description": "what holds it up, or empty"},
        "Text": TEXT | {"description": "all of it in a sentence, and which key may go"},
    },
)
_CALL: Schema = record(
    "What an agent reported of a call.",
    {
        "Time": TIME,
        "NodeID": TEXT,
        "Record": TEXT | {"description": "the record that the call was made for"},
        "Outcome": TEXT | {"description": "the kind of outcome"},
        "Method": TEXT | {"description": "of a failed call: the CSI method"},
        "Status": TEXT | {"description": "of a failed call: the gRPC status or moorage's own word"},
        "Message": TEXT | {"description": "of a failed call: the driver's text, without secrets"},
    },
)


def _page(summary: str, answer: Schema, notes: str = "") -> Operation:
    return Operation(
        group="Operator", summary=summary, notes=notes, parameters=("region", "pretty"), answer=answer, extension=_OWN
    )


OPERATOR: Operations = {
    "/v1/operator/secrets": {"GET": _page("which key seals secrets, and how far sealing is", _SEALING)},
    "/v1/operator/secrets/rotate": {
        "PUT": _page(
            "seal everything anew with a new key, beside other work",
            _SEALING,
            "A key file gets a new key as its first line. Where the keys are a credential or a variable, the operator "
            "puts a new key first and starts the server again, which then seals anew by itself.",
        )
    },
    "/v1/operator/calls": {"GET": _page("the newest driver calls, as agents reported them", list_of(_CALL))},
    "/v1/operator/log": {"GET": _page("the newest lines of the server's log", list_of(TEXT))},
    "/v1/operator/settings": {"GET": _page("the settings in force, without secrets", map_of({}))},
}
