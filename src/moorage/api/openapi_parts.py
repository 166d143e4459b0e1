"""Parts of the API's description: parameters, headers, and what an operation is described by."""

from __future__ import annotations

from typing import Any

import msgspec

from moorage.api.schema_parts import INTEGER, TEXT, Schema

_INDEX: Schema = {"type": "integer", "minimum": 0, "maximum": 2**64 - 1}
_TRUTH: Schema = {
    "type": "string",
    "enum": ["", "1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"],
}
# Go's durations; the unit is mandatory except for 0.
_DURATION: Schema = {"type": "string", "pattern": r"^([+-]?(0|([0-9]+(\.[0-9]*)?(ns|us|ms|s|m|h))+))?$"}


class Parameter(msgspec.Struct, frozen=True):
    """A parameter. ``place``: query, header or path."""

    name: str
    meaning: str
    schema: Schema = msgspec.field(default_factory=lambda: TEXT)
    place: str = "query"
    is_required: bool = False


def _table(*parameters: Parameter) -> dict[str, Parameter]:
    return {p.name: p for p in parameters}


PARAMETERS: dict[str, Parameter] = _table(
    Parameter("region", "the region; only `global` is known, and none given means that", {"type": "string"}),
    Parameter("namespace", "the namespace; none given means `default`, and lists and searches take `*` for all"),
    Parameter("stale", "whether an answer may be old; every answer here is as fresh as its `X-Nomad-Index`", _TRUTH),
    Parameter("epoch", "the epoch of the answer that `index` is from: only what is new since is told", _INDEX),
    Parameter("pretty", "anything but `0`: the JSON is indented"),
    Parameter(
        "index",
        "hold the answer back until it is newer than this revision, or until `wait` has passed",
        _INDEX,
    ),
    Parameter(
        "wait",
        "how long `index` may hold back, such as `30s` or `1m30s`; at most and by default 300s, plus up to 1/16",
        _DURATION,
    ),
    Parameter("prefix", "only what has an ID that begins so"),
    Parameter(
        "per_page",
        "how many entries a page has; 0 or none: all",
        {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    ),
    Parameter("next_token", "where the page begins, as the page before said it"),
    Parameter(
        "filter", 'an expression over the members of an entry, such as `Schedulable == true and ID matches "^web"`'
    ),
    Parameter("reverse", "`true`: from the end to the beginning"),
    Parameter("type", "what kind: `csi`"),
    Parameter("plugin_id", "the plugin's ID"),
    Parameter("node_id", "the beginning of the ID of a node that a claim is on"),
    Parameter("snapshot_id", "the driver's own name of the snapshot", is_required=True),
    Parameter("force", "whether to forget it though it is claimed; the claims go too", _TRUTH),
    Parameter("node", "the node's ID", is_required=True),
    Parameter("topic", "`Topic:key`, `Topic` or `*`; may be given several times; none: all of `*`"),
    Parameter("X-Nomad-Token", "the caller's token; `Authorization: Bearer` is taken as well", place="header"),
    Parameter(
        "X-Nomad-CSI-Secrets",
        "secrets for the driver, `key=value,key=value`; a value cannot hold a comma",
        place="header",
    ),
)

# What a path's `:name` stands for, by the word before it.
PATHS: dict[str, str] = {
    "csi": "the ID of the volume or plugin",
    "host": "the ID of a host volume",
    "claim": "the ID of a claim on a host volume",
    "policy": "the policy's name",
    "token": "the token's accessor ID",
    "join-token": "the join token's ID",
    "{id}": "any word; it is not looked at",
    "snapshot": "the ID of the volume to make a snapshot of",
    "node": "the node's ID",
    "allocation": "the allocation's ID",
    "namespace": "the namespace's name",
}

ANSWER_HEADERS: dict[str, tuple[str, Schema]] = {
    "X-Nomad-Index": ("the revision that the answer shows; for `index`", {"type": "integer", "minimum": 0}),
    "X-Nomad-KnownLeader": ("whether a leader is known", {"type": "boolean"}),
    "X-Nomad-LastContact": ("milliseconds since the leader was heard", INTEGER),
    "X-Nomad-NextToken": ("what to send as `next_token`; missing on the last page", TEXT),
    "X-Moorage-Warnings": ("what the caller should know, though it worked", TEXT),
    "Allow": ("the methods that the path has", TEXT),
    "Retry-After": ("seconds after which asking again makes sense", {"type": "integer", "minimum": 1}),
}
META = ("X-Nomad-Index", "X-Nomad-KnownLeader", "X-Nomad-LastContact")
INDEX = ("X-Nomad-Index",)


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path.

    ``answer``: the schema of a 200's JSON, a struct of the agents' pages, or None for an empty body.
    ``refusals``: JSON that comes with another status. ``extension``: what is moorage's own about it.
    ``is_internal``: between server and agent, not for anybody else. ``is_stream``: the answer goes on until somebody
    ends it. ``is_refused``: nothing ever comes of it.
    """

    group: str
    summary: str
    notes: str = ""
    parameters: tuple[str, ...] = ()
    body: type[Any] | None = None
    answer: Schema | type[Any] | None = None
    answer_type: str = "application/json"
    headers: tuple[str, ...] = META
    refusals: dict[int, Schema] = {}
    extension: str = ""
    is_internal: bool = False
    is_stream: bool = False
    is_refused: bool = False


Operations = dict[str, dict[str, Operation]]
