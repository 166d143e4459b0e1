"""A CSI driver that tells all it knows: its errors hold every secret, in several spellings.

    python talkative_driver.py --endpoint unix:///csi.sock --witness FILE --node-id ID

The first call of a method for a volume fails as UNAVAILABLE, later ones work; whatever has ``bad`` in its name is
refused. It mounts nothing: a published volume is a directory. ``--witness`` gets a line for each call with secrets: the
method and a hash of each secret, so that a test sees that they arrived.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import ctypes
import hashlib
import json
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf import text_format

from moorage.csi.calls import RPCS

CONTROLLER = (
    "CREATE_DELETE_VOLUME",
    "PUBLISH_UNPUBLISH_VOLUME",
    "CREATE_DELETE_SNAPSHOT",
    "LIST_SNAPSHOTS",
    "EXPAND_VOLUME",
    "LIST_VOLUMES",
)
ABILITIES = " ".join(f"capabilities {{ rpc {{ type: {name} }} }}" for name in CONTROLLER)
ANSWERS = {
    "GetPluginInfo": 'name: "talkative.example" vendor_version: "1"',
    "GetPluginCapabilities": """capabilities { service { type: CONTROLLER_SERVICE } }
      capabilities { volume_expansion { type: ONLINE } }""",
    "Probe": "ready { value: true }",
    "ControllerGetCapabilities": ABILITIES,
    "NodeGetCapabilities": "capabilities { rpc { type: STAGE_UNSTAGE_VOLUME } }",
}
PR_SET_PDEATHSIG = 1
FAILING_ONCE = ("CreateVolume", "ControllerPublishVolume", "NodeStageVolume", "NodePublishVolume", "DeleteVolume")


def hash_secret(value: str) -> str:
    """What the witness shows of a secret."""
    return hashlib.sha256(value.encode()).hexdigest()


class Driver:
    """One driver."""

    def __init__(self, witness: Path, node_id: str) -> None:
        self._witness = witness
        self._node_id = node_id
        self._seen: set[tuple[str, str]] = set()

    async def answer(self, method: str, request: Any, context: Any, response: Any) -> Any:
        secrets = dict(getattr(request, "secrets", {}))
        if secrets:
            line = {"method": method, "hashes": sorted(map(hash_secret, secrets.values()))}
            with self._witness.open("a") as file:
                file.write(json.dumps(line) + "\n")
        subject = (
            getattr(request, "name", "") or getattr(request, "volume_id", "") or getattr(request, "snapshot_id", "")
        )
        flags = [flag for c in self._capabilities(request) for flag in c.mount.mount_flags]
        if "bad" in subject:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _complain("it is bad", secrets, flags))
        if method in FAILING_ONCE and (method, subject) not in self._seen:
            self._seen.add((method, subject))
            await context.abort(grpc.StatusCode.UNAVAILABLE, _complain("try again", secrets, flags))
        return self._work(method, request, response)

    def _capabilities(self, request: Any) -> list[Any]:
        one = [request.volume_capability] if hasattr(request, "volume_capability") else []
        return one + list(getattr(request, "volume_capabilities", ()))

    def _work(self, method: str, request: Any, response: Any) -> Any:
        text = ANSWERS.get(method, "")
        match method:
            case "CreateVolume":
                text = f'volume {{ volume_id: "id-{request.name}" capacity_bytes: 1048576 }}'
            case "ControllerPublishVolume":
                context = Path(os.environ["TALKATIVE_CONTEXT"]).read_text()
                text = f'publish_context {{ key: "chap" value: "{context}" }}'
            case "ControllerExpandVolume":
                text = f"capacity_bytes: {request.capacity_range.required_bytes}"
            case "CreateSnapshot":
                text = f'snapshot {{ snapshot_id: "snap-{request.name}" source_volume_id: "{request.source_volume_id}" '
                text += "ready_to_use: true creation_time { seconds: 1700000000 } }"
            case "NodeGetInfo":
                text = f'node_id: "{self._node_id}"'
            case "ValidateVolumeCapabilities":
                text = "confirmed { volume_capabilities { mount { } access_mode { mode: SINGLE_NODE_WRITER } } }"
            case "NodePublishVolume":
                os.makedirs(request.target_path, exist_ok=True)
            case "NodeUnpublishVolume":
                shutil.rmtree(request.target_path, ignore_errors=True)
        return text_format.Parse(text, response)


def _complain(text: str, secrets: dict[str, str], flags: list[str]) -> str:
    values = list(secrets.values())
    spelled = [*values, *map(json.dumps, values), *(quote(v, safe="") for v in values)]
    spelled += [base64.b64encode(v.encode()).decode() for v in values]
    return f"{text}: login failed with {' '.join(spelled)} and flags {flags}"


async def serve(endpoint: str, driver: Driver) -> None:
    server = grpc.aio.server()

    def make(rpc: Any) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            return await driver.answer(rpc.name, request, context, rpc.response_type())

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=rpc.request_type.FromString,
            response_serializer=rpc.response_type.SerializeToString,
        )

    for service in {rpc.service for rpc in RPCS.values()}:
        handlers = {rpc.name: make(rpc) for rpc in RPCS.values() if rpc.service == service}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    with suppress(FileNotFoundError):
        os.unlink(endpoint.removeprefix("unix://"))
    server.add_insecure_port(f"unix:{endpoint.removeprefix('unix://')}")
    await server.start()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    await server.stop(0.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--witness", required=True, type=Path)
    parser.add_argument("--node-id", required=True)
    parser.add_argument("--die-with-parent", type=int, default=0)
    words = parser.parse_args()
    if words.die_with_parent:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    asyncio.run(serve(words.endpoint, Driver(words.witness, words.node_id)))
