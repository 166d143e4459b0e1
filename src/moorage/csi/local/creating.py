"""What a CreateVolume asks for, and whether a volume of its name is that already. No I/O.

Raises Rejected with the gRPC status as its code.
Source: CSI spec 1.12, "CreateVolume".
"""

from __future__ import annotations

import msgspec

from moorage.csi.local import checks
from moorage.csi.local.checks import Range, refuse
from moorage.csi.local.records import Origin, VolumeRecord
from moorage.csi.proto import csi_pb2 as csi


class Asked(msgspec.Struct, frozen=True):
    """What a create asks for, checked as far as it goes by itself."""

    range: Range
    origin: Origin | None
    is_block: bool
    parameters: dict[str, str]


def origin_of(request: csi.CreateVolumeRequest) -> Origin | None:
    """What the volume is to be filled from."""
    if not request.HasField("volume_content_source"):
        return None
    source = request.volume_content_source
    kind = source.WhichOneof("type")
    if kind == "volume":
        field, found = "volume.volume_id", source.volume.volume_id
    elif kind == "snapshot":
        field, found = "snapshot.snapshot_id", source.snapshot.snapshot_id
    else:
        raise refuse("INVALID_ARGUMENT", "volume_content_source needs a snapshot or a volume")
    return Origin(kind=kind, id=checks.require(found, f"volume_content_source.{field}"))


def check_compatible(volume: VolumeRecord, asked: Asked) -> None:
    """Raise ALREADY_EXISTS unless the volume fits; the range may be the first one, or hold the size it has now."""
    wanted = asked.range
    differing = ""
    as_before = (wanted.required_bytes, wanted.limit_bytes) == (volume.required_bytes, volume.limit_bytes)
    if not as_before and not wanted.holds(volume.capacity_bytes):
        differing = f"capacity_range (it has {volume.capacity_bytes} bytes)"
    elif volume.parameters != asked.parameters:
        differing = "parameters"
    elif volume.origin != asked.origin:
        differing = "volume_content_source"
    elif volume.is_block != asked.is_block:
        differing = "access type in volume_capabilities"
    if differing:
        raise refuse("ALREADY_EXISTS", f"volume {volume.name!r} exists with another {differing}")
