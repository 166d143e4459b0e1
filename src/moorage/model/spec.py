"""A volume's specification, in HCL or JSON, as the body that the API takes.

Key names at the top count without regard to case; keys that are not known there are ignored with a note, those inside
a block are refused. Everything asked for is kept: all topologies of all three forms in use. Never: I/O, clock.
Source: the recorded behaviour of volume files; sizes as the reference reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

import msgspec

from moorage.errors import BadRequest
from moorage.model.hcl import Body, Item, Listing, Scalar, Value, parse

SIZE_BYTES_MAX = 2**63 - 1

_SIZE = re.compile(r"([0-9.,]+) ?([a-z]*)", re.IGNORECASE)
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtpe", start=1):
    _UNITS[_letter] = _UNITS[f"{_letter}b"] = 1000**_power
    _UNITS[f"{_letter}i"] = _UNITS[f"{_letter}ib"] = 1024**_power

_TEXTS = {
    "id": "ID",
    "name": "Name",
    "external_id": "ExternalID",
    "plugin_id": "PluginID",
    "namespace": "Namespace",
    "clone_id": "CloneID",
    "snapshot_id": "SnapshotID",
}
_SIZES = {"capacity_min": "RequestedCapacityMin", "capacity_max": "RequestedCapacityMax"}
_MAPS = {"secrets": "Secrets", "parameters": "Parameters", "context": "Context"}
_USED = frozenset({*_TEXTS, *_SIZES, *_MAPS, "type", "capability", "mount_options", "topology_request"})


class VolumeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a file asks for. ``body`` is the volume as the API spells it; ``notes`` name what was ignored, and where.

    ``repr`` shows neither: a body holds secrets.
    """

    body: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"VolumeSpec(ID={self.body.get('ID')!r})"


def read_spec(text: str) -> VolumeSpec:
    """Read a volume's specification.

    Raises BadRequest with line and column for what cannot be read or is not a ``csi`` volume.
    """
    root = parse(text)
    given: dict[str, list[Item]] = {}
    notes = []
    for item in root.items:
        key = item.key.lower()
        given.setdefault(key, []).append(item)
        if key not in _USED:
            notes.append(f"line {item.line}, column {item.column}: {item.key} is not used and was ignored")
    _check_type(given)
    body: dict[str, Any] = {name: _last_text(given, key) for key, name in _TEXTS.items()}
    body.update({name: _last_size(given, key) for key, name in _SIZES.items()})
    body.update({name: _read_map(given.get(key, [])) for key, name in _MAPS.items()})
    body["RequestedCapabilities"] = [
        _read_capability(part) for item in given.get("capability", []) for part in _read_objects(item)
    ] or None
    options = [part for item in given.get("mount_options", []) for part in _read_objects(item)]
    body["MountOptions"] = _read_mount_options(options[0]) if options else None
    body["RequestedTopologies"] = _read_topologies(given.get("topology_request", []))
    return VolumeSpec(body=body, notes=tuple(notes))


def parse_size(text: str) -> int:
    """``"1.5GiB"`` as bytes: units of 1000 (k, MB, g …) and of 1024 (Ki, MiB …), bytes without one; "" is 0.

    Raises BadRequest for anything else, and for more than 2^63 - 1 bytes.
    """
    if not text.strip():
        return 0
    found = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(found.group(2).lower()) if found else None
    if not found or unit is None:
        raise BadRequest(f"{text!r} is no size: write a number and a unit, such as 500MB or 10GiB")
    try:
        count = int(Decimal(found.group(1).replace(",", "")) * unit)
    except InvalidOperation as error:
        raise BadRequest(f"{text!r} is no size: the number cannot be read") from error
    if count > SIZE_BYTES_MAX:
        raise BadRequest(f"{text!r} is too large: a volume has at most 2^63 - 1 bytes")
    return count


# -- parts -----------------------------------------------------------------------------------------------------------


def _refuse(at: Value | Item, what: str) -> NoReturn:
    place = f"line {at.line}, column {at.column}"
    raise BadRequest(f"{place}: {what}", code="bad_spec", line=str(at.line), column=str(at.column))


