"""python-nomad, unmodified, against `moorage dev`: its request layer for volumes, and its modules for what is around.

It has no module for volumes and plugins: its users call the request layer that its modules share.
"""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Iterator
from typing import Any

import nomad
import nomad.api.exceptions
import pytest
import requests
from asking import describe_volume
from dev_server import Program, wait_until
from nomad.api.exceptions import BadRequestNomadException, BaseNomadException, URLNotFoundNomadException

MIB = 1 << 20
NOBODY = "ffffffff-ffff-4fff-8fff-ffffffffffff"


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """Connections that are closed at the end; without it each of the client's modules keeps some of its own."""
    with requests.Session() as opened:
        yield opened


@pytest.fixture
def client(dev: Program, session: requests.Session) -> nomad.Nomad:
    """The client, as its documentation shows it."""
    return nomad.Nomad(address=dev.url, timeout=20, session=session)


def call(client: nomad.Nomad, method: str, path: str, **options: Any) -> Any:
    """One request through the client's own layer, with its answer's JSON; None for an empty answer."""
    answer = client.nodes._request(method=method, endpoint=f"v1/{path}", **options)
    assert answer.status_code == 200
    return answer.json() if answer.content else None


def create(client: nomad.Nomad, volume_id: str, **members: Any) -> dict[str, Any]:
    """Create a volume by POST, which this client prefers."""
    body = describe_volume(volume_id, size=MIB)
    body["Volumes"][0] |= members
    answer = call(client, "post", f"volume/csi/{volume_id}/create", json=body)
    assert [v["ID"] for v in answer["Volumes"]] == [volume_id]
    return answer["Volumes"][0]


def list_external_ids(client: nomad.Nomad) -> list[str]:
    """What the driver has."""
    page = call(client, "get", "volumes/external", params={"plugin_id": "hostpath"})
    assert page["NextToken"] == ""
    return [v["ExternalID"] for v in page["Volumes"]]


@pytest.fixture
def allocation(client: nomad.Nomad) -> Iterator[dict[str, Any]]:
    """A volume `py-used` that is mounted on the only node."""
    create(client, "py-used")
    asked = {
        "ID": str(uuid.uuid4()),
        "Name": "py-web",
        "NodeID": client.nodes.get_nodes()[0]["ID"],
        "Tasks": ["main"],
        "Volumes": [
            {
                "Name": "data",
                "Source": "py-used",
                "AccessMode": "single-node-writer",
                "AttachmentMode": "file-system",
            }
        ],
    }
    call(client, "put", "allocations", json={"Allocation": asked})
    wait_status(client, asked["ID"], "running")
    yield asked
    call(client, "post", f"allocation/{asked['ID']}/stop")
    wait_status(client, asked["ID"], "complete")
    call(client, "delete", "volume/csi/py-used/delete")


def wait_status(client: nomad.Nomad, allocation_id: str, status: str) -> None:
    """Wait through the client's own module."""
    wait_until(lambda: client.allocation.get_allocation(allocation_id)["ClientStatus"] == status, status)


# -- volumes and snapshots -------------------------------------------------------------------------------------------


def test_volume_is_created_read_listed_and_deleted(client: nomad.Nomad) -> None:
    """The whole life of a volume by the request layer."""
    made = create(client, "py-life", Secrets={"password": "hidden"})
    read = call(client, "get", "volume/csi/py-life")
    assert (read["ExternalID"], read["Capacity"], read["PluginID"]) == (made["ExternalID"], MIB, "hostpath")
    assert (read["Namespace"], read["Schedulable"], read["Secrets"]) == ("default", True, None)
    rows = call(client, "get", "volumes", params={"type": "csi", "prefix": "py-l"})
    assert [(r["ID"], r["ExternalID"]) for r in rows] == [("py-life", made["ExternalID"])]
    assert call(client, "get", "volumes", params={"type": "host"}) == []
    assert made["ExternalID"] in list_external_ids(client)
    # An empty answer is an answer; only its JSON must not be asked for.
    assert call(client, "delete", "volume/csi/py-life/delete") is None
    assert made["ExternalID"] not in list_external_ids(client)
    with pytest.raises(URLNotFoundNomadException, match="volume not found"):
        call(client, "get", "volume/csi/py-life")


def test_volume_is_deregistered_and_registered_by_either_method(client: nomad.Nomad) -> None:
    """PUT and POST are the same, on the volume's page and on the list's."""
    made = create(client, "py-reg")
    body = describe_volume("py-reg", size=MIB)
    body["Volumes"][0]["ExternalID"] = made["ExternalID"]
    for method, path in (("post", "volume/csi/py-reg"), ("put", "volume/csi/py-reg"), ("post", "volumes")):
        # requests writes a Python truth value as True or False.
        assert call(client, "delete", "volume/csi/py-reg", params={"force": False}) is None
        assert call(client, "get", "volumes", params={"type": "csi", "prefix": "py-reg"}) == []
        written = call(client, method, path, json=body)
        assert [v["ExternalID"] for v in written["Volumes"]] == [made["ExternalID"]]
    call(client, "delete", "volume/csi/py-reg/delete")


