"""Requests to an app without a socket."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

from engine_kit import PLUGIN, Kit

from moorage.api.http import Answer, Request
from moorage.api.params import find_query


async def ask(kit: Kit, method: str, target: str, body: object = None, **headers: str) -> Answer:
    """The app's answer to a request; ``body`` is sent as JSON."""
    path, _, query = target.partition("?")
    request = Request(
        method=method,
        path=path,
        parts=tuple(unquote(path).split("/")[1:]),
        query=find_query(query.encode()),
        headers=headers,
        body=b"" if body is None else json.dumps(body).encode(),
    )
    return await kit.app.answer(request)


async def read(kit: Kit, method: str, target: str, body: object = None, **headers: str) -> Any:
    """The JSON of an answer that must be a 200."""
    answer = await ask(kit, method, target, body, **headers)
    assert answer.status == 200, f"{method} {target}: {answer.status} {text_of(answer)[:300]}"
    return json.loads(answer.body)


def text_of(answer: Answer) -> str:
    """An answer's body as text."""
    return answer.body.decode()


def a_body(volume_id: str, **members: object) -> dict[str, object]:
    """The body of a register or create of one volume."""
    capability = {"AccessMode": "single-node-writer", "AttachmentMode": "file-system"}
    volume = {"ID": volume_id, "Name": volume_id, "PluginID": PLUGIN, "RequestedCapabilities": [capability]}
    return {"Volumes": [volume | members]}
