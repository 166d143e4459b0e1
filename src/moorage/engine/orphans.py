"""The orphan finder: asks each driver for all its volumes and compares them with the records.

Before a driver is asked, creates of its plugin that are under way are waited for, for a moment: what they are about to
make is no orphan. Finds only; adopting is a register, and deleting an adopted volume is a delete like any other.
"""

from __future__ import annotations

from collections.abc import Mapping

import anyio
import msgspec

from moorage.engine.listings import Listings
from moorage.engine.reads import Reads
from moorage.errors import DeadlineExceeded, MoorageError, NotFound, Rejected
from moorage.model.ids import NodeId, PluginId
from moorage.model.snapshot import ExternalVolume
from moorage.rules.orphans import Comparison, Known, compare, find_creating, find_doubles
from moorage.rules.plugins import find_controller_info
from moorage.state import keys
from moorage.state.feed import Change
from moorage.state.repo import Repo

PLUGINS_AT_ONCE = 8
PAGE_ENTRIES = 500
PAGES_MAX = 20_000
STARTS_MAX = 3
SETTLE_S = 5.0
LISTING_S = 540.0


class PluginFindings(msgspec.Struct, frozen=True, kw_only=True):
    """What was found at one plugin. ``error``: why its driver could not be asked to the end; then only doubles are
    known. ``shows_nodes``: the driver says where volumes are attached, so that leaked attachments can be seen.
    ``nodes``: the driver's names for nodes, with their IDs."""

    plugin_id: PluginId
    found: Comparison = Comparison()
    volumes_listed: int = 0
    shows_nodes: bool = False
    nodes: Mapping[str, NodeId] = {}
    error: str = ""


class Orphans:
    """Compares drivers' listings with the records."""

    def __init__(self, repo: Repo, reads: Reads, listings: Listings) -> None:
        self._repo = repo
        self._reads = reads
        self._listings = listings

    async def find(self, plugin_id: str = "") -> list[PluginFindings]:
        """The findings at one plugin or, for an empty ID, at all. One driver's failure is its own entry's ``error``.

        Raises NotFound (``no such plugin``) for a plugin that was named.
        """
        if plugin_id:
            plugin = self._reads.find_plugin(plugin_id)
            if plugin is None:
                raise NotFound("no such plugin", code="plugin_missing", plugin=plugin_id)
            return [await self._look_at(plugin.value.id)]
        found: dict[PluginId, PluginFindings] = {}
        limiter = anyio.CapacityLimiter(PLUGINS_AT_ONCE)

        async def look_at(name: PluginId) -> None:
            async with limiter:
                found[name] = await self._look_at(name)

        async with anyio.create_task_group() as group:
            for record in self._reads.list_plugins():
                group.start_soon(look_at, record.value.id)
        return [found[name] for name in sorted(found)]

    async def _look_at(self, plugin_id: PluginId) -> PluginFindings:
        try:
            with anyio.fail_after(LISTING_S):
                return await self._compare(plugin_id)
        except TimeoutError:
            error: MoorageError = DeadlineExceeded(f"the driver has not listed its volumes within {LISTING_S:.0f} s")
        except MoorageError as failure:
            error = failure
        doubles = find_doubles(self._know(plugin_id).volumes)
        return PluginFindings(plugin_id=plugin_id, found=Comparison(doubles=doubles), error=error.message)

    async def _compare(self, plugin_id: PluginId) -> PluginFindings:
        plugin = self._reads.find_plugin(plugin_id)
        info = find_controller_info(plugin.value if plugin else None)
        if info is None or not info.supports_list_volumes:
            raise Rejected("the driver does not list volumes", code="unsupported", plugin=plugin_id)
        await self._wait_settled(plugin_id)
        before = self._know(plugin_id)
        listed = await self._list(plugin_id)
        return PluginFindings(
            plugin_id=plugin_id,
            found=compare(listed, before, self._know(plugin_id)),
            volumes_listed=len({v.external_id for v in listed}),
            shows_nodes=info.supports_list_volumes_attached_nodes,
            nodes={i.node.external_id: n for n, i in plugin.value.instances.items() if i.node} if plugin else {},
        )

    def _know(self, plugin_id: PluginId) -> Known:
        view = self._repo.view
        return Known(
            volumes=tuple(r.value for r in view.volumes if r.value.plugin_id == plugin_id),
            claims=tuple(r.value for r in view.claims if r.value.plugin_id == plugin_id),
        )

    async def _wait_settled(self, plugin_id: PluginId) -> None:
        """Return when no create of the plugin is under way, or after a moment."""

        def is_settled(change: Change | None = None) -> bool | None:
            return None if find_creating(self._know(plugin_id).volumes) else True

        if not is_settled():
            await self._repo.feed.signals.wait((keys.VOLUMES,), is_settled, timeout_s=SETTLE_S)

    async def _list(self, plugin_id: PluginId) -> list[ExternalVolume]:
        """All pages. A token that the driver takes no more means: start over (CSI, ABORTED)."""
        for start in range(STARTS_MAX):
            found: list[ExternalVolume] = []
            tokens = {""}
            token = ""
            try:
                for _ in range(PAGES_MAX):
                    page = await self._listings.list_external(plugin_id, entries_max=PAGE_ENTRIES, starting_token=token)
                    found.extend(page.volumes)
                    token = page.next_token
                    if not token:
                        return found
                    if token in tokens:
                        raise Rejected("the driver hands out the same page again and again", code="bad_listing")
                    tokens.add(token)
                raise Rejected(f"the driver's listing has more than {PAGES_MAX} pages", code="bad_listing")
            except Rejected as error:
                if error.code == "bad_listing" or not token or start == STARTS_MAX - 1:
                    raise
        raise AssertionError("the last start returns or raises")
