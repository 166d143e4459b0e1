"""Plain HTTP requests of tests: the answer as it came, whatever its status."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from canary_marks import HEADER_SECRET, MARKED, TOKEN, VOLUME_SECRET
from guarding import Door, find_door

ANSWER_S = 60.0
_TOKENS = ("x-nomad-token", "authorization")
_SECRETS = "X-Nomad-CSI-Secrets"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer: header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    @property
    def index(self) -> int:
        """X-Nomad-Index; 0 when there is none."""
        return int(self.headers.get("x-nomad-index", "0"))

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def ask(url: str, method: str, path: str, *, body: object = None, headers: Mapping[str, str] | None = None) -> Reply:
    """Ask once, on a connection of its own, as the server's door wants it. ``body``: bytes go as they are, anything
    else as JSON.

    Raises OSError or HTTPException when no whole answer comes.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    door = find_door(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=ANSWER_S)
    if door.context is not None:
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=ANSWER_S, context=door.context)
    try:
        connection.request(method, path, body=content, headers=_add_headers(door, method, path, headers or {}))
        answer = connection.getresponse()
        return Reply(
            status=answer.status,
            headers={name.lower(): value for name, value in answer.getheaders()},
            body=answer.read(),
        )
    finally:
        connection.close()


def _add_headers(door: Door, method: str, path: str, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with the door's token; or with marks where nobody looks at them, in writes: reads stay bare."""
    given = {name.lower() for name in headers}
    added: dict[str, str] = {}
    if door.token and not given.intersection(_TOKENS):
        added["X-Nomad-Token"] = door.token
    elif door.is_marked and method != "GET" and not given.intersection(_TOKENS):
        added["X-Nomad-Token"] = MARKED[TOKEN]
    if door.is_marked and method != "GET" and path.startswith("/v1/volume") and _SECRETS.lower() not in given:
        added[_SECRETS] = f"marked={MARKED[HEADER_SECRET]}"
    return {**headers, **added}


def get(url: str, path: str) -> Any:
    """The JSON of a GET that must succeed."""
    reply = ask(url, "GET", path)
    assert reply.status == 200, f"GET {path}: {reply.status} {reply.text[:500]}"
    return reply.json()


def put(url: str, path: str, body: object = None) -> Any:
    """The JSON of a PUT that must succeed; None for an empty answer."""
    reply = ask(url, "PUT", path, body=body)
    assert reply.status == 200, f"PUT {path}: {reply.status} {reply.text[:500]}"
    return reply.json() if reply.body else None


def delete(url: str, path: str) -> None:
    """A DELETE that must succeed."""
    reply = ask(url, "DELETE", path)
    assert reply.status == 200, f"DELETE {path}: {reply.status} {reply.text[:500]}"


def describe_volume(volume_id: str, *, access_mode: str = "single-node-writer", size: int = 1 << 20) -> dict[str, Any]:
    """The body of a create of one volume."""
    capability = {"AccessMode": access_mode, "AttachmentMode": "file-system"}
    volume = {
        "ID": volume_id,
        "Name": volume_id,
        "PluginID": "hostpath",
        "RequestedCapacityMin": size,
        "RequestedCapacityMax": size,
        "RequestedCapabilities": [capability],
        "Secrets": {"password": MARKED[VOLUME_SECRET]},
    }
    return {"Volumes": [volume]}


def list_external(url: str, *, per_page: int = 50) -> list[str]:
    """External IDs of all pages of what the driver lists."""
    found: list[str] = []
    token = ""
    while True:
        query = f"plugin_id=hostpath&per_page={per_page}" + (f"&next_token={token}" if token else "")
        page = get(url, f"/v1/volumes/external?{query}")
        found += [row["ExternalID"] for row in page["Volumes"]]
        token = page["NextToken"]
        if not token:
            return found
