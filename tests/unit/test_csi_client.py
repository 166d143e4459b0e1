"""The client against a real gRPC server on a unix socket whose answers are scripted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog.testing
from scripted_csi import Driver, run_once, running

from moorage.csi.calls import CONTROLLER, IDENTITY, NODE
from moorage.csi.client import DriverClient, Facts
from moorage.errors import DriverRefused, DriverUncertain
from moorage.model import steps
from moorage.model.ids import NodeId
from moorage.model.plugin import MAX_VOLUMES_UNLIMITED, ControllerInfo, NodeInfo
from moorage.model.volume import Capability, Secrets, Topology, TopologyRequest
from moorage.rules.explanations import explain

pytestmark = pytest.mark.anyio

FILES = Capability(access_mode="single-node-writer", attachment_mode="file-system")
CREATE = steps.CreateVolume(name="x", capabilities=(FILES,), secrets=Secrets({"password": "hunter2"}))
DELETE = steps.DeleteVolume(external_id="v")
UNPUBLISH = steps.UnpublishVolume(external_id="v", target_path="/t")

# -- probing ---------------------------------------------------------------------------------------------------------


async def test_facts(tmp_path: Path) -> None:
    async with running(Driver(), tmp_path) as client:
        facts = await client.probe(timeout_s=5)
    assert facts == Facts(
        name="csi.example.org",
        version="1.2",
        health_description="healthy",
        requires_controller=True,
        requires_topologies=True,
        expands_online=True,
        controller=ControllerInfo(supports_create_delete=True, supports_read_only_attach=True),
        node=NodeInfo(
            external_id="node-7",
            max_volumes=5,
            accessible_topology=Topology(segments={"zone": "a"}),
            requires_stage=True,
        ),
    )
    instance = facts.to_instance(NodeId("n1"), now_ns=7, alloc_id="a")
    assert (instance.node_id, instance.updated_at_ns, instance.alloc_id) == ("n1", 7, "a")
    assert instance.healthy
    assert (instance.provider, instance.provider_version) == ("csi.example.org", "1.2")
    assert (instance.controller, instance.node) == (facts.controller, facts.node)
    assert instance.requires_controller
    assert instance.requires_topologies
    assert (instance.expands_online, instance.expands_offline) == (True, False)


async def test_every_controller_capability_becomes_its_own_fact(tmp_path: Path) -> None:
    names = {
        "CREATE_DELETE_VOLUME": "supports_create_delete",
        "PUBLISH_UNPUBLISH_VOLUME": "supports_attach_detach",
        "LIST_VOLUMES": "supports_list_volumes",
        "GET_CAPACITY": "supports_get_capacity",
        "CREATE_DELETE_SNAPSHOT": "supports_create_delete_snapshot",
        "LIST_SNAPSHOTS": "supports_list_snapshots",
        "CLONE_VOLUME": "supports_clone",
        "PUBLISH_READONLY": "supports_read_only_attach",
        "EXPAND_VOLUME": "supports_expand",
        "LIST_VOLUMES_PUBLISHED_NODES": "supports_list_volumes_attached_nodes",
        "VOLUME_CONDITION": "supports_condition",
        "GET_VOLUME": "supports_get",
        "MODIFY_VOLUME": "supports_modify",
    }
    assert set(names.values()) == set(ControllerInfo.__struct_fields__)
    driver = Driver()
    async with running(driver, tmp_path) as client:
        for name, field in names.items():
            driver.answers["ControllerGetCapabilities"] = f"capabilities {{ rpc {{ type: {name} }} }}"
            facts = await client.probe(timeout_s=5)
            assert facts.controller == ControllerInfo(**{field: True})


async def test_every_node_capability_becomes_its_own_fact(tmp_path: Path) -> None:
    names = {
        "STAGE_UNSTAGE_VOLUME": "requires_stage",
        "GET_VOLUME_STATS": "supports_stats",
        "EXPAND_VOLUME": "supports_expand",
        "VOLUME_CONDITION": "supports_condition",
        "VOLUME_MOUNT_GROUP": "supports_mount_group",
    }
    driver = Driver(NodeGetInfo="")
    async with running(driver, tmp_path) as client:
        for name, field in names.items():
            driver.answers["NodeGetCapabilities"] = f"capabilities {{ rpc {{ type: {name} }} }}"
            facts = await client.probe(timeout_s=5)
            only: dict[str, Any] = {field: True}
            assert facts.node == NodeInfo(**only)


async def test_node_only_socket(tmp_path: Path) -> None:
    driver = Driver((IDENTITY, NODE), NodeGetInfo=(grpc.StatusCode.UNIMPLEMENTED, ""))
    async with running(driver, tmp_path) as client:
        facts = await client.probe(timeout_s=5)
    assert facts.controller is None
    assert facts.requires_controller
    assert facts.node == NodeInfo(requires_stage=True, max_volumes=MAX_VOLUMES_UNLIMITED)


async def test_controller_only_socket(tmp_path: Path) -> None:
    driver = Driver((IDENTITY, CONTROLLER))
    async with running(driver, tmp_path) as client:
        facts = await client.probe(timeout_s=5)
    assert facts.node is None
    assert facts.controller is not None
    assert driver.get("NodeGetInfo") == []


@pytest.mark.parametrize(
    ("probe", "ready", "text"),
    [
        ("ready { value: true }", True, "healthy"),
        ("", True, "healthy"),
        ("ready { }", False, "the driver is not ready yet"),
        (
            (grpc.StatusCode.FAILED_PRECONDITION, "no ceph"),
            False,
            "the driver's health check failed: FAILED_PRECONDITION: no ceph",
        ),
    ],
)
async def test_readiness(tmp_path: Path, probe: Any, ready: bool, text: str) -> None:
    async with running(Driver(Probe=probe), tmp_path) as client:
        facts = await client.probe(timeout_s=5)
    assert (facts.is_ready, facts.health_description) == (ready, text)
    assert facts.name == "csi.example.org"
    assert (facts.controller is not None) is ready


async def test_probe_of_a_silent_driver(tmp_path: Path) -> None:
    async with running(Driver(Probe="hang"), tmp_path) as client:
        with pytest.raises(DriverUncertain) as caught:
            await client.probe(timeout_s=0.3)
    assert (caught.value.method, caught.value.status) == ("Probe", "DEADLINE_EXCEEDED")


async def test_probe_without_a_socket(tmp_path: Path) -> None:
    async with DriverClient(str(tmp_path / "none")) as client:
        with pytest.raises(DriverUncertain) as caught:
            await client.probe(timeout_s=1)
    assert caught.value.status == "UNAVAILABLE"


async def test_probe_that_the_driver_refuses(tmp_path: Path) -> None:
    async with running(Driver(GetPluginInfo=(grpc.StatusCode.INTERNAL, "oops")), tmp_path) as client:
        with pytest.raises(DriverRefused) as caught:
            await client.probe(timeout_s=5)
    assert caught.value.final


# -- steps -----------------------------------------------------------------------------------------------------------


async def test_step_to_outcome(tmp_path: Path) -> None:
    driver = Driver(CreateVolume='volume { volume_id: "v" capacity_bytes: 5 }')
    async with running(driver, tmp_path) as client:
        outcome = await client.run(CREATE, timeout_s=5)
    assert outcome == steps.Created(external_id="v", capacity_bytes=5)
    [request] = driver.get("CreateVolume")
    assert dict(request.secrets) == {"password": "hunter2"}


async def test_capabilities_are_asked_once_and_shape_the_request(tmp_path: Path) -> None:
    driver = Driver(CreateVolume='volume { volume_id: "v" }', NodeStageVolume="")
    newer = Capability(access_mode="single-node-single-writer", attachment_mode="file-system")
    zone = TopologyRequest(required=(Topology(segments={"zone": "a"}),))
    create = steps.CreateVolume(name="x", capabilities=(newer,), topologies=zone)
    stage = steps.StageVolume(external_id="v", staging_path="/s", capability=newer)
    async with running(driver, tmp_path) as client:
        assert isinstance(await client.run(create, timeout_s=5), steps.Created)
        assert await client.run(stage, timeout_s=5) == steps.Done()
    [request] = driver.get("CreateVolume")
    assert request.volume_capabilities[0].access_mode.mode == 6
    assert len(request.accessibility_requirements.requisite) == 1
    # The node service does not know the newer modes.
    assert driver.get("NodeStageVolume")[0].volume_capability.access_mode.mode == 1
    assert len(driver.get("GetPluginCapabilities")) == 1


async def test_probe_refreshes_what_shapes_requests(tmp_path: Path) -> None:
    driver = Driver(ControllerPublishVolume="")
    step = steps.AttachVolume(external_id="v", external_node_id="n", capability=FILES, read_only=True)
    async with running(driver, tmp_path) as client:
        await client.run(step, timeout_s=5)
        driver.answers["ControllerGetCapabilities"] = ""
        await client.probe(timeout_s=5)
        await client.run(step, timeout_s=5)
    assert [r.readonly for r in driver.get("ControllerPublishVolume")] == [True, False]


async def test_step_that_is_not_advertised_is_sent(tmp_path: Path) -> None:
    driver = Driver(NodeGetVolumeStats="usage { total: 5 used: 1 available: 4 unit: BYTES }")
    async with running(driver, tmp_path) as client:
        got = await client.run(steps.GetVolumeStats(external_id="v", volume_path="/t"), timeout_s=5)
    assert got == steps.StatsTold(total_bytes=5, used_bytes=1, available_bytes=4)


async def test_refusal(tmp_path: Path) -> None:
    got = await run_once(tmp_path, CREATE, CreateVolume=(grpc.StatusCode.ALREADY_EXISTS, "x is there"))
    assert isinstance(got, steps.Failed)
    fault = got.fault
    assert (fault.method, fault.status, fault.message) == ("CreateVolume", "ALREADY_EXISTS", "x is there")
    assert (fault.final, fault.at_ns) == (True, 0)
    assert explain(CREATE, fault) == (
        'controller create volume: CSI.ControllerCreateVolume: volume "x" already exists but is incompatible with'
        " these parameters: rpc error: code = AlreadyExists desc = x is there"
    )


async def test_uncertain_status(tmp_path: Path) -> None:
    got = await run_once(tmp_path, DELETE, DeleteVolume=(grpc.StatusCode.ABORTED, "busy"))
    assert isinstance(got, steps.Failed)
    assert not got.fault.final


@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("DeleteVolume", DELETE),
        ("DeleteSnapshot", steps.DeleteSnapshot(snapshot_id="s")),
        ("ControllerUnpublishVolume", steps.DetachVolume(external_id="v", external_node_id="n")),
        ("NodeUnpublishVolume", UNPUBLISH),
        ("NodeUnstageVolume", steps.UnstageVolume(external_id="v", staging_path="/s")),
    ],
)
async def test_gone_is_done(tmp_path: Path, method: str, step: steps.Step) -> None:
    answers = {method: (grpc.StatusCode.NOT_FOUND, "who?")}
    assert await run_once(tmp_path, step, **answers) == steps.Done()


async def test_not_found_before_the_step_is_not_done(tmp_path: Path) -> None:
    got = await run_once(tmp_path, DELETE, GetPluginCapabilities=(grpc.StatusCode.NOT_FOUND, "who?"))
    assert isinstance(got, steps.Failed)


async def test_local_refusal_calls_nobody(tmp_path: Path) -> None:
    driver = Driver()
    bad = Capability(access_mode="zz", attachment_mode="file-system")
    async with running(driver, tmp_path) as client:
        got = await client.run(steps.CreateVolume(name="x", capabilities=(bad,)), timeout_s=5)
    assert isinstance(got, steps.Failed)
    assert (got.fault.message, got.fault.final) == ("unknown volume access mode: zz", True)
    assert driver.requests == []


async def test_field_that_does_not_fit(tmp_path: Path) -> None:
    secret = Secrets({"k": "\ud800"})  # half a character
    got = await run_once(tmp_path, steps.DeleteVolume(external_id="v", secrets=secret))
    assert isinstance(got, steps.Failed)
    assert got.fault.message == "a field of the request does not fit the CSI message"


async def test_unconfirmed_validation_is_accepted_with_a_warning(tmp_path: Path) -> None:
    step = steps.ValidateVolume(external_id="v", capabilities=(FILES,), secrets=Secrets({"k": "hunter2"}))
    with structlog.testing.capture_logs() as logs:
        got = await run_once(tmp_path, step, ValidateVolumeCapabilities='message: "hunter2 says no"')
    assert got == steps.Done()
    assert [(e["log_level"], e["message"]) for e in logs] == [("warning", "[REDACTED] says no")]
