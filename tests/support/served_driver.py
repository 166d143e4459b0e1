"""A driver that is an object of the test's own, behind a real socket, with a judge of orchestrators before it.

The node's calls, and what a driver says of itself. The judge's facts outlive a serving: a log that is there already is
gone on with, as after a restart of the judge.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import grpc
import grpc.aio

from moorage.agent.ports import Driver
from moorage.csi.calls import RPCS
from moorage.csi.modes import MODE_NUMBERS
from moorage.csi.proto import csi_pb2 as csi
from moorage.errors import DriverFault
from moorage.model import steps
from moorage.model.ids import NodeId
from moorage.model.plugin import Instance, NodeInfo
from moorage.model.volume import BLOCK_DEVICE, FILE_SYSTEM, Capability, MountOptions
from moorage.testing.driver_judge import format_finding, judge_log, running_judge

Controller = csi.ControllerServiceCapability
Node = csi.NodeServiceCapability
PROBE_S = 5.0
MODE_NAMES = {number: name for name, number in MODE_NUMBERS.items()}
# Where the judge's and the driver's sockets are; tests' own directories may be too deep for them.
PREFIX = "served-"


@asynccontextmanager
async def serving_judged(driver: Driver, log: Path) -> AsyncIterator[str]:
    """The path of the judge's socket. Fails at the end of the block with what the judge found, in the whole log."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir="/tmp") as name:
        behind, before = Path(name) / "driver.sock", Path(name) / "csi.sock"
        async with _serving(driver, behind), running_judge(listen=before, driver=behind, log=log):
            yield str(before)
    check_log(log)


def check_log(log: Path) -> None:
    """Fails with what a judge's log shows to be wrong."""
    assert log.stat().st_size, "the judge saw nothing"
    found = [format_finding(finding) for finding in judge_log(log)]
    assert not found, "\n".join(found)


@asynccontextmanager
async def _serving(driver: Driver, path: Path) -> AsyncIterator[None]:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for rpc in RPCS.values():
        if rpc.name in ANSWERS:
            services.setdefault(rpc.service, {})[rpc.name] = grpc.unary_unary_rpc_method_handler(
                _guard(driver, ANSWERS[rpc.name]),
                request_deserializer=rpc.request_type.FromString,
                response_serializer=rpc.response_type.SerializeToString,
            )
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(service, handlers) for service, handlers in services.items())
    )
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await server.stop(0)
            await driver.close()


class _Refused(Exception):
    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = grpc.StatusCode.__members__.get(status, grpc.StatusCode.INTERNAL)


def _guard(driver: Driver, answer: Callable[[Driver, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def handle(request: Any, context: Any) -> Any:
        try:
            return await answer(driver, request)
        except _Refused as error:
            await context.abort(error.status, str(error))
        except DriverFault as error:
            await context.abort(grpc.StatusCode[error.status], error.message)

    return handle


# -- what it is ------------------------------------------------------------------------------------------------------


async def _describe(driver: Driver) -> Instance:
    facts = await driver.probe(timeout_s=PROBE_S)
    return facts.to_instance(NodeId("it"), now_ns=0)


async def _get_plugin_info(driver: Driver, _: Any) -> csi.GetPluginInfoResponse:
    told = await _describe(driver)
    return csi.GetPluginInfoResponse(name=told.provider, vendor_version=told.provider_version)


async def _get_plugin_capabilities(driver: Driver, _: Any) -> csi.GetPluginCapabilitiesResponse:
    return csi.GetPluginCapabilitiesResponse()


async def _probe(driver: Driver, _: Any) -> csi.ProbeResponse:
    answer = csi.ProbeResponse()
    answer.ready.value = (await _describe(driver)).healthy
    return answer


async def _node_get_capabilities(driver: Driver, _: Any) -> csi.NodeGetCapabilitiesResponse:
    node = await _describe_node(driver)
    types = [Node.RPC.STAGE_UNSTAGE_VOLUME] * node.requires_stage + [Node.RPC.EXPAND_VOLUME] * node.supports_expand
    return csi.NodeGetCapabilitiesResponse(capabilities=[Node(rpc=Node.RPC(type=one)) for one in types])


async def _node_get_info(driver: Driver, _: Any) -> csi.NodeGetInfoResponse:
    return csi.NodeGetInfoResponse(node_id=(await _describe_node(driver)).external_id)


async def _describe_node(driver: Driver) -> NodeInfo:
    node = (await _describe(driver)).node
    assert node is not None
    return node


# -- what it does ----------------------------------------------------------------------------------------------------


async def _run(driver: Driver, step: steps.Step) -> steps.Outcome:
    outcome = await driver.run(step, timeout_s=PROBE_S)
    if isinstance(outcome, steps.Failed):
        raise _Refused(outcome.fault.status, outcome.fault.message)
    return outcome


def _capability_of(message: csi.VolumeCapability) -> tuple[Capability, MountOptions | None]:
    kind = BLOCK_DEVICE if message.HasField("block") else FILE_SYSTEM
    capability = Capability(access_mode=MODE_NAMES[message.access_mode.mode], attachment_mode=kind)
    flags = tuple(message.mount.mount_flags)
    options = MountOptions(fs_type=message.mount.fs_type, mount_flags=flags) if message.mount.fs_type or flags else None
    return capability, options


async def _node_stage_volume(driver: Driver, request: csi.NodeStageVolumeRequest) -> csi.NodeStageVolumeResponse:
    capability, options = _capability_of(request.volume_capability)
    step = steps.StageVolume(
        external_id=request.volume_id,
        staging_path=request.staging_target_path,
        capability=capability,
        mount_options=options,
        publish_context=dict(request.publish_context),
        context=dict(request.volume_context),
    )
    await _run(driver, step)
    return csi.NodeStageVolumeResponse()


async def _node_publish_volume(driver: Driver, request: csi.NodePublishVolumeRequest) -> csi.NodePublishVolumeResponse:
    capability, options = _capability_of(request.volume_capability)
    step = steps.PublishVolume(
        external_id=request.volume_id,
        target_path=request.target_path,
        capability=capability,
        staging_path=request.staging_target_path,
        read_only=request.readonly,
        mount_options=options,
        publish_context=dict(request.publish_context),
        context=dict(request.volume_context),
    )
    await _run(driver, step)
    return csi.NodePublishVolumeResponse()


async def _node_unpublish_volume(
    driver: Driver, request: csi.NodeUnpublishVolumeRequest
) -> csi.NodeUnpublishVolumeResponse:
    await _run(driver, steps.UnpublishVolume(external_id=request.volume_id, target_path=request.target_path))
    return csi.NodeUnpublishVolumeResponse()


async def _node_unstage_volume(driver: Driver, request: csi.NodeUnstageVolumeRequest) -> csi.NodeUnstageVolumeResponse:
    await _run(driver, steps.UnstageVolume(external_id=request.volume_id, staging_path=request.staging_target_path))
    return csi.NodeUnstageVolumeResponse()


ANSWERS: dict[str, Callable[[Driver, Any], Awaitable[Any]]] = {
    "GetPluginInfo": _get_plugin_info,
    "GetPluginCapabilities": _get_plugin_capabilities,
    "Probe": _probe,
    "NodeGetCapabilities": _node_get_capabilities,
    "NodeGetInfo": _node_get_info,
    "NodeStageVolume": _node_stage_volume,
    "NodePublishVolume": _node_publish_volume,
    "NodeUnpublishVolume": _node_unpublish_volume,
    "NodeUnstageVolume": _node_unstage_volume,
}
"""A method without an answer here is not implemented."""
