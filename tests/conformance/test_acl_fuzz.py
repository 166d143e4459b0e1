"""Schemathesis asks everything in the description with an authorised, a narrow and no token: nothing forbidden comes.

What is forbidden is said by the naive model of ``tests/support/acl_model.py``. A refusal is 403 with its text; a path
that means another row (``/v1/volume/host/create`` read as a volume's ID) is judged by the row that it means.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import requests
import schemathesis
from acl_model import FREE, Rules, Who, judge
from asking import ask, put
from dev_server import Program, running_fleet
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode

from moorage.api.openapi import describe
from moorage.api.routes import ROUTES, Router

EXAMPLES = 4
ANSWER_S = 30.0
SLOW = ("/v1/volumes/orphans",)
NARROW = Rules(namespaces=(("dev", "read", ()),), plugin="list")
# Answers that come before anybody is asked who they are.
AT_THE_DOOR = frozenset((307, 404, 405, 408, 413, 414, 431))
# Rows whose list without a type is empty for everybody.
EMPTY_WITHOUT_TYPE = frozenset(("/v1/volumes", "/v1/plugins"))

DOCUMENT = describe()
ROUTER = Router(ROUTES)
OPERATIONS = [
    (method.upper(), path)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    if not operation.get("x-moorage-stream")
]
SEEN: Counter[tuple[str, int]] = Counter()


class Callers:
    """A server with access control, and who may ask it."""

    def __init__(self, server: Program) -> None:
        self.server = server
        management = put(server.url, "/v1/acl/bootstrap")["SecretID"]
        self.management = {"X-Nomad-Token": management}

        def write(path: str, body: object) -> Any:
            reply = ask(server.url, "PUT", path, body=body, headers=self.management)
            assert reply.status == 200, reply.text
            return reply.json() if reply.body else None

        write("/v1/namespace", {"Name": "dev"})
        write("/v1/acl/policy/narrow", {"Name": "narrow", "Rules": NARROW.text()})
        made = write("/v1/acl/token", {"Name": "n", "Type": "client", "Policies": ["narrow"]})
        self.narrow = {"X-Nomad-Token": made["SecretID"]}

    def find(self, name: str) -> tuple[dict[str, str], Who]:
        """A caller's headers, and what the model knows of it."""
        if name == "management":
            return self.management, Who("management")
        if name == "narrow":
            return self.narrow, Who("client", (NARROW,), names=frozenset(("narrow",)))
        return {"X-Nomad-Token": ""}, Who("anonymous")


@pytest.fixture(scope="module")
def callers() -> Iterator[Callers]:
    with running_fleet() as fleet:
        program = fleet.start_dev(options=["--acl", "--log-level", "warning"])
        yield Callers(program)
        print(f"answers by caller and status: {dict(SEEN)}")
        assert "Traceback" not in program.log
        assert "request.crashed" not in program.log


@pytest.fixture(scope="module")
def api() -> Any:
    return schemathesis.openapi.from_dict(DOCUMENT)


def find_forbidden(who: Who, method: str, url: str, status: int, text: str) -> str:
    """What is wrong with an answer; empty when the table allows it."""
    parts = urlsplit(url)
    found = ROUTER.find(tuple(unquote(parts.path).split("/")[1:]))
    if found is None or method not in found.route.handlers or status in AT_THE_DOOR - {404}:
        return ""
    pattern = found.route.pattern
    query = parse_qs(parts.query, keep_blank_values=True)
    if method == "GET" and pattern in EMPTY_WITHOUT_TYPE and "type" not in query:
        return "" if status != 200 or text.strip() == "[]" else "shows something without a type"
    namespace = query.get("namespace", [""])[0] or "default"
    if pattern == "/v1/namespace/:name" and method == "GET":
        namespace = found.arguments[0]
    if pattern in ("/v1/acl/policy/:name", "/v1/acl/token/:id") and method == "GET" and who.kind == "client":
        return "" if status == 403 or found.arguments[0] in ("narrow", "anonymous") else "shows another's"
    if pattern == "/v1/acl/policy/:name" and method == "GET" and found.arguments[0] == "anonymous":
        return ""
    if pattern.startswith("/v1/search") and who.kind == "client" and status != 403:
        return _find_shown(status, text)
    expected = judge(who, method, pattern, namespace)
    if expected == "no" and (status, text) != (403, "Permission denied") and "problem" not in text:
        return f"is answered with {status}, and should be refused"
    if expected == "yes" and status == 403 and pattern not in FREE:
        return "is refused, and should not be"
    return ""


def _find_shown(status: int, text: str) -> str:
    """What a search shows that the narrow token may not list: here are volumes in ``dev`` alone, and nodes."""
    matches = json.loads(text)["Matches"] if status == 200 else {}
    shown = {context for context in ("nodes", "node_pools") if context in matches}
    return f"shows {shown}" if shown or (matches.get("namespaces") or ["dev"]) != ["dev"] else ""


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize("caller", ["management", "narrow", "nobody"])
def test_nothing_forbidden_comes(callers: Callers, api: Any, caller: str, method: str, path: str) -> None:
    operation = api[path][method]
    headers, who = callers.find(caller)
    with requests.Session() as session:

        @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
        @settings(
            max_examples=2 if path in SLOW else EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def run(case: schemathesis.Case) -> None:
            if case.query:
                case.query.pop("index", None)
            response = case.call(base_url=callers.server.url, session=session, timeout=ANSWER_S, headers=headers)
            SEEN[caller, response.status_code] += 1
            wrong = find_forbidden(who, method, str(response.request.url), response.status_code, response.text)
            assert not wrong, f"{caller} {method} {response.request.url} {wrong}: {response.text[:300]}"

        run()


def test_a_forbidden_answer_is_found() -> None:
    narrow, nobody = Who("client", (NARROW,)), Who("anonymous")
    url = "http://h/v1/volumes?type=csi"
    assert find_forbidden(nobody, "GET", url, 200, "[]")
    assert find_forbidden(narrow, "GET", url, 200, "[]")
    assert find_forbidden(narrow, "GET", f"{url}&namespace=dev", 403, "Permission denied")
    assert not find_forbidden(narrow, "GET", f"{url}&namespace=dev", 200, "[]")
    assert find_forbidden(narrow, "DELETE", "http://h/v1/volume/csi/x?namespace=dev", 500, "volume not found: x")
    assert find_forbidden(nobody, "GET", "http://h/v1/volumes", 200, '[{"ID":"x"}]')
    assert find_forbidden(narrow, "GET", "http://h/v1/acl/policy/other", 404, "ACL policy not found")
    assert find_forbidden(nobody, "PUT", "http://h/v1/node/x/register", 400, "json: x")
