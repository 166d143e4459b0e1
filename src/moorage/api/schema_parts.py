"""What the schemas of answers are made of: types, lists, maps, and objects whose members are all sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moorage.api.meanings import MEANINGS

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
BOOL: Schema = {"type": "boolean"}
INTEGER: Schema = {"type": "integer"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NULL: Schema = {"type": "null"}
TIME_NS: Schema = {"type": "integer", "description": "nanoseconds since the epoch; 0: not yet"}
TIME: Schema = {"type": ["string", "null"], "format": "date-time"}
ANYTHING: Schema = {}
EMPTY: Schema = {"type": "object", "maxProperties": 0}


def ref(name: str) -> Schema:
    """A reference to a schema of this description."""
    return {"$ref": f"#/components/schemas/{name}"}


def list_of(item: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": item}


def map_of(item: Schema) -> Schema:
    """An object with any names."""
    return {"type": "object", "additionalProperties": item}


def or_null(schema: Schema) -> Schema:
    """The same, or null."""
    if isinstance(schema.get("type"), str):
        return schema | {"type": [schema["type"], "null"]}
    return {"oneOf": [schema, NULL]}


def record(meaning: str, members: Mapping[str, Schema]) -> Schema:
    """An object of exactly these members, all sent; each gets its meaning from the table of meanings."""
    described = {name: _described(name, schema) for name, schema in members.items()}
    return {"type": "object", "description": meaning, "required": sorted(described), "properties": described}


def _described(name: str, schema: Schema) -> Schema:
    meaning = MEANINGS.get(name)
    return schema if meaning is None or "description" in schema else schema | {"description": meaning}


TEXTS = map_of(TEXT)
INDEXES: dict[str, Schema] = {"CreateIndex": COUNT, "ModifyIndex": COUNT}
ENVELOPE: dict[str, Schema] = {"Index": COUNT, "KnownLeader": BOOL, "LastContact": COUNT, "NextToken": TEXT}
