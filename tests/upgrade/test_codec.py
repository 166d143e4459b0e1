"""Every record format ever written is read by the newest code.

``data/records-v1.jsonl`` was written by version 1 and is never edited: a key and its value a line. A new version gets
a file of its own and its own table of records here; the old ones stay. So do tables that came later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from stored_records import make_acl_records_1

from moorage.errors import StoreUnavailable
from moorage.model import claim, steps
from moorage.model.claim import Allocation, Claim, TaskEvent, VolumeRequest
from moorage.model.ids import AllocationId, ClaimId, NamespaceName, NodeId, OperationId, PluginId, VolumeId
from moorage.model.namespace import Namespace
from moorage.model.node import Node
from moorage.model.operation import Operation
from moorage.model.plugin import ControllerInfo, Instance, NodeInfo, Plugin
from moorage.model.snapshot import ExternalVolume, Snapshot
from moorage.model.volume import Capability, Fault, MountOptions, Progress, Secrets, Topology, TopologyRequest, Volume
from moorage.state import codec, keys

DATA = Path(__file__).parent / "data"

NAMESPACE = NamespaceName("prod")
PLUGIN = PluginId("org.example.csi")
TOPOLOGY = Topology(segments={"rack": "R1", "zone": "Z1"})
SECRETS = Secrets({"user": "root", "password": 'p"ä\\\n\U0001f600'})
OPTIONS = MountOptions(fs_type="ext4", mount_flags=("noatime", "discard"))
MODE = Capability(access_mode="single-node-writer", attachment_mode="file-system")
FAULT = Fault(method="CreateVolume", status="ABORTED", message="busy: «x»", final=False, at_ns=1700000000000000001)
PROGRESS = Progress(attempts=3, last_fault=FAULT, next_try_at_ns=1700000000000000002, since_ns=1700000000000000003)
TEXTS = {"a": "1", "b": ""}
SNAPSHOT = Snapshot(id="s1", external_source_id="v1", size_bytes=1 << 40, created_at_s=1700000000, is_ready=True)
LISTED = ExternalVolume(
    external_id="v1",
    capacity_bytes=1 << 30,
    context=TEXTS,
    clone_id="v0",
    snapshot_id="s0",
    topologies=(TOPOLOGY,),
    published_node_ids=("n1", "n2"),
    is_abnormal=True,
    status="degraded",
)

CLAIM_STATES: tuple[claim.ClaimState, ...] = (
    claim.Taken(),
    claim.Attached(publish_context=TEXTS),
    claim.Mounted(
        path="/srv/data",
        publish_path="/var/lib/p",
        staging_path="/var/lib/s",
        grown_bytes=5,
        publish_context=TEXTS,
    ),
    claim.NodeDetached(),
    claim.ControllerDetached(),
)
STEPS: tuple[steps.ControllerStep, ...] = (
    steps.CreateVolume(
        name="data",
        capabilities=(MODE,),
        mount_options=OPTIONS,
        parameters=TEXTS,
        secrets=SECRETS,
        required_bytes=1,
        limit_bytes=2,
        clone_id="c",
        snapshot_id="s",
        topologies=TopologyRequest(required=(TOPOLOGY,), preferred=()),
    ),
    steps.DeleteVolume(external_id="v", secrets=SECRETS),
    steps.ExpandVolume(
        external_id="v",
        required_bytes=1,
        limit_bytes=2,
        capability=MODE,
        mount_options=OPTIONS,
        secrets=SECRETS,
    ),
    steps.ValidateVolume(
        external_id="v",
        capabilities=(MODE,),
        mount_options=OPTIONS,
        context=TEXTS,
        parameters=TEXTS,
        secrets=SECRETS,
    ),
    steps.AttachVolume(
        external_id="v",
        external_node_id="n",
        capability=MODE,
        mount_options=OPTIONS,
        read_only=True,
        context=TEXTS,
        secrets=SECRETS,
    ),
    steps.DetachVolume(external_id="v", external_node_id="n", secrets=SECRETS),
    steps.ListVolumes(entries_max=9, starting_token="t"),
    steps.ListSnapshots(entries_max=9, starting_token="t", external_source_id="v", snapshot_id="s", secrets=SECRETS),
    steps.CreateSnapshot(external_source_id="v", name="n", parameters=TEXTS, secrets=SECRETS),
    steps.DeleteSnapshot(snapshot_id="s", secrets=SECRETS),
    steps.GetCapacity(capabilities=(MODE,), parameters=TEXTS, topology=TOPOLOGY),
)
OUTCOMES: tuple[steps.Outcome | None, ...] = (
    steps.Created(external_id="v", capacity_bytes=1, context=TEXTS, topologies=(TOPOLOGY,), is_source_kept=False),
    steps.Done(),
    steps.Expanded(capacity_bytes=7, is_node_expansion_required=True),
    steps.Done(),
    steps.Attached(publish_context=TEXTS),
    steps.Failed(fault=FAULT),
    steps.VolumesListed(volumes=(LISTED,), next_token="t"),
    steps.SnapshotsListed(snapshots=(SNAPSHOT,), next_token="t"),
    steps.SnapshotCreated(snapshot=SNAPSHOT),
    None,
    steps.CapacityTold(available_bytes=1 << 50, volume_max_bytes=1 << 40),
)


def make_volume() -> Volume:
    return Volume(
        id=VolumeId("data[0] ä"),
        namespace=NAMESPACE,
        plugin_id=PLUGIN,
        name="data",
        wanted="absent",
        state="ready",
        external_id="vol-1",
        capacity_bytes=1 << 62,
        requested_min_bytes=1,
        requested_max_bytes=2,
        capabilities=(MODE, Capability()),
        mount_options=OPTIONS,
        secrets=SECRETS,
        parameters=TEXTS,
        context=TEXTS,
        requested_topologies=TopologyRequest(required=(TOPOLOGY,), preferred=(TOPOLOGY, Topology())),
        topologies=(TOPOLOGY,),
        clone_id="c",
        snapshot_id="s",
        access_mode="single-node-writer",
        attachment_mode="file-system",
        provider="example",
        provider_version="1.2.3",
        controller_required=True,
        expand_min_bytes=3,
        expand_max_bytes=4,
        node_expansion_bytes=5,
        delete_secrets=Secrets({"token": "t"}),
        created_at_ns=1700000000000000004,
        modified_at_ns=1700000000000000005,
        progress=PROGRESS,
    )


def make_claim(state: claim.ClaimState) -> Claim:
    return Claim(
        id=ClaimId("a1/data"),
        allocation_id=AllocationId("a1"),
        name="data",
        namespace=NAMESPACE,
        volume_id=VolumeId("data"),
        plugin_id=PLUGIN,
        external_id="vol-1",
        node_id=NodeId("n1"),
        external_node_id="n-1",
        read_only=True,
        access_mode="multi-node-reader-only",
        attachment_mode="file-system",
        mount_options=OPTIONS,
        target="/srv/data",
        wanted="released",
        state=state,
        created_at_ns=1700000000000000006,
        progress=PROGRESS,
    )


def make_allocation() -> Allocation:
    request = VolumeRequest(
        name="data",
        source=VolumeId("data"),
        read_only=True,
        access_mode="single-node-writer",
        attachment_mode="block-device",
        mount_options=MountOptions(fs_type="xfs", mount_flags=()),
        target="/t",
    )
    return Allocation(
        id=AllocationId("a1"),
        namespace=NAMESPACE,
        node_id=NodeId("n1"),
        name="web.db[0]",
        node_name="node-1",
        job_id="web",
        task_group="db",
        tasks=("postgres", "backup"),
        volumes=(request,),
        wanted="stop",
        status="running",
        description="why",
        events=(TaskEvent(type="Started", at_ns=1, message="m", details=TEXTS),),
        paths={"data": "/srv/data"},
        created_at_ns=1,
        modified_at_ns=2,
        started_at_ns=3,
        finished_at_ns=4,
    )


def make_plugin() -> Plugin:
    flags = dict.fromkeys(msgspec.structs.asdict(ControllerInfo()), True)
    node = NodeInfo(
        external_id="n-1",
        max_volumes=12,
        accessible_topology=TOPOLOGY,
        requires_stage=True,
        supports_stats=True,
        supports_expand=True,
        supports_condition=True,
        supports_mount_group=True,
    )
    instance = Instance(
        node_id=NodeId("n1"),
        healthy=True,
        health_description="fine",
        provider="example",
        provider_version="1.2.3",
        requires_controller=True,
        requires_topologies=True,
        expands_online=True,
        expands_offline=True,
        controller=ControllerInfo(**flags),
        node=node,
        updated_at_ns=1,
        alloc_id="a9",
    )
    bare = Instance(node_id=NodeId("n2"), healthy=False)
    return Plugin(id=PLUGIN, instances={NodeId("n1"): instance, NodeId("n2"): bare}, created_at_ns=1, modified_at_ns=2)


def make_node() -> Node:
    return Node(
        id=NodeId("n1"),
        name="node-1",
        boot_id="b",
        address="10.0.0.1:4646",
        datacenter="dc2",
        node_pool="pool",
        node_class="class",
        status="ready",
        attributes=TEXTS,
        meta=TEXTS,
        cpu_mhz=1,
        memory_mb=2,
        disk_mb=3,
        version="0.1.0",
        created_at_ns=4,
        status_updated_at_ns=5,
    )


def make_operation(number: int) -> Operation:
    return Operation(
        id=OperationId(f"o{number}"),
        plugin_id=PLUGIN,
        step=STEPS[number],
        serial_key="prod/data",
        state="done",
        outcome=OUTCOMES[number],
        created_at_ns=1,
        expires_at_ns=2,
        progress=PROGRESS,
    )


def make_records_1() -> dict[str, msgspec.Struct]:
    """What ``records-v1.jsonl`` means."""
    records: dict[str, msgspec.Struct] = {
        "volumes/prod/full": make_volume(),
        "volumes/default/bare": Volume(id=VolumeId("bare"), namespace=NamespaceName("default"), plugin_id=PLUGIN),
        "allocations/a1": make_allocation(),
        "plugins/org.example.csi": make_plugin(),
        "nodes/n1": make_node(),
        "namespaces/prod": Namespace(name=NAMESPACE, description="d", quota="q", meta=TEXTS),
    }
    records |= {f"claims/a1/{number}": make_claim(state) for number, state in enumerate(CLAIM_STATES)}
    records |= {f"operations/o{number}": make_operation(number) for number in range(len(STEPS))}
    return records | make_acl_records_1()


def read_golden(name: str) -> dict[str, bytes]:
    lines = (DATA / f"{name}.jsonl").read_bytes().splitlines()
    return {row["key"]: row["value"].encode() for row in map(msgspec.json.decode, lines)}


GOLDEN_1 = read_golden("records-v1") | read_golden("records-acl-v1")


@pytest.mark.parametrize("key", sorted(GOLDEN_1))
def test_version_1_means_what_it_meant(key: str) -> None:
    record = codec.decode_key(key, GOLDEN_1[key])
    assert record == make_records_1()[key]
    again = codec.encode(record)
    assert codec.decode_key(key, again) == record
    assert holds(msgspec.json.decode(again.partition(b"\n")[2]), msgspec.json.decode(GOLDEN_1[key].partition(b"\n")[2]))


def holds(new: Any, old: Any) -> bool:
    """Whether nothing that was in the old JSON is lost or changed in the new one, which may have more fields."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(name in new and holds(new[name], old[name]) for name in old)
    if isinstance(old, list):
        return isinstance(new, list) and len(new) == len(old) and all(map(holds, new, old))
    return bool(new == old)


