"""The API's description as tests use it: the schema of an answer by its route, closed so that nothing goes unsaid."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema

from moorage.api.http import Answer
from moorage.api.openapi import describe
from moorage.api.routes import ROUTES, Router

_ROUTER = Router(ROUTES)


def find_pattern(target: str) -> str:
    """The route of a request's target, in the description's spelling."""
    found = _ROUTER.find(tuple(target.partition("?")[0].split("/")[1:]))
    assert found is not None, f"no route for {target}"
    return "/".join("{" + p[1:] + "}" if p.startswith(":") else p for p in found.route.pattern.split("/"))


def close(document: dict[str, Any]) -> dict[str, Any]:
    """The document with every object that lists members closed to others."""
    closed = copy.deepcopy(document)
    _close(closed)
    return closed


def _close(part: Any) -> None:
    if isinstance(part, dict):
        if "properties" in part and part.get("type") == "object" and "additionalProperties" not in part:
            part["additionalProperties"] = False
        for inner in part.values():
            _close(inner)
    elif isinstance(part, list):
        for inner in part:
            _close(inner)


class Judge:
    """Checks answers against the description, and remembers for which operations it saw a 200."""

    def __init__(self) -> None:
        self.document = close(describe())
        self.seen: set[tuple[str, str]] = set()

    def check(self, method: str, target: str, answer: Answer) -> None:
        """Fail unless the answer is one that the description allows."""
        pattern = find_pattern(target)
        where = f"{method} {target}: {answer.status}"
        operation = self.document["paths"][pattern][method.lower()]
        responses = operation["responses"]
        assert str(answer.status) in responses, f"{where} is not described"
        response = self._resolve(responses[str(answer.status)])
        self._check_headers(where, response, answer)
        media_type = (answer.content_type or "").partition(";")[0]
        if answer.status == 200:
            self.seen.add((pattern, method))
        if not answer.body and answer.stream is None:
            assert answer.status != 200 or "content" not in response, f"{where} has no body"
            return
        assert media_type in response.get("content", {}), f"{where} has the type {media_type!r}"
        if answer.stream is None and media_type.endswith("json"):
            self._check_body(where, response["content"][media_type]["schema"], answer.body)

    def _resolve(self, part: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in part:
            return part
        found: Any = self.document
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        assert isinstance(found, dict)
        return found

    def _check_headers(self, where: str, response: dict[str, Any], answer: Answer) -> None:
        described = {name.lower() for name in response.get("headers", {})}
        sent = {n.lower() for n in answer.headers if n.lower().startswith(("x-", "retry"))}
        assert sent <= described, f"{where} has headers that are not described: {sorted(sent - described)}"

    def _check_body(self, where: str, schema: dict[str, Any], body: bytes) -> None:
        import msgspec

        root = {**schema, "components": self.document["components"]}
        validator = jsonschema.Draft202012Validator(root)
        errors = [f"{e.json_path}: {e.message[:300]}" for e in validator.iter_errors(msgspec.json.decode(body))]
        assert not errors, f"{where}: {errors[:5]}"
