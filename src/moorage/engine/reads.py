"""Reads: what handlers and services look up in the view, and how they wait for it to change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec

from moorage.engine.waiters import Waiters
from moorage.model.claim import Allocation, Claim
from moorage.model.ids import ALL_NAMESPACES, DEFAULT_NAMESPACE, NamespaceName, PluginId, VolumeId
from moorage.model.namespace import Namespace
from moorage.model.node import Node
from moorage.model.plugin import Plugin
from moorage.model.volume import Volume
from moorage.rules.plugins import Health, measure_health
from moorage.rules.volumes import is_shown
from moorage.state import keys
from moorage.state.feed import Change, Listener
from moorage.state.repo import Repo
from moorage.state.view import Record as Record
from moorage.state.view import View

T = TypeVar("T")

# Tables by name, for those that may not see the store: topics to wait on, and arguments of ``table_index``.
ACL_POLICIES = keys.ACL_POLICIES
ACL_TOKENS = keys.ACL_TOKENS
ALLOCATIONS = keys.ALLOCATIONS
NAMESPACES = keys.NAMESPACES
NODES = keys.NODES
PLUGINS = keys.PLUGINS
VOLUMES_TOPICS = (keys.VOLUMES, keys.CLAIMS)


class VolumeRead(msgspec.Struct, frozen=True, kw_only=True):
    """A volume with all that an answer shows of it: its claims, their allocations, its plugin's health now."""

    record: Record[Volume]
    claims: tuple[Claim, ...]
    health: Health
    allocations: tuple[Record[Allocation], ...] = ()


def join_volume(
    view: View, record: Record[Volume], *, with_allocations: bool = False, health: Health | None = None
) -> VolumeRead:
    """A volume's record with its claims and its plugin's health, as the view has them, unless the latter is known."""
    volume = record.value
    claimed = view.claims.of_volume(volume.namespace, volume.id)
    claims = tuple(r.value for r in claimed) if claimed else ()
    if health is None:
        plugin = view.find_plugin(volume.plugin_id)
        health = measure_health(plugin.value if plugin else None)
    allocations = []
    if claims and with_allocations:
        for allocation_id in dict.fromkeys(c.allocation_id for c in claims):
            found = view.find_allocation(allocation_id)
            if found is not None:
                allocations.append(found)
    return VolumeRead(
        record=record,
        claims=claims,
        health=health,
        allocations=tuple(allocations),
    )


