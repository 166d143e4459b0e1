"""A driver behind a unix socket: what it is, and steps carried out by it.

Steps come in as data and go out as outcomes: a driver's refusal, a dead socket and a missed deadline are ``Failed``
outcomes, never exceptions. Only cancellation passes through.
Never: retries; decides whether a step is wanted or whether the driver advertises it; shows a secret.
Source: CSI spec 1.12; contract csi-wire §12 (Probe), §8 (errors).
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterable
from types import TracebackType
from urllib.parse import quote as percent_encode

import msgspec
import structlog
from google.protobuf.message import Message

from moorage.csi import calls
from moorage.csi.convert import CONVERSIONS, Conversion, Features
from moorage.csi.proto import csi_pb2 as csi
from moorage.csi.status import judge
from moorage.errors import BadRequest, DriverFault, DriverRefused, DriverUncertain
from moorage.model import steps
from moorage.model.ids import NodeId
from moorage.model.plugin import MAX_VOLUMES_UNLIMITED, ControllerInfo, Instance, NodeInfo
from moorage.model.volume import Fault, Secrets, Topology
from moorage.rpc import Channel, Request, Response, Rpc, call, is_connected, unix_channel
from moorage.rules.explanations import check_step, get_method

REDACTED = "[REDACTED]"
CLOSE_GRACE_S = 1.0

SENSITIVE_FLAG = re.compile(r"pass|secret|token|cred|key", re.IGNORECASE)
_PluginType = csi.PluginCapability.Service
_ExpansionType = csi.PluginCapability.VolumeExpansion
_ControllerType = csi.ControllerServiceCapability.RPC
_NodeType = csi.NodeServiceCapability.RPC

log = structlog.get_logger(__name__)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver said about itself.

    ``is_ready`` False: it is starting, or sick as ``health_description`` says; then only name and version are told and
    the caller keeps the capabilities that it knew. ``controller`` / ``node`` are None where this socket does not serve
    them.
    """

    name: str
    version: str = ""
    is_ready: bool = True
    health_description: str = ""
    requires_controller: bool = False
    requires_topologies: bool = False
    expands_online: bool = False
    expands_offline: bool = False
    controller: ControllerInfo | None = None
    node: NodeInfo | None = None

    def to_instance(self, node_id: NodeId, *, now_ns: int, alloc_id: str = "") -> Instance:
        """These facts as the record of the instance on node ``node_id``."""
        return Instance(
            node_id=node_id,
            healthy=self.is_ready,
            health_description=self.health_description,
            provider=self.name,
            provider_version=self.version,
            requires_controller=self.requires_controller,
            requires_topologies=self.requires_topologies,
            expands_online=self.expands_online,
            expands_offline=self.expands_offline,
            controller=self.controller,
            node=self.node,
            updated_at_ns=now_ns,
            alloc_id=alloc_id,
        )


class _Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """The enum numbers that the driver lists; None for a service that is not served by this socket."""

    plugin: frozenset[int]
    expansion: frozenset[int]
    controller: frozenset[int] | None
    node: frozenset[int] | None

    @property
    def features(self) -> Features:
        controller, node = self.controller or frozenset(), self.node or frozenset()
        return Features(
            supports_topologies=_PluginType.VOLUME_ACCESSIBILITY_CONSTRAINTS in self.plugin,
            supports_read_only_attach=_ControllerType.PUBLISH_READONLY in controller,
            controller_knows_single_node_modes=_ControllerType.SINGLE_NODE_MULTI_WRITER in controller,
            node_knows_single_node_modes=_NodeType.SINGLE_NODE_MULTI_WRITER in node,
        )


