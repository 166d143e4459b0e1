"""A CSI driver that does nothing at once: what attaching and mounting cost without any storage.

usage: python bench/noop_driver.py SOCKET. Real gRPC over a real unix socket; volumes have a controller, and are
published by a bind mount of an empty directory where that is allowed, else as a plain directory.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from typing import Any

import grpc
import grpc.aio
from google.protobuf import text_format, wrappers_pb2

from moorage.csi.calls import CONTROLLER, IDENTITY, NODE, RPCS

ANSWERS = {
    "GetPluginInfo": 'name: "noop.bench" vendor_version: "1"',
    "GetPluginCapabilities": "capabilities { service { type: CONTROLLER_SERVICE } }",
    "ControllerGetCapabilities": """capabilities { rpc { type: CREATE_DELETE_VOLUME } }
      capabilities { rpc { type: PUBLISH_UNPUBLISH_VOLUME } }""",
    "NodeGetCapabilities": "capabilities { rpc { type: STAGE_UNSTAGE_VOLUME } }",
    "NodeGetInfo": 'node_id: "noop"',
}
_BIND, _DETACH = 4096, 2
_LIBC = ctypes.CDLL(None, use_errno=True)


def do(name: str, request: Any, response_type: Any) -> Any:
    """The answer, and the little that it takes."""
    if name == "CreateVolume":
        answer = response_type()
        answer.volume.volume_id = request.name
        answer.volume.capacity_bytes = max(1 << 20, request.capacity_range.required_bytes)
        return answer
    if name == "ValidateVolumeCapabilities":
        answer = response_type()
        answer.confirmed.volume_capabilities.extend(request.volume_capabilities)
        return answer
    if name == "Probe":
        return response_type(ready=wrappers_pb2.BoolValue(value=True))
    if name == "NodePublishVolume":
        os.makedirs(request.target_path, exist_ok=True)
        _LIBC.mount(request.staging_target_path.encode(), request.target_path.encode(), None, _BIND, None)
    if name == "NodeUnpublishVolume":
        _LIBC.umount2(request.target_path.encode(), _DETACH)
        os.rmdir(request.target_path)
    if name == "NodeStageVolume":
        path = request.staging_target_path.encode()
        _LIBC.mount(path, path, None, _BIND, None)
    if name == "NodeUnstageVolume":
        _LIBC.umount2(request.staging_target_path.encode(), _DETACH)
    return text_format.Parse(ANSWERS.get(name, ""), response_type())


def handler(name: str, rpc: Any) -> Any:
    """One method."""

    async def handle(request: Any, context: Any) -> Any:
        return do(name, request, rpc.response_type)

    return grpc.unary_unary_rpc_method_handler(
        handle,
        request_deserializer=rpc.request_type.FromString,
        response_serializer=rpc.response_type.SerializeToString,
    )


async def main(socket: str) -> None:
    """Serve until ended."""
    server = grpc.aio.server()
    for service in (IDENTITY, CONTROLLER, NODE):
        handlers = {rpc.name: handler(rpc.name, rpc) for rpc in RPCS.values() if rpc.service == service}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
