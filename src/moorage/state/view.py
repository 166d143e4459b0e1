"""Records in memory, fed by the store's watch: every read is answered from here.

One thread (the event loop) applies batches and reads; a reader never awaits between two looks that must agree.
Records are frozen; the maps here are private to this module's classes and are read through their methods.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from sortedcontainers import SortedKeyList

from moorage.model.acl import Bootstrap, Policy, Token
from moorage.model.claim import Allocation, Claim
from moorage.model.identity import Identity, JoinToken
from moorage.model.ids import (
    AllocationId,
    ClaimId,
    NamespaceName,
    NodeId,
    PluginId,
    Revision,
    VolumeId,
)
from moorage.model.namespace import Namespace
from moorage.model.node import Node, Turnstile
from moorage.model.operation import Operation
from moorage.model.plugin import Plugin
from moorage.model.volume import Volume
from moorage.state import keys

T = TypeVar("T")
Disk = tuple[PluginId, str]

_LAST = chr(0x10FFFF)


class Record(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """A record with the revisions of its creation and of its last change."""

    value: T
    created: Revision
    modified: Revision


class Table(Generic[T]):
    """The records of one table by store key. ``index`` is the revision of the table's last change.

    After a start it is the revision that was loaded: never below what was answered before.
    """

    def __init__(self) -> None:
        self._records: dict[str, Record[T]] = {}
        self.index: Revision = Revision(0)

    def find(self, key: str) -> Record[T] | None:
        """The record under the store key, or None."""
        return self._records.get(key)

    def __iter__(self) -> Iterator[Record[T]]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def keys(self) -> Iterable[str]:
        """The store keys, in no order."""
        return self._records.keys()

    def put(self, key: str, record: Record[T]) -> None:
        """Set a record; only View.apply calls this."""
        old = self._records.get(key)
        if old is not None:
            self._forget(key, old.value)
        self._records[key] = record
        self._learn(key, record.value)

    def drop(self, key: str) -> None:
        """Remove a record; only View.apply calls this."""
        old = self._records.pop(key, None)
        if old is not None:
            self._forget(key, old.value)

    def clear(self) -> None:
        """Remove all records, before a reload."""
        for key in list(self._records):
            self.drop(key)

    def _learn(self, key: str, value: T) -> None:
        """Add to the indexes of a sub-class."""

    def _forget(self, key: str, value: T) -> None:
        """Take out of the indexes of a sub-class."""


class DiskRecords:
    """The records of one disk, counted so that none of them has to be looked at: ``leaving`` is how many are on their
    way out; ``by_namespace`` has the store keys of each namespace, the oldest first."""

    __slots__ = ("by_namespace", "count", "leaving")

    def __init__(self) -> None:
        self.count = 0
        self.leaving = 0
        self.by_namespace: dict[str, dict[str, None]] = {}

    def add(self, key: str, value: Volume) -> None:
        """Take a record in."""
        self.count += 1
        self.leaving += value.wanted == "absent"
        self.by_namespace.setdefault(value.namespace, {})[key] = None

    def remove(self, key: str, value: Volume) -> None:
        """Let go of one that was taken in with this value."""
        self.count -= 1
        self.leaving -= value.wanted == "absent"
        of_namespace = self.by_namespace[value.namespace]
        del of_namespace[key]
        if not of_namespace:
            del self.by_namespace[value.namespace]

    def keys(self) -> Iterator[str]:
        """The store keys."""
        for of_namespace in self.by_namespace.values():
            yield from of_namespace


NO_RECORDS = DiskRecords()


class Volumes(Table[Volume]):
    """Volumes, in order of (namespace, id), and by disk."""

    def __init__(self) -> None:
        super().__init__()
        self._order: SortedKeyList = SortedKeyList(key=lambda pair: pair)
        # Nearly every disk has one record: then this is its key alone.
        self._by_disk: dict[Disk, str | DiskRecords] = {}

    def get(self, namespace: str, volume_id: str) -> Record[Volume] | None:
        """The volume of that identity, whatever its state, or None."""
        return self._records.get(keys.volume_key(NamespaceName(namespace), VolumeId(volume_id)))

    def ordered(
        self,
        namespace: str | None = None,
        prefix: str = "",
        *,
        start: tuple[str, str] | None = None,
        is_reversed: bool = False,
    ) -> Iterator[Record[Volume]]:
        """Volumes in order of (namespace, id), or backwards; of one namespace, or of all (None); with an ID prefix.

        ``start`` is the first place to look at, in the direction of the order.
        """
        low: tuple[str, str] | None = None if namespace is None else (namespace, prefix)
        # Sorts after every ID with the prefix: no ID holds this character's successor.
        high: tuple[str, str] | None = None if namespace is None else (namespace, prefix + _LAST)
        if start is not None and is_reversed:
            high = start if high is None else min(high, start)
        elif start is not None:
            low = start if low is None else max(low, start)
        for key in self._order.irange(low, high, reverse=is_reversed):
            if key[1].startswith(prefix):
                yield self._records[keys.volume_key(*key)]

    def of_disk(self, plugin_id: PluginId, external_id: str) -> list[Record[Volume]]:
        """All records of one disk: usually one, more when it was registered twice."""
        found = self._by_disk.get((plugin_id, external_id))
        if found is None:
            return []
        return [self._records[k] for k in ((found,) if isinstance(found, str) else found.keys())]

    def count_disk(self, plugin_id: PluginId, external_id: str) -> DiskRecords:
        """The same counted, however many there are. Not to be kept or changed."""
        found = self._by_disk.get((plugin_id, external_id))
        if not isinstance(found, str):
            return found or NO_RECORDS
        alone = DiskRecords()
        alone.add(found, self._records[found].value)
        return alone

    def _learn(self, key: str, value: Volume) -> None:
        self._order.add((value.namespace, value.id))
        if not value.external_id:
            return
        disk = (value.plugin_id, value.external_id)
        found = self._by_disk.get(disk)
        if found is None:
            self._by_disk[disk] = key
            return
        if isinstance(found, str):
            first, found = found, DiskRecords()
            found.add(first, self._records[first].value)
            self._by_disk[disk] = found
        found.add(key, value)

    def _forget(self, key: str, value: Volume) -> None:
        self._order.remove((value.namespace, value.id))
        disk = (value.plugin_id, value.external_id)
        found = self._by_disk.get(disk)
        if found == key:
            del self._by_disk[disk]
        elif isinstance(found, DiskRecords):
            found.remove(key, value)
            if found.count == 1:
                self._by_disk[disk] = next(found.keys())


class Claims(Table[Claim]):
    """Claims, by disk, node and allocation."""

    def __init__(self) -> None:
        super().__init__()
        self._by_disk: dict[Disk, set[str]] = {}
        self._by_volume: dict[tuple[str, str], set[str]] = {}
        self._by_node: dict[NodeId, set[str]] = {}
        self._by_allocation: dict[AllocationId, set[str]] = {}

    def of_disk(self, plugin_id: PluginId, external_id: str) -> list[Record[Claim]]:
        """Claims on all records of one disk, oldest first."""
        return self._pick(self._by_disk.get((plugin_id, external_id)))

    def of_volume(self, namespace: str, volume_id: str) -> list[Record[Claim]]:
        """Claims on one volume, oldest first."""
        found = self._by_volume.get((namespace, volume_id))
        return self._pick(found) if found else []

    def of_node(self, node_id: NodeId) -> list[Record[Claim]]:
        """Claims on one node, oldest first."""
        return self._pick(self._by_node.get(node_id))

    def of_allocation(self, allocation_id: AllocationId) -> list[Record[Claim]]:
        """Claims of one allocation, oldest first."""
        return self._pick(self._by_allocation.get(allocation_id))

    def get(self, claim_id: ClaimId) -> Record[Claim] | None:
        """The claim, or None."""
        return self._records.get(keys.claim_key(claim_id))

    def _pick(self, found: set[str] | None) -> list[Record[Claim]]:
        if not found:
            return []
        return sorted((self._records[k] for k in found), key=lambda r: (r.created, r.value.id))

    def _learn(self, key: str, value: Claim) -> None:
        self._by_disk.setdefault((value.plugin_id, value.external_id), set()).add(key)
        self._by_volume.setdefault(value.volume_key, set()).add(key)
        self._by_node.setdefault(value.node_id, set()).add(key)
        self._by_allocation.setdefault(value.allocation_id, set()).add(key)

    def _forget(self, key: str, value: Claim) -> None:
        _discard(self._by_disk, (value.plugin_id, value.external_id), key)
        _discard(self._by_volume, value.volume_key, key)
        _discard(self._by_node, value.node_id, key)
        _discard(self._by_allocation, value.allocation_id, key)


class Hashed(Protocol):
    """A record that holds the hash of a secret; an empty one is nobody's."""

    @property
    def secret_hash(self) -> str:
        """The hash."""
        ...


