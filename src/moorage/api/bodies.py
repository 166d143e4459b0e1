"""Request bodies: JSON as lenient as the recorded server's decoder, as strict as sense demands.

Member names match without regard to case, unknown ones are ignored, ``null`` leaves the default, what follows the
first JSON value is ignored, types are strict. A ``null`` inside a list is refused (it has crashed recorded servers).
The struct fields bear the API's own names; only the members that a client may set are here.
Source: contract volumes-api §1.8, §4.1; clients §0.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from moorage.errors import BadRequest

T = TypeVar("T")
Fold = Callable[[Any, str], Any]


class Body(Struct, forbid_unknown_fields=True):
    """A body or a part of one. Whoever spells each member as the API does is read without a second look: what is not
    known is an error first, and then read the lenient way."""


class CapabilityBody(Body):
    """A capability."""

    access_mode: str = field(default="", name="AccessMode")
    attachment_mode: str = field(default="", name="AttachmentMode")


class MountOptionsBody(Body):
    """Mount options."""

    fs_type: str = field(default="", name="FSType")
    mount_flags: list[str] | None = field(default=None, name="MountFlags")


class TopologyBody(Body):
    """A topology."""

    segments: dict[str, str] | None = field(default=None, name="Segments")


class TopologyRequestBody(Body):
    """A topology request."""

    required: list[TopologyBody] | None = field(default=None, name="Required")
    preferred: list[TopologyBody] | None = field(default=None, name="Preferred")


class VolumeBody(Body):
    """A volume as a client sends it."""

    id: str = field(default="", name="ID")
    namespace: str = field(default="", name="Namespace")
    name: str = field(default="", name="Name")
    external_id: str = field(default="", name="ExternalID")
    plugin_id: str = field(default="", name="PluginID")
    snapshot_id: str = field(default="", name="SnapshotID")
    clone_id: str = field(default="", name="CloneID")
    requested_min: int = field(default=0, name="RequestedCapacityMin")
    requested_max: int = field(default=0, name="RequestedCapacityMax")
    capabilities: list[CapabilityBody] | None = field(default=None, name="RequestedCapabilities")
    mount_options: MountOptionsBody | None = field(default=None, name="MountOptions")
    requested_topologies: TopologyRequestBody | None = field(default=None, name="RequestedTopologies")
    topologies: list[TopologyBody] | None = field(default=None, name="Topologies")
    secrets: dict[str, str] | None = field(default=None, name="Secrets")
    parameters: dict[str, str] | None = field(default=None, name="Parameters")
    context: dict[str, str] | None = field(default=None, name="Context")
    access_mode: str = field(default="", name="AccessMode")
    attachment_mode: str = field(default="", name="AttachmentMode")


class VolumesBody(Body):
    """Body of register and create."""

    volumes: list[VolumeBody] | None = field(default=None, name="Volumes")
    namespace: str = field(default="", name="Namespace")
    region: str = field(default="", name="Region")


class SnapshotBody(Body):
    """A snapshot to make."""

    source_volume_id: str | UnsetType = field(default=UNSET, name="SourceVolumeID")
    plugin_id: str = field(default="", name="PluginID")
    name: str = field(default="", name="Name")
    secrets: dict[str, str] | None = field(default=None, name="Secrets")
    parameters: dict[str, str] | None = field(default=None, name="Parameters")


class SnapshotsBody(Body):
    """Body of snapshot create."""

    snapshots: list[SnapshotBody | None] | None = field(default=None, name="Snapshots")
    namespace: str = field(default="", name="Namespace")
    region: str = field(default="", name="Region")


class VolumeRequestBody(Body):
    """A volume that an allocation asks for."""

    name: str = field(default="", name="Name")
    source: str = field(default="", name="Source")
    per_alloc: bool = field(default=False, name="PerAlloc")
    read_only: bool = field(default=False, name="ReadOnly")
    access_mode: str = field(default="", name="AccessMode")
    attachment_mode: str = field(default="", name="AttachmentMode")
    mount_options: MountOptionsBody | None = field(default=None, name="MountOptions")
    target: str = field(default="", name="Target")


class AllocationBody(Body):
    """An allocation to start."""

    id: str = field(default="", name="ID")
    name: str = field(default="", name="Name")
    namespace: str = field(default="", name="Namespace")
    job_id: str = field(default="", name="JobID")
    task_group: str = field(default="", name="TaskGroup")
    node_id: str = field(default="", name="NodeID")
    tasks: list[str] | None = field(default=None, name="Tasks")
    volumes: list[VolumeRequestBody] | None = field(default=None, name="Volumes")


class StartBody(Body):
    """Body of ``PUT /v1/allocations``."""

    allocation: AllocationBody | None = field(default=None, name="Allocation")


class DrainSpecBody(Body):
    """How to drain; the deadline is not used: nothing is unmounted under a process that still writes."""

    deadline: int = field(default=0, name="Deadline")
    ignore_system_jobs: bool = field(default=False, name="IgnoreSystemJobs")


class DrainBody(Body):
    """Body of ``PUT /v1/node/:id/drain``; no spec ends a drain."""

    spec: DrainSpecBody | None = field(default=None, name="DrainSpec")
    mark_eligible: bool = field(default=False, name="MarkEligible")


class EligibilityBody(Body):
    """Body of ``PUT /v1/node/:id/eligibility``."""

    eligibility: str = field(default="", name="Eligibility")


class FenceBody(Body):
    """Body of ``PUT /v1/node/:id/fence``."""

    reason: str = field(default="", name="Reason")
    is_forced: bool = field(default=False, name="Force")
    by: str = field(default="", name="By")


class ResetIdentityBody(Body):
    """Body of ``PUT /v1/node/:id/reset-identity``."""

    reason: str = field(default="", name="Reason")
    by: str = field(default="", name="By")


class JoinTokenBody(Body):
    """Body of ``PUT /v1/nodes/join-tokens``. ``TTL`` is a duration as Go writes it."""

    ttl: str = field(default="1h", name="TTL")
    uses: int = field(default=1, name="Uses")
    note: str = field(default="", name="Note")


# -- decoding --------------------------------------------------------------------------------------------------------


def decode(kind: type[T], body: bytes) -> T:
    """A request body as ``kind``. Raises BadRequest that names the byte or the member and what was expected."""
    if not body:
        raise BadRequest("Request body is empty")
    if issubclass(kind, Body):
        decoder = _DECODERS.get(kind)
        if decoder is None:
            decoder = _DECODERS[kind] = msgspec.json.Decoder(kind)
        try:
            return cast(T, decoder.decode(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
    return decode_leniently(kind, body)


def decode_leniently(kind: type[T], body: bytes) -> T:
    """The same for any spelling of members, with what is wrong."""
    value = _parse(body)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise BadRequest(f"json: the body must be an object, not {_kind_name(value)}")
    folded = _fold_for(kind)(value, "$")
    try:
        return msgspec.convert(folded, kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"json: {error}") from error


def _parse(body: bytes) -> Any:
    if not body.strip():
        raise BadRequest("unexpected EOF: the body holds no JSON value")
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        if "trailing characters" in str(error):
            # Data after the first JSON value is ignored, as the recorded decoder does, and need not be UTF-8.
            return json.JSONDecoder().raw_decode(body.decode("utf-8", "replace").lstrip())[0]
        if "truncated" in str(error):
            raise BadRequest(f"unexpected EOF: the JSON ends at byte {len(body)} before it is complete") from error
        raise BadRequest(f"invalid character: {error}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("invalid character: the body is not UTF-8 JSON of sensible depth") from error


def _kind_name(value: Any) -> str:
    names = {bool: "bool", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


_FOLDS: dict[Any, Fold] = {}
_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {}


def _fold_for(kind: Any) -> Fold:
    """The function that spells a value's member names as ``kind`` has them and drops nulls; made once a type."""
    found = _FOLDS.get(kind)
    if found is None:
        found = _FOLDS[kind] = _make_fold(msgspec.inspect.type_info(kind))
    return found


