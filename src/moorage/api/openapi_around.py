"""What the rows of the route table around storage do: namespaces, search, status, and what is not here."""

from __future__ import annotations

from moorage.api.elsewhere import HostVolumesBody
from moorage.api.namespaces import NamespaceBody
from moorage.api.openapi_parts import INDEX, Operation, Operations
from moorage.api.openapi_storage import NAMED_READ, OWN, READ
from moorage.api.schema_parts import ANYTHING, TEXT, Schema, list_of, map_of, ref
from moorage.api.search import SearchBody

_NOTHING: Schema = {"type": "array", "items": ANYTHING, "maxItems": 0}
_LOOSE: Schema = map_of(ANYTHING)
_WRITE_NAMESPACE = Operation(
    group="Namespaces",
    summary="write a namespace",
    parameters=("region",),
    body=NamespaceBody,
    headers=INDEX,
)

_NAMESPACES: Operations = {
    "/v1/namespaces": {
        "GET": Operation(
            group="Namespaces",
            summary="list namespaces",
            parameters=("prefix", *READ),
            answer=list_of(ref("Namespace")),
        )
    },
    "/v1/namespace": {"PUT": _WRITE_NAMESPACE},
    "/v1/namespace/:name": {
        "GET": Operation(group="Namespaces", summary="read a namespace", parameters=READ, answer=ref("Namespace")),
        "PUT": _WRITE_NAMESPACE,
        "DELETE": Operation(
            group="Namespaces",
            summary="delete a namespace that holds no volume",
            parameters=("region",),
            headers=INDEX,
        ),
    },
}

_SEARCH: Operations = {
    "/v1/search": {
        "PUT": Operation(
            group="Search",
            summary="find IDs that begin with a text, for completion",
            notes="`Context` is one of allocs, namespaces, nodes, plugins, volumes, or all; at most 20 each.",
            parameters=("region", "namespace", "pretty"),
            body=SearchBody,
            answer=ref("Found"),
        )
    },
    "/v1/search/fuzzy": {
        "PUT": Operation(
            group="Search",
            summary="find names that hold a text",
            parameters=("region", "namespace", "pretty"),
            body=SearchBody,
            answer=ref("Found"),
        )
    },
}


_EVENTS: Operations = {
    "/v1/event/stream": {
        "GET": Operation(
            group="Events",
            summary="what happens, line by line, as it happens",
            notes=(
                'Each line is a JSON object: `{}` is a heartbeat, `{"Index": N, "Events": […]}` is what one revision '
                'tells, `{"Error": "…", "Index": N}` the last line of a stream that cannot go on. `index` gives the '
                "events from there on, that one included; without it the oldest kept comes first."
            ),
            parameters=("topic", "namespace", "index", "region"),
            answer=ANYTHING,
            headers=(),
            is_stream=True,
        )
    }
}


def _status(summary: str, answer: Schema, *parameters: str, notes: str = "") -> Operation:
    return Operation(
        group="Status", summary=summary, parameters=(*parameters, "pretty"), answer=answer, headers=(), notes=notes
    )


_STATUS: Operations = {
    "/v1/status/leader": {"GET": _status("the address of the leader", TEXT, "region")},
    "/v1/status/peers": {"GET": _status("the addresses of the servers", list_of(TEXT), "region")},
    "/v1/regions": {"GET": _status("the regions", list_of(TEXT))},
    "/v1/metrics": {
        "GET": Operation(
            group="Status",
            summary="figures of the server",
            notes=(
                "JSON in the shape of the recorded servers, with totals since the start; the text format of Prometheus "
                "with `format=prometheus`. `docs/metrics.md` has the metrics."
            ),
            parameters=("pretty",),
            answer=ref("Metrics"),
            headers=(),
        )
    },
    "/v1/agent/health": {
        "GET": Operation(
            group="Status",
            summary="whether the server serves, and whether an agent is there",
            notes="`type` is `server` or `client` for that part alone; a client that is not well is then a 500.",
            parameters=("type", "pretty"),
            answer=ref("Health"),
            headers=(),
            refusals={500: ref("Health")},
        )
    },
    "/v1/agent/self": {"GET": _status("the server about itself", _LOOSE)},
    "/v1/agent/members": {"GET": _status("the servers as members of a cluster", _LOOSE)},
    "/v1/agent/servers": {"GET": _status("the addresses of the servers", list_of(TEXT))},
    "/v1/openapi.json": {
        "GET": Operation(
            group="Status",
            summary="this description, as OpenAPI 3.1",
            parameters=("pretty",),
            answer=_LOOSE,
            headers=(),
            extension=OWN,
        )
    },
}


def _refused(summary: str, *, body: type | None = None, notes: str = "", group: str = "Not here") -> Operation:
    return Operation(group=group, summary=summary, body=body, headers=(), notes=notes, is_refused=True)


_EMPTY = Operation(
    group="Not here",
    summary="an empty list: moorage has none",
    parameters=NAMED_READ,
    answer=_NOTHING,
)
_HOST = _refused("refused: only CSI volumes are here", body=HostVolumesBody)

_ELSEWHERE: Operations = {
    **{f"/v1/{page}": {"GET": _EMPTY} for page in ("jobs", "evaluations", "deployments")},
    "/v1/volumes/claims": dict.fromkeys(("GET", "PUT", "DELETE"), _EMPTY),
    "/v1/volumes/claim/:id": {"DELETE": _refused("refused: there is no such claim")},
    "/v1/volume/host/create": {"PUT": _HOST},
    "/v1/volume/host/register": {"PUT": _HOST},
    "/v1/volume/host/:id": {
        "GET": _refused("refused: there is no such volume"),
        "DELETE": _refused("refused: there is no such volume"),
    },
    "/v1/operator/raft/configuration": {"GET": _status("one server, which leads", _LOOSE, "region")},
    "/v1/operator/scheduler/configuration": {
        "GET": Operation(
            group="Status",
            summary="a scheduler's settings; nothing is scheduled here",
            parameters=("region", "pretty"),
            answer=_LOOSE,
        )
    },
    "/v1/system/gc": {
        "PUT": Operation(
            group="Status",
            summary="nothing to do: records that have ended go by themselves",
            parameters=("region",),
            headers=(),
        )
    },
}

AROUND: Operations = {**_NAMESPACES, **_SEARCH, **_EVENTS, **_STATUS, **_ELSEWHERE}
