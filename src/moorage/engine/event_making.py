"""Events from changes: what one revision tells, and what the revisions of the store's log told before a restart.

An event holds references to frozen records, as they were when all changes of its revision were applied.
The past is made by the same function as the present: a view of the records concerned is taken back, change by change,
to where the log begins, and then led forward again.
Never: I/O, clock, JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from moorage.engine.reads import VolumeRead, join_volume
from moorage.model.claim import Allocation, Claim
from moorage.model.ids import Revision
from moorage.model.node import Node
from moorage.model.plugin import Plugin
from moorage.model.volume import Volume
from moorage.rules import events as rules
from moorage.rules.events import Label
from moorage.rules.volumes import is_shown
from moorage.state import keys
from moorage.state.codec import Records
from moorage.state.feed import Change
from moorage.state.store import Entry, EventBatch
from moorage.state.view import Record, View

CLAIMS_PER_WEIGHT = 64


class AllocationRead(msgspec.Struct, frozen=True, kw_only=True):
    """An allocation with its claims that still exist."""

    record: Record[Allocation]
    claims: tuple[Claim, ...]


class NodeRead(msgspec.Struct, frozen=True, kw_only=True):
    """A node with the plugins that have an instance on it."""

    record: Record[Node]
    plugins: tuple[Record[Plugin], ...]


class PluginRead(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin."""

    record: Record[Plugin]


Subject = VolumeRead | AllocationRead | NodeRead | PluginRead


