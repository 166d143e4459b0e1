"""Schemathesis makes requests of the whole description against a real `moorage dev`: every answer is as described.

Every finding fails: a status, a type, a header or a member that the description does not have, a connection that ends
without an answer, a fault of ours ("incident"), a traceback in the log. 500 itself is no finding: as recorded, most
refusals in plain text have that status.
"""

from __future__ import annotations

import copy
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from dev_server import Program, running_fleet
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CheckContext
from schemathesis.core.failures import FailureGroup
from schemathesis.core.transport import Response
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from moorage.api.openapi import describe
from moorage.api.params import parse_duration_s

EXAMPLES = 20
ANSWER_S = 30.0
# A page that takes seconds by design: it looks at a driver twice.
SLOW = ("/v1/volumes/orphans",)
# A read that waits is kept this long at most.
WAIT = "10ms"
VOLUMES = ("v1", "v2", "v3")

DOCUMENT = describe()
OPERATIONS = [
    (method.upper(), path)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    if not operation.get("x-moorage-stream")
]


def is_answered(ctx: CheckContext, response: Response, case: schemathesis.Case) -> None:
    """No fault of ours."""
    assert "incident" not in response.text, f"{case.method} {case.formatted_path}: {response.text[:500]}"


def is_typed(ctx: CheckContext, response: Response, case: schemathesis.Case) -> bool | None:
    """The type is a described one; a 404 without a body is that of a path which no route has."""
    if response.status_code == 404 and not response.content:
        return None
    return checks.content_type_conformance(ctx, response, case)


CHECKS = [
    is_answered,
    is_typed,
    checks.status_code_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]


SEEN: Counter[int] = Counter()


@pytest.fixture(scope="module")
def server() -> Iterator[Program]:
    with running_fleet() as fleet:
        program = fleet.start_dev(options=["--log-level", "warning"])
        yield program
        print(f"answers by status: {dict(SEEN)}")
        assert "Traceback" not in program.log
        assert "request.crashed" not in program.log


@pytest.fixture(scope="module")
def api() -> Any:
    return schemathesis.openapi.from_dict(DOCUMENT)


def _steer(case: schemathesis.Case) -> None:
    """Lead some of the requests to what is there, and keep those that wait short."""
    query = case.query or {}
    index = str(query.get("index", ""))
    wait = str(query.get("wait", ""))
    if index.isdigit() and (not wait or parse_duration_s(wait) is not None):
        query["wait"] = WAIT
    seed = zlib.crc32(repr((case.path_parameters, case.query, case.body)).encode("utf-8", "surrogatepass"))
    if seed % 2:
        return
    if "plugin_id" in query:
        query["plugin_id"] = "hostpath"
    parameters = case.path_parameters or {}
    if "id" in parameters and "/volume" in case.path:
        parameters["id"] = VOLUMES[seed % 3]
    body = case.body
    if isinstance(body, dict):
        volumes = body.get("Volumes")
        for volume in (v for v in volumes if isinstance(v, dict)) if isinstance(volumes, list) else ():
            volume |= {"ID": VOLUMES[seed % 3], "PluginID": "hostpath"}
            volume["RequestedCapacityMin"] = seed % (1 << 20)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_answers_are_as_described(server: Program, api: Any, method: str, path: str, mode: GenerationMode) -> None:
    operation = api[path][method]
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.path_parameters):
        pytest.skip("nothing about it can be invalid")
    with requests.Session() as session:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=2 if path in SLOW else EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def run(case: schemathesis.Case) -> None:
            _steer(case)
            response = case.call(base_url=server.url, session=session, timeout=ANSWER_S)
            SEEN[response.status_code] += 1
            case.validate_response(response, checks=CHECKS)

        run()


def test_a_wrong_description_is_found(server: Program) -> None:
    wrong = copy.deepcopy(DOCUMENT)
    wrong["paths"]["/v1/regions"]["get"]["responses"]["200"]["content"]["application/json"]["schema"] = {
        "type": "object"
    }
    operation = schemathesis.openapi.from_dict(wrong)["/v1/regions"]["GET"]
    case = operation.Case()
    response = case.call(base_url=server.url, timeout=ANSWER_S)
    with pytest.raises(FailureGroup):
        case.validate_response(response, checks=CHECKS)
