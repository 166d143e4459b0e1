"""Rules on calls in their order: what must come before what. Pure.

Shapes: ``Court.take`` is given every line of every log in the order of time; ``findings`` tells what was wrong.
    What calls left behind is kept as facts: True when it is known to be there, False when it may be there.
    Rules that need every call for a volume are left out unless ``is_whole``: then no call went past the judges.
Source: CSI spec 1.12 "Volume Lifecycle"; contract csi-wire §10, §11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moorage.testing.judge_calls import FINAL, Call, Finding, Repeats, find_overlaps
from moorage.testing.judge_records import OPEN_STATUS, Ended, Gone, Line, Opened, Started
from moorage.testing.judge_requests import (
    Abilities,
    Complaint,
    Controller,
    Mode,
    NodeRpc,
    check_request,
    read_abilities,
)

SINGLE_NODE = frozenset(
    (
        Mode.SINGLE_NODE_WRITER,
        Mode.SINGLE_NODE_READER_ONLY,
        Mode.SINGLE_NODE_SINGLE_WRITER,
        Mode.SINGLE_NODE_MULTI_WRITER,
    )
)
_WAY_BACK = ("ControllerUnpublishVolume", "NodeUnstageVolume", "NodeUnpublishVolume", "DeleteVolume", "DeleteSnapshot")
_WITH_CONTEXT = ("ControllerPublishVolume", "NodeStageVolume", "NodePublishVolume")

Place = tuple[str, str]
"""(volume ID, node)."""


class Court:
    """All that is known of the calls to one plugin."""

    def __init__(self, *, is_whole: bool) -> None:
        self._is_whole = is_whole
        self._findings: list[Finding] = []
        self._calls: list[Call] = []
        self._running: dict[tuple[str, int], Call] = {}
        self._abilities: dict[str, Abilities] = {}
        self._nodes: dict[str, str] = {}
        self._boots: dict[str, str] = {}
        self._gone: set[str] = set()
        self._repeats = Repeats()
        self._attached: dict[Place, tuple[bool, Mapping[str, Any]]] = {}
        self._staged: dict[Place, dict[str, bool]] = {}
        self._published: dict[Place, dict[str, bool]] = {}
        self._volume_contexts: dict[str, Mapping[str, str]] = {}
        self._publish_contexts: dict[Place, Mapping[str, str]] = {}
        self._checks: dict[str, Callable[[Call], Iterator[Complaint]]] = {
            "ControllerPublishVolume": self._check_attach,
            "ControllerUnpublishVolume": self._check_detach,
            "NodeStageVolume": self._check_stage,
            "NodePublishVolume": self._check_publish,
            "NodeUnstageVolume": self._check_unstage,
            "DeleteVolume": self._check_delete,
        }

    @property
    def calls(self) -> int:
        """How many calls were taken."""
        return len(self._calls)

    def findings(self) -> list[Finding]:
        """All that was wrong so far, in the order of time."""
        return sorted((*self._findings, *find_overlaps(self._calls)), key=lambda finding: finding.at_ns)

    def prepare(self, judge: str, method: str, answer: Mapping[str, Any]) -> None:
        """Learn what a driver says of itself; also before its first call is taken, when it is known by then."""
        self._abilities[judge] = read_abilities(self._abilities.get(judge, Abilities()), method, answer)
        if method == "NodeGetInfo" and answer.get("node_id"):
            self._nodes[judge] = answer["node_id"]

    def take(self, judge: str, line: Line) -> None:
        """The next line of the log of ``judge``."""
        if isinstance(line, Opened):
            self._open(judge, line)
        elif isinstance(line, Gone):
            self._gone.add(line.node_id)
        elif isinstance(line, Started):
            self._start(judge, line)
        elif call := self._running.pop((judge, line.id), None):
            self._end(call, line)

    # -- the rules ---------------------------------------------------------------------------------------------------

    @property
    def _attaches(self) -> bool | None:
        listed = [known.controller for known in self._abilities.values() if known.controller is not None]
        return any(Controller.PUBLISH_UNPUBLISH_VOLUME in one for one in listed) if listed else None

    def _is_attached(self, place: Place) -> bool:
        return self._attached.get(place, (False, {}))[0]

    def _list_uses(self, place: Place) -> Iterator[str]:
        for verb, facts in (("published", self._published), ("staged", self._staged)):
            for path in facts.get(place, {}):
                yield f"the volume is, or may be, {verb} on node {place[1]} at {path}"

    def _check(self, call: Call) -> Iterator[Complaint]:
        abilities = self._abilities.get(call.judge, Abilities())
        yield from check_request(call.method, call.request, abilities, attaches=self._attaches)
        if call.started.deadline_s is None:
            yield "no_deadline", "the call has no deadline"
        for path in call.started.leaks:
            if not self._is_told(call, path):
                yield "secret_leaked", f"{path} holds a secret, and is not marked for secrets"
        if call.started.users:
            yield "path_in_use", f"{call.path} is in use by {'; '.join(call.started.users)}"
        yield from self._repeats.check(call)
        if self._is_whole and call.method in _WITH_CONTEXT:
            yield from self._check_contexts(call)
        check = self._checks.get(call.method)
        if check is not None:
            yield from check(call)

    def _is_told(self, call: Call, path: str) -> bool:
        """Whether the value at ``path`` is one that the driver itself has put into a context."""
        field, _, key = path.partition(".")
        known: Mapping[str, str] = {}
        if field == "volume_context":
            known = self._volume_contexts.get(call.volume_id, {})
        elif field == "publish_context":
            known = self._publish_contexts.get(call.place, {})
        return key in known and call.request[field].get(key) == known[key]

    def _check_contexts(self, call: Call) -> Iterator[Complaint]:
        told = self._volume_contexts.get(call.volume_id)
        if told is not None and call.request.get("volume_context", {}) != told:
            yield "changed_context", "volume_context is not the one that CreateVolume answered"
        told = self._publish_contexts.get(call.place)
        if call.method == "ControllerPublishVolume" or told is None:
            return
        if call.request.get("publish_context", {}) != told:
            yield "changed_context", "publish_context is not the one that ControllerPublishVolume answered"

    def _check_attach(self, call: Call) -> Iterator[Complaint]:
        if not self._is_whole:
            return
        for (volume_id, node), (_, other) in self._attached.items():
            if volume_id != call.volume_id or node == call.place[1]:
                continue
            modes = {_mode_of(other), _mode_of(call.request)}
            writes_twice = not other.get("readonly") and not call.request.get("readonly")
            if modes & SINGLE_NODE or (Mode.MULTI_NODE_SINGLE_WRITER in modes and writes_twice):
                yield (
                    "second_attach",
                    f"the volume is, or may be, attached to node {node}, and its mode forbids a second",
                )

    def _check_detach(self, call: Call) -> Iterator[Complaint]:
        if self._is_whole and call.place[1] not in self._gone:
            for text in self._list_uses(call.place):
                yield "detach_while_used", text

    def _check_stage(self, call: Call) -> Iterator[Complaint]:
        if self._is_whole and self._attaches and not self._is_attached(call.place):
            yield "stage_without_attach", f"the volume is not known to be attached to node {call.node}"
        for path in self._staged.get(call.place, {}):
            if path != call.path:
                yield "second_staging_path", f"the volume is, or may be, staged at {path} already"

    def _check_publish(self, call: Call) -> Iterator[Complaint]:
        listed = self._abilities.get(call.judge, Abilities()).node
        if listed is not None and NodeRpc.STAGE_UNSTAGE_VOLUME in listed:
            path = call.request.get("staging_target_path", "")
            if not path:
                yield "missing_field", "staging_target_path is required, because the driver stages"
            if not self._staged.get(call.place, {}).get(path):
                yield "publish_without_stage", f"the volume is not known to be staged at {path or 'any path'}"
        if self._is_whole and self._attaches and not self._is_attached(call.place):
            yield "publish_without_attach", f"the volume is not known to be attached to node {call.node}"

    def _check_unstage(self, call: Call) -> Iterator[Complaint]:
        for path in self._published.get(call.place, {}):
            yield "unstage_while_published", f"the volume is, or may be, published at {path}"

    def _check_delete(self, call: Call) -> Iterator[Complaint]:
        if not self._is_whole:
            return
        for volume_id, node in self._attached:
            if volume_id == call.volume_id:
                yield "delete_while_used", f"the volume is, or may be, attached to node {node}"
        for place in {*self._staged, *self._published}:
            if place[0] == call.volume_id and place[1] not in self._gone:
                for text in self._list_uses(place):
                    yield "delete_while_used", text

    # -- what calls leave behind -------------------------------------------------------------------------------------

    def _open(self, judge: str, line: Opened) -> None:
        for key in [key for key in self._running if key[0] == judge]:
            call = self._running.pop(key)
            self._end(call, Ended(at_ns=line.at_ns, id=call.started.id, status=OPEN_STATUS, answer={}))
        before = self._boots.get(judge, line.boot_id)
        self._boots[judge] = line.boot_id
        node = self._nodes.get(judge)
        if before != line.boot_id and node is not None:
            self._repeats.forget_node(node)
            for facts in (self._staged, self._published):
                for place in [place for place in facts if place[1] == node]:
                    del facts[place]

    def _start(self, judge: str, line: Started) -> None:
        call = Call(judge=judge, node=self._nodes.get(judge, judge), started=line)
        self._findings += [call.complain(rule, message) for rule, message in self._check(call)]
        self._calls.append(call)
        self._running[judge, line.id] = call
        if call.method == "ControllerPublishVolume":
            self._gone.discard(call.place[1])
            call.is_first = call.place not in self._attached
            self._attached.setdefault(call.place, (False, call.request))
        elif call.method == "ControllerUnpublishVolume":
            if call.place in self._attached:
                self._attached[call.place] = (False, self._attached[call.place][1])
        elif (facts := self._facts_of(call)) is not None:
            paths = facts.setdefault(call.place, {})
            if call.method in _WAY_BACK:
                paths.update({call.path: False} if call.path in paths else {})
            else:
                call.is_first = call.path not in paths
                paths.setdefault(call.path, False)

    def _facts_of(self, call: Call) -> dict[Place, dict[str, bool]] | None:
        if call.method in ("NodeStageVolume", "NodeUnstageVolume"):
            return self._staged
        return self._published if call.method in ("NodePublishVolume", "NodeUnpublishVolume") else None

    def _end(self, call: Call, line: Ended) -> None:
        call.status, call.ended_ns = line.status, line.at_ns
        self._repeats.end(call, line.status, line.answer)
        if call.method in _WAY_BACK:
            if line.status in ("OK", "NOT_FOUND"):
                self._repeats.undo(call)
                self._take_away(call)
                if call.method == "DeleteVolume":
                    self._volume_contexts.pop(call.volume_id, None)
        elif line.status == "OK":
            self._learn(call, line.answer)
        elif line.status in FINAL and call.is_first:
            self._take_away(call)

    def _take_away(self, call: Call) -> None:
        facts = self._facts_of(call)
        if facts is not None:
            facts.get(call.place, {}).pop(call.path, None)
        elif call.method == "ControllerPublishVolume" or call.place[1]:
            self._attached.pop(call.place, None)
        elif call.method == "ControllerUnpublishVolume":
            for place in [place for place in self._attached if place[0] == call.volume_id]:
                del self._attached[place]

    def _learn(self, call: Call, answer: Mapping[str, Any]) -> None:
        facts = self._facts_of(call)
        if call.method == "CreateVolume":
            volume = answer.get("volume", {})
            self._volume_contexts[volume.get("volume_id", "")] = volume.get("volume_context", {})
        elif call.method == "ControllerPublishVolume":
            self._attached[call.place] = (True, call.request)
            self._publish_contexts[call.place] = answer.get("publish_context", {})
        elif facts is not None:
            facts.setdefault(call.place, {})[call.path] = True
        else:
            self.prepare(call.judge, call.method, answer)


def _mode_of(request: Mapping[str, Any]) -> int:
    return int(request.get("volume_capability", {}).get("access_mode", {}).get("mode", 0))
