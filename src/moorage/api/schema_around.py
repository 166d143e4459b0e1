"""JSON schemas of the answers about namespaces, searches, health, and of refusals."""

from __future__ import annotations

from moorage.api.schema_parts import (
    ANYTHING,
    BOOL,
    ENVELOPE,
    INDEXES,
    INTEGER,
    TEXT,
    TEXTS,
    Schema,
    list_of,
    map_of,
    or_null,
    record,
)

_SETTING = or_null(map_of(ANYTHING))
NUMBER: Schema = {"type": "number"}
_SPREAD = record(
    "What was counted, and how it was spread.",
    {"Name": TEXT, "Labels": map_of(TEXT), "Count": INTEGER}
    | dict.fromkeys(("Sum", "Min", "Max", "Mean", "Stddev", "Rate"), NUMBER),
)
_STATE = record("How one part fares.", {"ok": BOOL, "message": TEXT})
AROUND_SCHEMAS: dict[str, Schema] = {
    "Namespace": record(
        "A namespace.",
        INDEXES
        | {
            "Capabilities": _SETTING,
            "ConsulConfiguration": _SETTING,
            "Description": TEXT,
            "Hash": TEXT,
            "ID": TEXT,
            "Meta": or_null(TEXTS),
            "Name": TEXT,
            "NodePoolConfiguration": _SETTING,
            "OptionalExtraClaims": _SETTING,
            "Quota": TEXT,
            "RequiredExtraClaims": _SETTING,
            "VaultConfiguration": _SETTING,
        },
    ),
    "Found": record(
        "What a search found, by context.",
        ENVELOPE | {"Matches": map_of(or_null(list_of(ANYTHING))), "Truncations": map_of(BOOL)},
    ),
    "Metrics": record(
        "Figures of the server.",
        {
            "Counters": list_of(_SPREAD),
            "Gauges": list_of(record("A value as it is.", {"Name": TEXT, "Labels": map_of(TEXT), "Value": NUMBER})),
            "Points": {"type": "array", "items": ANYTHING, "maxItems": 0},
            "PrecisionGauges": {"type": "array", "items": ANYTHING, "maxItems": 0},
            "Samples": list_of(_SPREAD),
            "Timestamp": TEXT,
        },
    ),
    "Health": {
        "type": "object",
        "description": "How the server fares, and this host's agent; either part, or both.",
        "properties": {"client": _STATE, "server": _STATE},
    },
    "Problem": {
        "type": "object",
        "description": "A refusal as RFC 9457 has it, for who accepts application/problem+json; more members name IDs.",
        "required": ["code", "detail", "status", "title", "type"],
        "properties": {
            "code": TEXT | {"description": "a stable word for programs"},
            "detail": TEXT | {"description": "one sentence for people"},
            "status": INTEGER,
            "title": TEXT,
            "type": TEXT | {"description": "urn:moorage:error: and the code"},
        },
        "additionalProperties": TEXT,
    },
}
