"""The Identity service: who the driver is and what it can do."""

from __future__ import annotations

from google.protobuf import wrappers_pb2

import moorage
from moorage.csi.local.checks import refuse
from moorage.csi.local.storage import Storage
from moorage.csi.proto import csi_pb2 as csi

DRIVER_NAME = "localhost.csi.moorage"
TOPOLOGY_KEY = f"topology.{DRIVER_NAME}/node"


class Identity:
    """Answers the three identity calls."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def get_plugin_info(self, _: csi.GetPluginInfoRequest) -> csi.GetPluginInfoResponse:
        """The driver's name and version."""
        return csi.GetPluginInfoResponse(name=DRIVER_NAME, vendor_version=moorage.__version__)

    async def get_plugin_capabilities(self, _: csi.GetPluginCapabilitiesRequest) -> csi.GetPluginCapabilitiesResponse:
        """A controller, topology, and expansion of volumes in use."""
        service = csi.PluginCapability.Service
        expansion = csi.PluginCapability.VolumeExpansion
        return csi.GetPluginCapabilitiesResponse(
            capabilities=[
                csi.PluginCapability(service=service(type=service.CONTROLLER_SERVICE)),
                csi.PluginCapability(service=service(type=service.VOLUME_ACCESSIBILITY_CONSTRAINTS)),
                csi.PluginCapability(volume_expansion=expansion(type=expansion.ONLINE)),
            ]
        )

    async def probe(self, _: csi.ProbeRequest) -> csi.ProbeResponse:
        """Ready, or FAILED_PRECONDITION after the directory failed."""
        if self._storage.broken:
            raise refuse("FAILED_PRECONDITION", self._storage.broken)
        return csi.ProbeResponse(ready=wrappers_pb2.BoolValue(value=True))
