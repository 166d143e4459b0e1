"""One server, three agents on hosts of their own: volumes move, hosts are cut off, fenced and powered off.

Over all that happens no line that a writer said is lost, and the lines of two holders never mix. Every driver stands
behind a judge. See ``cluster`` and ``namespaces`` in tests/support.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, check_lines
from dev_server import wait_until
from namespaces import running_lan

from moorage.testing.judge_records import Ended, Started, read_log

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_lan() as lan:
        yield Cluster(lan)


@pytest.fixture(autouse=True)
def well(cluster: Cluster) -> Iterator[None]:
    """Each test finds, and leaves, three healthy nodes; no judge has anything to say."""
    wait_until(lambda: cluster.healthy_nodes() == 3, "three healthy nodes")
    yield
    wait_until(lambda: cluster.healthy_nodes() == 3, "three healthy nodes")
    assert cluster.find_faults() == []


def test_a_volume_moves_when_its_use_is_stopped_or_its_node_is_drained(cluster: Cluster) -> None:
    first, second, third = cluster.hosts
    data = cluster.create("moving")
    one = cluster.use("moving", first)
    writers = [one.write("on-first")]
    _, status, answer = cluster.ask_use("moving", second)
    assert status != 200, "a second writer was let in"
    assert all(word in str(answer) for word in ("moving", one.id, cluster.node(first)["ID"], "since")), answer
    one.stop()
    writers[0].wait_more(20)
    assert one.status != "complete", "a path in use was taken away"
    writers[0].end()
    one.wait_over()
    assert first.list_mounts(first.place) == []
    two = cluster.use("moving", second)
    writers.append(two.write("on-second"))
    cluster.lan.run_cli("node", "drain", second.name)
    writers[1].wait_more(20)
    writers[1].end()
    two.wait_over()
    assert second.list_mounts(second.place) == []
    cluster.lan.run_cli("node", "drain", "--disable", second.name)
    three = cluster.use("moving", third)
    writers.append(three.write("on-third"))
    writers[2].end()
    three.stop()
    three.wait_over()
    check_lines(data, writers)


def test_a_cut_off_writer_keeps_its_volume_until_there_is_evidence(cluster: Cluster) -> None:
    first, second, third = cluster.hosts
    data = cluster.create("parted")
    one = cluster.use("parted", second)
    writers = [one.write("before")]
    second.cut_off()
    cluster.wait_status(second, "down")
    _, status, _ = cluster.ask_use("parted", third)
    assert status != 200, "a second writer was let in"
    writers[0].wait_more(20)
    second.join()
    cluster.wait_status(second, "ready")
    writers[0].wait_more(20)
    assert one.status == "running", "a short break of the network ended a use"
    # Cut off once more; the operator ends the writer by hand and says so.
    second.cut_off()
    cluster.wait_status(second, "down")
    writers[0].end()
    mounted = second.list_mounts(second.place)
    assert mounted, "the agent unmounted because the server was silent"
    cluster.fence(second, "its writer was stopped at the console")
    two = cluster.use("parted", first)
    writers.append(two.write("elsewhere"))
    assert second.list_mounts(second.place) == mounted
    second.join()
    cluster.wait_status(second, "ready")
    assert second.list_mounts(second.place) == [], "it registered before it let go"
    registered_s = cluster.lan.get(f"/v1/node/{cluster.node(second)['ID']}")["StatusUpdatedAt"]
    assert find_last_end(cluster.log(second), "NodeUnstageVolume") // 1_000_000_000 <= registered_s
    one.wait_over("lost")
    writers[1].wait_more(20)
    writers[1].end()
    two.stop()
    two.wait_over()
    check_lines(data, writers)


def find_last_end(log: Path, method: str) -> int:
    """When the last call of a method was answered."""
    lines = list(read_log(log))
    numbers = {line.id for line in lines if isinstance(line, Started) and line.method == method}
    return max(line.at_ns for line in lines if isinstance(line, Ended) and line.id in numbers)


def test_a_powered_off_node_loses_its_volume_to_an_operators_word(cluster: Cluster) -> None:
    first, second, third = cluster.hosts
    data = cluster.create("powered")
    one = cluster.use("powered", second)
    writers = [one.write("before")]
    node_id = cluster.node(second)["ID"]
    second.power_off()
    cluster.wait_status(second, "down")
    _, status, _ = cluster.ask_use("powered", third)
    assert status != 200, "a second writer was let in"
    cluster.fence(second, "the power switch says off")
    two = cluster.use("powered", third)
    writers.append(two.write("elsewhere"))
    second.boot()
    cluster.start_node(second)
    cluster.wait_status(second, "ready")
    assert cluster.node(second)["ID"] == node_id
    one.wait_over("lost")
    assert second.list_mounts(second.place) == []
    # A reboot without a word in between: what the node held is mounted there again.
    writers[1].wait_more(5)
    third.power_off()
    third.boot()
    cluster.start_node(third)
    wait_until(lambda: str(two.target) in third.list_mounts(third.place), "the volume is mounted again")
    writers.append(two.write("after-the-boot"))
    writers[2].end()
    two.stop()
    two.wait_over()
    assert first.list_mounts(first.place) == third.list_mounts(third.place) == []
    wait_until(lambda: cluster.is_free("powered"), "the volume is free")
    check_lines(data, writers)