def test_list_is_paged_by_the_header(client: nomad.Nomad) -> None:
    """The request layer gives the answer, with the header of the next page."""
    for number in range(3):
        create(client, f"py-page-{number}")
    params = {"type": "csi", "prefix": "py-page-", "per_page": 2}
    first = client.nodes._request(method="get", endpoint="v1/volumes", params=dict(params))
    token = first.headers["X-Nomad-NextToken"]
    rest = client.nodes._request(method="get", endpoint="v1/volumes", params=params | {"next_token": token})
    assert [v["ID"] for v in first.json() + rest.json()] == ["py-page-0", "py-page-1", "py-page-2"]
    assert "X-Nomad-NextToken" not in rest.headers
    for number in range(3):
        call(client, "delete", f"volume/csi/py-page-{number}/delete")


def test_list_is_filtered_by_an_expression(client: nomad.Nomad) -> None:
    """The filter is a parameter like any other; a broken one is the client's bad request."""
    create(client, "py-filter-a")
    create(client, "py-filter-b")
    params = {"type": "csi", "filter": 'ID matches "^py-filter" and Name != "py-filter-a"\n'}
    assert [v["ID"] for v in call(client, "get", "volumes", params=params)] == ["py-filter-b"]
    with pytest.raises(BadRequestNomadException):
        call(client, "get", "volumes", params={"type": "csi", "filter": "ID =="})
    for volume_id in ("py-filter-a", "py-filter-b"):
        call(client, "delete", f"volume/csi/{volume_id}/delete")


def test_snapshot_is_created_listed_restored_and_deleted(client: nomad.Nomad) -> None:
    """The whole life of a snapshot by the request layer."""
    source = create(client, "py-source")
    body = {"Snapshots": [{"SourceVolumeID": "py-source", "Name": "py-snap"}]}
    (made,) = call(client, "post", "volumes/snapshot", json=body)["Snapshots"]
    assert (made["ExternalSourceVolumeID"], made["SizeBytes"], made["IsReady"]) == (source["ExternalID"], MIB, True)
    assert abs(made["CreateTime"] - time.time()) < 3600
    (listed,) = call(client, "get", "volumes/snapshot", params={"plugin_id": "hostpath"})["Snapshots"]
    assert (listed["ID"], listed["ExternalSourceVolumeID"]) == (made["ID"], source["ExternalID"])
    restored = create(client, "py-restored", SnapshotID=made["ID"])
    assert restored["SnapshotID"] == made["ID"]
    headers = {"X-Nomad-CSI-Secrets": "user=me,password=a=b"}
    params = {"plugin_id": "hostpath", "snapshot_id": made["ID"]}
    assert call(client, "delete", "volumes/snapshot", params=params, headers=headers) is None
    assert call(client, "get", "volumes/snapshot", params={"plugin_id": "hostpath"})["Snapshots"] == []
    for volume_id in ("py-source", "py-restored"):
        call(client, "delete", f"volume/csi/{volume_id}/delete")


def test_volume_in_use_is_detached_only_afterwards(client: nomad.Nomad, allocation: dict[str, Any]) -> None:
    """A detach is refused as long as the volume is in use."""
    params = {"node": allocation["NodeID"]}
    with pytest.raises(BaseNomadException, match="volume in use"):
        call(client, "delete", "volume/csi/py-used/detach", params=dict(params))
    (use,) = call(client, "get", "volume/csi/py-used")["Allocations"]
    assert (use["ID"], use["ClientStatus"]) == (allocation["ID"], "running")
    call(client, "put", f"allocation/{allocation['ID']}/stop")
    wait_status(client, allocation["ID"], "complete")
    assert call(client, "delete", "volume/csi/py-used/detach", params=dict(params)) is None


def test_blocking_query_returns_with_the_change(client: nomad.Nomad) -> None:
    """The client has no call for it: index and wait go into the request by hand."""
    before = client.nodes._request(method="get", endpoint="v1/volumes", params={"type": "csi"})
    index = int(before.headers["X-Nomad-Index"])
    params = {"type": "csi", "index": index, "wait": "1ms"}
    same = client.nodes._request(method="get", endpoint="v1/volumes", params=params)
    assert (int(same.headers["X-Nomad-Index"]), same.json()) == (index, before.json())
    create(client, "py-change")
    params = {"type": "csi", "index": index, "wait": "15s"}
    after = client.nodes._request(method="get", endpoint="v1/volumes", params=params, timeout=20)
    assert int(after.headers["X-Nomad-Index"]) > index
    assert [v["ID"] for v in after.json() if v not in before.json()] == ["py-change"]
    call(client, "delete", "volume/csi/py-change/delete")


