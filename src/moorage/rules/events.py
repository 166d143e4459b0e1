"""Events: which changes of records are told, under which topic and type, and which of them a reader asked for. Pure.

    record      changes                                              topic      type
    volume      becomes ready; its definition changes                CSIVolume  CSIVolumeRegistered
    volume      goes, or is ready no more                            CSIVolume  CSIVolumeDeregistered
    claim       comes, goes, moves to another state, is released     CSIVolume  CSIVolumeClaim, about its volume
    plugin      any                                                  CSIPlugin  NodeRegistration: a node's report did it
    node        comes, or what it says of itself changes             Node       NodeRegistration
    node        its status changes                                   Node       NodeStreamEvent
    node        goes                                                 Node       NodeDeregistration
    allocation  comes or changes                                     Allocation AllocationUpdated

A volume that is being created is not told before the driver has it, like in reads.
Source: contract clients §2.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from moorage.errors import BadRequest
from moorage.model.claim import Claim
from moorage.model.ids import ALL_NAMESPACES
from moorage.model.node import Node
from moorage.model.volume import Progress, Secrets, Volume
from moorage.rules.volumes import is_shown

replace = msgspec.structs.replace

VOLUME = "CSIVolume"
PLUGIN = "CSIPlugin"
NODE = "Node"
ALLOCATION = "Allocation"
ALL_TOPICS = "*"
ALL_KEYS = "*"
TOPICS = (VOLUME, PLUGIN, NODE, ALLOCATION)
# Topics of the recorded server that have no events here. Its consumers may subscribe to them; they stay silent.
SILENT_TOPICS = (
    "ACLAuthMethod",
    "ACLBindingRule",
    "ACLPolicy",
    "ACLRole",
    "ACLToken",
    "Deployment",
    "Evaluation",
    "HostVolume",
    "Job",
    "NodePool",
    "Operator",
    "Service",
)

REGISTERED = "CSIVolumeRegistered"
DEREGISTERED = "CSIVolumeDeregistered"
CLAIMED = "CSIVolumeClaim"
NODE_REGISTERED = "NodeRegistration"
NODE_DEREGISTERED = "NodeDeregistration"
NODE_CHANGED = "NodeStreamEvent"
ALLOCATION_UPDATED = "AllocationUpdated"


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader chooses events by. ``namespace`` is empty for what belongs to none."""

    topic: str
    type: str
    key: str
    namespace: str = ""
    filter_keys: tuple[str, ...] = ()


# -- what is told ----------------------------------------------------------------------------------------------------


def choose_volume_type(before: Volume | None, after: Volume | None, *, is_claim_moved: bool) -> str:
    """The type of a volume's event, or empty: nothing that a reader could see has happened.

    ``is_claim_moved``: the same write moved a claim on it, which touches the volume's record too.
    """
    if not is_shown(after):
        return DEREGISTERED if is_shown(before) else ""
    assert after is not None
    if before is None or not is_shown(before) or _define(before) != _define(after):
        return REGISTERED
    if is_claim_moved:
        return CLAIMED
    return REGISTERED if before.modified_at_ns != after.modified_at_ns else ""


def _define(volume: Volume) -> Volume:
    """The record without what steps and claims move."""
    return replace(
        volume,
        wanted="present",
        access_mode="",
        attachment_mode="",
        expand_min_bytes=0,
        expand_max_bytes=0,
        node_expansion_bytes=0,
        delete_secrets=Secrets(),
        modified_at_ns=0,
        progress=Progress(),
    )


def is_claim_moved(before: Claim | None, after: Claim | None) -> bool:
    """Whether a claim's change is more than another try of the same step."""
    if before is None or after is None:
        return before is not after
    return before.wanted != after.wanted or type(before.state) is not type(after.state)


def choose_node_type(before: Node | None, after: Node | None) -> str:
    """The type of a node's event, or empty: only the time of its last word moved."""
    if after is None:
        return NODE_DEREGISTERED if before is not None else ""
    if before is None:
        return NODE_REGISTERED
    same_status = replace(after, status=before.status, status_updated_at_ns=before.status_updated_at_ns)
    if same_status != before:
        return NODE_REGISTERED
    return NODE_CHANGED if after.status != before.status else ""


# -- what is asked for -----------------------------------------------------------------------------------------------


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader asked for: keys by topic, ``*`` for all topics or all keys; and one namespace or all (``*``)."""

    keys_by_topic: Mapping[str, frozenset[str]]
    namespace: str = "default"

    def matches(self, label: Label) -> bool:
        """Whether the event is asked for."""
        if label.namespace and self.namespace not in (ALL_NAMESPACES, label.namespace):
            return False
        return self._matches_key(ALL_TOPICS, label) or self._matches_key(label.topic, label)

    def _matches_key(self, topic: str, label: Label) -> bool:
        wanted = self.keys_by_topic.get(topic)
        if wanted is None:
            return False
        return ALL_KEYS in wanted or label.key in wanted or any(k in wanted for k in label.filter_keys)


def parse_topics(texts: Iterable[str]) -> Mapping[str, frozenset[str]]:
    """Keys by topic from texts like ``CSIVolume`` and ``CSIVolume:web``; none at all asks for everything.

    Raises BadRequest that names the text.
    """
    found: dict[str, set[str]] = {}
    for text in texts:
        topic, colon, key = text.partition(":")
        if topic not in (ALL_TOPICS, *TOPICS, *SILENT_TOPICS):
            known = ", ".join((ALL_TOPICS, *TOPICS))
            raise BadRequest(f"Invalid topic {text[:200]!r}: there are {known}; for one object add :KEY")
        if colon and not key:
            raise BadRequest(f"Invalid topic {text[:200]!r}: after the colon comes a key, or * for all")
        found.setdefault(topic, set()).add(key or ALL_KEYS)
    if not found:
        return {ALL_TOPICS: frozenset({ALL_KEYS})}
    return {topic: frozenset(names) for topic, names in found.items()}
