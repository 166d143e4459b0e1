"""What the rows about identities do, and the schemas of their answers, for the API's description."""

from __future__ import annotations

from moorage.api.bodies import JoinTokenBody, ResetIdentityBody
from moorage.api.openapi_parts import Operation, Operations
from moorage.api.schema_parts import COUNT, TEXT, TIME, Schema, list_of, record, ref
from moorage.model.assignment import NodeJoin, NodeJoined

_OWN = "The whole route is moorage's own."

IDENTIFIED: Operations = {
    "/v1/nodes/join-tokens": {
        "GET": Operation(
            group="Nodes",
            summary="list join tokens, which let new nodes in",
            notes="The tokens themselves are shown once only, where they are made.",
            parameters=("region", "pretty"),
            answer=list_of(ref("JoinToken")),
            extension=_OWN,
        ),
        "PUT": Operation(
            group="Nodes",
            summary="make a join token",
            notes="It lets `Uses` nodes join until `TTL` is over; without them, one node within an hour.",
            parameters=("region", "pretty"),
            body=JoinTokenBody,
            answer=ref("NewJoinToken"),
            extension=_OWN,
        ),
    },
    "/v1/nodes/join-token/:id": {
        "DELETE": Operation(
            group="Nodes",
            summary="make a join token useless",
            notes="Nodes that joined with it stay.",
            parameters=("region",),
            extension=_OWN,
        )
    },
    "/v1/node/:id/reset-identity": {
        "PUT": Operation(
            group="Nodes",
            summary="take a node's secret away, so that its agent can join anew with another one",
            notes="The old secret never counts again. The reason is kept.",
            parameters=("region", "pretty"),
            body=ResetIdentityBody,
            answer=ref("IdentityReset"),
            extension=_OWN,
        )
    },
    "/v1/node/:id/join": {
        "PUT": Operation(
            group="Between server and agent",
            summary="an agent makes its request's token the secret of its node",
            body=NodeJoin,
            answer=NodeJoined,
            headers=(),
            extension=_OWN,
            is_internal=True,
        )
    },
}

_TOKEN: dict[str, Schema] = {
    "CreateTime": TIME,
    "ExpirationTime": TIME,
    "ID": TEXT,
    "Nodes": list_of(TEXT),
    "Note": TEXT,
    "Uses": COUNT,
    "UsesLeft": COUNT,
}
IDENTITY_SCHEMAS: dict[str, Schema] = {
    "JoinToken": record("A join token, without the token itself.", _TOKEN),
    "NewJoinToken": record("A new join token.", _TOKEN | {"Token": TEXT}),
    "IdentityReset": record("The index of a write.", {"Index": COUNT}),
}
