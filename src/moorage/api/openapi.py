"""The API's description as OpenAPI 3.1, made from the route table once per process, and its handler.

Shapes: the table's rows with their descriptions in, a document of plain data out.
Never: looks at a record; nothing here knows what the server holds.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec

from moorage import __version__
from moorage.api.http import JSON, Answer, Request, encode
from moorage.api.meanings import MEANINGS
from moorage.api.openapi_parts import ANSWER_HEADERS, META, PARAMETERS, PATHS, Operation, Operations
from moorage.api.schema_parts import Schema, ref
from moorage.api.schemas import SCHEMAS
from moorage.engine.service import Service

Json = dict[str, Any]

PROBLEM = "application/problem+json"
TEXT = "text/plain"
_REFS = "#/components/schemas/{name}"
# The structs of the agents' pages are records, some of the same name as an answer.
_AGENT_REFS = "#/components/schemas/Agent.{name}"

ABOUT = """\
The volumes API that the clients of HashiCorp Nomad speak, and moorage's own routes beside it.

Member names of a body match without regard to case, unknown ones are ignored, null leaves the default. Refusals are
plain text, nearly all with status 500, as recorded servers answer; who sends `Accept: application/problem+json` gets
RFC 9457 problems with honest statuses and a stable `code`. Times are nanoseconds since the epoch unless a member says
otherwise. Every answer names its request in `X-Request-Id` (the client's own, if it sent one) and says in
`Server-Timing` how long it took. Any answer may be a 307 to a path's clean spelling when the path has `//`. A path
that no route has is a 404 without a body.
"""

# Status, what it means, whether plain text has it (409 comes as a problem only).
REFUSALS: tuple[tuple[int, str, bool], ...] = (
    (400, "The request is malformed, or the caller must change something.", True),
    (403, "The token is missing, unknown or lacks the grant.", True),
    (404, "Not there. Reads say so with this status; most writes, as recorded, with 500.", True),
    (405, "The path has no such method.", True),
    (408, "The body did not arrive in time.", True),
    (409, "A record stands against it: in use, held by another, cannot change.", False),
    (413, "The body is too long.", True),
    (414, "The path and query are too long.", True),
    (431, "The headers are too many or too long.", True),
    (
        500,
        "Refused or failed; the text says why. Nearly every refusal in plain text has this status, as recorded.",
        True,
    ),
    (
        503,
        "True later without any change by the caller: see Retry-After. In plain text only while the server stops.",
        True,
    ),
)


async def read_openapi(service: Service, request: Request) -> Answer:
    """GET /v1/openapi.json."""
    return Answer(body=_encoded(request.query.get("pretty", "0") != "0"), content_type=JSON)


def find_operations() -> Operations:
    """What each row does. A row of the table without an entry fails a test, and so does an entry without a row."""
    # Described late: their modules know the handlers' bodies, and the table has the handler above.
    from moorage.api.openapi_acl import ACL
    from moorage.api.openapi_around import AROUND
    from moorage.api.openapi_identities import IDENTIFIED
    from moorage.api.openapi_storage import STORAGE
    from moorage.api.openapi_why import EXPLAINED
    from moorage.api.operator import OPERATOR

    return {**STORAGE, **IDENTIFIED, **EXPLAINED, **AROUND, **ACL, **OPERATOR}


def find_operation(pattern: str, method: str) -> Operation | None:
    """What a method of a row does, or None where nobody has written it down. ``PUT`` stands for ``POST`` too."""
    found = find_operations().get(pattern, {})
    return found.get(method) or (found.get("PUT") if method == "POST" else None)


@functools.cache
def _encoded(pretty: bool) -> bytes:
    return encode(describe(), pretty=pretty)


@functools.cache
def describe() -> Json:
    """The whole document."""
    from moorage.api.routes import ROUTES  # the table has this module's handler

    paths: Json = {}
    for route in ROUTES:
        path = re.sub(r":(\w+)", r"{\1}", route.pattern)
        for method, served in route.handlers.items():
            found = find_operation(route.pattern, method)
            if found is not None:
                is_blocking = route.is_blocking and method == "GET"
                described = _operation(path, method, found, is_blocking=is_blocking)
                described["x-moorage-grant"] = served.grant.meaning
                paths.setdefault(path, {})[method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "moorage", "version": __version__, "description": ABOUT, "license": {"name": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "responses": {str(s): _refusal(s, meaning, is_plain=plain) for s, meaning, plain in REFUSALS},
            "parameters": {p.name: _parameter(p.name) for p in PARAMETERS.values()},
            "headers": {
                name: {"description": meaning, "schema": schema} for name, (meaning, schema) in ANSWER_HEADERS.items()
            },
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": "X-Nomad-Token"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def parameters_of(operation: Operation, *, is_blocking: bool) -> tuple[str, ...]:
    """The names of an operation's parameters; reads that may be held back have two more."""
    return (*operation.parameters, "index", "wait") if is_blocking else operation.parameters


def _operation(path: str, method: str, operation: Operation, *, is_blocking: bool) -> Json:
    names = re.findall(r"{(\w+)}", path)
    words = [w for w in re.split(r"[/{}]+", path.removeprefix("/v1")) if w]
    found: Json = {
        "operationId": method.lower() + "".join(w[0].upper() + w[1:] for w in words),
        "summary": operation.summary,
        "tags": [operation.group],
        "parameters": [_path_parameter(path, n) for n in names]
        + [{"$ref": f"#/components/parameters/{n}"} for n in parameters_of(operation, is_blocking=is_blocking)],
        "responses": _responses(operation),
    }
    if operation.notes:
        found["description"] = operation.notes
    if operation.body is not None:
        found["requestBody"] = {"required": True, "content": {JSON: {"schema": schema_of(operation.body)}}}
    if operation.extension:
        found["x-moorage-extension"] = operation.extension
    if operation.is_stream:
        found["x-moorage-stream"] = True
    if operation.is_internal:
        found["x-internal"] = True
    return found


def _responses(operation: Operation) -> Json:
    found: Json = {} if operation.is_refused else {"200": _success(operation)}
    for status, meaning, is_plain in REFUSALS:
        found[str(status)] = {"$ref": f"#/components/responses/{status}"}
        if status in operation.refusals:
            with_json = _refusal(status, meaning, is_plain=is_plain)
            with_json["content"][JSON] = {"schema": operation.refusals[status]}
            found[str(status)] = with_json
    return found


def _success(operation: Operation) -> Json:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in operation.headers}
    found: Json = {"description": "Done." if operation.answer is None else "The answer."}
    if headers:
        found["headers"] = headers
    if operation.answer is not None:
        found["content"] = {operation.answer_type: {"schema": schema_of(operation.answer)}}
    return found


