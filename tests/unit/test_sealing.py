"""What is hidden is sealed: nothing of it in the value, nothing of it changed or moved unnoticed, no key in a text."""

from __future__ import annotations

import base64
from typing import Any, get_args

import msgspec
import pytest

from moorage.errors import BadRequest, StoreUnavailable
from moorage.model import steps
from moorage.model.claim import Allocation, Attached, Claim, ClaimState, Mounted, VolumeRequest
from moorage.model.ids import AllocationId, ClaimId, NamespaceName, NodeId, OperationId, PluginId, VolumeId
from moorage.model.operation import Operation
from moorage.model.volume import Capability, MountOptions, Secrets, Volume
from moorage.state import codec, hiding
from moorage.state.codec import Records, find_seal_key
from moorage.state.keyring import Keyring, join_keys, make_key, parse_keys, write_key
from moorage.state.sealing import Sealer

ONE, TWO = make_key(b"1" * 32), make_key(b"2" * 32)
CANARY = "canary-7f3a"
KEY = "volumes/default/data"
NAMESPACE, PLUGIN = NamespaceName("default"), PluginId("p")
OPTIONS = MountOptions(fs_type="ext4", mount_flags=("noatime", f"password={CANARY}"))


def make_records(*keys: Any, lost: tuple[str, ...] = ()) -> Records:
    return Records(Sealer(join_keys(keys[:1], keys[1:], lost), "file:/keys"))


def make_volume(**changes: Any) -> Volume:
    words: dict[str, Any] = {"secrets": Secrets({"password": CANARY}), "mount_options": OPTIONS, **changes}
    return Volume(id=VolumeId("data"), namespace=NAMESPACE, plugin_id=PLUGIN, **words)


def make_claim(state: ClaimState) -> Claim:
    return Claim(
        id=ClaimId("a/data"),
        allocation_id=AllocationId("a"),
        name="data",
        namespace=NAMESPACE,
        volume_id=VolumeId("data"),
        plugin_id=PLUGIN,
        external_id="e",
        node_id=NodeId("n"),
        external_node_id="n",
        read_only=False,
        access_mode="",
        attachment_mode="",
        mount_options=OPTIONS,
        state=state,
    )


def make_operation(step: steps.ControllerStep) -> Operation:
    return Operation(id=OperationId("o"), plugin_id=PLUGIN, step=step)


SECRETS, MODE = Secrets({"password": CANARY}), Capability()
HIDING_RECORDS: dict[str, msgspec.Struct] = {
    "volumes/default/data": make_volume(delete_secrets=Secrets({"d": CANARY})),
    "claims/a/data": make_claim(Attached(publish_context={"chap": CANARY})),
    "claims/a/more": make_claim(Mounted(path="/m", publish_context={"chap": CANARY})),
    "allocations/a": Allocation(
        id=AllocationId("a"),
        namespace=NAMESPACE,
        node_id=NodeId("n"),
        volumes=(
            VolumeRequest(name="bare", source=VolumeId("b")),
            VolumeRequest(name="data", source=VolumeId("data"), mount_options=OPTIONS),
        ),
    ),
    "operations/1": make_operation(
        steps.CreateVolume(name="n", capabilities=(MODE,), mount_options=OPTIONS, secrets=SECRETS)
    ),
    "operations/2": make_operation(steps.DeleteVolume(external_id="e", secrets=SECRETS)),
    "operations/3": make_operation(
        steps.ExpandVolume(external_id="e", required_bytes=1, mount_options=OPTIONS, secrets=SECRETS)
    ),
    "operations/4": make_operation(
        steps.ValidateVolume(external_id="e", capabilities=(MODE,), mount_options=OPTIONS, secrets=SECRETS)
    ),
    "operations/5": make_operation(
        steps.AttachVolume(
            external_id="e", external_node_id="n", capability=MODE, mount_options=OPTIONS, secrets=SECRETS
        )
    ),
    "operations/6": make_operation(steps.DetachVolume(external_id="e", external_node_id="n", secrets=SECRETS)),
    "operations/7": make_operation(steps.ListSnapshots(secrets=SECRETS)),
    "operations/8": make_operation(steps.CreateSnapshot(external_source_id="e", name="n", secrets=SECRETS)),
    "operations/9": make_operation(steps.DeleteSnapshot(snapshot_id="s", secrets=SECRETS)),
}


@pytest.mark.parametrize("key", sorted(HIDING_RECORDS))
def test_record_comes_back_and_its_value_shows_nothing(key: str) -> None:
    records = make_records(ONE)
    value = records.encode(key, HIDING_RECORDS[key])
    assert CANARY.encode() not in value
    assert b"password" not in value
    assert find_seal_key(value) == ONE.id
    assert records.decode(key, value) == HIDING_RECORDS[key]
    assert not records.is_stale(key, value)
    assert make_records(TWO, ONE).is_stale(key, value)
    assert records.is_stale(key, codec.encode(HIDING_RECORDS[key]))