# -- plugins and nodes -----------------------------------------------------------------------------------------------


def test_plugins(client: nomad.Nomad) -> None:
    """The list and the page of the plugin."""
    (row,) = call(client, "get", "plugins", params={"type": "csi", "prefix": "host"})
    assert (row["ID"], row["ControllersHealthy"], row["NodesHealthy"]) == ("hostpath", 1, 1)
    assert call(client, "get", "plugins", params={"type": "csi", "prefix": "none"}) == []
    whole = call(client, "get", "plugin/csi/hostpath")
    (node_id,) = whole["Nodes"]
    assert node_id in client.nodes
    assert whole["Controllers"][node_id]["ControllerInfo"]["SupportsCreateDelete"] is True
    with pytest.raises(URLNotFoundNomadException, match="plugin not found"):
        call(client, "get", "plugin/csi/none")


def test_nodes(client: nomad.Nomad) -> None:
    """The module of all nodes, with the truth values that it writes as True and False."""
    (node,) = client.nodes.get_nodes(resources=True, os=False, per_page="5")
    assert (node["Status"], node["SchedulingEligibility"]) == ("ready", "eligible")
    assert client.nodes.get_nodes(prefix=node["ID"][:4]) == client.nodes.get_nodes(prefix=node["ID"])
    assert client.nodes.get_nodes(prefix="ffffffff") == []
    assert len(client.nodes) == 1
    assert [n["ID"] for n in client.nodes] == [node["ID"]]
    assert node["ID"] in client.nodes
    assert node["Name"] in client.nodes
    assert "nobody" not in client.nodes
    assert client.nodes[node["Name"]]["ID"] == node["ID"]
    with pytest.raises(KeyError):
        client.nodes["nobody"]


def test_node(client: nomad.Nomad, allocation: dict[str, Any]) -> None:
    """The module of one node: 404, and only 404, means that there is none."""
    node_id = allocation["NodeID"]
    assert client.node.get_node(node_id)["CSINodePlugins"]["hostpath"]["Healthy"] is True
    assert client.node[node_id]["ID"] == node_id
    assert node_id in client.node
    assert NOBODY not in client.node
    found = {a["ID"]: a for a in client.node.get_allocations(node_id)}
    assert found[allocation["ID"]]["Name"] == "py-web"
    assert allocation["ID"] in {a["ID"] for a in client.allocations.get_allocations()}
    assert client.allocation[allocation["ID"]]["NodeID"] == node_id
    assert NOBODY not in client.allocation


# -- namespaces and search -------------------------------------------------------------------------------------------


def test_namespaces(client: nomad.Nomad) -> None:
    """Both modules of namespaces."""
    assert client.namespace.create_namespace({"Name": "py-space", "Description": "first"}).ok
    assert client.namespace.get_namespace("py-space")["Description"] == "first"
    assert client.namespace.update_namespace("py-space", {"Name": "py-space", "Description": "second"}).ok
    assert client.namespace.get_namespace("py-space")["Description"] == "second"
    assert [n["Name"] for n in client.namespaces.get_namespaces()] == ["default", "py-space"]
    assert [n["Name"] for n in client.namespaces.get_namespaces(prefix="py-")] == ["py-space"]
    assert len(client.namespaces) == 2
    assert "py-space" in client.namespaces
    assert "py-space" in client.namespace
    assert "py-none" not in client.namespace
    # The module looks for a member that Nomad does not have, so this works here only.
    assert client.namespace["py-space"]["Name"] == "py-space"

    body = describe_volume("py-inside", size=MIB)
    call(client, "put", "volume/csi/py-inside/create", json=body, params={"namespace": "py-space"})
    with pytest.raises(BaseNomadException, match="has volumes"):
        client.namespace.delete_namespace("py-space")
    with pytest.raises(URLNotFoundNomadException):
        call(client, "get", "volume/csi/py-inside")
    call(client, "delete", "volume/csi/py-inside/delete", params={"namespace": "py-space"})
    assert client.namespace.delete_namespace("py-space").ok
    assert "py-space" not in client.namespaces
    with pytest.raises(URLNotFoundNomadException):
        client.namespace.get_namespace("py-space")