def schema_of(kind: Schema | type[Any]) -> Schema:
    """The schema of a body or an answer, by reference where it has a name."""
    if isinstance(kind, dict):
        return kind
    return ref(f"Agent.{kind.__name__}" if kind.__module__.startswith("moorage.model.") else kind.__name__)


def _path_parameter(path: str, name: str) -> Json:
    before = path.split("/" + "{" + name + "}")[0].rpartition("/")[2]
    schema = {"type": "string", "minLength": 1, "pattern": r"^[^/?#%\x00-\x1f\x7f]+$"}
    return {"name": name, "in": "path", "required": True, "description": PATHS[before], "schema": schema}


def _parameter(name: str) -> Json:
    parameter = PARAMETERS[name]
    return {
        "name": name,
        "in": parameter.place,
        "required": parameter.is_required,
        "description": parameter.meaning,
        "schema": parameter.schema,
    }


def _refusal(status: int, meaning: str, *, is_plain: bool) -> Json:
    content: Json = {PROBLEM: {"schema": ref("Problem")}}
    if is_plain:
        content[TEXT] = {"schema": {"type": "string"}}
    found: Json = {"description": meaning, "content": content}
    if status == 404:
        # Reads say at which revision it was not there.
        found["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in META}
    if status == 405:
        found["headers"] = {"Allow": {"$ref": "#/components/headers/Allow"}}
    if status in (500, 503):
        found["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return found


def _schemas() -> dict[str, Schema]:
    from moorage.api.openapi_acl import ACL_SCHEMAS
    from moorage.api.openapi_identities import IDENTITY_SCHEMAS
    from moorage.api.openapi_why import WHY_SCHEMAS
    from moorage.api.routes import ROUTES

    found = [op for r in ROUTES for m in r.handlers if (op := find_operation(r.pattern, m)) is not None]
    kinds = {k for op in found for k in (op.body, op.answer) if isinstance(k, type)}
    bodies = sorted((k for k in kinds if not schema_of(k)["$ref"].rpartition("/")[2].startswith("Agent.")), key=str)
    records = sorted(kinds - set(bodies), key=str)
    _, of_bodies = msgspec.json.schema_components(bodies, ref_template=_REFS)
    _, of_records = msgspec.json.schema_components(records, ref_template=_AGENT_REFS)
    for schema in of_bodies.values():
        for name, member in schema.get("properties", {}).items():
            if name in MEANINGS:
                member.setdefault("description", MEANINGS[name])
    return {
        **SCHEMAS,
        **WHY_SCHEMAS,
        **ACL_SCHEMAS,
        **IDENTITY_SCHEMAS,
        **of_bodies,
        **{f"Agent.{name}": schema for name, schema in of_records.items()},
    }
