"""The simulated cluster: seeds keep every promise; planted defects are found; what was found once stays fixed."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import msgspec
import pytest
from engine_kit import NODE, PLUGIN, Kit, running_kit

from moorage.engine.planning import Move
from moorage.errors import DeadlineExceeded, MoorageError, StateConflict, StoreUnavailable
from moorage.model.assignment import MountFailedReport
from moorage.model.claim import Allocation, ControllerDetached, VolumeRequest
from moorage.model.ids import AllocationId, NamespaceName, VolumeId
from moorage.model.volume import MULTI_NODE_MULTI_WRITER, Capability, Fault, Secrets, Volume
from moorage.state import keys
from moorage.state.memory import MemoryStore
from moorage.state.repo import Write
from moorage.state.store import Compare, Op, TxnResult
from moorage.testing.sim_defects import PLANS

TOOL = Path(__file__).parents[2] / "tools" / "simulate.py"
SEEDS = 300
PART = 50
# A planted defect must be found by one of so many seeds. Where they start is chosen so that the wait is short; if a
# change of the engine or of the schedules moves the finds, look for another start with tools/simulate.py --plant.
PLANTED_SEEDS = 80


# What a run takes depends on its seeds, how long on who else uses the processors: so work is what is bounded.
CPU_S = 55
on_work = pytest.mark.timeout(600)


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the tool: it sets the hash seed, without which a run is not repeatable.

    Each of its processes is ended when it has used ``CPU_S`` seconds of a processor.
    """
    limited = ["sh", "-c", f'ulimit -t {CPU_S} && exec "$@"', "sh"]
    command = [*limited, sys.executable, "-W", "error", str(TOOL), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@on_work
@pytest.mark.parametrize("start", range(1, SEEDS + 1, PART))
def test_seeds_keep_every_promise(start: int) -> None:
    done = simulate("--start", str(start), "--seeds", str(PART), "--jobs", str(min(2, os.cpu_count() or 1)))
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert f"{PART} runs, 0 with violations" in done.stdout


@pytest.mark.slow
@on_work
@pytest.mark.parametrize(
    ("defect", "validator", "start"),
    [
        ("report_unchecked", "no_leak", 11),
        ("freed_by_timer", "no_evidence_no_free", 1),
        ("detach_unasked", "no_detach_while_held", 1),
        ("fresh_names", "intent_first", 1),
        ("renewed_unclean", "clean_before_ready", 61),
        ("clean_by_stale_list", "clean_before_ready", 11),
        ("mounted_untaken", "clean_before_ready", 11),
        ("controller_changed", "one_in_flight", 1),
        ("controllers_unheard", "one_in_flight", 11),
        ("sick_hurried", "one_in_flight", 1),
        ("reports_overtaken", "one_in_flight", 1),
    ],
)
def test_a_planted_defect_is_found(defect: str, validator: str, start: int) -> None:
    where = ("--start", str(start), "--seeds", str(PLANTED_SEEDS))
    done = simulate("--plant", defect, *where, "--jobs", "2", "--stop-after", "1")
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    found = re.findall(r"VIOLATED (\w+)", done.stdout)
    assert validator in found


def test_every_defect_has_its_test() -> None:
    marks = test_a_planted_defect_is_found.pytestmark  # type: ignore[attr-defined]
    tried = {defect for mark in marks if mark.name == "parametrize" for defect, *_ in mark.args[1]}
    assert tried == set(PLANS)


@on_work
def test_a_seed_is_the_same_run_each_time() -> None:
    first, second = (simulate("--seed", "5", "-v") for _ in range(2))
    digest = re.search(r"digest (\w+)", first.stdout)
    assert digest is not None
    assert digest.group() in second.stdout


# -- what the simulation found once, each in its smallest form -------------------------------------------------------

SPACE = NamespaceName("default")
DISK = Volume(
    id=VolumeId("v"),
    namespace=SPACE,
    plugin_id=PLUGIN,
    name="v",
    capabilities=(Capability(access_mode=MULTI_NODE_MULTI_WRITER, attachment_mode="file-system"),),
)


async def use_twice(kit: Kit) -> tuple[str, str]:
    """Two uses of one disk on one node, which nobody mounts."""
    await kit.service.registrations.create([DISK])
    kit.is_calling = kit.is_mounting = False
    request = VolumeRequest(name="v", source=DISK.id)
    for name in ("a", "b"):
        use = Allocation(id=AllocationId(name), namespace=SPACE, node_id=NODE, volumes=(request,))
        await kit.service.allocations.start(use)
    return keys.CLAIMS + "a/v", keys.CLAIMS + "b/v"


@pytest.mark.anyio
async def test_a_claim_leaves_the_detaching_only_to_one_that_still_has_the_disk() -> None:
    """Seed 1558: each of two released claims took the other one for the one that would detach; nobody did."""
    async with running_kit() as kit:
        first, second = await use_twice(kit)
        table = kit.repo.view.claims
        record, other = table.find(first), table.find(second)
        assert record is not None
        assert other is not None
        claim = msgspec.structs.replace(record.value, wanted="released")
        plan = kit.service.reconciler.planner.plan_claim(first, record, claim, now_ns=0)
        assert plan.settlement == Move(state=ControllerDetached(), because={second: int(other.modified)})
        await kit.repo.commit(Write().put(second, other.value, revision=other.modified))
        with pytest.raises(StateConflict):
            await kit.service.reconciler.outcomes.settle(first, plan.settlement)


class FullStore(MemoryStore):
    """A store that takes no writes while ``is_full``."""

    is_full = False

    async def transact(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        if self.is_full:
            raise StoreUnavailable("the disk is full")
        return await super().transact(compares, then, otherwise)


@pytest.mark.anyio
async def test_a_batch_of_reports_on_a_full_disk_is_refused_as_such() -> None:
    """It ended in an error group that no caller knew."""
    store = FullStore()
    async with running_kit(store) as kit:
        reports = []
        for key in await use_twice(kit):
            record = kit.repo.view.claims.find(key)
            assert record is not None
            fault = Fault(method="NodeStageVolume", status="INTERNAL", message="no", final=False)
            reports.append(MountFailedReport(claim_id=record.value.id, revision=record.modified, fault=fault))
        store.is_full = True
        with pytest.raises(StoreUnavailable):
            await kit.service.nodes.report(NODE, tuple(reports))
        store.is_full = False


class RacedStore(MemoryStore):
    """A store in which somebody else writes just before the next write of a volume."""

    is_raced = False

    async def transact(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        if self.is_raced and compares[0].key.startswith(keys.VOLUMES):
            self.is_raced = False
            return TxnResult(False, await self.revision())
        return await super().transact(compares, then, otherwise)


@pytest.mark.anyio
async def test_a_delete_beside_the_end_of_a_create_decides_again() -> None:
    """Seed 19: the internal conflict was shown to the caller."""
    store = RacedStore()
    async with running_kit(store, request_s=1.0) as kit, anyio.create_task_group() as group:
        kit.is_calling = False

        async def create() -> None:
            with contextlib.suppress(MoorageError):
                await kit.service.registrations.create([DISK])

        group.start_soon(create)
        await anyio.sleep(0.05)
        store.is_raced = True
        with pytest.raises(DeadlineExceeded, match="not deleted yet"):
            await kit.service.removals.delete(SPACE, DISK.id, secrets=Secrets())
        assert not store.is_raced
        group.cancel_scope.cancel()
