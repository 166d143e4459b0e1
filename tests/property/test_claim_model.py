"""The claim machine with everything around it that may fail, explored whole: every state that can be reached, by faults
at any moment, keeps the promises, and from every one of them a calm world comes to rest.

The decisions are the real ones (``rules.claims``, ``rules.nodes``); the backend, the agent and the network are two or
three facts each. What agents do with paths and journals is the model of ``test_mounts``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from moorage.errors import Conflict
from moorage.model import claim as states
from moorage.model.claim import Claim
from moorage.model.ids import AllocationId, ClaimId, NamespaceName, NodeId, PluginId, VolumeId
from moorage.model.node import Fence, Node
from moorage.model.steps import Attached as AttachDone
from moorage.model.steps import AttachVolume, DetachVolume, Done
from moorage.model.volume import Volume
from moorage.rules import claims as rules
from moorage.rules import nodes as node_rules
from moorage.rules.volumes import Remove

CALM_STEPS_MAX = 40
VOLUME = Volume(
    id=VolumeId("v"),
    namespace=NamespaceName("default"),
    plugin_id=PluginId("p"),
    name="v",
    external_id="e",
    state="ready",
)
CLAIM = Claim(
    id=ClaimId("a/v"), allocation_id=AllocationId("a"), name="v", namespace=VOLUME.namespace, volume_id=VOLUME.id,
    plugin_id=VOLUME.plugin_id, external_id="e", node_id=NodeId("n"), external_node_id="x", read_only=False,
    access_mode="single-node-writer", attachment_mode="file-system",
)  # fmt: skip
STATES: dict[str, Any] = {
    "taken": states.Taken(),
    "attached": states.Attached(),
    "mounted": states.Mounted(path="/p"),
    "node_detached": states.NodeDetached(),
    "controller_detached": states.ControllerDetached(),
}
OWN = ("attached", "mounted")


class Call(NamedTuple):
    """A controller call at the driver. ``is_current``: its record has not changed since; ``has_landed``: it had its
    effect, and only the answer is missing; ``is_awaited``: whoever made it still wants the answer."""

    kind: str
    is_current: bool = True
    has_landed: bool = False
    is_awaited: bool = True


class Told(NamedTuple):
    """A report under way."""

    what: str
    is_current: bool


class S(NamedTuple):
    """The world: the claim's record, the backend, the node's record, the agent, what is under way."""

    wanted: str = "held"
    state: str = "taken"
    is_attached: bool = False
    is_mounted: bool = False
    status: str = "ready"
    is_fenced: bool = False
    # The evidence was somebody's word, and not so: what the node shows is on that word until it comes back.
    is_word: bool = False
    is_boot_new: bool = False
    # The agent: running, taken by the server; the claim by its list (empty: none yet); whether list and records agree.
    is_alive: bool = True
    is_taken: bool = True
    has_begun: bool = False
    list_wanted: str = ""
    list_state: str = ""
    is_list_current: bool = False
    is_list_fresh: bool = False
    # The list is from after the server took the node (back).
    is_list_since: bool = False
    is_cut: bool = False
    call: Call | None = None
    told: Told | None = None

    @property
    def claim(self) -> Claim:
        """The record as the rules take it."""
        return rules.replace(CLAIM, wanted=self.wanted, state=STATES[self.state])

    @property
    def goal(self) -> str:
        """What the agent's list says of the claim."""
        if self.list_state not in OWN:
            return "none"
        return "mount" if self.list_wanted == "held" else "unmount"


Moves = Iterator[tuple[str, S]]


def write(s: S, claim: Claim | None) -> S:
    """The record changes: whatever was decided on the old one is not current any more."""
    call = s.call._replace(is_current=False) if s.call else None
    told = s.told._replace(is_current=False) if s.told else None
    after = s._replace(call=call, told=told, is_list_current=False)
    if claim is None:
        return after._replace(wanted="-", state="gone")
    name = next(n for n, v in STATES.items() if type(v) is type(claim.state))
    return after._replace(wanted=claim.wanted, state=name)


def touch_node(s: S) -> S:
    """The node's record changes: no list read before is the newest."""
    return s._replace(is_list_fresh=False)


# -- what works ------------------------------------------------------------------------------------------------------


def server_moves(s: S, *, is_attaching: bool) -> Moves:
    """What the server does next."""
    if s.state != "gone":
        match rules.next_step(s.claim, rules.Surroundings(volume=VOLUME, is_attaching=is_attaching)):
            case Remove():
                yield "remove", write(s, None)
            case rules.Advance(state=state):
                yield "advance", write(s, rules.replace(s.claim, state=state))
            case AttachVolume() if s.call is None:
                yield "attach", s._replace(call=Call("attach"))
            case DetachVolume() if s.call is None:
                yield "detach", s._replace(call=Call("detach"))
        fence = Fence(kind="hook")
        if s.status == "down" and s.is_fenced and (freed := node_rules.free_claim(s.claim, fence)) is not None:
            yield "free", touch_node(write(s, freed))


