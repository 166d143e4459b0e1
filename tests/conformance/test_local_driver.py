"""The embedded driver over a real socket: identity and controller, each call and each refusal."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from local_controller_kit import BLOCK, GIB, Client, Mode, capability, publish_request, running_driver

import moorage
from moorage.csi import calls
from moorage.csi.local.identity import DRIVER_NAME, TOPOLOGY_KEY
from moorage.csi.proto import csi_pb2 as csi

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with running_driver(tmp_path) as found:
        yield found


async def test_identity(client: Client) -> None:
    info = await client(calls.GET_PLUGIN_INFO, csi.GetPluginInfoRequest())
    assert (info.name, info.vendor_version) == (DRIVER_NAME, moorage.__version__)
    probe = await client(calls.PROBE, csi.ProbeRequest())
    assert probe.HasField("ready")
    assert probe.ready.value
    answer = await client(calls.GET_PLUGIN_CAPABILITIES, csi.GetPluginCapabilitiesRequest())
    kinds = [one.WhichOneof("type") for one in answer.capabilities]
    assert kinds == ["service", "service", "volume_expansion"]
    abilities = await client(calls.CONTROLLER_GET_CAPABILITIES, csi.ControllerGetCapabilitiesRequest())
    names = {csi.ControllerServiceCapability.RPC.Type.Name(one.rpc.type) for one in abilities.capabilities}
    assert {"CREATE_DELETE_VOLUME", "CLONE_VOLUME", "LIST_VOLUMES_PUBLISHED_NODES", "PUBLISH_READONLY"} <= names
    assert "MODIFY_VOLUME" not in names


async def test_what_is_not_offered_is_unimplemented(client: Client) -> None:
    request = csi.ControllerModifyVolumeRequest(volume_id="x", mutable_parameters={"a": "b"})
    await client.refused(calls.CONTROLLER_MODIFY_VOLUME, request, "UNIMPLEMENTED")


async def test_socket_and_directories_are_private(client: Client) -> None:
    socket = client.data.parent / "sockets" / "csi.sock"
    assert stat.S_IMODE(os.stat(socket).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(socket.parent).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(client.data).st_mode) == 0o700


async def test_parameters_come_back_as_the_context(client: Client) -> None:
    request = csi.CreateVolumeRequest(name="one", volume_capabilities=[capability()], parameters={"a": "b"})
    assert dict((await client(calls.CREATE_VOLUME, request)).volume.volume_context) == {"a": "b"}


async def test_create_is_idempotent_by_name(client: Client) -> None:
    first = await client.create("one", required=GIB, limit=2 * GIB)
    assert first.capacity_bytes == GIB
    assert dict(first.accessible_topology[0].segments) == {TOPOLOGY_KEY: "node-1"}
    assert not first.volume_context
    assert (client.data / "volumes" / first.volume_id / "data").is_dir()
    assert await client.create("one", required=GIB, limit=2 * GIB) == first
    assert await client.create("one", required=GIB // 2) == first
    assert await client.create("one") == first
    for required, limit in ((2 * GIB, 0), (1, GIB - 1)):
        request = csi.CreateVolumeRequest(
            name="one",
            volume_capabilities=[capability()],
            capacity_range=csi.CapacityRange(required_bytes=required, limit_bytes=limit),
        )
        await client.refused(calls.CREATE_VOLUME, request, "ALREADY_EXISTS", "capacity_range")
    request = csi.CreateVolumeRequest(name="one", volume_capabilities=[capability()], parameters={"a": "b"})
    await client.refused(calls.CREATE_VOLUME, request, "ALREADY_EXISTS", "parameters")
    request = csi.CreateVolumeRequest(name="one", volume_capabilities=[capability()])
    request.volume_content_source.volume.volume_id = first.volume_id
    await client.refused(calls.CREATE_VOLUME, request, "ALREADY_EXISTS", "volume_content_source")
    assert list(await client.listed()) == [first.volume_id]


async def test_concurrent_creates_of_one_name_make_one_volume(client: Client) -> None:
    found: set[str] = set()

    async def create() -> None:
        found.add((await client.create("same")).volume_id)

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(create)
    assert len(found) == 1
    assert list(await client.listed()) == list(found)


async def test_capacity_defaults(client: Client) -> None:
    assert (await client.create("no range")).capacity_bytes == 0
    assert (await client.create("limit", limit=1000)).capacity_bytes == 1000
    assert (await client.create("large limit", limit=2 * GIB)).capacity_bytes == GIB
    assert (await client.create("exact", required=12345, limit=12345)).capacity_bytes == 12345


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        (csi.CreateVolumeRequest(volume_capabilities=[capability()]), "INVALID_ARGUMENT", "name is required"),
        (
            csi.CreateVolumeRequest(name="é" * 65, volume_capabilities=[capability()]),
            "INVALID_ARGUMENT",
            "name has more than 128",
        ),
        (csi.CreateVolumeRequest(name="a\x07b", volume_capabilities=[capability()]), "INVALID_ARGUMENT", "control"),
        (csi.CreateVolumeRequest(name="x"), "INVALID_ARGUMENT", "volume_capabilities is required"),
        (
            csi.CreateVolumeRequest(name="x", volume_capabilities=[BLOCK]),
            "INVALID_ARGUMENT",
            "volume_capabilities[0]: block volumes are not supported by the local driver",
        ),
        (
            csi.CreateVolumeRequest(name="x", volume_capabilities=[csi.VolumeCapability()]),
            "INVALID_ARGUMENT",
            "volume_capabilities[0].access_type",
        ),
        (
            csi.CreateVolumeRequest(name="x", volume_capabilities=[capability(Mode.UNKNOWN)]),
            "INVALID_ARGUMENT",
            "access_mode",
        ),
        (
            csi.CreateVolumeRequest(
                name="x", volume_capabilities=[capability(Mode.SINGLE_NODE_WRITER, "noatime", "discard")]
            ),
            "INVALID_ARGUMENT",
            "'discard'",
        ),
        (
            csi.CreateVolumeRequest(name="x", volume_capabilities=[capability()], capacity_range=csi.CapacityRange()),
            "INVALID_ARGUMENT",
            "capacity_range",
        ),
        (
            csi.CreateVolumeRequest(
                name="x", volume_capabilities=[capability()], capacity_range=csi.CapacityRange(required_bytes=-1)
            ),
            "INVALID_ARGUMENT",
            "required_bytes",
        ),
        (
            csi.CreateVolumeRequest(
                name="x",
                volume_capabilities=[capability()],
                capacity_range=csi.CapacityRange(required_bytes=2, limit_bytes=1),
            ),
            "OUT_OF_RANGE",
            "limit_bytes",
        ),
        (
            csi.CreateVolumeRequest(
                name="x", volume_capabilities=[capability()], capacity_range=csi.CapacityRange(required_bytes=2**62)
            ),
            "OUT_OF_RANGE",
            "filesystem",
        ),
        (
            csi.CreateVolumeRequest(
                name="x", volume_capabilities=[capability()], volume_content_source=csi.VolumeContentSource()
            ),
            "INVALID_ARGUMENT",
            "volume_content_source",
        ),
        (
            csi.CreateVolumeRequest(name="x", volume_capabilities=[capability()], parameters={"mode": "rwx"}),
            "INVALID_ARGUMENT",
            "parameters.mode",
        ),
        (
            csi.CreateVolumeRequest(name="x", volume_capabilities=[capability()], mutable_parameters={"a": "b"}),
            "INVALID_ARGUMENT",
            "mutable_parameters",
        ),
        (
            csi.CreateVolumeRequest(
                name="x",
                volume_capabilities=[capability()],
                accessibility_requirements=csi.TopologyRequirement(
                    requisite=[csi.Topology(segments={TOPOLOGY_KEY: "node-2"})]
                ),
            ),
            "RESOURCE_EXHAUSTED",
            "node-1",
        ),
    ],
)
async def test_create_refuses(client: Client, request_: csi.CreateVolumeRequest, status: str, text: str) -> None:
    await client.refused(calls.CREATE_VOLUME, request_, status, text)
    assert await client.listed() == {}
    assert os.listdir(client.data / "temp") == []


async def test_topology_that_holds_this_node_is_accepted(client: Client) -> None:
    request = csi.CreateVolumeRequest(
        name="x",
        volume_capabilities=[capability()],
        accessibility_requirements=csi.TopologyRequirement(
            requisite=[csi.Topology(segments={TOPOLOGY_KEY: node}) for node in ("node-2", "node-1")]
        ),
    )
    await client(calls.CREATE_VOLUME, request)
    request.name = "y"
    request.accessibility_requirements.CopyFrom(csi.TopologyRequirement())  # sent empty by some orchestrators
    await client(calls.CREATE_VOLUME, request)


async def test_mode_of_a_new_volume(client: Client) -> None:
    request = csi.CreateVolumeRequest(
        name="x", volume_capabilities=[capability()], parameters={"mode": "2770", "class": "any"}
    )
    volume_id = (await client(calls.CREATE_VOLUME, request)).volume.volume_id
    assert stat.S_IMODE(os.stat(client.data / "volumes" / volume_id / "data").st_mode) == 0o2770


async def test_delete_is_idempotent_and_frees_the_name(client: Client) -> None:
    first = await client.create("one")
    for _ in range(2):
        await client(calls.DELETE_VOLUME, csi.DeleteVolumeRequest(volume_id=first.volume_id))
    await client(calls.DELETE_VOLUME, csi.DeleteVolumeRequest(volume_id="../../etc"))
    await client.refused(calls.DELETE_VOLUME, csi.DeleteVolumeRequest(), "INVALID_ARGUMENT", "volume_id")
    second = await client.create("one")
    assert second.volume_id != first.volume_id
    assert os.listdir(client.data / "volumes") == [second.volume_id]
    with anyio.fail_after(5):
        while os.listdir(client.data / "trash"):
            await anyio.sleep(0.01)


async def test_controller_publish_rules(client: Client) -> None:
    volume_id = (await client.create()).volume_id
    await client.publish(volume_id)
    await client.publish(volume_id)
    assert await client.listed() == {volume_id: ["node-1"]}
    publish = calls.CONTROLLER_PUBLISH_VOLUME
    await client.refused(publish, publish_request(volume_id, readonly=True), "ALREADY_EXISTS", "node-1")
    other = publish_request(volume_id, Mode.MULTI_NODE_MULTI_WRITER)
    await client.refused(publish, other, "ALREADY_EXISTS", "node-1")
    await client.refused(publish, publish_request(volume_id, node_id="node-9"), "NOT_FOUND", "node-9")
    await client.refused(publish, publish_request("unknown"), "NOT_FOUND", "unknown")
    await client.refused(publish, publish_request(""), "INVALID_ARGUMENT", "volume_id")
    await client.refused(publish, publish_request(volume_id, node_id=""), "INVALID_ARGUMENT", "node_id")
    bare = csi.ControllerPublishVolumeRequest(volume_id=volume_id, node_id="node-1")
    await client.refused(publish, bare, "INVALID_ARGUMENT", "volume_capability")
    bare.volume_capability.CopyFrom(BLOCK)
    await client.refused(publish, bare, "INVALID_ARGUMENT", "block volumes are not supported by the local driver")
    delete = csi.DeleteVolumeRequest(volume_id=volume_id)
    await client.refused(calls.DELETE_VOLUME, delete, "FAILED_PRECONDITION", "node-1")
    unpublish = calls.CONTROLLER_UNPUBLISH_VOLUME
    for node_id in ("node-9", "node-1", "node-1", ""):
        await client(unpublish, csi.ControllerUnpublishVolumeRequest(volume_id=volume_id, node_id=node_id))
    await client(unpublish, csi.ControllerUnpublishVolumeRequest(volume_id="unknown"))
    await client.refused(unpublish, csi.ControllerUnpublishVolumeRequest(), "INVALID_ARGUMENT", "volume_id")
    assert await client.listed() == {volume_id: []}
    await client(calls.DELETE_VOLUME, delete)


async def test_unpublish_without_a_node_frees_all(client: Client) -> None:
    volume_id = (await client.create()).volume_id
    await client.publish(volume_id, readonly=True)
    await client(calls.CONTROLLER_UNPUBLISH_VOLUME, csi.ControllerUnpublishVolumeRequest(volume_id=volume_id))
    assert await client.listed() == {volume_id: []}


async def test_validate_echoes_or_explains(client: Client) -> None:
    volume_id = (await client.create()).volume_id
    validate = calls.VALIDATE_VOLUME_CAPABILITIES
    request = csi.ValidateVolumeCapabilitiesRequest(
        volume_id=volume_id, volume_capabilities=[capability(), capability(Mode.MULTI_NODE_MULTI_WRITER, "ro")]
    )
    answer = await client(validate, request)
    assert answer.HasField("confirmed")
    assert list(answer.confirmed.volume_capabilities) == list(request.volume_capabilities)
    for change in (
        csi.ValidateVolumeCapabilitiesRequest(volume_capabilities=[BLOCK]),
        csi.ValidateVolumeCapabilitiesRequest(parameters={"a": "b"}),
        csi.ValidateVolumeCapabilitiesRequest(volume_context={"a": "b"}),
    ):
        changed = csi.ValidateVolumeCapabilitiesRequest()
        changed.CopyFrom(request)
        changed.MergeFrom(change)
        answer = await client(validate, changed)
        assert not answer.HasField("confirmed")
        assert answer.message
    await client.refused(
        validate, csi.ValidateVolumeCapabilitiesRequest(volume_capabilities=[capability()]), "INVALID_ARGUMENT"
    )
    await client.refused(
        validate, csi.ValidateVolumeCapabilitiesRequest(volume_id=volume_id), "INVALID_ARGUMENT", "capabilities"
    )
    request.volume_id = "unknown"
    await client.refused(validate, request, "NOT_FOUND", "unknown")


async def test_list_pages_are_stable_while_volumes_go(client: Client) -> None:
    ids = [(await client.create(f"v{number}")).volume_id for number in range(5)]
    page = await client(calls.LIST_VOLUMES, csi.ListVolumesRequest(max_entries=2))
    assert [entry.volume.volume_id for entry in page.entries] == ids[:2]
    await client(calls.DELETE_VOLUME, csi.DeleteVolumeRequest(volume_id=ids[0]))
    page = await client(calls.LIST_VOLUMES, csi.ListVolumesRequest(max_entries=2, starting_token=page.next_token))
    assert [entry.volume.volume_id for entry in page.entries] == ids[2:4]
    page = await client(calls.LIST_VOLUMES, csi.ListVolumesRequest(max_entries=2, starting_token=page.next_token))
    assert [entry.volume.volume_id for entry in page.entries] == ids[4:]
    assert page.next_token == ""
    for token in ("invalid-token", "-1", "9" * 40, "²"):
        await client.refused(calls.LIST_VOLUMES, csi.ListVolumesRequest(starting_token=token), "ABORTED", "first page")
    await client.refused(calls.LIST_VOLUMES, csi.ListVolumesRequest(max_entries=-1), "INVALID_ARGUMENT")


async def test_capacity_of_the_filesystem(client: Client) -> None:
    answer = await client(calls.GET_CAPACITY, csi.GetCapacityRequest())
    assert 0 < answer.available_capacity <= answer.maximum_volume_size.value
    here = csi.GetCapacityRequest(accessible_topology=csi.Topology(segments={TOPOLOGY_KEY: "node-1"}))
    assert (await client(calls.GET_CAPACITY, here)).available_capacity > 0
    elsewhere = csi.GetCapacityRequest(accessible_topology=csi.Topology(segments={TOPOLOGY_KEY: "node-2"}))
    assert (await client(calls.GET_CAPACITY, elsewhere)).available_capacity == 0
    block = csi.GetCapacityRequest(volume_capabilities=[BLOCK])
    assert (await client(calls.GET_CAPACITY, block)).available_capacity == 0


async def test_expand(client: Client) -> None:
    volume = await client.create("one", required=GIB, limit=GIB)
    expand = calls.CONTROLLER_EXPAND_VOLUME

    def request(required: int = 0, limit: int = 0) -> csi.ControllerExpandVolumeRequest:
        bounds = csi.CapacityRange(required_bytes=required, limit_bytes=limit)
        return csi.ControllerExpandVolumeRequest(volume_id=volume.volume_id, capacity_range=bounds)

    for _ in range(2):
        answer = await client(expand, request(2 * GIB))
        assert (answer.capacity_bytes, answer.node_expansion_required) == (2 * GIB, False)
    assert (await client(expand, request(GIB))).capacity_bytes == 2 * GIB
    await client.refused(expand, request(limit=GIB), "OUT_OF_RANGE", "cannot shrink")
    await client.refused(expand, request(2**62), "OUT_OF_RANGE")
    await client.refused(expand, request(), "INVALID_ARGUMENT", "capacity_range")
    await client.refused(
        expand, csi.ControllerExpandVolumeRequest(volume_id=volume.volume_id), "INVALID_ARGUMENT", "capacity_range"
    )
    await client.refused(
        expand,
        csi.ControllerExpandVolumeRequest(volume_id="unknown", capacity_range=csi.CapacityRange(required_bytes=1)),
        "NOT_FOUND",
    )
    assert (await client.create("one", required=GIB, limit=GIB)).capacity_bytes == 2 * GIB
