"""Orphans: what a driver lists, compared with the records. Pure.

Shapes: the records before and after the listing, because neither stands still while a driver is asked page by page: a
disk that is on record at either moment is known, one is lost only if it was on record, unchanged, at both.

    unknown   the driver has it, no record names it. While a create of the plugin is on record whose answer is not
              known, or a record came or went meanwhile, it may be that one: it *may be creating*
    lost      a record names it, the driver does not have it
    double    several records name it: they are one disk, and their claims are admitted together
    leaked    the driver says that it is attached to a node, and no claim of the disk is there

Several backend volumes of one name cannot be seen through CSI. Source: contract csi-engine §I; DESIGN "One disk".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from moorage.model.claim import Claim
from moorage.model.snapshot import ExternalVolume
from moorage.model.volume import Volume


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """The records of one plugin at one moment."""

    volumes: tuple[Volume, ...] = ()
    claims: tuple[Claim, ...] = ()


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """A backend volume that nobody registered."""

    volume: ExternalVolume
    may_be_creating: bool = False


class Double(msgspec.Struct, frozen=True, kw_only=True):
    """One disk with several records."""

    external_id: str
    volumes: tuple[Volume, ...]


class Leak(msgspec.Struct, frozen=True, kw_only=True):
    """An attachment without a claim. ``volume``: a record of the disk."""

    external_id: str
    external_node_id: str
    volume: Volume


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What was found; each part in order of external ID. ``creating``: records whose create is under way."""

    unknown: tuple[Unknown, ...] = ()
    lost: tuple[Volume, ...] = ()
    doubles: tuple[Double, ...] = ()
    leaks: tuple[Leak, ...] = ()
    creating: tuple[Volume, ...] = ()


def find_doubles(volumes: Iterable[Volume]) -> tuple[Double, ...]:
    """Disks of one plugin with more than one record; no listing is needed for it."""
    by_disk = _by_disk(volumes)
    return tuple(
        Double(external_id=i, volumes=tuple(sorted(by_disk[i], key=_key_of)))
        for i in sorted(by_disk)
        if len(by_disk[i]) > 1
    )


def find_creating(volumes: Iterable[Volume]) -> tuple[Volume, ...]:
    """Records of which nothing is known to exist at the driver, though a create may have made it."""
    return tuple(sorted((v for v in volumes if v.state == "absent"), key=_key_of))


def compare(listed: Sequence[ExternalVolume], before: Known, after: Known) -> Comparison:
    """What of a driver's whole listing and the records does not fit together."""
    there = {v.external_id: v for v in listed}
    known = {*_by_disk(before.volumes), *_by_disk(after.volumes)}
    creating = find_creating({v.key: v for v in (*before.volumes, *after.volumes) if v.state == "absent"}.values())
    is_moving = bool(creating) or {v.key for v in before.volumes} != {v.key for v in after.volumes}
    return Comparison(
        unknown=tuple(Unknown(volume=there[i], may_be_creating=is_moving) for i in sorted(there) if i not in known),
        lost=tuple(v for v in _find_settled(before, after) if v.external_id not in there),
        doubles=find_doubles(after.volumes),
        leaks=_find_leaks(there, before, after),
        creating=creating,
    )


def _find_settled(before: Known, after: Known) -> list[Volume]:
    """Records that were ready, meant to stay and of the same disk at both moments."""
    first = {v.key: v for v in before.volumes if _is_settled(v)}
    found = [
        v for v in after.volumes if _is_settled(v) and v.key in first and first[v.key].external_id == v.external_id
    ]
    return sorted(found, key=lambda v: (v.external_id, v.key))


def _is_settled(volume: Volume) -> bool:
    return volume.state == "ready" and volume.wanted == "present"


def _find_leaks(there: Mapping[str, ExternalVolume], before: Known, after: Known) -> tuple[Leak, ...]:
    claimed = {(c.external_id, c.external_node_id) for c in (*before.claims, *after.claims)}
    leaks = []
    for volume in _find_settled(before, after):
        backend = there.get(volume.external_id)
        for node in sorted(set(backend.published_node_ids or ())) if backend else ():
            if (volume.external_id, node) not in claimed:
                leaks.append(Leak(external_id=volume.external_id, external_node_id=node, volume=volume))
    # Of a disk with several records the first stands for all.
    firsts: dict[tuple[str, str], Leak] = {}
    for leak in leaks:
        firsts.setdefault((leak.external_id, leak.external_node_id), leak)
    return tuple(firsts.values())


def _by_disk(volumes: Iterable[Volume]) -> dict[str, list[Volume]]:
    found: dict[str, list[Volume]] = {}
    for volume in volumes:
        if volume.external_id:
            found.setdefault(volume.external_id, []).append(volume)
    return found


def _key_of(volume: Volume) -> tuple[str, str]:
    return volume.key
