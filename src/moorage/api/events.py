"""GET /v1/event/stream: what happens, line by line, as it happens.

Each line is one JSON object: ``{}`` is a heartbeat, at once and then from time to time; ``{"Index": N, "Events": […]}``
is what one revision tells; ``{"Error": "…", "Index": N}`` is the last line of a stream that cannot go on, with the
index to ask for next. Never an empty line: it kills a recorded client.
``index=N`` gives the events from N on, N included, so that resuming with the last index seen repeats rather than loses;
0 or none begins with the oldest event kept. Source: contract clients §2.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes

import anyio

from moorage.api import answers, plugin_answers
from moorage.api.admission import find_secret
from moorage.api.http import JSON, Answer, Request, Write, encode
from moorage.api.nodes import node_whole
from moorage.api.params import check_region
from moorage.engine.event_making import AllocationRead, Event, Happening, NodeRead, PluginRead
from moorage.engine.events import End
from moorage.engine.reads import VolumeRead
from moorage.engine.service import Service
from moorage.errors import BadRequest, Forbidden
from moorage.rules import events as rules
from moorage.rules.authorize import READ, READ_ALLOCATION, Access, demand
from moorage.rules.events import EventFilter, Label, parse_topics

INDEX_DIGITS_MAX = 19
HEARTBEAT = b"{}\n"


async def stream_events(service: Service, request: Request) -> Answer:
    """GET /v1/event/stream. Raises BadRequest for a bad topic or index, Unavailable when too many are open."""
    topics = list(_find_all(request, "topic"))
    index = _parse_index(request.query.get("index", ""))
    check_region(request.query)
    wanted = EventFilter(keys_by_topic=parse_topics(topics), namespace=request.query.get("namespace", "") or "default")
    demand(_may_see_some(request.access, wanted))
    service.events.check_room()
    watcher = _Watcher(service, request)
    return Answer(content_type=JSON, stream=partial(_stream, watcher, wanted, index))


class _Watcher:
    """Who reads a stream: asked before each line, because tokens and policies change while it is open."""

    def __init__(self, service: Service, request: Request) -> None:
        self.service = service
        self._secret = find_secret(request)
        self._access = request.access

    def choose(self, happening: Happening) -> Happening | None:
        """What the reader may see of a happening now; None: nothing. Raises Forbidden when its token is no more."""
        self.check()
        if self._access.is_full:
            return happening
        seen = tuple(event for event in happening.events if _may_see(self._access, event.label))
        return Happening(happening.revision, seen) if seen else None

    def check(self) -> None:
        """The reader may still read something. Raises Forbidden."""
        self._access = self.service.accesses.renew(self._access, self._secret)


def _may_see(access: Access, label: Label) -> bool:
    match label.topic:
        case rules.VOLUME:
            return access.may(label.namespace, READ)
        case rules.ALLOCATION:
            return access.may(label.namespace, READ_ALLOCATION)
        case rules.PLUGIN:
            return access.may_read_plugins
        case rules.NODE:
            return access.may_read_nodes
    return access.is_full


def _may_see_some(access: Access, wanted: EventFilter) -> bool:
    """Whether any of the topics that are asked for may ever show something."""
    topics = rules.TOPICS if rules.ALL_TOPICS in wanted.keys_by_topic else tuple(wanted.keys_by_topic)
    return any(_may_see(access, Label(topic=t, type="", key="", namespace=wanted.namespace)) for t in topics)


def _find_all(request: Request, name: str) -> Iterator[str]:
    """All values of a query parameter that may be repeated."""
    for pair in request.raw_query.replace(b"+", b" ").split(b"&"):
        found, _, value = pair.partition(b"=")
        if unquote_to_bytes(found).decode("utf-8", "replace") == name:
            yield unquote_to_bytes(value).decode("utf-8", "replace")


def _parse_index(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= INDEX_DIGITS_MAX):
        raise BadRequest(f"Invalid index {text[:40]!r}: a whole number of at most {INDEX_DIGITS_MAX} digits is needed")
    return int(text)


async def _stream(watcher: _Watcher, wanted: EventFilter, index: int, write: Write) -> None:
    events = watcher.service.events
    with events.open(wanted, index=index) as reader:
        if reader.ended is None:
            await write(HEARTBEAT)
        last = index
        beat_at_s = anyio.current_time() + events.settings.heartbeat_s
        while True:
            found = await reader.next(timeout_s=max(0.0, beat_at_s - anyio.current_time()))
            if isinstance(found, End):
                await write(encode({"Error": found.text, "Index": found.index}) + b"\n")
                return
            try:
                shown = watcher.choose(found) if found is not None else None
                if shown is not None:
                    last = shown.revision
                    await write(_line(watcher.service, shown))
                if anyio.current_time() < beat_at_s:
                    continue
                watcher.check()
            except Forbidden as error:
                await write(encode({"Error": error.message, "Index": last}) + b"\n")
                return
            await write(HEARTBEAT)
            beat_at_s = anyio.current_time() + events.settings.heartbeat_s


def _line(service: Service, happening: Happening) -> bytes:
    texts = [service.events.texts.find(event, _text) for event in happening.events]
    return b'{"Events":[' + b",".join(texts) + b'],"Index":' + str(happening.revision).encode() + b"}\n"


def _text(event: Event) -> bytes:
    label = event.label
    return encode(
        {
            "FilterKeys": list(label.filter_keys),
            "Index": event.revision,
            "Key": label.key,
            "Namespace": label.namespace,
            "Payload": _payload(event),
            "Topic": label.topic,
            "Type": label.type,
        }
    )


def _payload(event: Event) -> Mapping[str, Any]:
    """The same JSON as the object's own page: secrets null, mount flags redacted."""
    match event.subject:
        case VolumeRead() as read:
            return {"Volume": answers.volume(read)}
        case PluginRead(record=found):
            return {"Plugin": plugin_answers.plugin_whole(found.value, found.created, found.modified)}
        case NodeRead(record=node, plugins=plugins):
            on_node = [p.value for p in plugins]
            return {"Node": node_whole(node.value, node.created, node.modified, on_node)}
        case AllocationRead(record=allocation, claims=claims):
            whole = answers.allocation_whole(allocation.value, allocation.created, allocation.modified, claims)
            return {"Allocation": whole}
