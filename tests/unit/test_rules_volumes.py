"""The volume machine: every cell of NEXT and FOLD; register's checks, merge and growth."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest

from moorage.errors import Conflict, Rejected
from moorage.model import steps
from moorage.model.ids import NamespaceName, PluginId, VolumeId
from moorage.model.volume import Capability, Fault, MountOptions, Progress, Secrets, Topology, TopologyRequest, Volume
from moorage.rules import registration
from moorage.rules import volumes as rules
from moorage.rules.backoff import CAP_S, UNCLEAR, UNCLEAR_MAX, delay_s

replace = msgspec.structs.replace
WRITER = Capability(access_mode="single-node-writer", attachment_mode="file-system")
READER = Capability(access_mode="single-node-reader-only", attachment_mode="file-system")
NOW = rules.Folding(now_ns=1_000, jitter=0.0)


def a_volume(**fields: object) -> Volume:
    base: dict[str, object] = {
        "id": VolumeId("v"),
        "namespace": NamespaceName("default"),
        "plugin_id": PluginId("p"),
        "name": "v",
        "capabilities": (WRITER,),
    }
    return Volume(**base | fields)  # type: ignore[arg-type]


def ready(**fields: object) -> Volume:
    return a_volume(**{"state": "ready", "external_id": "ext", "capacity_bytes": 100} | fields)


def a_fault(*, final: bool) -> Fault:
    return Fault(method="M", status="S", message="m", final=final, at_ns=1)


def test_tables_have_no_empty_cell() -> None:
    cells = set(product(("present", "absent"), ("absent", "ready")))
    assert set(rules.NEXT) == cells
    assert set(rules.FOLD_FAILED) == cells


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        (a_volume(), steps.CreateVolume),
        (ready(), rules.Rest),
        (ready(expand_min_bytes=200), steps.ExpandVolume),
        (a_volume(wanted="absent"), steps.CreateVolume),
        (a_volume(wanted="absent", progress=Progress(last_fault=a_fault(final=False))), steps.CreateVolume),
        (a_volume(wanted="absent", progress=Progress(last_fault=a_fault(final=True))), rules.Remove),
        (ready(wanted="absent"), steps.DeleteVolume),
    ],
)
def test_next(volume: Volume, expected: type) -> None:
    assert type(rules.next_step(volume)) is expected


def test_delete_overlays_the_secrets_given_for_it() -> None:
    volume = ready(wanted="absent", secrets=Secrets({"a": "1", "b": "1"}), delete_secrets=Secrets({"b": "2"}))
    step = rules.next_step(volume)
    assert isinstance(step, steps.DeleteVolume)
    assert step.secrets.values == {"a": "1", "b": "2"}


CREATED = steps.Created(external_id="ext", capacity_bytes=100, context={"c": "1"})


def test_created() -> None:
    after = rules.fold_outcome(a_volume(), CREATED, NOW)
    assert after is not None
    assert (after.state, after.wanted, after.external_id, after.capacity_bytes) == ("ready", "present", "ext", 100)


def test_created_while_it_is_given_up_is_deleted_next() -> None:
    after = rules.fold_outcome(a_volume(wanted="absent"), CREATED, NOW)
    assert after is not None
    assert isinstance(rules.next_step(after), steps.DeleteVolume)


@pytest.mark.parametrize(
    "broken",
    [
        replace(CREATED, is_source_kept=False),
        replace(CREATED, capacity_bytes=10),
        replace(CREATED, capacity_bytes=10_000),
    ],
)
def test_a_broken_promise_is_undone_and_told(broken: steps.Created) -> None:
    asked = a_volume(requested_min_bytes=50, requested_max_bytes=500, snapshot_id="s")
    after = rules.fold_outcome(asked, broken, NOW)
    assert after is not None
    assert after.progress.last_fault is not None
    assert isinstance(rules.next_step(after), steps.DeleteVolume)


def test_an_external_id_of_another_volume_is_left_alone() -> None:
    after = rules.fold_outcome(a_volume(), CREATED, replace(NOW, is_external_id_taken=True))
    assert after is not None
    assert (after.state, after.external_id) == ("absent", "")
    assert isinstance(rules.next_step(after), rules.Remove)


def test_deleted_and_refused_deletion() -> None:
    going = ready(wanted="absent", delete_secrets=Secrets({"k": "v"}))
    assert rules.fold_outcome(going, steps.Done(), NOW) is None
    kept = rules.fold_outcome(going, steps.Failed(fault=a_fault(final=True)), NOW)
    assert kept is not None
    assert (kept.wanted, kept.delete_secrets.values) == ("present", {})
    again = rules.fold_outcome(going, steps.Failed(fault=a_fault(final=False)), NOW)
    assert again is not None
    assert (again.wanted, again.progress.attempts) == ("absent", 1)


def unclear(status: str = "INTERNAL") -> steps.Failed:
    return steps.Failed(fault=Fault(method="M", status=status, message="m", final=False, at_ns=1))


def fold_all(volume: Volume, *outcomes: steps.Outcome) -> Volume:
    for outcome in outcomes:
        after = rules.fold_outcome(volume, outcome, NOW)
        assert after is not None
        volume = after
    return volume


@pytest.mark.parametrize("status", sorted(UNCLEAR))
def test_a_create_without_a_clear_answer_is_repeated_then_undone_then_given_up(status: str) -> None:
    again = [unclear(status)]
    trying = fold_all(a_volume(), *again * (UNCLEAR_MAX - 1))
    assert (trying.wanted, trying.progress.unclear) == ("present", UNCLEAR_MAX - 1)
    undone = fold_all(trying, *again)
    assert (undone.wanted, undone.progress.attempts) == ("absent", 1)
    assert rules.is_told_failed(undone)
    assert isinstance(rules.next_step(undone), steps.CreateVolume), "what it may have made is asked for by its name"
    found = fold_all(undone, CREATED)
    assert isinstance(rules.next_step(found), steps.DeleteVolume)
    learning = fold_all(undone, *again * (rules.LEARN_MAX - 2))
    assert isinstance(rules.next_step(learning), steps.CreateVolume)
    assert isinstance(rules.next_step(fold_all(learning, *again)), rules.Remove)


def test_only_unclear_answers_in_a_row_count() -> None:
    mixed = fold_all(a_volume(), unclear(), unclear(), unclear("UNAVAILABLE"), unclear(), unclear())
    assert (mixed.wanted, mixed.progress.unclear, mixed.progress.attempts) == ("present", 2, 5)
    lost = fold_all(a_volume(), *[unclear("UNAVAILABLE")] * 20)
    assert lost.wanted == "present"
    learning = fold_all(a_volume(wanted="absent"), *[unclear("UNAVAILABLE")] * 20, unclear())
    assert isinstance(rules.next_step(learning), steps.CreateVolume)


def test_unclear_answers_to_a_deletion_or_an_expansion_end_as_a_refusal() -> None:
    going = fold_all(ready(wanted="absent"), *[unclear()] * (UNCLEAR_MAX - 1))
    assert going.wanted == "absent"
    kept = fold_all(going, unclear())
    assert (kept.wanted, kept.progress.last_fault.final) == ("present", True)  # type: ignore[union-attr]
    growing = fold_all(ready(expand_min_bytes=200), *[unclear()] * (UNCLEAR_MAX - 1))
    assert rules.is_expanding(growing)
    assert not rules.is_expanding(fold_all(growing, unclear()))


def test_expanded_and_refused_expansion() -> None:
    growing = ready(expand_min_bytes=200, expand_max_bytes=300)
    grown = rules.fold_outcome(growing, steps.Expanded(capacity_bytes=250, is_node_expansion_required=True), NOW)
    assert grown is not None
    sizes = (grown.capacity_bytes, grown.requested_min_bytes, grown.requested_max_bytes, grown.node_expansion_bytes)
    assert sizes == (250, 200, 300, 250)
    assert not rules.is_expanding(grown)
    refused = rules.fold_outcome(growing, steps.Failed(fault=a_fault(final=True)), NOW)
    assert refused is not None
    assert not rules.is_expanding(refused)
    assert refused.progress.last_fault == a_fault(final=True)


@pytest.mark.parametrize("volume", [a_volume(), ready(), a_volume(wanted="absent"), ready(wanted="absent")])
def test_an_outcome_of_another_step_changes_nothing(volume: Volume) -> None:
    assert rules.fold_outcome(volume, steps.Attached(), NOW) is volume


def test_back_off_grows_to_a_cap_with_jitter() -> None:
    for jitter in (0.0, 0.5, 0.999):
        pauses = [delay_s(n, jitter) for n in range(1, 40)]
        assert pauses == sorted(pauses)
        assert 0.25 <= pauses[0] < 0.5
        assert CAP_S / 2 <= pauses[-1] <= CAP_S


# -- registration ----------------------------------------------------------------------------------------------------


def test_errors_join_as_recorded() -> None:
    assert registration.join_errors(["a"]) == "1 error occurred:\n\t* a\n\n"
    assert registration.join_errors(["a", "b"]) == "2 errors occurred:\n\t* a\n\t* b\n\n"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"id": ""}, "validation: missing volume id"),
        ({"plugin_id": "", "capabilities": ()}, "missing plugin id, must include at least one capability block"),
        ({"snapshot_id": "s", "clone_id": "c"}, "only one of snapshot_id and clone_id is allowed"),
        ({"requested_topologies": TopologyRequest(required=(Topology(),))}, "required topology is missing segments"),
        ({"id": "a/b"}, "holds '/' at position 1"),
        ({"id": "a\n"}, "position 1"),
        ({"id": "x" * 129}, "longer than 128 bytes"),
        ({"requested_max_bytes": 2**63}, "requested capacity max"),
    ],
)
def test_check_volume(fields: dict[str, object], text: str) -> None:
    with pytest.raises(Rejected, match=text) as refused:
        registration.check_volume(a_volume(**fields))
    assert refused.value.code == "validation"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": "w"}, "volume name cannot be updated"),
        ({"external_id": "other"}, "volume external ID cannot be updated"),
        ({"plugin_id": "q"}, "volume plugin ID cannot be updated"),
        ({"clone_id": "c"}, "volume clone ID cannot be updated"),
        ({"snapshot_id": "s"}, "volume snapshot ID cannot be updated"),
        ({"parameters": {"a": "2"}}, "volume parameters cannot be updated"),
    ],
)
def test_identity_cannot_be_updated(change: dict[str, object], text: str) -> None:
    old = ready(parameters={"a": "1"})
    with pytest.raises(Conflict, match=text):
        registration.merge(old, a_volume(**change), is_claimed=False)


def test_merge_in_use() -> None:
    old = ready(
        access_mode="single-node-writer",
        attachment_mode="file-system",
        mount_options=MountOptions(fs_type="ext4", mount_flags=("a", "b")),
    )
    with pytest.raises(Conflict, match="capability in use"):
        registration.merge(old, a_volume(capabilities=(READER,)), is_claimed=True)
    with pytest.raises(Conflict, match="can not update mount options"):
        registration.merge(old, a_volume(), is_claimed=True)
    shown = MountOptions(fs_type="ext4", mount_flags=("[REDACTED]",))
    kept = registration.merge(old, a_volume(mount_options=shown, capabilities=(WRITER, READER)), is_claimed=True)
    assert kept.mount_options == old.mount_options


def test_merge_replaces_secrets_and_keeps_context() -> None:
    old = ready(context={"c": "1"}, secrets=Secrets({"a": "1"}))
    merged = registration.merge(old, a_volume(), is_claimed=False)
    assert (merged.context, merged.secrets) == ({"c": "1"}, Secrets())


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [((0, 0), None), ((10, 0), None), ((100, 200), None), ((150, 0), (150, 0)), ((150, 160), (150, 160))],
)
def test_plan_growth(bounds: tuple[int, int], expected: tuple[int, int] | None) -> None:
    asked = a_volume(requested_min_bytes=bounds[0], requested_max_bytes=bounds[1])
    assert registration.plan_growth(ready(), asked, supports_expand=True) == expected


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ((5_000_000, 3_000_000), r"max requested capacity \(3.0 MB\) less than or equal to min \(5.0 MB\)"),
        ((0, 99), r"max requested capacity \(99 B\) less than or equal to current \(100 B\)"),
        ((200, 0), "expand is not implemented by this controller plugin"),
    ],
)
def test_growth_refused(bounds: tuple[int, int], text: str) -> None:
    asked = a_volume(requested_min_bytes=bounds[0], requested_max_bytes=bounds[1])
    with pytest.raises(Rejected, match=text):
        registration.plan_growth(ready(), asked, supports_expand=False)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (31457280, "32 MB"), (3_000_000, "3.0 MB"), (82_854_982, "83 MB")],
)
def test_format_bytes(size: int, text: str) -> None:
    assert registration.format_bytes(size) == text
