"""Promise 5: every state that is not ready explains itself; a ready one says so. Generated records, and real ones."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.api.why import show_explanation
from moorage.model.claim import (
    Allocation,
    Attached,
    Claim,
    ControllerDetached,
    Mounted,
    NodeDetached,
    Taken,
)
from moorage.model.ids import AllocationId, ClaimId, NamespaceName, NodeId, PluginId, VolumeId
from moorage.model.node import Fence, Node
from moorage.model.plugin import ControllerInfo, Instance, NodeInfo, Plugin
from moorage.model.volume import Fault, Progress, Secrets, Volume
from moorage.rules.nodes import FencingSettings
from moorage.rules.plugins import measure_health
from moorage.rules.why import Ahead, Explanation, Queue, command, quote_word
from moorage.rules.why_claims import ClaimCase
from moorage.rules.why_hosts import NodeCase, PluginCase, explain_node, explain_plugin
from moorage.rules.why_uses import AllocationCase, explain_allocation
from moorage.rules.why_volumes import VolumeCase, explain_volume

NOW = 2_000_000_000_000_000_000
SECRET = "hunter2-do-not-tell"
EARLIER = st.sampled_from((0, NOW - 90_000_000_000))
STATES = {
    "ready", "creating", "undoing", "deleting", "expanding", "held", "attaching", "mounting", "releasing", "detaching",
    "waiting", "unhealthy", "degraded", "lost", "fenced", "initializing", "draining", "closed", "complete", "failed",
}  # fmt: skip

faults = st.builds(
    Fault,
    method=st.sampled_from(("CreateVolume", "NodePublishVolume", "")),
    status=st.sampled_from(("UNAVAILABLE", "EBUSY", "")),
    message=st.sampled_from(("it says no", f"bad password {SECRET}")),
    final=st.booleans(),
    at_ns=EARLIER,
)
progresses = st.builds(
    Progress,
    attempts=st.integers(0, 3),
    last_fault=st.none() | faults,
    next_try_at_ns=st.sampled_from((0, NOW - 1, NOW + 5_000_000_000)),
    since_ns=EARLIER,
)
instances = st.builds(
    Instance,
    node_id=st.sampled_from((NodeId("n1"), NodeId("n2"))),
    healthy=st.booleans(),
    health_description=st.sampled_from(("", "socket is gone")),
    requires_controller=st.booleans(),
    controller=st.none() | st.builds(ControllerInfo, supports_attach_detach=st.booleans()),
    node=st.none() | st.just(NodeInfo(external_id="ext")),
    updated_at_ns=EARLIER,
)
plugins = st.none() | st.lists(instances, max_size=2, unique_by=lambda i: i.node_id).map(
    lambda found: Plugin(id=PluginId("p"), instances={i.node_id: i for i in found}, modified_at_ns=NOW)
)
fences = st.none() | st.builds(Fence, kind=st.sampled_from(("operator", "hook")), reason=st.sampled_from(("", "off")))
nodes = st.builds(
    Node,
    id=st.just(NodeId("n1")),
    name=st.sampled_from(("", "worker one")),
    status=st.sampled_from(("initializing", "ready", "down")),
    wanted=st.sampled_from(("active", "closed", "draining")),
    is_self_fencing=st.booleans(),
    lost_at_ns=EARLIER,
    fence=fences,
    created_at_ns=EARLIER,
)
volumes = st.builds(
    Volume,
    id=st.sampled_from((VolumeId("web"), VolumeId("it's; rm"))),
    namespace=st.sampled_from((NamespaceName("default"), NamespaceName("dev"))),
    plugin_id=st.just(PluginId("p")),
    wanted=st.sampled_from(("present", "absent")),
    state=st.sampled_from(("absent", "ready")),
    external_id=st.just("ext-1"),
    expand_min_bytes=st.sampled_from((0, 5)),
    node_expansion_bytes=st.sampled_from((0, 5)),
    secrets=st.just(Secrets({"password": SECRET})),
    created_at_ns=EARLIER,
    progress=progresses,
)
CLAIM_STATES = (
    *(Taken(), Attached(), Mounted(path="/a b", grown_bytes=5), Mounted(path="/a"), NodeDetached()),
    ControllerDetached(),
)
claims = st.builds(
    Claim,
    id=st.just(ClaimId("a1/data")),
    allocation_id=st.just(AllocationId("a1")),
    name=st.just("data"),
    namespace=st.just(NamespaceName("default")),
    volume_id=st.just(VolumeId("web")),
    plugin_id=st.just(PluginId("p")),
    external_id=st.just("ext-1"),
    node_id=st.just(NodeId("n1")),
    external_node_id=st.just("ext"),
    read_only=st.booleans(),
    access_mode=st.just("single-node-writer"),
    attachment_mode=st.just("file-system"),
    wanted=st.sampled_from(("held", "released")),
    state=st.sampled_from(CLAIM_STATES),
    created_at_ns=EARLIER,
    progress=progresses,
)
allocations = st.builds(
    Allocation,
    id=st.just(AllocationId("a1")),
    namespace=st.just(NamespaceName("default")),
    node_id=st.just(NodeId("n1")),
    name=st.sampled_from(("", "web[0]")),
    wanted=st.sampled_from(("run", "stop")),
    status=st.sampled_from(("pending", "running", "complete", "failed", "lost")),
    description=st.sampled_from(("", "said so")),
    modified_at_ns=EARLIER,
)
queues = st.none() | st.builds(
    Queue,
    position=st.just(2),
    length=st.just(3),
    method=st.just("ControllerPublishVolume"),
    node_id=st.just("n2"),
    ahead=st.sampled_from(((), (Ahead(method="DeleteVolume", subject='volume "old"'),))),
    since_ns=EARLIER,
)
claim_cases = st.builds(
    ClaimCase,
    claim=claims,
    allocation=st.none() | allocations,
    volume=st.none() | volumes,
    node=st.none() | nodes,
    plugin=plugins,
    queue=queues,
    fencing=st.builds(FencingSettings, is_takeover_timed=st.booleans()),
    lost_s=st.sampled_from((0.0, 100.0)),
).filter(lambda c: c.volume is not None or SECRET not in repr(c.claim))  # whose secret would it be?
volume_cases = st.builds(
    VolumeCase,
    volume=volumes,
    plugin=plugins,
    claims=st.lists(claim_cases, max_size=2).map(tuple),
    queue=queues,
    others=st.sampled_from(((), ('"twin"',))),
)
RUNS = settings(max_examples=400, deadline=None, derandomize=True, database=None)


def check(found: Explanation) -> str:
    """The promise itself; returns the state."""
    shown = json.dumps(show_explanation(found))
    assert SECRET not in shown
    assert found.state in STATES, found.state
    assert found.summary.strip(), found
    assert "\n" not in found.summary
    if found.state != "ready":
        assert found.blocks or found.commands, found
        assert all(text.strip() for text in found.blocks)
    assert all(c.command.startswith(("moorage ", "fuser ")) and c.why for c in found.commands)
    return found.state


# -- every combination -------------------------------------------------------------------------------------------------


@RUNS
@given(case=volume_cases)
def test_every_volume_explains_itself(case: VolumeCase) -> None:
    found = explain_volume(case, now_ns=NOW)
    volume = case.volume
    is_there = (volume.wanted, volume.state) == ("present", "ready")
    is_idle = is_there and not case.claims and not volume.expand_min_bytes
    assert (check(found) == "ready") == (is_idle and measure_health(case.plugin).is_schedulable)
    assert len(found.holders) == len(case.claims)
    if volume.progress.next_try_at_ns > NOW and found.state in ("creating", "deleting"):
        assert found.next_try_ns == volume.progress.next_try_at_ns
        assert found.last_call is None or found.last_call.attempts == volume.progress.attempts


@RUNS
@given(
    case=st.builds(
        AllocationCase,
        allocation=allocations,
        node=st.none() | nodes,
        claims=st.lists(claim_cases, max_size=2).map(tuple),
    )
)
def test_every_allocation_explains_itself(case: AllocationCase) -> None:
    if check(explain_allocation(case, now_ns=NOW)) == "ready":
        assert case.allocation.status == "running"
        assert case.claims
        assert all(isinstance(c.claim.state, Mounted) and c.claim.wanted == "held" for c in case.claims)
        assert all(c.node is None or c.node.status != "down" for c in case.claims)


@RUNS
@given(
    case=st.builds(PluginCase, plugin_id=st.just("p"), plugin=plugins, waiting=st.sampled_from(({}, {"web": "held"})))
)
def test_every_plugin_explains_itself(case: PluginCase) -> None:
    health = measure_health(case.plugin)
    sick = [i for i in case.plugin.instances.values() if not i.healthy] if case.plugin else []
    assert (check(explain_plugin(case, now_ns=NOW)) == "ready") == (health.is_schedulable and not sick)


@RUNS
@given(case=st.builds(NodeCase, node=nodes, claims=st.lists(claim_cases, max_size=2).map(tuple)))
def test_every_node_explains_itself(case: NodeCase) -> None:
    found = explain_node(case, now_ns=NOW)
    is_ready = case.node.status == "ready" and case.node.wanted == "active"
    assert (check(found) == "ready") == is_ready
    if found.state == "lost":
        assert any("node fence" in c.command for c in found.commands)


INSTANCE = Instance(node_id=NodeId("n1"), healthy=True, controller=ControllerInfo(), node=NodeInfo())
ATTACHING = msgspec.structs.replace(INSTANCE, controller=ControllerInfo(supports_attach_detach=True))
SICK = msgspec.structs.replace(ATTACHING, healthy=False)
PLUGINS = [None, *(Plugin(id=PluginId("p"), instances={i.node_id: i}) for i in (INSTANCE, ATTACHING, SICK))]
NODES = [None, *(Node(id=NodeId("n1"), name="w", status=s) for s in ("initializing", "ready", "down"))]  # type: ignore[arg-type]
TRIED = Fault(method="m", status="EBUSY", message="busy", final=False)
PROGRESSES = [Progress(), Progress(attempts=1, last_fault=TRIED, next_try_at_ns=NOW + 1)]


def test_every_cell_explains_itself() -> None:
    """All of wanted × state × progress × plugin × node, where chance may leave a cell out."""
    seen = set()
    cells = itertools.product(("held", "released"), CLAIM_STATES, PROGRESSES, PLUGINS, NODES, range(4))
    for wanted, state, progress, plugin, node, number in cells:
        claim = make_claim(wanted=wanted, state=state, progress=progress)
        volume = make_volume("present" if number < 2 else "absent", "ready" if number % 2 else "absent", progress)
        case = ClaimCase(claim=claim, volume=volume, plugin=plugin, node=node)
        seen.add(check(explain_volume(VolumeCase(volume=volume, plugin=plugin, claims=(case,)), now_ns=NOW)))
        use = Allocation(id=AllocationId("a1"), namespace=NamespaceName("default"), node_id=NodeId("n1"))
        seen.add(check(explain_allocation(AllocationCase(allocation=use, node=node, claims=(case,)), now_ns=NOW)))
        seen.add(check(explain_volume(VolumeCase(volume=volume, plugin=plugin), now_ns=NOW)))
    own = {"ready", "creating", "undoing", "deleting", "held", "unhealthy", "lost", "waiting"}
    assert seen == own | {"attaching", "mounting", "releasing", "detaching"}


def test_commands_are_safe_to_paste() -> None:
    assert quote_word("web-1") == "web-1"
    assert quote_word("it's; rm -rf ~") == "'it'\\''s; rm -rf ~'"
    assert command("w", "why", "a b").command == "moorage why 'a b'"


# -- a lost writer -----------------------------------------------------------------------------------------------------

LOST = Node(id=NodeId("n1"), name="worker1", status="down", lost_at_ns=NOW - 1_000_000_000)


def make_claim(**members: Any) -> Claim:
    claim = Claim(
        id=ClaimId("a1/data"),
        allocation_id=AllocationId("a1"),
        name="data",
        namespace=NamespaceName("default"),
        volume_id=VolumeId("web"),
        plugin_id=PluginId("p"),
        external_id="ext-1",
        node_id=NodeId("n1"),
        external_node_id="ext",
        read_only=False,
        access_mode="single-node-writer",
        attachment_mode="file-system",
        state=Mounted(path="/srv"),
        created_at_ns=NOW - 60_000_000_000,
    )
    return msgspec.structs.replace(claim, **members)


def make_volume(wanted: Any, state: Any, progress: Progress) -> Volume:
    names = {"id": VolumeId("web"), "namespace": NamespaceName("default"), "plugin_id": PluginId("p")}
    return Volume(**names, wanted=wanted, state=state, external_id="e", progress=progress)  # type: ignore[arg-type]


def explain_lost(claim: Claim, node: Node) -> Explanation:
    volume = make_volume("present", "ready", Progress())
    case = VolumeCase(volume=volume, claims=(ClaimCase(claim=claim, volume=volume, node=node, lost_s=10.0),))
    return explain_volume(case, now_ns=NOW)


def test_a_lost_writer_names_the_evidence_that_frees_it() -> None:
    found = explain_lost(make_claim(), LOST)
    assert found.state == "lost"
    assert found.since_ns == LOST.lost_at_ns
    assert found.next_try_ns == 0
    assert any("only on evidence" in text for text in found.blocks)
    assert found.commands[0].command == "moorage node fence n1 --reason …"
    assert [(h.allocation_id, h.node_name, h.path) for h in found.holders] == [("a1", "worker1", "/srv")]


def test_a_lost_reader_and_a_self_fencing_node_need_only_time() -> None:
    for found in (
        explain_lost(make_claim(read_only=True), LOST),
        explain_lost(make_claim(), msgspec.structs.replace(LOST, is_self_fencing=True)),
    ):
        assert found.next_try_ns == NOW + 20_000_000_000
        assert not any("only on evidence" in text for text in found.blocks)


def test_a_busy_path_says_how_to_find_who_uses_it() -> None:
    busy = Progress(attempts=4, last_fault=Fault(method="unmount", status="EBUSY", message="/srv: busy", final=False))
    node = Node(id=NodeId("n1"), name="worker1", status="ready")
    found = explain_lost(make_claim(wanted="released", progress=busy), node)
    assert found.state == "releasing"
    assert "fuser -vm /srv" in [c.command for c in found.commands]
    assert found.last_call is not None
    assert (found.last_call.status, found.last_call.attempts, found.last_call.final) == ("EBUSY", 4, False)
