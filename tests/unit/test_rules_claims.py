"""The claim machine: every cell of NEXT and FOLD, and admission by access mode."""

from __future__ import annotations

from itertools import product

import pytest

from moorage.errors import BadRequest, Conflict
from moorage.model.claim import (
    Attached,
    Claim,
    ClaimState,
    ControllerDetached,
    Mounted,
    NodeDetached,
    Taken,
    VolumeRequest,
)
from moorage.model.ids import AllocationId, ClaimId, NamespaceName, NodeId, PluginId, VolumeId
from moorage.model.steps import Attached as AttachDone
from moorage.model.steps import AttachVolume, DetachVolume, Done, Failed
from moorage.model.volume import ACCESS_MODES, Capability, Fault, MountOptions, Secrets, Volume
from moorage.rules import claims as rules
from moorage.rules.volumes import REMOVE, REST

WRITER = Capability(access_mode="single-node-writer", attachment_mode="file-system")
VOLUME = Volume(
    id=VolumeId("v"),
    namespace=NamespaceName("default"),
    plugin_id=PluginId("p"),
    state="ready",
    external_id="ext",
    capabilities=(WRITER,),
    secrets=Secrets({"k": "s"}),
)
STATES: tuple[ClaimState, ...] = (
    Taken(),
    Attached(publish_context={"d": "1"}),
    Mounted(path="/a", publish_path="/p"),
    NodeDetached(),
    ControllerDetached(),
)


def a_claim(number: int = 1, **fields: object) -> Claim:
    base: dict[str, object] = {
        "id": ClaimId(f"a{number}/data"),
        "allocation_id": AllocationId(f"a{number}"),
        "name": "data",
        "namespace": NamespaceName("default"),
        "volume_id": VolumeId("v"),
        "plugin_id": PluginId("p"),
        "external_id": "ext",
        "node_id": NodeId("n1"),
        "external_node_id": "e1",
        "read_only": False,
        "access_mode": "single-node-writer",
        "attachment_mode": "file-system",
    }
    return Claim(**base | fields)  # type: ignore[arg-type]


def around(*, attaching: bool | None = True, siblings: tuple[Claim, ...] = ()) -> rules.Surroundings:
    return rules.Surroundings(volume=VOLUME, is_attaching=attaching, siblings=siblings)


def test_every_cell_of_next_is_filled() -> None:
    kinds = [type(s) for s in STATES]
    assert set(rules.NEXT) == set(product(("held", "released"), kinds))


@pytest.mark.parametrize(
    ("wanted", "state", "expected"),
    [
        ("held", Taken(), AttachVolume),
        ("held", Attached(), rules.NodeWork),
        ("held", Mounted(path="/a"), type(REST)),
        ("released", Taken(), DetachVolume),
        ("released", Attached(), rules.NodeWork),
        ("released", Mounted(path="/a"), rules.NodeWork),
        ("released", NodeDetached(), DetachVolume),
        ("released", ControllerDetached(), type(REMOVE)),
    ],
)
def test_next_of_a_driver_that_attaches(wanted: str, state: ClaimState, expected: type) -> None:
    assert type(rules.next_step(a_claim(wanted=wanted, state=state), around())) is expected


@pytest.mark.parametrize("state", [NodeDetached(), ControllerDetached()])
def test_a_released_claim_is_never_held_again(state: ClaimState) -> None:
    with pytest.raises(AssertionError, match="held, yet"):
        rules.next_step(a_claim(state=state), around())


def test_next_without_attach_moves_on() -> None:
    plain = around(attaching=False)
    assert rules.next_step(a_claim(), plain) == rules.Advance(state=Attached())
    released = a_claim(wanted="released", state=NodeDetached())
    assert rules.next_step(released, plain) == rules.Advance(state=ControllerDetached())


@pytest.mark.parametrize(("wanted", "state"), [("held", Taken()), ("released", Taken()), ("released", NodeDetached())])
def test_unknown_capabilities_mean_wait_not_skip(wanted: str, state: ClaimState) -> None:
    assert rules.next_step(a_claim(wanted=wanted, state=state), around(attaching=None)) is REST


