"""The work that servers are measured by, which ``load.py`` and ``beside.py`` share: volumes, reads, goals."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

PLUGIN = "local"
CAPABILITY = [{"AccessMode": "single-node-writer", "AttachmentMode": "file-system"}]
# Volumes of one register while loading.
BATCH = 100
READ_ONE = "/v1/volume/csi/vol-000042"
LIST = "/v1/volumes?type=csi"
PAGE = f"{LIST}&per_page=50"
# Where a drawn number stands in a target.
DRAWN = "NNN"
# What the issue asks for, as ratios to the peer; below 1: of its milliseconds or megabytes.
GOALS = {
    "register_batched": 6.0,
    "read": 1.5,
    "list_all": 12.0,
    "list_all_gzip": 100.0,
    "list_page50": 2.5,
    "list_page50_deep": 15.0,
    "list_filter": 2.5,
    "list_filter_page": 10.0,
    "list_prefix": 1.5,
    "register_c1": 3.0,
    "register_c16": 5.0,
    "register_c64": 5.0,
    "create_c1": 1.5,
    "create_c16": 3.0,
    "fanout_read": 0.5,
    "fanout_page50": 0.5,
    "memory": 0.4,
}


def is_met(ratio: float, goal: float, unit: str) -> bool:
    """Whether a ratio to the peer is as good as its goal: rates are to be high, times and sizes low."""
    return ratio >= goal if unit == "/s" else ratio <= goal


def a_volume(volume_id: str, external_id: str = "", *, plugin: str = PLUGIN, **members: object) -> dict[str, object]:
    """A volume's body."""
    found: dict[str, object] = {
        "ID": volume_id,
        "Name": volume_id,
        "Namespace": "default",
        "PluginID": plugin,
        "RequestedCapacityMin": 1 << 20,
        "RequestedCapacityMax": 4 << 20,
        "RequestedCapabilities": CAPABILITY,
    }
    return found | ({"ExternalID": external_id} if external_id else {}) | members


def a_member(number: int, external_id: str, *, plugin: str = PLUGIN, **members: object) -> dict[str, object]:
    """The body of one of the loaded volumes."""
    zone, tier = {"zone": f"z{number % 5}"}, {"tier": "fast" if number % 2 else "slow"}
    return a_volume(f"vol-{number:06d}", external_id, plugin=plugin, Context=zone, Parameters=tier, **members)


def waiting_target(target: str, index: str | bytes) -> str:
    """The target of those who wait at this one for what comes after the index."""
    return f"{target}{'&' if '?' in target else '?'}index={int(index)}&wait=120s"


def waking_body(external_id: str, plugin: str) -> bytes:
    """The body of the write to ``READ_ONE`` that wakes them: another one each time."""
    changed = a_member(42, external_id, plugin=plugin, MountOptions={"FSType": f"ext{time.time_ns()}"})
    return json.dumps({"Volumes": [changed]}).encode()


def tell_woken(began_s: float, written_s: float, ended_s: Iterable[float], *, early: int) -> dict[str, float]:
    """The figures of waiters: milliseconds from the write until it, the median and the last of them were answered;
    ``early``: how many were answered before it."""
    ordered = sorted(ended_s)
    return {
        "last_ms": round((ordered[-1] - began_s) * 1e3, 1),
        "median_ms": round((ordered[len(ordered) // 2] - began_s) * 1e3, 1),
        "write_ms": round((written_s - began_s) * 1e3, 1),
        "early": early,
    }


@dataclass(frozen=True)
class Read:
    """One kind of read. ``target`` holds DRAWN where ``draw`` (lowest, highest) says from which numbers each request
    takes one of its own, so that no answer is simply remembered."""

    name: str
    target: str
    connections: int
    is_gzip: bool = False
    draw: tuple[int, int] | None = None

    def fill(self, number: int) -> str:
        """The target with this number in it."""
        return self.target.replace(DRAWN, str(number))


def list_reads(volumes: int, plugin: str = PLUGIN) -> list[Read]:
    """All kinds of read with so many loaded volumes."""
    token = quote(f"default.vol-{volumes // 2:06d}")
    pattern = quote(f'ID matches "{DRAWN}$" and PluginID == "{plugin}"')
    rare = quote(f'Name == "vol-00{DRAWN}" and Capacity != 5')
    return [
        Read("read", READ_ONE, 32),
        Read("list_all", LIST, 2),
        Read("list_all_gzip", LIST, 4, is_gzip=True),
        Read("list_page50", PAGE, 32),
        Read("list_page50_deep", f"{PAGE}&next_token={token}", 32),
        Read("list_filter", f"{LIST}&filter={pattern}", 2, draw=(100, 999)),
        Read(
            "list_filter_page",
            f"{LIST}&per_page=10&filter={rare}",
            2,
            draw=(1000, max(1000, min(9999, volumes - 1))),
        ),
        Read("list_prefix", f"{LIST}&prefix=vol-00001", 32),
    ]


def resident_mb(*pids: int) -> float:
    """Resident memory of these processes together."""
    total = 0
    for pid in pids:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        total += int(found[1]) if found else 0
    return total / 1024
