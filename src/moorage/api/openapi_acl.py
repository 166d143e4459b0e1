"""What the rows of the route table about tokens and policies do, and the schemas of their answers."""

from __future__ import annotations

from moorage.api.acl import BootstrapBody, PolicyBody, TokenBody
from moorage.api.openapi_parts import INDEX, META, Operation, Operations
from moorage.api.openapi_storage import READ
from moorage.api.schema_parts import ANYTHING, BOOL, INDEXES, TEXT, Schema, list_of, or_null, record, ref

_GROUP = "Access control"
_OFF = "While access control is off, this page says so with 400."
_STUB: dict[str, Schema] = INDEXES | {"Description": TEXT, "Hash": TEXT, "JobACL": ANYTHING, "Name": TEXT}
_LISTED: dict[str, Schema] = INDEXES | {
    "AccessorID": TEXT,
    "CreateTime": or_null(TEXT),
    "ExpirationTime": or_null(TEXT),
    "Global": BOOL,
    "Hash": or_null(TEXT),
    "Name": TEXT,
    "Policies": or_null(list_of(TEXT)),
    "Roles": ANYTHING,
    "Type": TEXT,
}

ACL_SCHEMAS: dict[str, Schema] = {
    "PolicyStub": record("A policy without its rules.", _STUB),
    "Policy": record(
        "A policy: the rules as they were sent, and as they are understood.",
        _STUB | {"Rules": TEXT, "RulesJSON": ANYTHING},
    ),
    "TokenStub": record("A token as lists show it.", _LISTED),
    "Token": record(
        "A token. `SecretID` is there when it was just made, and for its bearer; else it is empty: it is not kept.",
        _LISTED | {"ExpirationTTL": TEXT, "SecretID": TEXT},
    ),
}

_WRITE_TOKEN = "A client token names policies, which need not exist yet. `ExpirationTTL` is a duration of at least 1m."

ACL: Operations = {
    "/v1/acl/bootstrap": {
        "PUT": Operation(
            group=_GROUP,
            summary="make the first management token",
            notes=(
                f"Once: a second time takes a file `acl-bootstrap-reset` in the data directory with the index that the "
                f"refusal names. {_OFF}"
            ),
            parameters=("region", "pretty"),
            body=BootstrapBody,
            answer=ref("Token"),
            headers=INDEX,
        )
    },
    "/v1/acl/policies": {
        "GET": Operation(
            group=_GROUP,
            summary="list policies: all for a management token, else the caller's own",
            notes=_OFF,
            parameters=("prefix", *READ),
            answer=list_of(ref("PolicyStub")),
        )
    },
    "/v1/acl/policy/self": {
        "GET": Operation(
            group=_GROUP,
            summary="list the caller's own policies",
            notes=_OFF,
            parameters=READ,
            answer=list_of(ref("PolicyStub")),
        )
    },
    "/v1/acl/policy/:name": {
        "GET": Operation(
            group=_GROUP,
            summary="read a policy",
            notes=f"Its bearers may, and everybody reads `anonymous`. {_OFF}",
            parameters=READ,
            answer=ref("Policy"),
        ),
        "PUT": Operation(
            group=_GROUP,
            summary="write a policy",
            notes=f"`Rules` is HCL or JSON and stays as it was sent. {_OFF}",
            parameters=("region",),
            body=PolicyBody,
            headers=INDEX,
        ),
        "DELETE": Operation(
            group=_GROUP,
            summary="delete a policy; one that is not there is deleted already",
            notes=_OFF,
            parameters=("region",),
            headers=INDEX,
        ),
    },
    "/v1/acl/tokens": {
        "GET": Operation(
            group=_GROUP,
            summary="list tokens in the order of their creation, without secrets",
            notes=_OFF,
            parameters=("prefix", "per_page", "next_token", *READ),
            answer=list_of(ref("TokenStub")),
            headers=(*META, "X-Nomad-NextToken"),
        )
    },
    "/v1/acl/token": {
        "PUT": Operation(
            group=_GROUP,
            summary="make a token; the only answer that shows its secret",
            notes=f"{_WRITE_TOKEN} {_OFF}",
            parameters=("region", "pretty"),
            body=TokenBody,
            answer=ref("Token"),
            headers=INDEX,
        )
    },
    "/v1/acl/token/self": {
        "GET": Operation(
            group=_GROUP,
            summary="the caller's own token, or one that stands for a caller without a token",
            parameters=READ,
            answer=ref("Token"),
        )
    },
    "/v1/acl/token/:id": {
        "GET": Operation(
            group=_GROUP,
            summary="read a token, by its accessor ID",
            notes=f"Its bearer may. {_OFF}",
            parameters=READ,
            answer=ref("Token"),
        ),
        "PUT": Operation(
            group=_GROUP,
            summary="change a token's name, type or policies",
            notes=f"{_WRITE_TOKEN} Its secret and its expiration stay. {_OFF}",
            parameters=("region", "pretty"),
            body=TokenBody,
            answer=ref("Token"),
            headers=INDEX,
        ),
        "DELETE": Operation(
            group=_GROUP,
            summary="delete a token: from the next request on it is unknown",
            notes=_OFF,
            parameters=("region",),
            headers=INDEX,
        ),
    },
}