class DriverClient:
    """One driver's socket. Use as an async context manager, or call ``open`` and ``close``."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._channel: Channel | None = None
        self._features: Features | None = None

    async def open(self) -> None:
        """Make the channel. The socket need not exist yet.

        Raises: ValueError when the path is longer than a socket's may be.
        """
        if self._channel is None:
            self._channel = unix_channel(self.path)

    async def close(self) -> None:
        """Close the channel; calls in flight get a moment and then fail as uncertain."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(CLOSE_GRACE_S)

    def is_connected(self) -> bool:
        """Whether the connection of the last call still stands."""
        return self._channel is not None and is_connected(self._channel)

    async def __aenter__(self) -> DriverClient:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def probe(self, *, timeout_s: float) -> Facts:
        """Ask the driver for all that it tells about itself, within ``timeout_s`` seconds in total.

        Raises: DriverRefused or DriverUncertain when it does not answer, or not to the basic questions. A driver
        that says it is not ready, or that fails its own health check, is an answer.
        """
        left = _Budget(timeout_s)
        info = await self._ask(calls.GET_PLUGIN_INFO, csi.GetPluginInfoRequest(), left)
        facts = Facts(name=info.name, version=info.vendor_version)
        try:
            ready = await self._ask(calls.PROBE, csi.ProbeRequest(), left)
        except DriverFault as e:
            if e.status in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"):
                raise
            text = f"the driver's health check failed: {e.status}: {e.message}"
            return msgspec.structs.replace(facts, is_ready=False, health_description=text)
        if ready.HasField("ready") and not ready.ready.value:
            return msgspec.structs.replace(facts, is_ready=False, health_description="the driver is not ready yet")
        capabilities = await self._get_capabilities(left)
        self._features = capabilities.features
        return msgspec.structs.replace(
            facts,
            health_description="healthy",
            requires_controller=_PluginType.CONTROLLER_SERVICE in capabilities.plugin,
            requires_topologies=capabilities.features.supports_topologies,
            expands_online=_ExpansionType.ONLINE in capabilities.expansion,
            expands_offline=_ExpansionType.OFFLINE in capabilities.expansion,
            controller=_read_controller(capabilities.controller),
            node=await self._get_node_info(capabilities.node, left),
        )

    async def run(self, step: steps.Step, *, timeout_s: float) -> steps.Outcome:
        """Carry out one step, within ``timeout_s`` seconds.

        Returns Failed for whatever went wrong at the driver or on the way; its fault has no time yet. Until the
        driver was probed its capabilities are asked first, because a request's shape depends on them.
        """
        if fault := check_step(step):
            return steps.Failed(fault=fault)
        left = _Budget(timeout_s)
        conversion = CONVERSIONS[type(step)]
        try:
            if self._features is None:
                self._features = (await self._get_capabilities(left)).features
            request = _build(conversion, step, self._features)
            answer = await self._ask(conversion.rpc, request, left)
        except BadRequest as e:
            return _failed(step, status="", message=e.message, is_final=True)
        except DriverFault as e:
            return _judge(step, e)
        outcome = conversion.read(step, answer)
        if isinstance(step, steps.ValidateVolume):
            self._warn_unconfirmed(step, answer)
        if isinstance(outcome, steps.Failed):
            return _failed(step, status="", message=outcome.fault.message, is_final=True)
        return outcome

    async def _ask(self, rpc: Rpc[Request, Response], request: Request, left: _Budget) -> Response:
        """One call.

        Raises: DriverRefused or DriverUncertain, by the table of statuses.
        """
        if self._channel is None:
            raise DriverUncertain("the connection is closed", method=rpc.name, status="UNAVAILABLE", final=False)
        try:
            return await call(self._channel, rpc, request, timeout_s=left.rest_s())
        except DriverFault as e:
            kind = DriverUncertain if judge(rpc.name, e.status) == "uncertain" else DriverRefused
            raise kind(e.message, method=e.method, status=e.status, final=kind is DriverRefused) from e

    async def _get_capabilities(self, left: _Budget) -> _Capabilities:
        plugin = await self._ask(calls.GET_PLUGIN_CAPABILITIES, csi.GetPluginCapabilitiesRequest(), left)
        controller = await self._find(calls.CONTROLLER_GET_CAPABILITIES, csi.ControllerGetCapabilitiesRequest(), left)
        node = await self._find(calls.NODE_GET_CAPABILITIES, csi.NodeGetCapabilitiesRequest(), left)
        return _Capabilities(
            plugin=frozenset(c.service.type for c in plugin.capabilities),
            expansion=frozenset(c.volume_expansion.type for c in plugin.capabilities),
            controller=None if controller is None else frozenset(c.rpc.type for c in controller.capabilities),
            node=None if node is None else frozenset(c.rpc.type for c in node.capabilities),
        )

    async def _find(self, rpc: Rpc[Request, Response], request: Request, left: _Budget) -> Response | None:
        """The answer, or None where the driver does not serve the method."""
        try:
            return await self._ask(rpc, request, left)
        except DriverRefused as e:
            if e.status == "UNIMPLEMENTED":
                return None
            raise

    async def _get_node_info(self, types: frozenset[int] | None, left: _Budget) -> NodeInfo | None:
        if types is None:
            return None
        # Drivers without attach need not tell who the node is.
        told = await self._find(calls.NODE_GET_INFO, csi.NodeGetInfoRequest(), left) or csi.NodeGetInfoResponse()
        segments = dict(told.accessible_topology.segments)
        return NodeInfo(
            external_id=told.node_id,
            max_volumes=told.max_volumes_per_node if told.max_volumes_per_node > 0 else MAX_VOLUMES_UNLIMITED,
            accessible_topology=Topology(segments=segments) if segments else None,
            requires_stage=_NodeType.STAGE_UNSTAGE_VOLUME in types,
            supports_stats=_NodeType.GET_VOLUME_STATS in types,
            supports_expand=_NodeType.EXPAND_VOLUME in types,
            supports_condition=_NodeType.VOLUME_CONDITION in types,
            supports_mount_group=_NodeType.VOLUME_MOUNT_GROUP in types,
        )

    def _warn_unconfirmed(self, step: steps.ValidateVolume, answer: csi.ValidateVolumeCapabilitiesResponse) -> None:
        if not answer.confirmed.volume_capabilities:
            said = scrub(answer.message, step)
            log.warning(
                "driver confirmed no capabilities; accepted", socket=self.path, volume=step.external_id, message=said
            )