@pytest.mark.parametrize(
    ("sibling_state", "detaches"),
    [
        (Taken(), False),
        (Attached(), False),
        (Mounted(path="/b"), False),
        (NodeDetached(), True),
        (ControllerDetached(), True),
    ],
)
def test_detach_waits_for_the_last_use_on_the_node(sibling_state: ClaimState, detaches: bool) -> None:
    mine = a_claim(wanted="released", state=NodeDetached())
    step = rules.next_step(mine, around(siblings=(a_claim(2, state=sibling_state),)))
    assert isinstance(step, DetachVolume) is detaches


def test_attach_and_detach_carry_what_the_driver_needs() -> None:
    attach = rules.next_step(a_claim(mount_options=MountOptions(fs_type="xfs")), around())
    assert isinstance(attach, AttachVolume)
    assert (attach.external_id, attach.external_node_id, attach.read_only) == ("ext", "e1", False)
    assert (attach.secrets.values, attach.mount_options) == ({"k": "s"}, MountOptions(fs_type="xfs"))
    detach = rules.next_step(a_claim(wanted="released"), around())
    assert isinstance(detach, DetachVolume)
    assert (detach.external_node_id, detach.secrets.values) == ("e1", {"k": "s"})


OUTCOMES = {
    "attached": AttachDone(publish_context={"d": "2"}),
    "done": Done(),
    "mounted": rules.MountDone(path="/a", publish_path="/p"),
    "unmounted": rules.UnmountDone(),
}
FOLDS = {
    ("held", "Taken", "attached"): "Attached",
    ("held", "Attached", "mounted"): "Mounted",
    ("held", "Mounted", "mounted"): "Mounted",
    ("released", "Taken", "attached"): "Attached",
    ("released", "Taken", "done"): "ControllerDetached",
    ("released", "Attached", "mounted"): "Mounted",
    ("released", "Mounted", "mounted"): "Mounted",
    ("released", "Attached", "unmounted"): "NodeDetached",
    ("released", "Mounted", "unmounted"): "NodeDetached",
    ("released", "NodeDetached", "done"): "ControllerDetached",
}