def call_moves(s: S) -> Moves:
    """The driver works, and answers."""
    call = s.call
    if call is None:
        return
    if not call.has_landed:
        after = s._replace(is_attached=call.kind == "attach", call=call._replace(has_landed=True))
        yield f"{call.kind} lands", after if call.is_awaited else after._replace(call=None)
    elif call.is_current:
        outcome = AttachDone(publish_context={}) if call.kind == "attach" else Done()
        yield "answer", write(s, fold(s, outcome))._replace(call=None)
    else:
        yield "stale answer", s._replace(call=None)


def fold(s: S, outcome: rules.Reported) -> Claim:
    """FOLD, with a clock that stands."""
    return rules.fold_outcome(s.claim, outcome, now_ns=0, jitter=0.0)


def agent_moves(s: S, *, is_freeing: bool) -> Moves:
    """What a running agent does."""
    if not s.is_alive:
        return
    if not s.is_cut:
        fresh = s._replace(
            list_wanted=s.wanted, list_state=s.state, is_list_current=True, is_list_fresh=True, is_list_since=True
        )
        if fresh != s:
            yield "list", fresh
        yield from register_moves(s, is_freeing=is_freeing)
        if s.told is not None and s.status == "ready":
            yield "report", deliver(s)
    if not s.list_state:
        return
    if s.goal == "mount" and s.is_taken and s.is_list_since and not s.is_mounted and s.is_attached:
        yield "mount", s._replace(is_mounted=True, has_begun=True)
    if s.goal != "mount" and s.is_mounted:
        yield "unmount", s._replace(is_mounted=False)
    if s.told is None and s.is_list_current:
        if s.goal == "mount" and s.is_mounted and s.list_state == "attached":
            yield "tell", s._replace(told=Told("mounted", s.is_list_current))
        if s.goal == "unmount" and not s.is_mounted:
            yield "tell", s._replace(told=Told("unmounted", s.is_list_current))


def deliver(s: S) -> S:
    """A report arrives; one about an older record is dropped."""
    assert s.told is not None
    if not s.told.is_current or s.state == "gone":
        return s._replace(told=None)
    outcome = rules.MountDone(path="/p", publish_path="/p") if s.told.what == "mounted" else rules.UnmountDone()
    return write(s, fold(s, outcome))._replace(told=None)


def register_moves(s: S, *, is_freeing: bool) -> Moves:
    """The agent registers, or renews."""
    if s.status == "ready":
        if not s.is_taken and s.list_state:
            yield "register", s._replace(is_taken=True, is_boot_new=False, is_list_since=s.is_list_fresh)
        return
    given_up = s._replace(is_taken=False)
    if given_up != s:
        yield "hear of the loss", given_up
        return
    is_clean = bool(s.list_state) and not (s.is_mounted and s.goal == "none")
    revision = 2
    known = Node(
        id=NodeId("n"), name="n", boot_id="old", status="down", fence=Fence(kind="hook") if s.is_fenced else None
    )
    sent = Node(id=known.id, name="n", boot_id="new" if s.is_boot_new else "old")
    try:
        node_rules.check_taken_back(known, revision, (revision if s.is_list_fresh else 1) if is_clean else 0)
    except Conflict:
        return
    after = s
    if s.state != "gone":
        fence = node_rules.find_reboot(known, sent, is_empty=not s.has_begun, now_ns=0)
        is_going = is_freeing or s.wanted == "released"
        freed = node_rules.free_claim(s.claim, fence) if fence is not None and is_going else None
        after = write(s, freed) if freed is not None else s
    taken = after._replace(
        status="ready", is_fenced=False, is_word=False, is_taken=True, is_boot_new=False, is_list_since=False
    )
    yield "come back", touch_node(taken)


# -- what fails ------------------------------------------------------------------------------------------------------


def fault_moves(s: S) -> Moves:
    """Everything that may go wrong, and what people do, at any moment."""
    if s.wanted == "held":
        yield "release", write(s, rules.replace(s.claim, wanted="released"))
    yield "cut" if not s.is_cut else "heal", s._replace(is_cut=not s.is_cut)
    if s.status == "ready" and (s.is_cut or not s.is_alive):
        yield "lose", touch_node(s._replace(status="down"))
    if s.is_alive:
        yield "agent dies", ended(s)
        off = ended(s)._replace(is_mounted=False, has_begun=False, is_boot_new=True)
        yield "power off", off
        if s.status == "down" and not s.is_fenced:
            yield "fence hook", touch_node(off._replace(is_fenced=True))
            yield "an operator's word", touch_node(s._replace(is_fenced=True, is_word=True))
        if s.call is not None and not s.call.has_landed:
            yield "power off, the call with it", off._replace(call=None)
    else:
        yield "agent starts", s._replace(is_alive=True)
    if s.told is not None:
        yield "report lost", s._replace(told=None)
    if s.call is not None and s.call.is_awaited:
        # Nobody waits any more: the server died, was deposed, or the deadline is over. What runs goes on.
        yield "answer lost", s._replace(call=None if s.call.has_landed else s.call._replace(is_awaited=False))


