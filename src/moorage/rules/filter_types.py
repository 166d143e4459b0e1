"""Which members a filter may name, and of which declared kind each is. Tables only; pure.

A filter follows the declared kinds, never the value at hand: an unknown member of a record is an error, a missing
key of a map is not, and a literal is read as the member's kind. Source: contract volumes-api §3, §5.2, §5.3.
"""

from __future__ import annotations

import msgspec

ScalarKind = str  # "string", "int", "int64", "uint64", "bool" or "float64": the word that error texts use


class Scalar(msgspec.Struct, frozen=True):
    """One value: text, a number or a truth value. Never null in a datum."""

    kind: ScalarKind


class ListOf(msgspec.Struct, frozen=True):
    """A list; null in a datum means that none was given."""

    item: Kind
    name: str


class MapOf(msgspec.Struct, frozen=True):
    """A map with text keys; null in a datum means that none was given.

    ``is_hidden``: a filter always sees it empty, whatever the datum holds, and the datum need not hold it.
    """

    value: Kind
    name: str
    is_hidden: bool = False


class Record(msgspec.Struct, frozen=True, eq=False):
    """Named members, each of its own kind. ``may_be_nil``: null in a datum means absent, which is an error below it.

    A moment is a record without members: it is never nil and nothing can be compared with it.
    """

    name: str
    members: dict[str, Kind]
    may_be_nil: bool = False


Kind = Scalar | ListOf | MapOf | Record

STRING = Scalar("string")
INT = Scalar("int")
INT64 = Scalar("int64")
UINT64 = Scalar("uint64")
BOOL = Scalar("bool")
FLOAT64 = Scalar("float64")
TIME = Record("time.Time", {})
STRINGS = ListOf(STRING, "[]string")
STRING_MAP = MapOf(STRING, "map[string]string")


def name_kind(kind: Kind) -> str:
    """The word for a kind in error texts."""
    match kind:
        case Scalar():
            return kind.kind
        case ListOf():
            return "slice"
        case MapOf():
            return "map"
        case Record():
            return "struct"


def name_type(kind: Kind) -> str:
    """The declared type as the text about ``matches`` spells it."""
    return kind.kind if isinstance(kind, Scalar) else kind.name


def _pointer(name: str, members: dict[str, Kind]) -> Record:
    return Record(f"structs.{name}", members, may_be_nil=True)


def _list_of(item: Record) -> ListOf:
    return ListOf(item, f"[]*{item.name}")


def _map_of(value: Record, *, is_hidden: bool = False) -> MapOf:
    return MapOf(value, f"map[string]*{value.name}", is_hidden)


_TOPOLOGY = _pointer("CSITopology", {"Segments": STRING_MAP})
_TOPOLOGY_REQUEST = _pointer("CSITopologyRequest", {"Required": _list_of(_TOPOLOGY), "Preferred": _list_of(_TOPOLOGY)})
_CAPABILITY = _pointer("CSIVolumeCapability", {"AttachmentMode": STRING, "AccessMode": STRING})
_MOUNT_OPTIONS = _pointer("CSIMountOptions", {"FSType": STRING, "MountFlags": STRINGS})
# Claims by allocation: the values of the first are always null, the second never leave the server.
_ALLOCATIONS = _map_of(_pointer("Allocation", {}))
_CLAIMS = _map_of(_pointer("CSIVolumeClaim", {}), is_hidden=True)
# There is no Secrets here on purpose: no filter may ask for one, and a key that exists fails like one that does not.

VOLUME = Record(
    "structs.CSIVolume",
    {
        "AccessMode": STRING,
        "AttachmentMode": STRING,
        "Capacity": INT64,
        "CloneID": STRING,
        "Context": STRING_MAP,
        "ControllerRequired": BOOL,
        "ControllersExpected": INT,
        "ControllersHealthy": INT,
        "CreateIndex": UINT64,
        "CreateTime": INT64,
        "CurrentReaders": INT,
        "CurrentWriters": INT,
        "ExternalID": STRING,
        "ID": STRING,
        "ModifyIndex": UINT64,
        "ModifyTime": INT64,
        "MountOptions": _MOUNT_OPTIONS,
        "Name": STRING,
        "Namespace": STRING,
        "NodesExpected": INT,
        "NodesHealthy": INT,
        "Parameters": STRING_MAP,
        "PastClaims": _CLAIMS,
        "PluginID": STRING,
        "Provider": STRING,
        "ProviderVersion": STRING,
        "ReadAllocs": _ALLOCATIONS,
        "ReadClaims": _CLAIMS,
        "RequestedCapabilities": _list_of(_CAPABILITY),
        "RequestedCapacityMax": INT64,
        "RequestedCapacityMin": INT64,
        "RequestedTopologies": _TOPOLOGY_REQUEST,
        "ResourceExhausted": TIME,
        "Schedulable": BOOL,
        "SnapshotID": STRING,
        "Topologies": _list_of(_TOPOLOGY),
        "Version": STRING,
        "WriteAllocs": _ALLOCATIONS,
        "WriteClaims": _CLAIMS,
    },
)

# A node as lists show it; what is not here cannot be asked for.
NODE_STUB = Record(
    "structs.Node",
    {
        "Address": STRING,
        "CreateIndex": UINT64,
        "Datacenter": STRING,
        "Drain": BOOL,
        "ID": STRING,
        "ModifyIndex": UINT64,
        "Name": STRING,
        "NodeClass": STRING,
        "NodePool": STRING,
        "SchedulingEligibility": STRING,
        "Status": STRING,
        "StatusDescription": STRING,
        "Version": STRING,
    },
)

# An allocation as lists show it, with where its volumes are.
ALLOCATION_STUB = Record(
    "structs.Allocation",
    {
        "ClientDescription": STRING,
        "ClientStatus": STRING,
        "CreateIndex": UINT64,
        "CreateTime": INT64,
        "DesiredDescription": STRING,
        "DesiredStatus": STRING,
        "ID": STRING,
        "JobID": STRING,
        "JobType": STRING,
        "ModifyIndex": UINT64,
        "ModifyTime": INT64,
        "Mounts": _list_of(
            _pointer(
                "Mount",
                {
                    "Attempts": INT,
                    "LastError": STRING,
                    "Name": STRING,
                    "Path": STRING,
                    "ReadOnly": BOOL,
                    "State": STRING,
                    "Target": STRING,
                    "Volume": STRING,
                },
            )
        ),
        "Name": STRING,
        "Namespace": STRING,
        "NodeID": STRING,
        "NodeName": STRING,
        "TaskGroup": STRING,
    },
)