@pytest.mark.parametrize("wanted", ["held", "released"])
@pytest.mark.parametrize("state", STATES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_cell_of_fold(wanted: str, state: ClaimState, outcome: str) -> None:
    before = a_claim(wanted=wanted, state=state)
    after = rules.fold_outcome(before, OUTCOMES[outcome], now_ns=5, jitter=0.0)  # type: ignore[arg-type]
    name = type(state).__name__
    assert type(after.state).__name__ == FOLDS.get((wanted, name, outcome), name)
    assert after.wanted == wanted


def test_mount_keeps_the_publish_context() -> None:
    before = a_claim(state=Attached(publish_context={"d": "1"}))
    after = rules.fold_outcome(before, OUTCOMES["mounted"], now_ns=5, jitter=0.0)  # type: ignore[arg-type]
    assert after.state == Mounted(path="/a", publish_path="/p", publish_context={"d": "1"})


@pytest.mark.parametrize(
    ("state", "wanted"), [(Taken(), "released"), (Attached(), "released"), (Mounted(path="/t"), "held")]
)
def test_unclear_answers_release_a_claim_that_is_not_mounted_yet(state: object, wanted: str) -> None:
    claim = a_claim(state=state)
    for count in range(1, 4):
        failed = Failed(fault=Fault(method="M", status="INTERNAL", message="m", final=False))
        claim = rules.fold_outcome(claim, failed, now_ns=5, jitter=0.0)
        assert claim.wanted == ("held" if count < 3 else wanted)


def a_failure(*, final: bool) -> Failed:
    return Failed(fault=Fault(method="NodeStageVolume", status="X", message="m", final=final))


def test_refused_for_good_is_released_and_keeps_the_fault() -> None:
    after = rules.fold_outcome(a_claim(state=Attached()), a_failure(final=True), now_ns=5, jitter=0.0)
    assert (after.wanted, type(after.state)) == ("released", Attached)
    assert after.progress.last_fault is not None
    assert (after.progress.last_fault.final, after.progress.next_try_at_ns) == (True, 0)
    unmounted = rules.fold_outcome(after, rules.UnmountDone(), now_ns=6, jitter=0.0)
    assert unmounted.progress.last_fault == after.progress.last_fault


def test_uncertain_is_tried_again_later() -> None:
    after = rules.fold_outcome(a_claim(), a_failure(final=False), now_ns=1_000, jitter=0.0)
    assert (after.wanted, after.progress.attempts) == ("held", 1)
    assert after.progress.next_try_at_ns == 1_000 + 250_000_000


def test_a_release_is_never_given_up() -> None:
    before = a_claim(wanted="released", state=NodeDetached())
    after = rules.fold_outcome(before, a_failure(final=True), now_ns=1_000, jitter=0.0)
    assert (after.wanted, after.state) == ("released", NodeDetached())
    assert after.progress.next_try_at_ns == 1_000 + 60_000_000_000


# -- admission -------------------------------------------------------------------------------------------------------

R1, W1, R2, W2 = "reader on the node", "writer on the node", "reader elsewhere", "writer elsewhere"


def holder(kind: str, mode: str) -> Claim:
    node = "n1" if kind.endswith("the node") else "n2"
    return a_claim(9, read_only=kind.startswith("reader"), node_id=NodeId(node), access_mode=mode)


# mode → (holder, asking as) pairs that are admitted; all others of that mode are refused.
ADMITTED = {
    "single-node-reader-only": set(),
    "single-node-writer": {(R1, "writer")},
    "single-node-single-writer": set(),
    "single-node-multi-writer": {(k, a) for k in (R1, W1) for a in ("reader", "writer")},
    "multi-node-reader-only": {(R1, "reader"), (R2, "reader")},
    "multi-node-single-writer": {
        *((k, "reader") for k in (R1, W1, R2, W2)),
        (R1, "writer"),
        (R2, "writer"),
    },
    "multi-node-multi-writer": {(k, a) for k in (R1, W1, R2, W2) for a in ("reader", "writer")},
}


def is_possible(mode: str, asking: str, kind: str) -> bool:
    """A reader mode has no writers: complete_request refuses them before."""
    return "reader-only" not in mode or (asking == "reader" and kind in (R1, R2))


CASES = [c for c in product(ACCESS_MODES, ("reader", "writer"), (R1, W1, R2, W2)) if is_possible(*c)]


@pytest.mark.parametrize(("mode", "asking", "kind"), CASES)
def test_admission(mode: str, asking: str, kind: str) -> None:
    claim = a_claim(1, read_only=asking == "reader", access_mode=mode)
    rules.admit_claim(claim, VOLUME, [])
    if (kind, asking) in ADMITTED[mode]:
        rules.admit_claim(claim, VOLUME, [holder(kind, mode)])
        return
    with pytest.raises(Conflict, match="is held by allocation a9 on node n") as refused:
        rules.admit_claim(claim, VOLUME, [holder(kind, mode)])
    assert {"volume", "allocation", "node", "since_ns"} <= set(refused.value.fields)


def test_released_claims_count_until_they_are_gone() -> None:
    going = a_claim(9, wanted="released", state=NodeDetached())
    with pytest.raises(Conflict, match="which is being released"):
        rules.admit_claim(a_claim(1), VOLUME, [going])


def test_modes_in_use_cannot_change() -> None:
    block = a_claim(1, attachment_mode="block-device")
    with pytest.raises(Conflict, match="cannot change attachment mode"):
        rules.admit_claim(block, VOLUME, [a_claim(9)])
    other = a_claim(1, access_mode="multi-node-multi-writer")
    with pytest.raises(Conflict, match="in use as single-node-writer"):
        rules.admit_claim(other, VOLUME, [a_claim(9)])


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"access_mode": "zz"}, "unknown AccessMode 'zz'"),
        ({"attachment_mode": "zz"}, "unknown AttachmentMode 'zz'"),
        ({"access_mode": "single-node-reader-only"}, "requires ReadOnly: true"),
        ({"access_mode": "multi-node-multi-writer"}, "not among its capabilities: single-node-writer with file-system"),
        ({"attachment_mode": "block-device", "mount_options": MountOptions(fs_type="xfs")}, "have no meaning"),
    ],
)
def test_bad_requests_name_the_member(fields: dict[str, object], text: str) -> None:
    request = VolumeRequest(name="data", source=VolumeId("v"), **fields)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match=text):
        rules.complete_request(request, VOLUME)


def test_open_modes_come_from_the_capabilities() -> None:
    request = rules.complete_request(VolumeRequest(name="data", source=VolumeId("v")), VOLUME)
    assert (request.access_mode, request.attachment_mode) == ("single-node-writer", "file-system")