class Event(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One event. ``position`` counts within its revision; ``subject`` is what its payload shows."""

    revision: Revision
    position: int
    label: Label
    subject: Subject

    @property
    def weight(self) -> int:
        """How much it keeps alive, in units of a small record."""
        if isinstance(self.subject, VolumeRead):
            return 1 + (len(self.subject.claims) + len(self.subject.allocations)) // CLAIMS_PER_WEIGHT
        return 1


class Happening(msgspec.Struct, frozen=True, eq=False):
    """All events of one revision, in order; never none."""

    revision: Revision
    events: tuple[Event, ...]


Told = tuple[Label, Subject] | None


def tell(view: View, revision: Revision, changes: Sequence[Change]) -> Happening | None:
    """What the changes of one revision tell, None for nothing. ``view`` has them all applied."""
    moved: dict[str, None] = {}
    volumes: dict[str, Change] = {}
    order: dict[str, Change] = {}
    for change in changes:
        table = keys.table_of(change.key)
        if table == keys.CLAIMS:
            claim = _find_moved_claim(change)
            if claim is not None:
                key = keys.volume_key(*claim.volume_key)
                moved[key] = None
                order.setdefault(key, change)
        else:
            order.setdefault(change.key, change)
            if table == keys.VOLUMES:
                volumes[change.key] = change
    found: list[Event] = []
    for key, change in order.items():
        if keys.table_of(key) == keys.VOLUMES:
            told = _tell_volume(view, key, volumes.get(key), is_claim_moved=key in moved)
        else:
            told = TELLERS[keys.table_of(key)](view, change) if keys.table_of(key) in TELLERS else None
        if told is not None:
            found.append(Event(revision=revision, position=len(found), label=told[0], subject=told[1]))
    return Happening(revision, tuple(found)) if found else None


def _find_moved_claim(change: Change) -> Claim | None:
    before, after = change.before, change.after
    assert before is None or isinstance(before, Claim)
    assert after is None or isinstance(after, Claim)
    return (after or before) if rules.is_claim_moved(before, after) else None


def _tell_volume(view: View, key: str, change: Change | None, *, is_claim_moved: bool) -> Told:
    record = view.volumes.find(key)
    if change is None:
        if record is None or not is_shown(record.value):
            return None
        kind, shown = rules.CLAIMED, record
    else:
        before, after = change.before, change.after
        assert before is None or isinstance(before, Volume)
        assert after is None or isinstance(after, Volume)
        kind = rules.choose_volume_type(before, after, is_claim_moved=is_claim_moved)
        value = before if kind == rules.DEREGISTERED else after
        if not kind or value is None:
            return None
        shown = Record(value, change.created, change.revision)
    volume = shown.value
    label = Label(
        topic=rules.VOLUME,
        type=kind,
        key=volume.id,
        namespace=volume.namespace,
        filter_keys=(volume.id, volume.name, volume.plugin_id),
    )
    return label, join_volume(view, shown, with_allocations=True)


def _tell_plugin(view: View, change: Change) -> Told:
    plugin = change.after or change.before
    assert isinstance(plugin, Plugin)
    label = Label(topic=rules.PLUGIN, type=rules.NODE_REGISTERED, key=plugin.id, filter_keys=(plugin.id,))
    return label, PluginRead(record=Record(plugin, change.created, change.revision))


def _tell_node(view: View, change: Change) -> Told:
    before, after = change.before, change.after
    assert before is None or isinstance(before, Node)
    assert after is None or isinstance(after, Node)
    kind = rules.choose_node_type(before, after)
    node = after or before
    if not kind or node is None:
        return None
    plugins = tuple(sorted((p for p in view.plugins if node.id in p.value.instances), key=lambda p: p.value.id))
    label = Label(topic=rules.NODE, type=kind, key=node.id, filter_keys=(node.id,))
    return label, NodeRead(record=Record(node, change.created, change.revision), plugins=plugins)


def _tell_allocation(view: View, change: Change) -> Told:
    allocation = change.after
    if not isinstance(allocation, Allocation):
        # Ended long ago and forgotten now: its end was told.
        return None
    label = Label(
        topic=rules.ALLOCATION,
        type=rules.ALLOCATION_UPDATED,
        key=allocation.id,
        namespace=allocation.namespace,
        filter_keys=(allocation.job_id,) if allocation.job_id else (),
    )
    claims = tuple(r.value for r in view.claims.of_allocation(allocation.id))
    return label, AllocationRead(record=Record(allocation, change.created, change.revision), claims=claims)


TELLERS: dict[str, Callable[[View, Change], Told]] = {
    keys.PLUGINS: _tell_plugin,
    keys.NODES: _tell_node,
    keys.ALLOCATIONS: _tell_allocation,
}


# -- the past --------------------------------------------------------------------------------------------------------


class Past(msgspec.Struct, frozen=True):
    """A change from the store's log, with both records whole."""

    key: str
    before: Record[object] | None
    after: Record[object] | None


PastBatch = tuple[Revision, tuple[Past, ...]]


def read_batch(batch: EventBatch, records: Records) -> PastBatch:
    """A batch of the log, decoded; what belongs to no table that events are made of is left out."""
    found = [
        Past(e.key, _decode(e.previous, records), _decode(e.entry, records))
        for e in batch.events
        if keys.table_of(e.key) in _TOLD_TABLES
    ]
    return batch.revision, tuple(found)


_TOLD_TABLES = frozenset({keys.VOLUMES, keys.CLAIMS, *TELLERS})


def _decode(entry: Entry | None, records: Records) -> Record[object] | None:
    if entry is None:
        return None
    return Record(records.decode(entry.key, entry.value), entry.create_revision, entry.modify_revision)


def pick_concerned(view: View, batches: Iterable[PastBatch]) -> View:
    """A view of its own with the present records that the past's events may show."""
    picked = View()
    volumes: dict[tuple[str, str], None] = {}
    allocations: dict[str, None] = {}

    def note_claim(claim: Claim) -> None:
        volumes[claim.volume_key] = None
        allocations[claim.allocation_id] = None

    for _, changes in batches:
        for change in changes:
            for record in (change.before, change.after):
                match record and record.value:
                    case Volume() as volume:
                        volumes[volume.key] = None
                    case Claim() as claim:
                        note_claim(claim)
                    case Allocation() as allocation:
                        allocations[allocation.id] = None
    for table in (keys.PLUGINS, keys.NODES):
        for key in view.tables_by_prefix[table].keys():  # noqa: SIM118 - a Table is not a mapping
            _copy(view, picked, key)
    claims = {r.value.id: r.value for a in allocations for r in view.claims.of_allocation(a)}  # type: ignore[arg-type]
    claims |= {r.value.id: r.value for pair in volumes for r in view.claims.of_volume(*pair)}
    for claim in claims.values():
        note_claim(claim)
        _copy(view, picked, keys.claim_key(claim.id))
    for namespace, volume_id in volumes:
        _copy(view, picked, keys.volume_key(namespace, volume_id))  # type: ignore[arg-type]
    for allocation_id in allocations:
        _copy(view, picked, keys.allocation_key(allocation_id))  # type: ignore[arg-type]
    return picked


def _copy(view: View, picked: View, key: str) -> None:
    table = keys.table_of(key)
    record = view.tables_by_prefix[table].find(key)
    if record is not None:
        picked.tables_by_prefix[table].put(key, record)


def retell(picked: View, batches: Sequence[PastBatch]) -> list[Happening]:
    """What the batches of the log told, oldest first. ``picked``: from ``pick_concerned``; it is used up."""
    for _, changes in reversed(batches):
        for change in reversed(changes):
            _set(picked, change.key, change.before)
    found = []
    for revision, changes in batches:
        told = []
        for change in changes:
            _set(picked, change.key, change.after)
            record = change.after or change.before
            before, after = change.before, change.after
            if record is not None:
                told.append(
                    Change(
                        change.key,
                        revision,
                        before.value if before else None,
                        after.value if after else None,
                        record.created,
                    )
                )
        happening = tell(picked, revision, told)
        if happening is not None:
            found.append(happening)
    return found


def _set(view: View, key: str, record: Record[object] | None) -> None:
    table = view.tables_by_prefix[keys.table_of(key)]
    if record is None:
        table.drop(key)
    else:
        table.put(key, record)