H = TypeVar("H", bound=Hashed)


class BySecret(Table[H]):
    """Records that hold the hash of a secret, by that hash.

    The index is kept under a keyed hash whose key this process alone knows, and what it finds is compared in constant
    time: how long a look-up takes tells nothing about the hashes that are stored.
    """

    def __init__(self) -> None:
        super().__init__()
        self._salt = secrets.token_bytes(32)
        self._by_hash: dict[bytes, str] = {}

    def find_by_hash(self, secret_hash: str) -> Record[H] | None:
        """The record of the secret with this hash, or None."""
        key = self._by_hash.get(self._blind(secret_hash))
        if key is None or not secret_hash:
            return None
        record = self._records[key]
        return record if hmac.compare_digest(record.value.secret_hash, secret_hash) else None

    def _blind(self, secret_hash: str) -> bytes:
        return hashlib.blake2b(secret_hash.encode(), key=self._salt, digest_size=32).digest()

    def _learn(self, key: str, value: H) -> None:
        self._by_hash[self._blind(value.secret_hash)] = key

    def _forget(self, key: str, value: H) -> None:
        self._by_hash.pop(self._blind(value.secret_hash), None)


K = TypeVar("K")


def _discard(index: dict[K, set[str]], at: K, key: str) -> None:
    found = index.get(at)
    if found is not None:
        found.discard(key)
        if not found:
            del index[at]


