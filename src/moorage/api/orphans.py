"""Handler of the orphan finder: drivers' volumes against the records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moorage.api.http import Answer, Meta, Request, json_answer
from moorage.api.params import parse_read
from moorage.engine.orphans import PluginFindings
from moorage.engine.service import Service
from moorage.model.ids import NodeId
from moorage.model.volume import Volume
from moorage.rules.orphans import Double, Leak, Unknown

Json = dict[str, Any]


async def list_orphans(service: Service, request: Request) -> Answer:
    """GET /v1/volumes/orphans. It takes as long as the drivers take to list all their volumes."""
    parse_read(request)
    found = await service.orphans.find(request.query.get("plugin_id", ""))
    body = {"Plugins": [_findings(f) for f in found]}
    return json_answer(request, body, Meta(index=service.reads.revision))


def _findings(found: PluginFindings) -> Json:
    return {
        "PluginID": found.plugin_id,
        "Error": found.error,
        "VolumesListed": found.volumes_listed,
        "ShowsAttachments": found.shows_nodes,
        "Orphans": [_unknown(u) for u in found.found.unknown],
        "Lost": [_volume(v) for v in found.found.lost],
        "Doubles": [_double(d) for d in found.found.doubles],
        "LeakedAttachments": [_leak(leak, found.nodes) for leak in found.found.leaks],
        "Creating": [_volume(v) for v in found.found.creating],
    }


def _unknown(unknown: Unknown) -> Json:
    volume = unknown.volume
    return {
        "ExternalID": volume.external_id,
        "CapacityBytes": volume.capacity_bytes,
        "IsAbnormal": volume.is_abnormal,
        "Status": volume.status,
        "PublishedExternalNodeIDs": list(volume.published_node_ids or ()),
        "MayBeCreating": unknown.may_be_creating,
    }


def _volume(volume: Volume) -> Json:
    return {"ID": volume.id, "Namespace": volume.namespace, "ExternalID": volume.external_id}


def _double(double: Double) -> Json:
    return {"ExternalID": double.external_id, "Volumes": [_volume(v) for v in double.volumes]}


def _leak(leak: Leak, nodes: Mapping[str, NodeId]) -> Json:
    return {
        "ExternalID": leak.external_id,
        "ExternalNodeID": leak.external_node_id,
        "NodeID": nodes.get(leak.external_node_id, ""),
        "Volume": _volume(leak.volume),
    }