def _check_type(given: Mapping[str, list[Item]]) -> None:
    items = given.get("type")
    kind = _last_text(given, "type")
    if items and kind.lower() != "csi":
        _refuse(items[-1], f"unknown volume type: {kind!r}; only csi volumes are known here")


def _to_text(item: Item, value: Value) -> str:
    """A scalar as the reference turns it to text: numbers plainly, true and false as 1 and 0."""
    if not isinstance(value, Scalar):
        _refuse(value, f"{item.key} takes a text, not a {'list' if isinstance(value, Listing) else 'block'}")
    plain = value.value
    if isinstance(plain, bool):
        return "1" if plain else "0"
    if isinstance(plain, float):
        return format(Decimal(repr(plain)), "f").removesuffix(".0")
    return "" if plain is None else str(plain)


def _last_text(given: Mapping[str, list[Item]], key: str) -> str:
    items = given.get(key)
    if not items:
        return ""
    _refuse_labels(items[-1])
    return _to_text(items[-1], items[-1].value)


def _last_size(given: Mapping[str, list[Item]], key: str) -> int:
    text = _last_text(given, key)
    try:
        return parse_size(text)
    except BadRequest as error:
        item = given[key][-1]
        _refuse(item.value, f"invalid {item.key}: could not parse value as bytes: {error.message}")


def _refuse_labels(item: Item) -> None:
    if item.labels:
        _refuse(item, f"{item.key} takes no label; remove {item.labels[0]!r}")


def _read_objects(item: Item) -> list[Body]:
    """The ``{…}`` of an item: one, or those of a list."""
    _refuse_labels(item)
    values = item.value.values if isinstance(item.value, Listing) else (item.value,)
    bodies = []
    for value in values:
        if not isinstance(value, Body):
            _refuse(value, f"{item.key} takes {{…}}, not a single value")
        bodies.append(value)
    return bodies


def _read_map(items: list[Item]) -> dict[str, str] | None:
    """Blocks of one name, put together; None when there is none."""
    if not items:
        return None
    pairs: dict[str, str] = {}
    for item in items:
        for body in _read_objects(item):
            for entry in body.items:
                _refuse_labels(entry)
                pairs[entry.key] = _to_text(entry, entry.value)
    return pairs


def _check_keys(body: Body, known: tuple[str, ...], where: str) -> None:
    for item in body.items:
        _refuse_labels(item)
        if item.key not in known:
            _refuse(item, f"invalid key: {item.key}; {where} takes {' and '.join(known)}")


def _text_in(body: Body, key: str) -> str:
    found = body.find(key)
    return _to_text(found[-1], found[-1].value) if found else ""


def _read_capability(body: Body) -> dict[str, str]:
    _check_keys(body, ("access_mode", "attachment_mode"), "capability")
    return {"AccessMode": _text_in(body, "access_mode"), "AttachmentMode": _text_in(body, "attachment_mode")}


def _read_mount_options(body: Body) -> dict[str, Any]:
    _check_keys(body, ("fs_type", "mount_flags"), "mount_options")
    flags: list[str] | None = None
    for item in body.find("mount_flags"):
        values = item.value.values if isinstance(item.value, Listing) else (item.value,)
        flags = [_to_text(item, value) for value in values]
    return {"FSType": _text_in(body, "fs_type"), "MountFlags": flags}


def _read_topologies(items: list[Item]) -> dict[str, Any] | None:
    """``topology_request``: both sides, each in whichever form; a side that was not given is None."""
    if not items:
        return None
    sides: dict[str, list[dict[str, Any]]] = {"required": [], "preferred": []}
    for item in items:
        for request in _read_objects(item):
            _check_keys(request, ("required", "preferred"), "topology_request")
            for side in request.items:
                sides[side.key] += _read_side(side)
    return {"Required": sides["required"] or None, "Preferred": sides["preferred"] or None}


def _read_side(side: Item) -> list[dict[str, Any]]:
    topologies = []
    for holder in _read_objects(side):
        _check_keys(holder, ("topology",), side.key)
        for item in holder.items:
            for topology in _read_objects(item):
                _check_keys(topology, ("segments",), "topology")
                segments = _read_map(topology.find("segments"))
                if segments:
                    topologies.append({"Segments": segments})
    return topologies
