"""The table of CSI calls: one ``Rpc`` a method, for clients and servers alike.

A client passes a row to ``moorage.rpc.call``; a server registers a handler for each row of ``RPCS`` that it serves
(``path`` or ``service`` and ``name``, with the classes of the two messages).
Source: CSI spec 1.12 without its alpha methods.
"""

from __future__ import annotations

from google.protobuf.message import Message

from moorage.csi.proto import csi_pb2 as csi
from moorage.rpc import Request, Response, Rpc

IDENTITY = "csi.v1.Identity"
CONTROLLER = "csi.v1.Controller"
GROUP_CONTROLLER = "csi.v1.GroupController"
NODE = "csi.v1.Node"


def _rpc(service: str, request_type: type[Request], response_type: type[Response]) -> Rpc[Request, Response]:
    name = request_type.DESCRIPTOR.name.removesuffix("Request")
    return Rpc(f"/{service}/{name}", request_type, response_type)


GET_PLUGIN_INFO = _rpc(IDENTITY, csi.GetPluginInfoRequest, csi.GetPluginInfoResponse)
GET_PLUGIN_CAPABILITIES = _rpc(IDENTITY, csi.GetPluginCapabilitiesRequest, csi.GetPluginCapabilitiesResponse)
PROBE = _rpc(IDENTITY, csi.ProbeRequest, csi.ProbeResponse)

CREATE_VOLUME = _rpc(CONTROLLER, csi.CreateVolumeRequest, csi.CreateVolumeResponse)
DELETE_VOLUME = _rpc(CONTROLLER, csi.DeleteVolumeRequest, csi.DeleteVolumeResponse)
CONTROLLER_PUBLISH_VOLUME = _rpc(CONTROLLER, csi.ControllerPublishVolumeRequest, csi.ControllerPublishVolumeResponse)
CONTROLLER_UNPUBLISH_VOLUME = _rpc(
    CONTROLLER, csi.ControllerUnpublishVolumeRequest, csi.ControllerUnpublishVolumeResponse
)
VALIDATE_VOLUME_CAPABILITIES = _rpc(
    CONTROLLER, csi.ValidateVolumeCapabilitiesRequest, csi.ValidateVolumeCapabilitiesResponse
)
LIST_VOLUMES = _rpc(CONTROLLER, csi.ListVolumesRequest, csi.ListVolumesResponse)
GET_CAPACITY = _rpc(CONTROLLER, csi.GetCapacityRequest, csi.GetCapacityResponse)
CONTROLLER_GET_CAPABILITIES = _rpc(
    CONTROLLER, csi.ControllerGetCapabilitiesRequest, csi.ControllerGetCapabilitiesResponse
)
CREATE_SNAPSHOT = _rpc(CONTROLLER, csi.CreateSnapshotRequest, csi.CreateSnapshotResponse)
DELETE_SNAPSHOT = _rpc(CONTROLLER, csi.DeleteSnapshotRequest, csi.DeleteSnapshotResponse)
LIST_SNAPSHOTS = _rpc(CONTROLLER, csi.ListSnapshotsRequest, csi.ListSnapshotsResponse)
CONTROLLER_EXPAND_VOLUME = _rpc(CONTROLLER, csi.ControllerExpandVolumeRequest, csi.ControllerExpandVolumeResponse)
CONTROLLER_MODIFY_VOLUME = _rpc(CONTROLLER, csi.ControllerModifyVolumeRequest, csi.ControllerModifyVolumeResponse)

GROUP_CONTROLLER_GET_CAPABILITIES = _rpc(
    GROUP_CONTROLLER, csi.GroupControllerGetCapabilitiesRequest, csi.GroupControllerGetCapabilitiesResponse
)
CREATE_VOLUME_GROUP_SNAPSHOT = _rpc(
    GROUP_CONTROLLER, csi.CreateVolumeGroupSnapshotRequest, csi.CreateVolumeGroupSnapshotResponse
)
DELETE_VOLUME_GROUP_SNAPSHOT = _rpc(
    GROUP_CONTROLLER, csi.DeleteVolumeGroupSnapshotRequest, csi.DeleteVolumeGroupSnapshotResponse
)
GET_VOLUME_GROUP_SNAPSHOT = _rpc(
    GROUP_CONTROLLER, csi.GetVolumeGroupSnapshotRequest, csi.GetVolumeGroupSnapshotResponse
)

NODE_STAGE_VOLUME = _rpc(NODE, csi.NodeStageVolumeRequest, csi.NodeStageVolumeResponse)
NODE_UNSTAGE_VOLUME = _rpc(NODE, csi.NodeUnstageVolumeRequest, csi.NodeUnstageVolumeResponse)
NODE_PUBLISH_VOLUME = _rpc(NODE, csi.NodePublishVolumeRequest, csi.NodePublishVolumeResponse)
NODE_UNPUBLISH_VOLUME = _rpc(NODE, csi.NodeUnpublishVolumeRequest, csi.NodeUnpublishVolumeResponse)
NODE_GET_VOLUME_STATS = _rpc(NODE, csi.NodeGetVolumeStatsRequest, csi.NodeGetVolumeStatsResponse)
NODE_EXPAND_VOLUME = _rpc(NODE, csi.NodeExpandVolumeRequest, csi.NodeExpandVolumeResponse)
NODE_GET_CAPABILITIES = _rpc(NODE, csi.NodeGetCapabilitiesRequest, csi.NodeGetCapabilitiesResponse)
NODE_GET_INFO = _rpc(NODE, csi.NodeGetInfoRequest, csi.NodeGetInfoResponse)

RPCS: dict[str, Rpc[Message, Message]] = {
    value.path: value for value in tuple(globals().values()) if isinstance(value, Rpc)
}
"""Every row by its path."""
