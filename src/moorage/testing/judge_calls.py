"""Calls as a judge knows them, and the rules that need no knowledge of the driver: one at a time, repeats alike. Pure.

Units:  times in nanoseconds since the epoch.
Source: CSI spec 1.12 "Concurrency", "Timeouts"; contract csi-wire §9, §13.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from moorage.testing.judge_records import GIVEN_UP, OPEN_STATUS, Started
from moorage.testing.judge_requests import Complaint

# Statuses that say that nothing is in progress: another call may come, also with other arguments.
FINAL = frozenset(
    (
        "UNKNOWN", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "FAILED_PRECONDITION",
        "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "DATA_LOSS", "UNAUTHENTICATED",
    )
)  # fmt: skip
# A cancelled call is seen by the driver's side a moment after its caller has gone on.
GIVE_UP_LAG_NS = 250_000_000
REPEATED: dict[str, tuple[str, ...]] = {
    "CreateVolume": ("name",),
    "CreateSnapshot": ("name",),
    "ControllerPublishVolume": ("volume_id", "node_id"),
    "NodeStageVolume": ("volume_id", "staging_target_path"),
    "NodePublishVolume": ("volume_id", "target_path"),
}
"""What makes two calls the same operation, whose other arguments must then be the same."""

Key = tuple[str, ...]


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
    """A call as far as it is known. ``judge`` names its log, ``node`` the node of its driver.

    ``is_first``: nothing of what it makes was there, or may have been there, before it.
    """

    judge: str
    node: str
    started: Started
    ended_ns: int = 0
    status: str = ""
    is_first: bool = False

    @property
    def method(self) -> str:
        """The bare name of the method."""
        return self.started.method

    @property
    def request(self) -> dict[str, Any]:
        """The request."""
        return self.started.request

    @property
    def volume_id(self) -> str:
        """The volume, or an empty text."""
        return str(self.request.get("volume_id", ""))

    @property
    def place(self) -> tuple[str, str]:
        """(volume, node) that the call is about."""
        is_node_call = self.method.startswith("Node")
        return self.volume_id, self.node if is_node_call else str(self.request.get("node_id", ""))

    @property
    def path(self) -> str:
        """The path that a node call makes or takes away."""
        field = "target_path" if self.method.endswith("publishVolume") else "staging_target_path"
        field = "target_path" if self.method == "NodePublishVolume" else field
        return str(self.request.get(field, ""))

    @property
    def subject(self) -> str:
        """What may have one call at a time: a volume or snapshot ID, or, before there is one, a name."""
        if self.method in ("CreateVolume", "CreateSnapshot"):
            return f"{self.method} {self.request.get('name', '')}"
        return str(self.request.get("volume_id") or self.request.get("snapshot_id") or "")

    def complain(self, rule: str, message: str) -> Finding:
        """A finding about this call."""
        return Finding(
            rule=rule, message=message, method=self.method, judge=self.judge, call=self.started.id,
            at_ns=self.started.at_ns, subject=self.subject,
        )  # fmt: skip


class Repeats:
    """Remembers the arguments of operations until they are undone."""

    def __init__(self) -> None:
        # key → (arguments, whether the operation may have been done)
        self._known: dict[Key, tuple[Mapping[str, Any], bool]] = {}
        self._names: dict[str, Key] = {}

    def check(self, call: Call) -> Iterator[Complaint]:
        """Whether a call that starts now repeats an operation with other arguments."""
        key, now = _key_of(call), _arguments_of(call)
        if key is None:
            return
        before, _ = self._known.setdefault(key, (now, False))
        if before != now:
            fields = sorted(field for field in {*before, *now} if before.get(field) != now.get(field))
            yield "changed_repeat", f"repeated with another {', '.join(fields)}, not undone in between"

    def end(self, call: Call, status: str, answer: Mapping[str, Any]) -> None:
        """The call ended."""
        key = _key_of(call)
        if key is not None and key in self._known:
            arguments, may_be_done = self._known[key]
            if status not in FINAL:
                self._known[key] = (arguments, True)
            elif not may_be_done:
                del self._known[key]
        if key is not None and status == "OK":
            made = answer.get("volume", {}).get("volume_id") or answer.get("snapshot", {}).get("snapshot_id")
            if made:
                self._names[made] = key

    def undo(self, call: Call) -> None:
        """The way back, ``call``, is done."""
        if call.method in ("DeleteVolume", "DeleteSnapshot"):
            key = self._names.pop(call.subject, None)
        elif call.method == "ControllerUnpublishVolume":
            key = ("ControllerPublishVolume", *call.place)
        else:
            way = "NodeStageVolume" if call.method == "NodeUnstageVolume" else "NodePublishVolume"
            key = (way, call.node, call.volume_id, call.path)
        if key is not None:
            self._known.pop(key, None)

    def forget_node(self, node: str) -> None:
        """The node was booted: nothing is staged or published there."""
        for key in [k for k in self._known if k[0].startswith("Node") and k[1] == node]:
            del self._known[key]


def find_overlaps(calls: Iterable[Call]) -> Iterator[Finding]:
    """Calls that were sent while another one for the same volume, or name, was in flight.

    Not counted: an earlier call that its caller had given up, or whose deadline had passed; and calls to the node
    services of two nodes, whose orchestrators' sides know nothing of each other.
    """
    by_subject: defaultdict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.subject:
            by_subject[call.subject].append(call)
    for group in by_subject.values():
        group.sort(key=lambda call: call.started.at_ns)
        running: list[Call] = []
        for call in group:
            now_ns = call.started.at_ns
            running = [other for other in running if not _is_over(other, now_ns)]
            for other in running:
                if _do_collide(call, other):
                    text = f"sent while call {other.started.id} ({other.method}, judge {other.judge}) was in flight"
                    yield call.complain("two_in_flight", text)
            running.append(call)


def _is_over(call: Call, now_ns: int) -> bool:
    if call.status == OPEN_STATUS or (call.ended_ns and call.ended_ns <= now_ns):
        return True
    if call.status == GIVEN_UP and call.ended_ns <= now_ns + GIVE_UP_LAG_NS:
        return True
    limit_s = call.started.deadline_s
    return limit_s is not None and call.started.at_ns + int(limit_s * 1e9) <= now_ns + GIVE_UP_LAG_NS


def _do_collide(one: Call, other: Call) -> bool:
    if one.judge == other.judge or "DeleteVolume" in (one.method, other.method):
        return True
    are_node_calls = one.method.startswith("Node"), other.method.startswith("Node")
    if not any(are_node_calls):
        return True
    return not all(are_node_calls) and one.place == other.place


def _key_of(call: Call) -> Key | None:
    fields = REPEATED.get(call.method)
    if fields is None:
        return None
    node = (call.node,) if call.method.startswith("Node") else ()
    return (call.method, *node, *(str(call.request.get(field, "")) for field in fields))


def _arguments_of(call: Call) -> dict[str, Any]:
    return {field: value for field, value in call.request.items() if field != "secrets"}