class Reads:
    """Answers from memory; no method here waits but ``wait``. ``waiters``: who waits without a task."""

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self.waiters = Waiters()
        self.follow(self.waiters.note)

    # -- indexes -----------------------------------------------------------------------------------------------------

    @property
    def volumes_index(self) -> int:
        """The revision of the last change to any volume or claim."""
        view = self._repo.view
        return max(view.volumes.index, view.claims.index)

    @property
    def volumes_stamp(self) -> tuple[int, ...]:
        """The revisions of the last changes to volumes, claims, and what callers may do."""
        view = self._repo.view
        return (view.volumes.index, view.claims.index, view.acl_policies.index, view.acl_tokens.index)

    def table_index(self, table: str) -> int:
        """The revision of the last change to a table, by its key prefix."""
        return self._repo.view.tables_by_prefix[table].index

    @property
    def revision(self) -> int:
        """The revision that all reads are at."""
        return self._repo.view.revision

    # -- volumes -----------------------------------------------------------------------------------------------------

    def find_volume(
        self, namespace: str, volume_id: str, *, is_seen: Callable[[str], bool] | None = None
    ) -> VolumeRead | None:
        """The volume as clients may see it: one that is being created is not there yet.

        Namespace ``*`` finds the one volume of that ID in any namespace, if there is exactly one; ``is_seen`` tells
        which namespaces count then.
        """
        view = self._repo.view
        if namespace == ALL_NAMESPACES:
            named = (r for r in view.volumes.ordered(None, volume_id) if r.value.id == volume_id)
            found = [r for r in named if is_shown(r.value) and (is_seen is None or is_seen(r.value.namespace))]
            return self.join(found[0], with_allocations=True) if len(found) == 1 else None
        record = view.volumes.get(namespace, volume_id)
        if record is None or not is_shown(record.value):
            return None
        return self.join(record, with_allocations=True)

    def list_volumes(
        self, namespace: str, prefix: str = "", *, start: tuple[str, str] | None = None, is_reversed: bool = False
    ) -> Iterator[VolumeRead]:
        """Volumes in order of (namespace, id) or backwards; namespace ``*``: of all.

        ``start``: the first place to look at; it need not exist.
        """
        chosen = None if namespace == ALL_NAMESPACES else namespace
        for record in self._repo.view.volumes.ordered(chosen, prefix, start=start, is_reversed=is_reversed):
            if is_shown(record.value):
                yield self.join(record)

    def list_namespaces_of_disk(self, plugin_id: str, external_id: str) -> set[str]:
        """The namespaces in which a disk is registered; none for one that nobody has registered."""
        return set(self._repo.view.volumes.count_disk(PluginId(plugin_id), external_id).by_namespace)

    def join(
        self, record: Record[Volume], *, with_allocations: bool = False, health: Health | None = None
    ) -> VolumeRead:
        """A volume's record with its claims and its plugin's health; the latter may be given."""
        return join_volume(self._repo.view, record, with_allocations=with_allocations, health=health)

    def find_record(self, namespace: str, volume_id: str) -> Record[Volume] | None:
        """The volume's record, whether clients may see it or not."""
        return self._repo.view.volumes.get(namespace, volume_id)

    def list_claimed(self, node_id: str) -> set[tuple[str, str]]:
        """The volumes, by namespace and ID, with a claim on a node whose ID begins like this."""
        return {r.value.volume_key for r in self._repo.view.claims if r.value.node_id.startswith(node_id)}

    def topics_of_volume(self, namespace: str, volume_id: str) -> tuple[str, ...]:
        """What moves a read of one volume: its record, its claims, their allocations."""
        view = self._repo.view
        names = [keys.volume_key(NamespaceName(namespace), VolumeId(volume_id))]
        for claim in view.claims.of_volume(namespace, volume_id):
            names.append(keys.claim_key(claim.value.id))
            names.append(keys.allocation_key(claim.value.allocation_id))
        return tuple(names)

    # -- the rest ----------------------------------------------------------------------------------------------------

    def find_plugin(self, plugin_id: str) -> Record[Plugin] | None:
        """The plugin, or None."""
        return self._repo.view.find_plugin(plugin_id)

    def list_plugins(self, prefix: str = "") -> list[Record[Plugin]]:
        """Plugins by ID."""
        found = (r for r in self._repo.view.plugins if r.value.id.startswith(prefix))
        return sorted(found, key=lambda r: r.value.id)

    def find_node(self, node_id: str) -> Record[Node] | None:
        """The node, or None."""
        return self._repo.view.find_node(node_id)

    def list_nodes(self, prefix: str = "") -> list[Record[Node]]:
        """Nodes by ID."""
        found = (r for r in self._repo.view.nodes if r.value.id.startswith(prefix))
        return sorted(found, key=lambda r: r.value.id)

    def find_allocation(self, allocation_id: str) -> Record[Allocation] | None:
        """The allocation, or None."""
        return self._repo.view.find_allocation(allocation_id)

    def list_allocations(self, namespace: str, prefix: str = "", node_id: str = "") -> list[Record[Allocation]]:
        """Allocations by ID; of one namespace or all (``*``), of one node or all."""
        found = (
            r
            for r in self._repo.view.allocations
            if r.value.id.startswith(prefix)
            and namespace in (ALL_NAMESPACES, r.value.namespace)
            and node_id in ("", r.value.node_id)
        )
        return sorted(found, key=lambda r: r.value.id)

    def claims_of(self, allocation: Allocation) -> list[Claim]:
        """An allocation's claims that still exist."""
        return [r.value for r in self._repo.view.claims.of_allocation(allocation.id)]

    def list_namespaces(self, prefix: str = "") -> list[Record[Namespace]]:
        """Namespaces by name; ``default`` is always there."""
        found = {r.value.name: r for r in self._repo.view.namespaces}
        first = type(self._repo.view.revision)(1)
        found.setdefault(DEFAULT_NAMESPACE, Record(_DEFAULT, first, first))
        return [found[name] for name in sorted(found) if name.startswith(prefix)]

    # -- following ----------------------------------------------------------------------------------------------------

    def follow(self, listener: Listener) -> None:
        """Call ``listener`` on every change, in the loop turn that applies it. It must not block."""
        self._repo.feed.subscribe(listener)

    # -- waiting -----------------------------------------------------------------------------------------------------

    async def wait(self, topics: Iterable[str], index_of: Callable[[], int], *, above: int, timeout_s: float) -> None:
        """Return when ``index_of()`` is above ``above`` and something on the topics changed, or at the timeout."""
        if index_of() > above:
            return

        def test(change: Change) -> bool | None:
            return True if change.revision > above else None

        await self._repo.feed.signals.wait(topics, test, timeout_s=timeout_s)


_DEFAULT = Namespace(name=DEFAULT_NAMESPACE, description="Default shared namespace")
