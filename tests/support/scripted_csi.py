"""A CSI driver of a few lines behind a real socket: its answers are protobuf texts, by method."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import grpc
import grpc.aio
from google.protobuf import text_format

from moorage.csi.calls import CONTROLLER, IDENTITY, NODE, RPCS
from moorage.csi.client import DriverClient
from moorage.model import steps

ANSWERS: dict[str, Any] = {
    "GetPluginInfo": 'name: "csi.example.org" vendor_version: "1.2"',
    "GetPluginCapabilities": """capabilities { service { type: CONTROLLER_SERVICE } }
      capabilities { service { type: VOLUME_ACCESSIBILITY_CONSTRAINTS } } capabilities { service { type: 77 } }
      capabilities { volume_expansion { type: ONLINE } } capabilities { }""",
    "Probe": "",
    "ControllerGetCapabilities": """capabilities { rpc { type: CREATE_DELETE_VOLUME } }
      capabilities { rpc { type: 99 } } capabilities { rpc { type: PUBLISH_READONLY } }
      capabilities { rpc { type: SINGLE_NODE_MULTI_WRITER } }""",
    "NodeGetCapabilities": "capabilities { rpc { type: STAGE_UNSTAGE_VOLUME } } capabilities { rpc { type: 99 } }",
    "NodeGetInfo": """node_id: "node-7" max_volumes_per_node: 5
      accessible_topology { segments { key: "zone" value: "a" } }""",
}


class Driver:
    """A scripted driver: an answer by method (protobuf text), a status with a text, or ``"hang"``.

    ``requests`` is what came, by method. A method without an answer is not implemented.
    """

    def __init__(self, services: tuple[str, ...] = (IDENTITY, CONTROLLER, NODE), **answers: Any) -> None:
        self.services = services
        self.answers = ANSWERS | answers
        self.requests: list[tuple[str, Any]] = []
        self.hanging = anyio.Event()

    def get(self, method: str) -> list[Any]:
        return [request for name, request in self.requests if name == method]

    def _handler(self, name: str, response_type: Any) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            self.requests.append((name, request))
            answer = self.answers.get(name, (grpc.StatusCode.UNIMPLEMENTED, ""))
            if answer == "hang":
                self.hanging.set()
                await anyio.sleep(30)
            if isinstance(answer, tuple):
                await context.abort(*answer)
            return text_format.Parse(answer, response_type())

        return handle

    @asynccontextmanager
    async def serve(self, path: Path) -> AsyncIterator[None]:
        server = grpc.aio.server()
        for service in self.services:
            handlers = {
                rpc.name: grpc.unary_unary_rpc_method_handler(
                    self._handler(rpc.name, rpc.response_type),
                    request_deserializer=rpc.request_type.FromString,
                    response_serializer=rpc.response_type.SerializeToString,
                )
                for rpc in RPCS.values()
                if rpc.service == service
            }
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await server.stop(0)


@asynccontextmanager
async def running(driver: Driver, tmp_path: Path) -> AsyncIterator[DriverClient]:
    path = tmp_path / "csi.sock"
    async with driver.serve(path), DriverClient(str(path)) as client:
        yield client


async def run_once(tmp_path: Path, step: steps.Step, **answers: Any) -> steps.Outcome:
    async with running(Driver(**answers), tmp_path) as client:
        return await client.run(step, timeout_s=5)
