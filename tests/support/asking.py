"""Plain HTTP requests of tests: the answer as it came, whatever its status."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

ANSWER_S = 60.0
# A secret of every volume that tests describe; what a fleet leaves behind is searched for it.
CANARY = "canary/c41f7d0e2b7a9e65\\of every volume"


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
    """Ask once, on a connection of its own. ``body``: bytes go as they are, anything else as JSON.

    Raises OSError or HTTPException when no whole answer comes.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=ANSWER_S)
    try:
        connection.request(method, path, body=content, headers=dict(headers or {}))
        answer = connection.getresponse()
        return Reply(
            status=answer.status,
            headers={name.lower(): value for name, value in answer.getheaders()},
            body=answer.read(),
        )
    finally:
        connection.close()


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
        "Secrets": {"password": CANARY},
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
