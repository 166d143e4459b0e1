"""The volume machine explored whole: create, expansion and deletion with every answer that a driver can give or lose,
a user who changes their mind at any moment, and servers that die. Every state keeps the promises; from every one a calm
world comes to rest.

The decisions are the real ones (``rules.volumes``). The backend is one fact: the sizes of what it has made, by name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from moorage.model.ids import NamespaceName, PluginId, VolumeId
from moorage.model.steps import Created, CreateVolume, DeleteVolume, Done, Expanded, ExpandVolume, Failed, Outcome
from moorage.model.volume import Fault, Progress, Secrets, Volume
from moorage.rules import volumes as rules
from moorage.rules.volumes import Folding, Remove, Rest

CALM_STEPS_MAX = 30
SMALL, LARGE = 100, 200
FOLDING = Folding(now_ns=1, jitter=0.0)
BASE = Volume(
    id=VolumeId("v"), namespace=NamespaceName("default"), plugin_id=PluginId("p"), name="v", requested_min_bytes=SMALL
)


class Call(NamedTuple):
    """A call at the driver. ``is_current``: the record has not changed since; ``outcome``: what it came to, once it
    has; ``is_awaited``: somebody still wants the answer."""

    step: Any
    is_current: bool = True
    outcome: Outcome | None = None
    is_awaited: bool = True


class S(NamedTuple):
    """The record (None: none), what the backend has (0: nothing), the call under way, what the user may still do."""

    volume: Volume | None = BASE
    has_bytes: int = 0
    call: Call | None = None
    has_expanded: bool = False
    is_doubted: bool = False


Moves = Iterator[tuple[str, S]]


def write(s: S, volume: Volume | None) -> S:
    """The record changes; times and counts that only pace the retries are left out, so that the states are finite."""
    call = s.call._replace(is_current=False) if s.call else None
    if volume is None:
        return s._replace(volume=None, call=call)
    last = volume.progress.last_fault
    kept = Progress(unclear=min(volume.progress.unclear, rules.LEARN_MAX), last_fault=last)
    return s._replace(volume=rules.replace(volume, progress=kept, modified_at_ns=0), call=call)


def server_moves(s: S) -> Moves:
    """The next step, if nothing is under way at the driver: one call at a time for a volume."""
    if s.volume is None:
        return
    match rules.next_step(s.volume):
        case Remove():
            yield "remove", write(s, None)
        case Rest():
            return
        case step if s.call is None:
            yield type(step).__name__, s._replace(call=Call(step))


def call_moves(s: S, *, is_troubled: bool) -> Moves:
    """The driver works, and its answer is folded."""
    call = s.call
    if call is None:
        return
    if call.outcome is None:
        for label, has_bytes, outcome in effects(call.step, s.has_bytes, is_troubled=is_troubled):
            after = s._replace(has_bytes=has_bytes, call=call._replace(outcome=outcome) if call.is_awaited else None)
            yield f"{type(call.step).__name__} {label}", after
        return
    done = s._replace(call=None)
    if call.is_current and s.volume is not None:
        yield "answer", write(done, rules.fold_outcome(s.volume, call.outcome, FOLDING))
    else:
        yield "stale answer", done


def effects(step: Any, has_bytes: int, *, is_troubled: bool) -> Iterator[tuple[str, int, Outcome]]:
    """What a call may come to: (label, what the backend then has, the answer). A driver that has done its work does
    not refuse for good; an unclear or uncertain answer may follow on any effect."""
    after, good = has_bytes, Done()
    match step:
        case CreateVolume():
            after = has_bytes or SMALL
            good = Created(external_id="e", capacity_bytes=after)  # type: ignore[assignment]
        case DeleteVolume():
            after = 0
        case ExpandVolume():
            after = max(has_bytes, LARGE)
            good = Expanded(capacity_bytes=after, is_node_expansion_required=False)  # type: ignore[assignment]
    yield "works", after, good
    if not is_troubled:
        return
    for status, is_final in (("UNAVAILABLE", False), ("INTERNAL", False)):
        yield f"works, {status}", after, failed(step, status, is_final=is_final)
        yield f"{status}", has_bytes, failed(step, status, is_final=is_final)
    is_done = after == has_bytes if isinstance(step, DeleteVolume) else has_bytes >= after
    if not is_done:
        yield "refused", has_bytes, failed(step, "INVALID_ARGUMENT", is_final=True)


def failed(step: Any, status: str, *, is_final: bool) -> Failed:
    return Failed(fault=Fault(method=type(step).__name__, status=status, message="no", final=is_final))


def user_moves(s: S) -> Moves:
    """What people ask, as the use cases write it; and a server that dies, or a deadline that ends."""
    volume = s.volume
    if volume is not None and volume.wanted == "present":
        if volume.state == "ready":
            wanted = rules.replace(volume, wanted="absent", delete_secrets=Secrets(), progress=Progress())
            yield "delete", write(s, wanted)
            if not s.has_expanded:
                grown = rules.replace(volume, expand_min_bytes=LARGE, progress=Progress())
                yield "expand", write(s, grown)._replace(has_expanded=True)
        else:
            yield "withdraw", write(s, rules.replace(volume, wanted="absent", progress=Progress()))
    if s.call is not None and s.call.is_awaited:
        # The server or its agent dies: the call goes on at the driver, and nobody hears of it.
        yield "answer lost", s._replace(call=None if s.call.outcome else s.call._replace(is_awaited=False))


def is_unclear_to_the_end(s: S) -> bool:
    """Whether the driver could not say to the last what it has: the one leak that is known (decision 0004)."""
    volume = s.volume
    fault = volume.progress.last_fault if volume is not None else None
    return fault is not None and fault.status == "INTERNAL" and volume is not None and volume.wanted == "absent"


def check(before: S, label: str, s: S) -> None:
    """What holds in every state, and on every way into it."""
    where = f"{label}: {before} -> {s}"
    if s.volume is None:
        assert s.has_bytes == 0 or is_unclear_to_the_end(before), f"a volume that nobody knows; {where}"
    elif s.volume.state == "ready" and s.volume.wanted == "present" and s.call is None:
        assert s.has_bytes or s.is_doubted, f"shown, not there; {where}"
    if label.startswith("DeleteVolume") and s.has_bytes < before.has_bytes:
        assert before.call is not None


def with_doubt(s: S) -> S:
    """A delete that was told to have failed unclearly may have worked: the record says so, and can be deleted again."""
    fault = s.volume.progress.last_fault if s.volume is not None else None
    is_unclear = fault is not None and (fault.method, fault.status) == ("DeleteVolume", "INTERNAL")
    return s._replace(is_doubted=(s.is_doubted or is_unclear) and s.volume is not None)


def explore() -> list[S]:
    """Every state that can be reached."""
    start = S()
    seen, todo = {repr(start): start}, deque([start])
    while todo:
        s = todo.popleft()
        for moves in (server_moves(s), call_moves(s, is_troubled=True), user_moves(s)):
            for label, plain in moves:
                after = with_doubt(plain)
                check(s, label, after)
                if repr(after) not in seen:
                    seen[repr(after)] = after
                    todo.append(after)
    return list(seen.values())


def calm_move(s: S) -> S | None:
    """The next thing that happens where nothing goes wrong; None: rest."""
    for moves in (call_moves(s, is_troubled=False), server_moves(s)):
        for _, after in moves:
            return after
    return None


def test_every_reachable_state_keeps_the_promises_and_comes_to_rest() -> None:
    reached = explore()
    assert len(reached) > 500
    for s in reached:
        steps, now = 0, s
        while (after := calm_move(now)) is not None:
            now, steps = after, steps + 1
            assert steps <= CALM_STEPS_MAX, f"no rest from {s}: now {now}"
        if now.volume is None:
            continue
        assert (now.volume.wanted, now.volume.state) == ("present", "ready"), f"from {s}: {now}"
        assert not rules.is_expanding(now.volume), f"from {s}: {now}"


def test_the_model_finds_a_create_that_is_given_up_without_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    hasty = dict(rules.NEXT)
    hasty["absent", "absent"] = lambda volume: rules.REMOVE
    monkeypatch.setattr(rules, "NEXT", hasty)
    with pytest.raises(AssertionError, match="nobody knows"):
        explore()


def test_the_model_finds_a_deletion_that_is_taken_for_done(monkeypatch: pytest.MonkeyPatch) -> None:
    hasty = dict(rules.FOLD_FAILED)
    hasty["absent", "ready"] = lambda volume, fault, folding: None  # type: ignore[assignment,return-value]
    monkeypatch.setattr(rules, "FOLD_FAILED", hasty)
    with pytest.raises(AssertionError, match="nobody knows"):
        explore()