def test_search(client: nomad.Nomad) -> None:
    """Search by prefix and by part, in each context that the client lets through."""
    create(client, "py-find-a")
    create(client, "py-find-b")
    (node,) = client.nodes.get_nodes()
    assert client.search.search("py-find", "volumes")["Matches"] == {"volumes": ["py-find-a", "py-find-b"]}
    assert client.search.search("host", "plugins")["Matches"] == {"plugins": ["hostpath"]}
    assert client.search.search(node["ID"][:8], "nodes")["Matches"] == {"nodes": [node["ID"]]}
    everything = client.search.search("py-find-a", "all")
    assert everything["Matches"]["volumes"] == ["py-find-a"]
    assert everything["Truncations"]["volumes"] is False
    for context in ("jobs", "evals", "allocs", "deployment"):
        assert not client.search.search("py-find", context)["Matches"].get(context)
    assert client.search.fuzzy_search("ostpat", "plugins")["Matches"]["plugins"] == [{"ID": "hostpath"}]
    for volume_id in ("py-find-a", "py-find-b"):
        call(client, "delete", f"volume/csi/{volume_id}/delete")


# -- the server, and access control ----------------------------------------------------------------------------------


def test_server_tells_about_itself(client: nomad.Nomad, dev: Program) -> None:
    """Agent, status, regions, system: what monitoring asks."""
    address = dev.url.removeprefix("http://")
    assert client.status.leader.get_leader() == address
    assert client.status.peers.get_peers() == [address]
    assert client.agent.get_servers() == [address]
    assert client.regions.get_regions() == ["global"]
    (member,) = client.agent.get_members()["Members"]
    assert member["Status"] == "alive"
    whole = client.agent.get_agent()
    assert whole["member"]["Name"] == member["Name"]
    assert whole["config"]["UI"]["ShowCLIHints"] is False
    assert client.system.initiate_garbage_collection() is True


def test_access_control_is_off(client: nomad.Nomad, dev: Program, session: requests.Session) -> None:
    """Without access control each of its pages says so, and any token is let through."""
    acl = client.acl
    for ask in (
        acl.generate_bootstrap,
        acl.get_tokens,
        acl.get_policies,
        lambda: acl.get_token(NOBODY),
        lambda: acl.create_token({"Name": "x", "Type": "client"}),
        lambda: acl.update_token(NOBODY, {"AccessorID": NOBODY}),
        lambda: acl.delete_token(NOBODY),
        lambda: acl.get_policy("x"),
        lambda: acl.create_policy("x", {"Name": "x", "Rules": ""}),
        lambda: acl.update_policy("x", {"Name": "x", "Rules": ""}),
        lambda: acl.delete_policy("x"),
    ):
        with pytest.raises(BadRequestNomadException, match="ACL support disabled"):
            ask()
    assert acl.get_self_token()["AccessorID"] == "acls-disabled"
    other = nomad.Nomad(address=dev.url, token=NOBODY, namespace="default", region="global", session=session)
    assert len(other.nodes) == 1


def test_errors_are_the_clients_own(client: nomad.Nomad, dev: Program, session: requests.Session) -> None:
    """Each status becomes the exception that the client's users catch, with the server's text in it."""
    with pytest.raises(BadRequestNomadException, match="detach requires node ID"):
        call(client, "delete", "volume/csi/x/detach")
    with pytest.raises(BadRequestNomadException):
        call(client, "put", "volume/csi/x/create", data=b"{")
    with pytest.raises(BaseNomadException, match="no CSI plugin named: py-none"):
        create(client, "py-bad", PluginID="py-none")
    with pytest.raises(URLNotFoundNomadException):
        call(client, "get", "no/such/page")
    other = nomad.Nomad(address=dev.url, region="elsewhere", session=session)
    with pytest.raises(BaseNomadException, match="No path to region"):
        other.nodes.get_nodes()


# -- events ----------------------------------------------------------------------------------------------------------


def test_event_stream(client: nomad.Nomad) -> None:
    """The stream's thread brings the events of volumes, and ends when it is told to."""
    before = client.nodes._request(method="get", endpoint="v1/volumes", params={"type": "csi"})
    index = int(before.headers["X-Nomad-Index"])
    stream, leave, events = client.event.stream.get_stream(index=index + 1, topic=["CSIVolume"], timeout=20)
    stream.start()
    made = create(client, "py-event")
    seen = wait_event(events, "CSIVolumeRegistered", "py-event")
    assert seen["Payload"]["Volume"]["ExternalID"] == made["ExternalID"]
    assert seen["Payload"]["Volume"]["Secrets"] is None
    assert (seen["Topic"], seen["Namespace"]) == ("CSIVolume", "default")
    assert "hostpath" in seen["FilterKeys"]
    # The thread looks for the wish to leave after a line.
    leave.set()
    call(client, "delete", "volume/csi/py-event/delete")
    stream.join(20)
    assert not stream.is_alive()


def wait_event(events: queue.Queue[dict[str, Any]], kind: str, key: str) -> dict[str, Any]:
    """The first event of a kind about something."""
    ends_s = time.monotonic() + 20
    while True:
        line = events.get(timeout=max(0.0, ends_s - time.monotonic()))
        for event in line["Events"]:
            if (event["Type"], event["Key"]) == (kind, key):
                return event
