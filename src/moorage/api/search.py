"""Handlers of the search that shell completion and ``status ID`` use. Source: contract clients §2, §3, §5."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from msgspec import Struct, field

from moorage.api import answers
from moorage.api.bodies import decode
from moorage.api.http import Answer, Meta, Request, json_answer
from moorage.api.params import check_region
from moorage.engine.reads import ALLOCATIONS, NAMESPACES, NODES, PLUGINS, VolumeRead
from moorage.engine.service import Service
from moorage.model.ids import ALL_NAMESPACES
from moorage.rules.authorize import ANYTHING, READ_ALLOCATION, SEARCH_VOLUMES, Access, demand, may_search
from moorage.rules.search import MATCHES_MAX, Matches, Named, check_fuzzy, expand_context, match_fuzzy, match_prefix

_TABLES = {
    "allocs": ALLOCATIONS,
    "namespaces": NAMESPACES,
    "nodes": NODES,
    "plugins": PLUGINS,
    "volumes": "volumes/",
}


class SearchBody(Struct):
    """Body of either search."""

    prefix: str = field(default="", name="Prefix")
    text: str = field(default="", name="Text")
    context: str = field(default="", name="Context")
    namespace: str = field(default="", name="Namespace")


async def search(service: Service, request: Request) -> Answer:
    """PUT or POST /v1/search: IDs that begin with a prefix."""
    body = decode(SearchBody, request.body)
    namespace = _namespace(request, body)
    contexts = _choose_contexts(request, body.context, namespace)
    seen = _Seen(service, request.access, namespace)
    found = {c: match_prefix(body.prefix, seen.find_ids(c, body.prefix)) for c in contexts}
    return _answer(service, request, found, lambda named: named.text)


async def search_fuzzy(service: Service, request: Request) -> Answer:
    """PUT or POST /v1/search/fuzzy: names that hold a text."""
    body = decode(SearchBody, request.body)
    namespace = _namespace(request, body)
    contexts = _choose_contexts(request, body.context, namespace)
    check_fuzzy(body.text)
    seen = _Seen(service, request.access, namespace)
    found = {c: match_fuzzy(body.text, seen.find_names(c)) for c in contexts}
    return _answer(service, request, found, _fuzzy_match)


def _namespace(request: Request, body: SearchBody) -> str:
    check_region(request.query)
    return request.query.get("namespace", "") or body.namespace or "default"


def _choose_contexts(request: Request, context: str, namespace: str) -> tuple[str, ...]:
    """The contexts that are asked for; of ``all``, those whose things the caller may list. Raises Forbidden."""
    asked = expand_context(context)
    allowed = tuple(c for c in asked if may_search(request.access, c, namespace))
    demand(bool(allowed))
    return allowed


class _Seen:
    """What a caller may find in a namespace, or, with ``*``, in those that it may list."""

    def __init__(self, service: Service, access: Access, namespace: str) -> None:
        self._reads = service.reads
        self._access = access
        self._namespace = namespace

    def find_ids(self, context: str, prefix: str = "") -> Iterable[Named]:
        """The IDs of a context; those of volumes may be narrowed to a prefix, and then only as many as are shown."""
        reads, namespace = self._reads, self._namespace
        match context:
            case "allocs":
                return (Named(r.value.id) for r in self._list_allocations())
            case "namespaces":
                is_seen = self._access.chooser(ANYTHING)
                return (Named(r.value.name) for r in reads.list_namespaces() if is_seen(r.value.name))
            case "nodes":
                return (Named(r.value.id) for r in reads.list_nodes())
            case "plugins":
                return (Named(r.value.id) for r in reads.list_plugins())
            case "volumes":
                is_seen = self._access.chooser(SEARCH_VOLUMES)
                volumes: Iterator[VolumeRead] = (
                    v for v in reads.list_volumes(namespace, prefix) if is_seen(v.record.value.namespace)
                )
                if prefix and namespace != ALL_NAMESPACES:
                    # In order within a namespace: completion need not look at every volume.
                    volumes = islice(volumes, MATCHES_MAX + 1)
                # An ID that is in several namespaces is one match.
                return (Named(i) for i in {v.record.value.id for v in volumes})
        return ()

    def find_names(self, context: str) -> Iterable[Named]:
        """What people call things: nodes and allocations have a name, and their ID is where that leads to."""
        match context:
            case "allocs":
                found = self._list_allocations()
                return (Named(r.value.name or r.value.id, (r.value.namespace, r.value.id)) for r in found)
            case "nodes":
                return (Named(r.value.name, (r.value.id,)) for r in self._reads.list_nodes())
        return self.find_ids(context)

    def _list_allocations(self) -> Iterator[Any]:
        is_seen = self._access.chooser(READ_ALLOCATION)
        return (r for r in self._reads.list_allocations(self._namespace) if is_seen(r.value.namespace))


def _fuzzy_match(named: Named) -> dict[str, Any]:
    return {"ID": named.text, "Scope": list(named.scope)} if named.scope else {"ID": named.text}


def _answer(service: Service, request: Request, found: dict[str, Matches], shown: Callable[[Named], object]) -> Answer:
    index = max((service.reads.table_index(_TABLES[c]) for c in found if c in _TABLES), default=0)
    body = answers.enveloped(
        index,
        # None, not an empty list, as recorded.
        Matches={c: [shown(n) for n in m.found] or None for c, m in found.items()},
        Truncations={c: m.is_truncated for c, m in found.items()},
    )
    return json_answer(request, body, Meta(index=index))
