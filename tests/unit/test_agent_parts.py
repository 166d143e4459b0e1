"""The agent's parts one by one: lane, reporter, journal, looks at paths, host facts, probes by inode."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import msgspec
import pytest

from moorage.agent import mounts
from moorage.agent.calls import call_driver
from moorage.agent.fingerprint import Fingerprints
from moorage.agent.host import describe_host, load_node_id
from moorage.agent.journal import Journal, write_whole
from moorage.agent.lane import Lane
from moorage.agent.ports import AgentSettings, DriverSpec
from moorage.agent.reporter import Reporter
from moorage.errors import BadRequest, DeadlineExceeded, DriverUncertain, Rejected, Unavailable
from moorage.model import steps
from moorage.model.assignment import Report, UnmountedReport
from moorage.model.ids import ClaimId, NodeId, PluginId, Revision
from moorage.rules.mount_records import Layout, Staging, Use
from moorage.testing.agent_world import MemoryMounter, ScriptedDriver

pytestmark = pytest.mark.anyio
replace = msgspec.structs.replace
NAS = PluginId("nas")


async def soon(is_so: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not is_so():
            await anyio.sleep(0.005)


# -- lane ------------------------------------------------------------------------------------------------------------


async def test_a_hung_look_costs_one_thread_and_comes_back() -> None:
    lane, gate, begun = Lane(timeout_s=0.05), threading.Event(), []

    def hang() -> None:
        begun.append(1)
        gate.wait(10)

    with pytest.raises(DeadlineExceeded):
        await lane.run(hang)
    for _ in range(3):
        with pytest.raises(DeadlineExceeded, match="still hangs"):
            await lane.run(hang)
    assert len(begun) == 1
    gate.set()
    await soon(lambda: lane.is_free)
    assert await lane.run(lambda: 7) == 7


async def test_a_lane_passes_errors_through_and_stays_free() -> None:
    lane = Lane(timeout_s=1)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            await lane.run(lambda: Path("/nowhere/at/all").read_text())


# -- reporter --------------------------------------------------------------------------------------------------------


class Sink:
    def __init__(self) -> None:
        self.taken: list[tuple[str, ...]] = []
        self.faults: list[Exception] = []
        self.bad = ""
        self.gate = anyio.Event()
        self.gate.set()

    async def report(self, reports: tuple[Report, ...]) -> None:
        await self.gate.wait()
        if self.faults:
            raise self.faults.pop(0)
        ids = tuple(r.claim_id for r in reports if isinstance(r, UnmountedReport))
        if self.bad in ids:
            raise Rejected("that one")
        self.taken.append(ids)


def unmounted(name: str) -> Report:
    return UnmountedReport(claim_id=ClaimId(name), revision=Revision(1))


async def test_reports_are_batched_repeated_and_kept_in_order() -> None:
    sink = Sink()
    sink.faults = [Unavailable("no"), Unavailable("no")]
    sink.gate = anyio.Event()
    reporter = Reporter(sink, AgentSettings(reports_batch=4), random=lambda: 0.0)
    async with anyio.create_task_group() as group:
        group.start_soon(reporter.run)
        for name in "abcdefg":
            await reporter.send(unmounted(name))
        await anyio.lowlevel.checkpoint()
        sink.gate.set()
        await soon(lambda: sum(map(len, sink.taken)) == 7)
        group.cancel_scope.cancel()
    assert [name for batch in sink.taken for name in batch] == list("abcdefg")
    assert max(map(len, sink.taken)) == 4


async def test_one_rejected_report_does_not_take_the_others_with_it() -> None:
    sink, answers = Sink(), dict[str, bool]()
    sink.bad = "b"
    sink.gate = anyio.Event()
    reporter = Reporter(sink, AgentSettings(), random=lambda: 0.0)
    async with anyio.create_task_group() as group:
        for name in "abc":
            await reporter.send(unmounted(name), partial(answers.__setitem__, name))
        group.start_soon(reporter.run)
        sink.gate.set()
        await soon(lambda: len(answers) == 3)
        group.cancel_scope.cancel()
    assert answers == {"a": True, "b": False, "c": True}


async def test_too_many_reports_wait() -> None:
    sink = Sink()
    reporter = Reporter(sink, AgentSettings(reports_kept_max=2), random=lambda: 0.0)
    await reporter.send(unmounted("a"))
    await reporter.send(unmounted("b"))
    with anyio.move_on_after(0.05) as scope:
        await reporter.send(unmounted("c"))
    assert scope.cancelled_caught
    async with anyio.create_task_group() as group:
        group.start_soon(reporter.run)
        await soon(lambda: sink.taken)
        group.cancel_scope.cancel()


# -- driver calls ----------------------------------------------------------------------------------------------------


async def test_a_driver_that_breaks_its_word_is_a_failure(tmp_path: Path) -> None:
    class Broken(ScriptedDriver):
        async def run(self, step: steps.Step, *, timeout_s: float) -> steps.Outcome:
            if timeout_s < 1:
                await anyio.sleep_forever()
            raise DriverUncertain("lost", method="X", status="UNAVAILABLE", final=False)

    driver = Broken(MemoryMounter(), str(tmp_path))
    step = steps.DeleteVolume(external_id="x")
    late = await call_driver(driver, step, timeout_s=0.01, clock=lambda: 5, late_s=0.01)
    lost = await call_driver(driver, step, timeout_s=5, clock=lambda: 5)
    none = await call_driver(None, step, timeout_s=5, clock=lambda: 5)
    statuses = [
        (o.fault.status, o.fault.final, o.fault.at_ns) for o in (late, lost, none) if isinstance(o, steps.Failed)
    ]
    assert statuses == [
        ("DEADLINE_EXCEEDED", False, 5),
        ("UNAVAILABLE", False, 5),
        ("plugin_unavailable", False, 5),
    ]


# -- journal ---------------------------------------------------------------------------------------------------------


def a_use(root: Path, **more: object) -> Use:
    layout = Layout(str(root / "state"))
    given = {"publish_path": layout.publish(ClaimId("a")), "target": str(root / "srv" / "data"), **more}
    return Use(claim_id=ClaimId("a"), plugin_id=NAS, external_id="ext", **given)  # type: ignore[arg-type]


def test_the_journal_keeps_what_it_was_given(tmp_path: Path) -> None:
    journal = Journal(Layout(str(tmp_path)))
    assert journal.load() == ([], [])
    use = a_use(tmp_path, bind="done", made=("/srv", "/srv/a"), grown_bytes=7)
    staging = Staging(plugin_id=NAS, external_id="ext", staging_path="/s", phase="done", seen_as="mount")
    journal.write(use)
    journal.write(staging)
    (tmp_path / "u" / "half.json.tmp").write_text("{")
    assert journal.load() == ([use], [staging])
    assert [p for p in (tmp_path / "u").iterdir() if p.suffix == ".tmp"] == []
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "u").iterdir()} == {0o600}
    journal.remove(use)
    journal.remove(use)
    journal.remove(staging)
    assert journal.load() == ([], [])


# -- looks and binds -------------------------------------------------------------------------------------------------


def test_what_is_at_a_path(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "directory")
    (tmp_path / "dead").symlink_to(tmp_path / "nothing")
    paths = {n: str(tmp_path / n) for n in ("directory", "link", "dead", "none")}
    found = {n: mounts.look_at(path, is_mounted=False) for n, path in paths.items()}
    assert found == {"directory": "plain", "link": "link", "dead": "link", "none": "absent"}
    assert mounts.look_at(paths["directory"], is_mounted=True) == "mount"
    first = mounts.look(
        MemoryMounter(),
        staging_path=paths["none"],
        publish_paths={ClaimId(n): path for n, path in paths.items()},
        targets={},
    )
    assert first.standing == {paths["link"], paths["dead"]}
    seen = first.complete(MemoryMounter(), {paths["dead"]: "ENOENT"})
    assert (seen.staging, seen.published) == ("absent", found | {"dead": "broken"})


def test_what_is_at_a_target(tmp_path: Path) -> None:
    mounter, published = MemoryMounter(), tmp_path / "published"
    for name in ("published", "empty", "full", "taken", "foreign"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    (tmp_path / "content").write_text("x")
    (tmp_path / "ours").symlink_to(published)
    (tmp_path / "theirs").symlink_to(tmp_path / "full")
    mounter.bind(str(published), str(tmp_path / "taken"), read_only=False)
    mounter.bind(str(tmp_path / "full"), str(tmp_path / "foreign"), read_only=False)
    names = ["empty", "full", "file", "content", "ours", "theirs", "taken", "foreign", "none"]
    seen = mounts.look(
        mounter,
        staging_path=str(tmp_path / "staging"),
        publish_paths={ClaimId(n): str(published) for n in names},
        targets={ClaimId(n): str(tmp_path / n) for n in names},
    ).complete(mounter)
    assert {i: (t.kind, t.is_same) for i, t in seen.targets.items()} == {
        "empty": ("empty_directory", False),
        "full": ("full_directory", False),
        "file": ("empty_file", False),
        "content": ("other", False),
        "ours": ("link", True),
        "theirs": ("link", False),
        "taken": ("mount", True),
        "foreign": ("mount", False),
        "none": ("absent", False),
    }


def test_a_bind_cut_short_anywhere_is_undone(tmp_path: Path) -> None:
    mounter = MemoryMounter()
    use = a_use(tmp_path)
    Path(use.publish_path).mkdir(parents=True)
    planned = mounts.plan_bind(use)
    assert planned.made == (str(tmp_path / "srv"), str(tmp_path / "srv" / "data"))
    assert mounts.undo_bind(mounter, planned) == use  # nothing was made yet
    (tmp_path / "srv").mkdir()
    assert mounts.plan_bind(planned).made == planned.made
    assert mounts.undo_bind(mounter, planned) == use
    mounts.make_bind(mounter, planned)
    assert mounter.is_same(use.target, use.publish_path)
    assert mounts.undo_bind(mounter, planned) == use
    assert not (tmp_path / "srv").exists()


def test_undo_leaves_what_others_put_there(tmp_path: Path) -> None:
    mounter = MemoryMounter()
    use = a_use(tmp_path)
    Path(use.publish_path).mkdir(parents=True)
    planned = mounts.plan_bind(use)
    mounts.make_bind(mounter, planned)
    (tmp_path / "srv" / "theirs").touch()
    mounts.undo_bind(mounter, replace(planned, bind="done"))
    assert (tmp_path / "srv" / "theirs").exists()
    assert not (tmp_path / "srv" / "data").exists()


def test_undo_of_a_bind_that_was_only_begun_leaves_a_foreign_mount(tmp_path: Path) -> None:
    mounter = MemoryMounter()
    use = a_use(tmp_path)
    Path(use.publish_path).mkdir(parents=True)
    other, target = tmp_path / "other", Path(use.target)
    other.mkdir()
    target.mkdir(parents=True)
    mounter.bind(str(other), use.target, read_only=False)
    mounts.undo_bind(mounter, replace(use, bind="begun"))
    assert mounter.find_mounted([use.target])


def test_what_a_driver_leaves_is_removed_only_if_empty(tmp_path: Path) -> None:
    mounter = MemoryMounter()
    path = tmp_path / "p" / "mount"
    path.mkdir(parents=True)
    (path / "data").touch()
    with pytest.raises(OSError) as caught:
        mounts.clear_published(mounter, str(path))
    assert caught.value.errno == errno.ENOTEMPTY
    (path / "data").unlink()
    mounter.bind(str(tmp_path), str(path), read_only=False)
    with pytest.raises(OSError) as caught:
        mounts.clear_published(mounter, str(path))
    assert caught.value.errno == errno.EBUSY
    mounter.unmount(str(path))
    mounts.clear_published(mounter, str(path))
    mounts.clear_published(mounter, str(path))
    assert not path.parent.exists()


# -- host ------------------------------------------------------------------------------------------------------------


def test_a_host_keeps_its_id(tmp_path: Path) -> None:
    node = describe_host(tmp_path / "state")
    assert describe_host(tmp_path / "state").id == node.id
    assert len(node.boot_id) == 36
    assert node.memory_mb > 0
    assert node.cpu_mhz > 0
    assert {"kernel.name", "kernel.version", "cpu.arch", "os.name", "unique.hostname"} <= set(node.attributes)
    write_whole(str(tmp_path / "state" / "node-id"), b"worker-1")
    with pytest.raises(BadRequest, match="UUID"):
        load_node_id(tmp_path / "state", new_id=lambda: "")


# -- probes ----------------------------------------------------------------------------------------------------------


async def test_a_restarted_driver_is_asked_at_once(tmp_path: Path) -> None:
    socket = tmp_path / "csi.sock"
    socket.touch()
    driver = ScriptedDriver(MemoryMounter(), str(tmp_path))
    fingerprints = Fingerprints(
        {NAS: driver},
        {NAS: DriverSpec(socket=str(socket))},
        node_id=NodeId("n"),
        file=tmp_path / "instances.json",
        clock=lambda: 1,
        settings=AgentSettings(probe_old_s=600.0, socket_look_s=0.01),
    )
    async with anyio.create_task_group() as group:
        await group.start(fingerprints.run)
        await soon(lambda: driver.probes == 1)
        (tmp_path / "new").touch()
        (tmp_path / "new").rename(socket)
        await soon(lambda: driver.probes == 2)
        group.cancel_scope.cancel()
    info = fingerprints.find_node_info(NAS)
    assert info is not None
    assert info.requires_stage
