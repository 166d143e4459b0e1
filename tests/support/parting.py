"""What every fleet is asked at its end, if it still answers.

First requests with a mark in each place that takes a secret, then whatever shows anything: the pages of the debug
bundle, the metrics, the event stream from its beginning.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import uuid
from pathlib import Path
from typing import Any

from canary_marks import BEARER, HEADER_SECRET, JOIN_TOKEN, MARKED, MOUNT_FLAG, REFERRED_NAME, TOKEN, VOLUME_SECRET
from guarding import Door

from moorage.cli.debug_bundle import gather, write_bundle
from moorage.client.sync import Client
from moorage.errors import MoorageError

ANSWER_S = 5.0
BUNDLE = "parting.tar.gz"
# An answer of this page is only for the agent itself; here a stranger asks.
STRANGER = "00000000-1111-4222-8333-444444444444"


def part(door: Door, place: Path) -> bool:
    """Ask all of it; whether the server answered at all."""
    try:
        _ask(door, "GET", "/v1/agent/health?type=server")
    except (OSError, http.client.HTTPException):
        return False
    for method, path, body, headers in list_requests():
        with contextlib.suppress(OSError, http.client.HTTPException):
            _ask(door, method, path, body, headers)
    with contextlib.suppress(OSError, http.client.HTTPException):
        for path in ("/v1/metrics", "/v1/metrics?format=prometheus", "/v1/operator/log"):
            _ask(door, "GET", path)
        _read_stream(door)
    with contextlib.suppress(MoorageError, OSError), door.client() as client:
        write_bundle(place / BUNDLE, gather(_limit(client)), "parting")
    return True


def list_requests() -> list[tuple[str, str, Any, dict[str, str]]]:
    """Method, path, body and headers of requests that change nothing of what the tests have made."""
    secret = {"X-Nomad-CSI-Secrets": f"parting={MARKED[HEADER_SECRET]},other=env:{REFERRED_NAME}"}
    flags = {"FSType": "ext4", "MountFlags": ["ro", f"password={MARKED[MOUNT_FLAG]}"]}
    volume = {
        "ID": "parting",
        "Name": "parting",
        "PluginID": "parting-none",
        "ExternalID": "parting",
        "RequestedCapabilities": [{"AccessMode": "single-node-writer", "AttachmentMode": "file-system"}],
        "Secrets": {"password": MARKED[VOLUME_SECRET]},
        "MountOptions": flags,
    }
    snapshot = {"SourceVolumeID": "parting", "PluginID": "parting-none", "Secrets": {"p": MARKED[VOLUME_SECRET]}}
    use = {"Name": "data", "Source": "parting", "MountOptions": flags}
    allocation = {"ID": str(uuid.uuid4()), "Name": "parting", "NodeID": STRANGER, "Volumes": [use]}
    query = "plugin_id=parting-none"
    return [
        ("PUT", "/v1/volume/csi/parting/create", {"Volumes": [volume]}, secret),
        ("PUT", "/v1/volume/csi/parting", {"Volumes": [volume]}, secret),
        ("PUT", "/v1/volume/csi/parting", {"Volumes": [volume | {"Secrets": [MARKED[VOLUME_SECRET]]}]}, {}),
        ("PUT", "/v1/volumes", json.dumps({"Volumes": [volume]}).encode()[:-9], {}),
        ("DELETE", "/v1/volume/csi/parting/delete", None, secret),
        ("DELETE", "/v1/volume/csi/parting/detach?node=parting", None, secret),
        ("PUT", "/v1/volumes/snapshot", {"Snapshots": [snapshot]}, secret),
        ("DELETE", f"/v1/volumes/snapshot?{query}&snapshot_id=parting", None, secret),
        ("GET", f"/v1/volumes/snapshot?{query}", None, secret),
        ("GET", f"/v1/volumes/external?{query}", None, secret),
        ("PUT", "/v1/allocations", {"Allocation": allocation}, {}),
        ("GET", "/v1/volumes?type=csi", None, {"X-Nomad-Token": MARKED[TOKEN]}),
        ("GET", "/v1/acl/token/self", None, {"Authorization": f"Bearer {MARKED[BEARER]}"}),
        ("PUT", f"/v1/node/{STRANGER}/register", {}, {"X-Nomad-Token": MARKED[TOKEN]}),
        # The last: where joining is open to everybody, a node of that name is known from now on.
        ("PUT", f"/v1/node/{STRANGER}/join", {"name": "parting", "join_token": MARKED[JOIN_TOKEN]}, {}),
    ]


def _limit(client: Client) -> Client:
    """The client with less patience: a fleet whose agents are gone does not hold the tests up."""
    get = client.get

    def get_soon(path: str, query: Any = None, **named: Any) -> Any:
        return get(path, query, **{**named, "timeout_s": ANSWER_S})

    client.get = get_soon  # type: ignore[method-assign]
    return client


def _connect(door: Door) -> http.client.HTTPConnection:
    host = door.url.partition("://")[2]
    if door.context is not None:
        return http.client.HTTPSConnection(host, timeout=ANSWER_S, context=door.context)
    return http.client.HTTPConnection(host, timeout=ANSWER_S)


def _ask(door: Door, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> int:
    sent = {"X-Nomad-Token": door.token} if door.token else {}
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    with contextlib.closing(_connect(door)) as connection:
        connection.request(method, path, body=content, headers=sent | (headers or {}))
        answer = connection.getresponse()
        answer.read()
        return answer.status


def _read_stream(door: Door) -> None:
    """The event stream from as far back as it goes, until nothing more comes at once."""
    sent = {"X-Nomad-Token": door.token} if door.token else {}
    with contextlib.closing(_connect(door)) as connection:
        connection.request("GET", "/v1/event/stream?index=1&topic=*", headers=sent)
        answer = connection.getresponse()
        if connection.sock is not None and answer.status == 200:
            connection.sock.settimeout(0.1)
            with contextlib.suppress(OSError, ValueError):
                while answer.readline():
                    pass