class View:
    """All tables, at ``revision``."""

    def __init__(self) -> None:
        self.volumes = Volumes()
        self.claims = Claims()
        self.allocations: Table[Allocation] = Table()
        self.plugins: Table[Plugin] = Table()
        self.nodes: Table[Node] = Table()
        self.operations: Table[Operation] = Table()
        self.namespaces: Table[Namespace] = Table()
        self.acl_tokens: BySecret[Token] = BySecret()
        self.acl_policies: Table[Policy] = Table()
        self.acl_bootstrap: Table[Bootstrap] = Table()
        self.identities: BySecret[Identity] = BySecret()
        self.join_tokens: BySecret[JoinToken] = BySecret()
        self.turnstiles: Table[Turnstile] = Table()
        self.revision: Revision = Revision(0)
        self.tables_by_prefix: dict[str, Table[Any]] = {
            keys.VOLUMES: self.volumes,
            keys.CLAIMS: self.claims,
            keys.ALLOCATIONS: self.allocations,
            keys.PLUGINS: self.plugins,
            keys.NODES: self.nodes,
            keys.OPERATIONS: self.operations,
            keys.NAMESPACES: self.namespaces,
            keys.ACL_TOKENS: self.acl_tokens,
            keys.ACL_POLICIES: self.acl_policies,
            keys.ACL_BOOTSTRAP: self.acl_bootstrap,
            keys.IDENTITIES: self.identities,
            keys.JOIN_TOKENS: self.join_tokens,
            keys.TURNSTILES: self.turnstiles,
        }

    @property
    def count(self) -> int:
        """How many records there are."""
        return sum(len(table) for table in self.tables_by_prefix.values())

    def find_plugin(self, plugin_id: str) -> Record[Plugin] | None:
        """The plugin, or None."""
        return self.plugins.find(keys.plugin_key(PluginId(plugin_id)))

    def find_node(self, node_id: str) -> Record[Node] | None:
        """The node, or None."""
        return self.nodes.find(keys.node_key(NodeId(node_id)))

    def find_allocation(self, allocation_id: str) -> Record[Allocation] | None:
        """The allocation, or None."""
        return self.allocations.find(keys.allocation_key(AllocationId(allocation_id)))
