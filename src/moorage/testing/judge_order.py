"""Rules on calls in their order: what must come before what, one call at a time, repeats alike. Pure.

Shapes: ``Court.take`` is given every line of every log in the order of time; ``findings`` is what was wrong so far.
    What a call may have left behind is a fact: True when it is known, False when the outcome is unknown ("maybe").
    Rules that need all calls on a volume (``is_whole``) are left out when only some of them were seen.
Units:  times in nanoseconds since the epoch.
Source: CSI spec 1.12 "Volume Lifecycle", "Concurrency"; contract csi-wire §9, §10, §11.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from moorage.testing.judge_records import GIVEN_UP, OPEN_STATUS, Ended, Gone, Line, Opened, Started
from moorage.testing.judge_requests import (
    Abilities,
    Complaint,
    Controller,
    Mode,
    NodeRpc,
    check_request,
    read_abilities,
)

# Statuses that say that nothing is in progress: another call may come, also with other arguments.
FINAL = frozenset(
    "UNKNOWN INVALID_ARGUMENT NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED FAILED_PRECONDITION OUT_OF_RANGE "
    "UNIMPLEMENTED INTERNAL DATA_LOSS UNAUTHENTICATED".split()
)
REPEATED: dict[str, tuple[str, ...]] = {
    "CreateVolume": ("name",),
    "CreateSnapshot": ("name",),
    "ControllerPublishVolume": ("volume_id", "node_id"),
    "NodeStageVolume": ("volume_id", "staging_target_path"),
    "NodePublishVolume": ("volume_id", "target_path"),
}
"""What makes two calls the same operation, whose other arguments must then be the same."""
UNDONE_BY = {
    "ControllerUnpublishVolume": "ControllerPublishVolume",
    "NodeUnstageVolume": "NodeStageVolume",
    "NodeUnpublishVolume": "NodePublishVolume",
}
SINGLE_NODE = frozenset(
    (
        Mode.SINGLE_NODE_WRITER,
        Mode.SINGLE_NODE_READER_ONLY,
        Mode.SINGLE_NODE_SINGLE_WRITER,
        Mode.SINGLE_NODE_MULTI_WRITER,
    )
)
# A cancelled call is seen by the driver's side a moment after its caller has gone on.
GIVE_UP_LAG_NS = 500_000_000

Place = tuple[str, str]
"""(volume ID, node)."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that an orchestrator must not do."""

    rule: str
    message: str
    method: str
    judge: str
    call: int
    at_ns: int
    subject: str = ""


class Call(msgspec.Struct, kw_only=True):
    """A call as far as it is known."""

    judge: str
    node: str
    started: Started
    ended_ns: int = 0
    status: str = ""

    @property
    def method(self) -> str:
        """The bare name of the method."""
        return self.started.method

    @property
    def request(self) -> dict[str, Any]:
        """The request."""
        return self.started.request

    @property
    def subject(self) -> str:
        """What the call is about: a volume or snapshot ID, or, before there is one, a name."""
        if "name" in self.request:
            return f"name:{self.request['name']}"
        return str(self.request.get("volume_id") or self.request.get("snapshot_id") or "")


