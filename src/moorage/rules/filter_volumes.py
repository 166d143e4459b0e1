"""Members of a volume's datum that can be had from its record without making the datum. A table only; pure.

``r`` is the record with its revisions, ``v`` the volume. What each expression gives is what the answer shows: a test
compares them. What is not here takes claims, the plugin's health or lists made for the answer.
"""

from __future__ import annotations

DIRECT: dict[str, str] = {
    "AccessMode": "(v.access_mode or v.shown_access_mode)",
    "AttachmentMode": "(v.attachment_mode or v.shown_attachment_mode)",
    "Capacity": "v.capacity_bytes",
    "CloneID": "v.clone_id",
    "Context": "v.context",
    "CreateIndex": "r.created",
    "CreateTime": "v.created_at_ns",
    "ExternalID": "v.external_id",
    "ID": "v.id",
    "ModifyIndex": "r.modified",
    "ModifyTime": "v.modified_at_ns",
    "Name": "v.name",
    "Namespace": "v.namespace",
    "Parameters": "v.parameters",
    "PluginID": "v.plugin_id",
    "RequestedCapacityMax": "v.requested_max_bytes",
    "RequestedCapacityMin": "v.requested_min_bytes",
    "SnapshotID": "v.snapshot_id",
}