def _make_fold(info: msgspec.inspect.Type) -> Fold:
    if isinstance(info, msgspec.inspect.StructType):
        return _make_struct_fold(info)
    if isinstance(info, (msgspec.inspect.ListType, msgspec.inspect.VarTupleType)):
        item = _make_fold(info.item_type)
        may_be_null = isinstance(info.item_type, msgspec.inspect.UnionType)
        return lambda value, where: _fold_list(value, where, item, may_be_null=may_be_null)
    if isinstance(info, msgspec.inspect.DictType):
        return _fold_map
    if isinstance(info, msgspec.inspect.UnionType):
        rich = [t for t in info.types if not isinstance(t, (msgspec.inspect.NoneType, msgspec.inspect.StrType))]
        return _make_fold(rich[0]) if rich else _same
    return _same


def _same(value: Any, where: str) -> Any:
    return value


def _fold_list(value: Any, where: str, item: Fold, *, may_be_null: bool) -> Any:
    if not isinstance(value, list):
        return value
    for position, element in enumerate(value):
        if element is None and not may_be_null:
            raise BadRequest(f"json: null is not allowed in a list - at `{where}[{position}]`")
    return [None if e is None else item(e, f"{where}[{position}]") for position, e in enumerate(value)]


def _fold_map(value: Any, where: str) -> Any:
    # The recorded decoder makes an empty text of a null in a map of texts.
    return {k: "" if v is None else v for k, v in value.items()} if isinstance(value, dict) else value


def _make_struct_fold(info: msgspec.inspect.StructType) -> Fold:
    members: dict[str, tuple[str, Fold]] = {}
    for member in info.fields:
        members[member.encode_name.lower()] = (member.encode_name, _make_fold(member.type))
    is_topology = info.cls is TopologyBody

    def fold(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            return value
        if is_topology and value and not any(k.lower() == "segments" for k in value):
            # The documentation's samples write a topology as a flat map of its segments.
            if all(isinstance(v, str) for v in value.values()):
                return {"Segments": dict(value)}
            return {}
        folded = {}
        for key, inner in value.items():
            known = members.get(key.lower())
            if known is not None and inner is not None:
                folded[known[0]] = known[1](inner, f"{where}.{known[0]}")
        return folded

    return fold