class Court:
    """All that is known of one plugin's calls."""

    def __init__(self, *, is_whole: bool) -> None:
        self.findings: list[Finding] = []
        self.calls = 0
        self._is_whole = is_whole
        self._abilities: dict[str, Abilities] = {}
        self._nodes: dict[str, str] = {}
        self._boots: dict[str, str] = {}
        self._running: dict[tuple[str, int], Call] = {}
        self._closed: list[Call] = []
        self._attached: dict[Place, tuple[bool, Mapping[str, Any]]] = {}
        self._staged: dict[Place, dict[str, bool]] = {}
        self._published: dict[Place, dict[str, bool]] = {}
        self._gone: set[str] = set()
        self._repeats: dict[tuple[str, ...], tuple[Any, bool]] = {}
        self._contexts: dict[tuple[str, ...], Mapping[str, str]] = {}
        self._snapshot_names: dict[str, str] = {}

    def prepare(self, judge: str, method: str, answer: Mapping[str, Any]) -> None:
        """Learn what a driver says of itself, before the calls are taken."""
        known = self._abilities.get(judge, Abilities())
        self._abilities[judge] = read_abilities(known, method, answer)
        if method == "NodeGetInfo" and answer.get("node_id"):
            self._nodes.setdefault(judge, answer["node_id"])

    def take(self, judge: str, line: Line) -> None:
        """The next line of a judge's log."""
        if isinstance(line, Opened):
            self._open(judge, line)
        elif isinstance(line, Gone):
            self._gone.add(line.node_id)
        elif isinstance(line, Started):
            self.calls += 1
            call = Call(judge=judge, node=self._nodes.get(judge, judge), started=line)
            for rule, message in self._check(call):
                self._find(call, rule, message)
            self._begin(call)
            self._running[judge, line.id] = call
        else:
            ended = self._running.pop((judge, line.id), None)
            if ended is not None:
                ended.status, ended.ended_ns = line.status, line.at_ns
                self._end(ended, line)

    # -- the rules ---------------------------------------------------------------------------------------------------

    def _check(self, call: Call) -> Iterator[Complaint]:
        started = call.started
        abilities = self._abilities.get(call.judge, Abilities())
        yield from check_request(call.method, call.request, abilities, attaches=self._attaches)
        if started.deadline_s is None:
            yield "no_deadline", "the call has no deadline"
        for path in started.leaks:
            if not self._is_told_context(call, path):
                yield "secret_leaked", f"{path} holds a secret, and is not marked for secrets"
        if started.users:
            yield "path_in_use", f"the target path is in use: {'; '.join(started.users)}"
        yield from self._check_alone(call)
        yield from self._check_repeat(call)
        yield from self._check_contexts(call)
        check = getattr(self, f"_check_{call.method}", None)
        if check is not None:
            yield from check(call)

    def _check_alone(self, call: Call) -> Iterator[Complaint]:
        if not call.subject:
            return
        now_ns = call.started.at_ns
        for other in self._running.values():
            if other.subject != call.subject or not _may_collide(call, other):
                continue
            limit_s = other.started.deadline_s
            if limit_s is not None and other.started.at_ns + int(limit_s * 1e9) - GIVE_UP_LAG_NS <= now_ns:
                continue
            # Whether its caller had given up is only seen when the line of its end comes.
            self._closed.append(other)
            self._pending_overlaps.append((call, other))
        return
        yield

    def _check_repeat(self, call: Call) -> Iterator[Complaint]:
        key = _repeat_key(call)
        if key is not None and key in self._repeats and self._repeats[key][0] != _arguments(call.request):
            before, now = self._repeats[key][0], _arguments(call.request)
            fields = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
            yield "changed_repeat", f"repeated with other arguments ({', '.join(fields)}), not undone in between"

    def _check_contexts(self, call: Call) -> Iterator[Complaint]:
        if not self._is_whole or call.method not in (
            "ControllerPublishVolume", "NodeStageVolume", "NodePublishVolume"
        ):  # fmt: skip
            return
        volume_id = call.request.get("volume_id", "")
        told = self._contexts.get(("volume", volume_id))
        if told is not None and call.request.get("volume_context", {}) != told:
            yield "changed_context", "volume_context is not the one that CreateVolume answered"
        told = self._contexts.get(("publish", volume_id, call.node))
        if call.method != "ControllerPublishVolume" and told is not None:
            if call.request.get("publish_context", {}) != told:
                yield "changed_context", "publish_context is not the one that ControllerPublishVolume answered"

    def _check_ControllerPublishVolume(self, call: Call) -> Iterator[Complaint]:  # noqa: N802 (the method's name)
        if not self._is_whole:
            return
        for (volume_id, node), (_, other) in self._attached.items():
            if volume_id != call.request.get("volume_id") or node == call.request.get("node_id"):
                continue
            modes = {_mode(other), _mode(call.request)}
            writers = not other.get("readonly") and not call.request.get("readonly")
            if modes & SINGLE_NODE or (Mode.MULTI_NODE_SINGLE_WRITER in modes and writers):
                yield "second_attach", f"the volume is, or may be, attached to node {node}, and its mode allows one"

    def _check_ControllerUnpublishVolume(self, call: Call) -> Iterator[Complaint]:  # noqa: N802
        node = call.request.get("node_id", "")
        if self._is_whole and node not in self._gone:
            place = (call.request.get("volume_id", ""), node)
            for what, path in self._list_uses(place):
                yield "detach_while_used", f"the volume is, or may be, {what} on node {node} at {path}"

    def _check_NodeStageVolume(self, call: Call) -> Iterator[Complaint]:  # noqa: N802
        place = _place(call)
        if self._is_whole and self._attaches and not self._is_attached(place):
            yield "stage_without_attach", f"the volume is not known to be attached to node {call.node}"
        for path in self._staged.get(place, {}):
            if path != call.request.get("staging_target_path"):
                yield "second_staging_path", f"the volume is, or may be, staged at {path} already"

    def _check_NodePublishVolume(self, call: Call) -> Iterator[Complaint]:  # noqa: N802
        place = _place(call)
        abilities = self._abilities.get(call.judge, Abilities())
        if abilities.node is not None and NodeRpc.STAGE_UNSTAGE_VOLUME in abilities.node:
            path = call.request.get("staging_target_path", "")
            if not path:
                yield "missing_field", "staging_target_path is required, because the driver stages"
            if not self._staged.get(place, {}).get(path):
                yield "publish_without_stage", f"the volume is not known to be staged at {path or 'any path'}"
        if self._is_whole and self._attaches and not self._is_attached(place):
            yield "publish_without_attach", f"the volume is not known to be attached to node {call.node}"

    def _check_NodeUnstageVolume(self, call: Call) -> Iterator[Complaint]:  # noqa: N802
        for path in self._published.get(_place(call), {}):
            yield "unstage_while_published", f"the volume is, or may be, published at {path}"

    def _check_DeleteVolume(self, call: Call) -> Iterator[Complaint]:  # noqa: N802
        if not self._is_whole:
            return
        volume_id = call.request.get("volume_id", "")
        for attached, node in self._attached:
            if attached == volume_id:
                yield "delete_while_used", f"the volume is, or may be, attached to node {node}"
        for place in {*self._staged, *self._published}:
            if place[0] == volume_id and place[1] not in self._gone:
                for what, path in self._list_uses(place):
                    yield "delete_while_used", f"the volume is, or may be, {what} on node {place[1]} at {path}"

    # -- what calls leave behind -------------------------------------------------------------------------------------

    def _begin(self, call: Call) -> None:
        key = _repeat_key(call)
        if key is not None:
            self._repeats.setdefault(key, (_arguments(call.request), False))
        place = _place(call)
        if call.method == "ControllerPublishVolume":
            place = (call.request.get("volume_id", ""), call.request.get("node_id", ""))
            self._gone.discard(place[1])
            self._attached.setdefault(place, (False, call.request))
        elif call.method == "NodeStageVolume":
            self._staged.setdefault(place, {}).setdefault(call.request.get("staging_target_path", ""), False)
        elif call.method == "NodePublishVolume":
            self._published.setdefault(place, {}).setdefault(call.request.get("target_path", ""), False)
        elif call.method in UNDONE_BY:
            self._doubt(call)

    def _doubt(self, call: Call) -> None:
        """From the start of the way back on, what was done is not known to be there any more."""
        volume_id, node = call.request.get("volume_id", ""), call.request.get("node_id", "")
        if call.method == "ControllerUnpublishVolume":
            if (volume_id, node) in self._attached:
                self._attached[volume_id, node] = (False, self._attached[volume_id, node][1])
            return
        facts = self._staged if call.method == "NodeUnstageVolume" else self._published
        path = call.request.get("staging_target_path") or call.request.get("target_path", "")
        if path in facts.get(_place(call), {}):
            facts[_place(call)][path] = False

    def _end(self, call: Call, line: Ended) -> None:
        self._settle_overlaps(call)
        is_ok = line.status == "OK"
        key = _repeat_key(call)
        if key is not None and key in self._repeats:
            arguments, may_be_made = self._repeats[key]
            if is_ok or line.status not in FINAL:
                self._repeats[key] = (arguments, True)
            elif not may_be_made:
                del self._repeats[key]
        if is_ok:
            self._learn(call, line.answer)
        if call.method in UNDONE_BY or call.method in ("DeleteVolume", "DeleteSnapshot"):
            if is_ok or line.status == "NOT_FOUND":
                self._undo(call)
        elif line.status in FINAL:
            self._take_back(call)

    def _learn(self, call: Call, answer: Mapping[str, Any]) -> None:
        request, place = call.request, _place(call)
        if call.method == "CreateVolume":
            volume = answer.get("volume", {})
            self._contexts["volume", volume.get("volume_id", "")] = volume.get("volume_context", {})
            self._snapshot_names[volume.get("volume_id", "")] = request.get("name", "")
        elif call.method == "CreateSnapshot":
            self._snapshot_names[answer.get("snapshot", {}).get("snapshot_id", "")] = request.get("name", "")
        elif call.method == "ControllerPublishVolume":
            place = (request.get("volume_id", ""), request.get("node_id", ""))
            self._attached[place] = (True, request)
            self._contexts["publish", *place] = answer.get("publish_context", {})
        elif call.method == "NodeStageVolume":
            self._staged.setdefault(place, {})[request.get("staging_target_path", "")] = True
        elif call.method == "NodePublishVolume":
            self._published.setdefault(place, {})[request.get("target_path", "")] = True
        else:
            known = self._abilities.get(call.judge, Abilities())
            self._abilities[call.judge] = read_abilities(known, call.method, answer)