def ended(s: S) -> S:
    """The agent is gone, and with it what it knew."""
    return s._replace(
        is_alive=False, is_taken=False, list_wanted="", list_state="", is_list_current=False, is_list_fresh=False
    )


# -- promises --------------------------------------------------------------------------------------------------------


def check(before: S, label: str, s: S) -> None:
    """What holds in every state, and on every way into it."""
    where = f"{label}: {before} -> {s}"
    if label == "detach lands":
        assert not before.is_mounted or before.is_word, f"detached under a live mount; {where}"
    if s.is_mounted and not s.is_word:
        assert s.is_attached, f"mounted, not attached; {where}"
        assert s.state in OWN, f"mounted without a claim; {where}"
    if s.state == "gone":
        assert not s.is_attached, f"attached with nobody left to detach; {where}"
        assert s.call is None, f"a call outlives its claim; {where}"
    if label == "free":
        assert not before.is_mounted or before.is_word, f"freed under a live mount; {where}"


def explore(*, is_attaching: bool, is_freeing: bool) -> set[S]:
    """Every state that can be reached."""
    start = S(is_attached=not is_attaching)
    seen, todo = {start}, deque([start])
    while todo:
        s = todo.popleft()
        for label, after in all_moves(s, is_attaching=is_attaching, is_freeing=is_freeing):
            if not is_attaching:
                after = after._replace(is_attached=after.state != "gone")
            if after not in seen:
                check(s, label, after)
                seen.add(after)
                todo.append(after)
    return seen


def all_moves(s: S, *, is_attaching: bool, is_freeing: bool) -> Moves:
    yield from server_moves(s, is_attaching=is_attaching)
    yield from call_moves(s)
    yield from agent_moves(s, is_freeing=is_freeing)
    yield from fault_moves(s)


def calm_move(s: S, *, is_attaching: bool, is_freeing: bool) -> S | None:
    """The next thing that happens where nothing goes wrong; None: rest."""
    if s.is_cut:
        return s._replace(is_cut=False)
    if not s.is_alive:
        return s._replace(is_alive=True)
    moves = [*call_moves(s), *server_moves(s, is_attaching=is_attaching), *agent_moves(s, is_freeing=is_freeing)]
    return next((after for _, after in moves if after != s), None)


@pytest.mark.parametrize("is_freeing", [True, False])
@pytest.mark.parametrize("is_attaching", [True, False])
def test_every_reachable_state_keeps_the_promises_and_comes_to_rest(is_attaching: bool, is_freeing: bool) -> None:
    reached = explore(is_attaching=is_attaching, is_freeing=is_freeing)
    assert len(reached) > 1000
    for s in reached:
        steps, now = 0, s
        while (after := calm_move(now, is_attaching=is_attaching, is_freeing=is_freeing)) is not None:
            now, steps = after, steps + 1
            if not is_attaching:
                now = now._replace(is_attached=now.state != "gone")
            assert steps <= CALM_STEPS_MAX, f"no rest from {s}: now {now}"
        assert now.status == "ready"
        if now.wanted == "held":
            assert (now.state, now.is_mounted, now.is_attached) == ("mounted", True, True), f"from {s}: {now}"
        else:
            assert (now.state, now.is_mounted) == ("gone", False), f"from {s}: {now}"


def test_the_model_finds_a_detach_that_nobody_asked_the_node_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hasty = dict(rules.NEXT)
    hasty["released", states.Mounted] = hasty["released", states.NodeDetached]
    monkeypatch.setattr(rules, "NEXT", hasty)
    with pytest.raises(AssertionError, match="detached under a live mount"):
        explore(is_attaching=True, is_freeing=False)


def test_the_model_finds_an_undo_of_what_is_known_to_have_worked_only(monkeypatch: pytest.MonkeyPatch) -> None:
    forgetful = dict(rules.NEXT)
    forgetful["released", states.Taken] = lambda claim, around: rules.Advance(state=states.ControllerDetached())
    monkeypatch.setattr(rules, "NEXT", forgetful)
    with pytest.raises(AssertionError, match=r"attached with nobody left|a call outlives"):
        explore(is_attaching=True, is_freeing=False)


def test_the_model_finds_a_node_taken_back_by_an_older_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_rules, "check_taken_back", lambda known, revision, clean_by: None)
    with pytest.raises(AssertionError, match="mounted without a claim; come back"):
        explore(is_attaching=True, is_freeing=True)
