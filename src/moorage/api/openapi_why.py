"""What the rows about explanations and orphans do, and the schemas of their answers, for the API's description."""

from __future__ import annotations

from moorage.api.openapi_parts import Operation, Operations
from moorage.api.schema_parts import BOOL, COUNT, TEXT, TIME, Schema, list_of, or_null, record, ref

_READ = ("region", "stale", "pretty")
_OWN = "The whole route is moorage's own."
_NOTES = (
    "Every state but `ready` has a summary and at least one block or command. Texts are for people and may change; "
    "members and states are stable."
)


def _why(what: str, notes: str = "", *, parameters: tuple[str, ...] = _READ) -> Operation:
    return Operation(
        group="Explanations",
        summary=f"say why {what} is not ready: who holds it, what blocks, which commands help",
        notes=f"{_NOTES} {notes}".rstrip(),
        parameters=parameters,
        answer=ref("Explanation"),
        extension=_OWN,
    )


EXPLAINED: Operations = {
    "/v1/volume/csi/:id/why": {
        "GET": _why("a volume", "A volume that is being created is found too.", parameters=("namespace", *_READ))
    },
    "/v1/allocation/:id/why": {"GET": _why("an allocation")},
    "/v1/plugin/csi/:id/why": {
        "GET": _why("a plugin", "A plugin that no agent reports is found as long as a volume names it.")
    },
    "/v1/node/:id/why": {"GET": _why("a node")},
    "/v1/volumes/orphans": {
        "GET": Operation(
            group="Volumes",
            summary="compare what drivers list with what is registered",
            notes=(
                "All volumes of each driver are listed, so it may take minutes. Without `plugin_id` every plugin is "
                "looked at, and one that fails says so in `Error`."
            ),
            parameters=("plugin_id", *_READ),
            answer=ref("OrphansFound"),
            extension=_OWN,
        )
    },
}

_VOLUME = record("A registered volume.", {"ID": TEXT, "Namespace": TEXT, "ExternalID": TEXT})

WHY_SCHEMAS: dict[str, Schema] = {
    "Explanation": record(
        "Why a thing is in the state it is in.",
        {
            "Kind": TEXT | {"enum": ["volume", "allocation", "plugin", "node"]},
            "ID": TEXT,
            "Namespace": TEXT | {"description": "empty for plugins and nodes"},
            "State": TEXT | {"description": "one word: ready, or what it is at"},
            "Summary": TEXT | {"description": "one sentence for people"},
            "Since": TIME | {"description": "since when; null: not known"},
            "Holders": list_of(ref("Holder")),
            "LastCall": or_null(ref("FailedCall")),
            "NextTry": TIME | {"description": "when it is tried again; null: no pause runs"},
            "Queue": or_null(ref("QueuedStep")),
            "Blocks": list_of(TEXT) | {"description": "what stands in the way, a sentence each"},
            "Commands": list_of(ref("HelpfulCommand")),
        },
    ),
    "Holder": record(
        "Who holds a volume.",
        {
            "AllocationID": TEXT,
            "Name": TEXT | {"description": "the allocation's name"},
            "VolumeID": TEXT,
            "NodeID": TEXT,
            "NodeName": TEXT,
            "Mode": TEXT,
            "State": TEXT,
            "Since": TIME,
            "Path": TEXT | {"description": "where it is mounted; empty: it is not"},
        },
    ),
    "FailedCall": record(
        "The last call that failed.",
        {
            "Method": TEXT,
            "Status": TEXT | {"description": "the gRPC code's name, or a code of ours"},
            "Message": TEXT,
            "Final": BOOL | {"description": "nothing of it is in progress any more"},
            "At": TIME,
            "Attempts": COUNT,
        },
    ),
    "QueuedStep": record(
        "Where a controller step stands that an agent was handed.",
        {
            "Position": COUNT | {"description": "counted from 1, among the plugin's steps at that node"},
            "Length": COUNT,
            "Step": TEXT | {"description": "the CSI method"},
            "NodeID": TEXT,
            "NodeName": TEXT,
            "InFlightSince": TIME,
            "Ahead": list_of(record("A step of the same disk that goes first.", {"Step": TEXT, "Of": TEXT})),
        },
    ),
    "HelpfulCommand": record("A command line that helps.", {"Command": TEXT, "Why": TEXT}),
    "OrphansFound": record("What does not fit together, by plugin.", {"Plugins": list_of(ref("PluginOrphans"))}),
    "PluginOrphans": record(
        "What was found at one plugin.",
        {
            "PluginID": TEXT,
            "Error": TEXT | {"description": "why the driver could not be asked; then only doubles are known"},
            "VolumesListed": COUNT,
            "ShowsAttachments": BOOL | {"description": "the driver says where volumes are attached"},
            "Orphans": list_of(
                record(
                    "A backend volume that nobody registered.",
                    {
                        "ExternalID": TEXT,
                        "CapacityBytes": COUNT,
                        "IsAbnormal": BOOL,
                        "Status": TEXT,
                        "PublishedExternalNodeIDs": list_of(TEXT),
                        "MayBeCreating": BOOL | {"description": "a create that is under way may be making it"},
                    },
                )
            ),
            "Lost": list_of(_VOLUME) | {"description": "registered volumes that the driver does not have"},
            "Doubles": list_of(
                record("A disk with several records.", {"ExternalID": TEXT, "Volumes": list_of(_VOLUME)})
            ),
            "LeakedAttachments": list_of(
                record(
                    "Attached, and no claim.",
                    {"ExternalID": TEXT, "ExternalNodeID": TEXT, "NodeID": TEXT, "Volume": _VOLUME},
                )
            ),
            "Creating": list_of(_VOLUME) | {"description": "volumes whose create is under way"},
        },
    ),
}