class _Budget:
    """Seconds that are left for several calls in a row, by the monotonic clock."""

    def __init__(self, timeout_s: float) -> None:
        self._end_s = time.monotonic() + timeout_s

    def rest_s(self) -> float:
        return max(0.0, self._end_s - time.monotonic())


def scrub(text: str, step: steps.Step) -> str:
    """``text`` without the secrets of ``step``, as they are or as programs spell them."""
    forms: set[str] = set()
    for value in _list_sensitive(step):
        forms |= list_forms(value)
    if not forms:
        return text
    longest_first = sorted(forms, key=len, reverse=True)
    return re.sub("|".join(re.escape(form) for form in longest_first), REDACTED, text)


def list_forms(value: str) -> set[str]:
    """How programs spell a text in their messages."""
    data = value.encode("utf-8", "surrogatepass")
    forms = {value, value.strip() or value, percent_encode(value, safe="", errors="replace")}
    forms |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    forms |= {repr(value)[1:-1], value.replace("\\", "\\\\")}
    return forms | {base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()}


def _list_sensitive(step: steps.Step) -> Iterable[str]:
    secrets: Secrets = getattr(step, "secrets", Secrets())
    values = {v for v in secrets.values.values() if v}
    options = getattr(step, "mount_options", None)
    for flag in (options and options.mount_flags) or ():
        name, _, value = flag.partition("=")
        if value and SENSITIVE_FLAG.search(name):
            values.add(value)
    return values


def _build(conversion: Conversion, step: steps.Step, features: Features) -> Message:
    try:
        return conversion.build(step, features)
    except (ValueError, TypeError):
        # A number too large for its field or a text that is not Unicode; protobuf's words may quote the value.
        raise BadRequest("a field of the request does not fit the CSI message") from None


def _judge(step: steps.Step, error: DriverFault) -> steps.Outcome:
    if error.method == get_method(step) and judge(error.method, error.status) == "done":
        return steps.Done()
    return _failed(step, status=error.status, message=error.message, is_final=error.final)


def _failed(step: steps.Step, *, status: str, message: str, is_final: bool) -> steps.Failed:
    text = scrub(message, step)
    return steps.Failed(fault=Fault(method=get_method(step), status=status, message=text, final=is_final))


def _read_controller(types: frozenset[int] | None) -> ControllerInfo | None:
    if types is None:
        return None
    return ControllerInfo(
        supports_create_delete=_ControllerType.CREATE_DELETE_VOLUME in types,
        supports_attach_detach=_ControllerType.PUBLISH_UNPUBLISH_VOLUME in types,
        supports_list_volumes=_ControllerType.LIST_VOLUMES in types,
        supports_get_capacity=_ControllerType.GET_CAPACITY in types,
        supports_create_delete_snapshot=_ControllerType.CREATE_DELETE_SNAPSHOT in types,
        supports_list_snapshots=_ControllerType.LIST_SNAPSHOTS in types,
        supports_clone=_ControllerType.CLONE_VOLUME in types,
        supports_read_only_attach=_ControllerType.PUBLISH_READONLY in types,
        supports_expand=_ControllerType.EXPAND_VOLUME in types,
        supports_list_volumes_attached_nodes=_ControllerType.LIST_VOLUMES_PUBLISHED_NODES in types,
        supports_condition=_ControllerType.VOLUME_CONDITION in types,
        supports_get=_ControllerType.GET_VOLUME in types,
        supports_modify=_ControllerType.MODIFY_VOLUME in types,
    )