def test_golden_file_has_every_table_and_arm() -> None:
    assert GOLDEN_1.keys() == make_records_1().keys()
    found = [line for file in DATA.glob("records-*.jsonl") for line in file.read_bytes().splitlines()]
    assert {keys.table_of(msgspec.json.decode(line)["key"]) for line in found} == set(codec.RECORDS)
    assert {type(state) for state in CLAIM_STATES} == set(claim.ClaimState.__args__)
    assert {type(step) for step in STEPS} == set(steps.ControllerStep.__args__)
    unseen = set(steps.Outcome.__args__) - {type(outcome) for outcome in OUTCOMES}
    # Only node steps tell of usage, and those are no operations.
    assert unseen == {steps.StatsTold}


def test_every_table_has_a_class() -> None:
    assert set(codec.RECORDS) == set(keys.TABLES)
    with pytest.raises(StoreUnavailable, match="strange/"):
        codec.decode_key("strange/a", b"1\n{}")


def test_value_begins_with_its_version() -> None:
    value = codec.encode(make_node())
    assert value.startswith(b'1\n{"id":"n1",')
    with pytest.raises(KeyError):
        codec.encode(TOPOLOGY)


def test_newer_version_is_named() -> None:
    with pytest.raises(StoreUnavailable, match=r"Volume record has version 9.*up to 2") as caught:
        codec.decode(Volume, b'9\n{"id":"secret-looking"}')
    assert "secret-looking" not in str(caught.value)