def holds_secrets(cls: Any, seen: frozenset[Any] = frozenset()) -> bool:
    """Whether a value of this type may hold a secret, mount flags or a publish context."""
    if cls in seen:
        return False
    if cls in (Secrets, MountOptions):
        return True
    found = [holds_secrets(part, seen | {cls}) for part in get_args(cls)]
    if isinstance(cls, type) and issubclass(cls, msgspec.Struct):
        fields = msgspec.structs.fields(cls)
        found += [f.name == "publish_context" or holds_secrets(f.type, seen | {cls}) for f in fields]
    return any(found)


def test_no_class_with_secrets_is_forgotten() -> None:
    assert {cls for cls in codec.RECORDS.values() if holds_secrets(cls)} == hiding.HIDING
    tested = {type(record.step) for record in HIDING_RECORDS.values() if isinstance(record, Operation)}
    assert {step for step in get_args(steps.ControllerStep) if holds_secrets(step)} == tested


def test_what_hides_nothing_is_not_sealed() -> None:
    bare = make_volume(secrets=Secrets(), mount_options=None)
    value = make_records(ONE).encode(KEY, bare)
    assert value == codec.encode(bare)
    assert find_seal_key(value) == ""
    assert not make_records(TWO).is_stale(KEY, value)


def test_moved_or_changed_value_breaks_the_seal() -> None:
    records = make_records(ONE)
    value = records.encode(KEY, make_volume())
    other = records.encode(KEY, make_volume(external_id="x"))
    with pytest.raises(StoreUnavailable, match=r"seal .* is broken"):
        records.decode("volumes/default/other", value)
    with pytest.raises(StoreUnavailable, match=r"seal .* is broken"):
        records.decode(KEY, value.replace(b'"plugin_id":"p"', b'"plugin_id":"q"'))
    with pytest.raises(StoreUnavailable, match=r"seal .* is broken"):
        records.decode(KEY, value.rpartition(b"\n")[0] + b"\n" + other.rpartition(b"\n")[2])
    box = bytearray(base64.b64decode(value.rpartition(b" ")[2]))
    box[-1] ^= 1
    with pytest.raises(StoreUnavailable, match=r"seal .* is broken") as caught:
        records.decode(KEY, value.rpartition(b" ")[0] + b" " + base64.b64encode(bytes(box)))
    assert CANARY not in str(caught.value)


def test_no_nonce_comes_twice() -> None:
    one, again = make_records(ONE), make_records(ONE)
    boxes = [base64.b64decode(r.encode(KEY, make_volume()).rpartition(b" ")[2]) for r in (one, one, again, again)]
    assert len({box[:28] for box in boxes}) == 4
    assert boxes[0][:16] == boxes[1][:16] != boxes[2][:16]


def test_missing_key_is_named_with_what_to_do() -> None:
    value = make_records(ONE).encode(KEY, make_volume())
    with pytest.raises(StoreUnavailable) as caught:
        make_records(TWO).decode(KEY, value)
    text = caught.value.message
    for part in (KEY, ONE.id, TWO.id, "file:/keys", "secrets.old_keys", "secrets.lost_keys"):
        assert part in text
    assert caught.value.code == "key_missing"
    with pytest.raises(StoreUnavailable, match="no key is at hand"):
        codec.decode_key(KEY, value)
    given_up = make_records(TWO, lost=(ONE.id,)).decode(KEY, value)
    assert given_up == make_volume(secrets=Secrets(), mount_options=MountOptions(fs_type="ext4"))


def test_key_text() -> None:
    assert parse_keys(f"# mine\n{write_key(ONE)}  # {ONE.id}\n\n{write_key(TWO)},{write_key(ONE)}", "x") == (
        ONE,
        TWO,
        ONE,
    )
    ring = join_keys((ONE,), (TWO, ONE))
    assert ring == Keyring(active=ONE, others=(TWO,))
    for shown in (repr(ONE), str(ring), repr(hiding.Hidden(secrets={"a": CANARY}))):
        assert "1111" not in shown
        assert CANARY not in shown


@pytest.mark.parametrize("text", ["", "# nothing", "AAAA", "notbase64!", write_key(ONE) + "\nshort"])
def test_bad_key_text_is_told_and_not_shown(text: str) -> None:
    with pytest.raises(BadRequest, match="file:/k") as caught:
        parse_keys(text, "file:/k")
    assert "urandom" in caught.value.message
    for word in text.split():
        assert len(word) < 5 or word not in caught.value.message
