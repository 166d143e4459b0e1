"""Snapshots and backend volumes as drivers list them.

Never: I/O, clock.
"""

from __future__ import annotations

import msgspec

from moorage.model.volume import Topology


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot at the driver. ``created_at_s``: seconds since the epoch; ``size_bytes`` 0: unknown."""

    id: str
    external_source_id: str
    size_bytes: int = 0
    created_at_s: int = 0
    is_ready: bool = False


class ExternalVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as the driver's own listing shows it. ``capacity_bytes`` 0: unknown."""

    external_id: str
    capacity_bytes: int = 0
    context: dict[str, str] | None = None
    clone_id: str = ""
    snapshot_id: str = ""
    topologies: tuple[Topology, ...] = ()
    published_node_ids: tuple[str, ...] | None = None
    is_abnormal: bool = False
    status: str = ""