BAD_HEADERS = [b"", b"1", b"{}", b"0\n{}", b"-1\n{}", b"x\n{}", b"1 \n{}", b"9" * 99, b"\xff\n{}", "١\n{}".encode()]
BAD_BODIES = [b"1\n", b"1\n{", b"1\n[]", b'1\n{"id":"a"}', b'1\n{"id":1,"namespace":"hunter2","plugin_id":"p"}']


@pytest.mark.parametrize("data", [*BAD_HEADERS, *BAD_BODIES])
def test_damaged_value_is_unavailable_and_not_shown(data: bytes) -> None:
    with pytest.raises(StoreUnavailable, match="Volume record cannot be read") as caught:
        codec.decode(Volume, data)
    assert "hunter2" not in str(caught.value)


class Thing(msgspec.Struct, frozen=True, kw_only=True):
    """A record in its third version."""

    name: str
    size_bytes: int


def rename_size(plain: dict[str, Any]) -> dict[str, Any]:
    return {"title": plain["title"], "size_bytes": plain["size"] << 20}


def rename_title(plain: dict[str, Any]) -> dict[str, Any]:
    return {"name": plain["title"], "size_bytes": plain["size_bytes"]}


def test_old_versions_come_forward_step_by_step() -> None:
    newest = codec.Codec({Thing: 3}, {(Thing, 1): rename_size, (Thing, 2): rename_title})
    expected = Thing(name="a", size_bytes=5 << 20)
    assert newest.decode(Thing, b'1\n{"title":"a","size":5}') == expected
    assert newest.decode(Thing, b'2\n{"title":"a","size_bytes":5242880}') == expected
    assert newest.encode(expected) == b'3\n{"name":"a","size_bytes":5242880}'
    assert newest.decode(Thing, newest.encode(expected)) == expected


def test_missing_step_is_found_at_once() -> None:
    with pytest.raises(ValueError, match="Thing: no step from version 1 to 2"):
        codec.Codec({Thing: 3}, {(Thing, 2): rename_title})
