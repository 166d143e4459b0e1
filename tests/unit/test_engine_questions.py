"""Calls that change nothing are asked without a record, and go the way of every call else."""

from __future__ import annotations

import anyio
import pytest
from engine_kit import NODE, PLUGIN, Kit, running_kit
from lost_node_kit import OTHER, wait_for
from many_volumes import a_volume
from msgspec import structs

from moorage.errors import DeadlineExceeded, MoorageError, Rejected
from moorage.model import steps
from moorage.model.assignment import StepAssignment, StepReport
from moorage.model.ids import NodeId, Revision
from moorage.model.node import Node
from moorage.model.volume import Volume
from moorage.state.repo import Write
from moorage.testing.scripted import fault

pytestmark = pytest.mark.anyio


async def register(kit: Kit, number: int = 1) -> None:
    await kit.service.registrations.register([a_volume(number)])


def volume_to_make() -> Volume:
    return structs.replace(a_volume(7), state="absent", external_id="")


async def create_in_vain(kit: Kit) -> None:
    with pytest.raises(MoorageError):
        await kit.service.registrations.create([volume_to_make()])


async def list_volumes(kit: Kit) -> int:
    page = await kit.service.listings.list_external("hostpath", entries_max=0, starting_token="")
    return len(page.volumes)


def find_step(kit: Kit, node_id: NodeId) -> StepAssignment | None:
    return next(iter(kit.service.reconciler.find_steps(node_id)), None)


async def test_a_question_is_on_no_record_and_a_register_is_one_commit() -> None:
    async with running_kit() as kit:
        before = kit.repo.view.revision
        await list_volumes(kit)
        assert kit.repo.view.revision == before
        await register(kit)
        assert kit.repo.view.revision == before + 1
        assert [type(c) for c in kit.driver.calls] == [steps.ListVolumes, steps.ValidateVolume]
        assert not len(kit.service.operations.questions)
        assert not kit.service.reconciler.assigned


async def test_a_refusal_is_told_and_nothing_is_kept() -> None:
    async with running_kit() as kit:
        kit.driver.fail(steps.ValidateVolume, fault("NOT_FOUND", final=True))
        before = kit.repo.view.revision
        with pytest.raises(Rejected, match="could not be found"):
            await register(kit)
        assert kit.repo.view.revision == before
        assert not len(kit.service.operations.questions)


async def test_a_question_is_tried_again_after_a_pause() -> None:
    async with running_kit() as kit:
        kit.driver.fail(steps.ValidateVolume, fault("UNAVAILABLE", final=False))
        began_s = anyio.current_time()
        await register(kit)
        assert anyio.current_time() - began_s >= 0.2
        assert len(kit.driver.calls) == 2


async def test_what_keeps_failing_is_told() -> None:
    async with running_kit() as kit:
        kit.driver.fail(steps.ValidateVolume, *[fault("UNAVAILABLE", final=False, message="backend away")] * 3)
        with pytest.raises(MoorageError, match="backend away"):
            await register(kit)
        assert len(kit.driver.calls) == 3
        assert not len(kit.service.operations.questions)


async def test_nobody_answers_and_the_caller_is_told_what_the_last_try_said() -> None:
    async with running_kit(request_s=0.3) as kit:
        kit.driver.fail(steps.ListVolumes, *[fault("UNAVAILABLE", final=False, message="backend away")] * 9)
        with pytest.raises(DeadlineExceeded, match="backend away"):
            await list_volumes(kit)
        assert not len(kit.service.operations.questions)
        assert not kit.service.reconciler.assigned
        assert kit.service.reconciler.measure_queues()["unfinished"] == 0


async def test_a_caller_that_leaves_takes_its_question_along() -> None:
    async with running_kit() as kit:
        kit.is_calling = False
        with anyio.move_on_after(0.05):
            await list_volumes(kit)
        assert not len(kit.service.operations.questions)
        assert find_step(kit, NODE) is None


async def test_a_question_moves_to_another_controller_and_only_that_one_answers() -> None:
    async with running_kit() as kit:
        kit.is_calling = False
        await kit.service.nodes.register(Node(id=OTHER, name="n2", boot_id="b2"))
        async with anyio.create_task_group() as group:
            group.start_soon(list_volumes, kit)
            await wait_for(lambda: find_step(kit, NODE) is not None)
            asked = find_step(kit, NODE)
            assert asked is not None
            await kit.service.nodes.report_plugins(OTHER, {PLUGIN: kit.driver.instance(OTHER)})
            await kit.service.nodes.report_plugins(NODE, {PLUGIN: kit.driver.instance(NODE, healthy=False)})
            assert find_step(kit, NODE) is None
            moved = find_step(kit, OTHER)
            assert moved is not None
            assert moved.key == asked.key
            answer = steps.VolumesListed(volumes=(), next_token="")
            # The first node's answer comes late: the question is no longer its own.
            await kit.service.nodes.report(NODE, (StepReport(key=asked.key, revision=asked.revision, outcome=answer),))
            assert len(kit.service.operations.questions) == 1
            await kit.service.nodes.report(OTHER, (StepReport(key=moved.key, revision=moved.revision, outcome=answer),))
        assert not len(kit.service.operations.questions)


async def test_reports_of_an_earlier_try_and_of_nobodys_question_say_nothing() -> None:
    async with running_kit() as kit:
        kit.is_calling = False
        async with anyio.create_task_group() as group:
            group.start_soon(list_volumes, kit)
            await wait_for(lambda: find_step(kit, NODE) is not None)
            asked = find_step(kit, NODE)
            assert asked is not None
            failed = steps.Failed(fault=fault("UNAVAILABLE", final=False))
            answer = steps.VolumesListed(volumes=(), next_token="")

            async def tell(key: str, revision: int, outcome: steps.Outcome) -> None:
                report = StepReport(key=key, revision=Revision(revision), outcome=outcome)
                await kit.service.nodes.report(NODE, (report,))

            await tell(asked.key, asked.revision, failed)
            await tell(asked.key, asked.revision, answer)
            await tell("questions/nobodys", 1, answer)
            assert len(kit.service.operations.questions) == 1
            await wait_for(lambda: find_step(kit, NODE) is not None)
            again = find_step(kit, NODE)
            assert again is not None
            assert again.revision > asked.revision
            await tell(again.key, again.revision, answer)


async def test_a_node_is_not_woken_by_the_end_of_what_it_has_told_itself() -> None:
    async with running_kit() as kit:
        handouts = kit.service.reconciler.handouts
        topic = f"steps@{NODE}"
        before = handouts(topic).version
        await register(kit)
        await kit.service.registrations.create([a_volume(2)])
        assert handouts(topic).version == before + 2


async def test_a_step_that_moved_is_told_by_its_new_node_only_and_withdrawn_there() -> None:
    async with running_kit() as kit:
        kit.is_calling = False
        await kit.service.nodes.register(Node(id=OTHER, name="n2", boot_id="b2"))
        async with anyio.create_task_group() as group:
            group.start_soon(create_in_vain, kit)
            await wait_for(lambda: find_step(kit, NODE) is not None)
            asked = find_step(kit, NODE)
            assert asked is not None
            await kit.service.nodes.report_plugins(OTHER, {PLUGIN: kit.driver.instance(OTHER)})
            await kit.service.nodes.report_plugins(NODE, {PLUGIN: kit.driver.instance(NODE, healthy=False)})
            moved = find_step(kit, OTHER)
            assert moved is not None
            assert (moved.key, moved.revision) == (asked.key, asked.revision)
            first = await kit.service.nodes.wait_steps(OTHER, index=0, wait_s=0)
            made = StepReport(
                key=asked.key, revision=asked.revision, outcome=steps.Created(external_id="e", capacity_bytes=1)
            )
            # The first node's late word is not taken: the other may be in the middle of the same call.
            await kit.service.nodes.report(NODE, (made,))
            assert find_step(kit, OTHER) == moved
            # A user gives the volume up: the node that has the step hears that it is not due any more.
            found = kit.repo.view.volumes.find(asked.key)
            assert found is not None
            given_up = structs.replace(found.value, wanted="absent")
            await kit.repo.commit(Write().put(asked.key, given_up, revision=found.modified))
            news = await kit.service.nodes.wait_steps(OTHER, index=first.index, wait_s=5, epoch=first.epoch)
            assert news.is_delta
            assert asked.revision not in [s.revision for s in news.steps]
            assert asked.key in {*news.gone, *(s.key for s in news.steps)}
            group.cancel_scope.cancel()


class Near:
    """The agent in the server's process: what it was asked, and what it says."""

    def __init__(self, kit: Kit, node_id: NodeId = NODE) -> None:
        self.kit = kit
        self.asked: list[StepAssignment] = []
        self.is_free = True
        kit.service.operations.questions.offer(node_id, self.ask)

    async def ask(self, assignment: StepAssignment) -> StepReport | None:
        """See ``engine.questions.AskNear``."""
        self.asked.append(assignment)
        if not self.is_free:
            return None
        # While it is asked nobody else is.
        assert not self.kit.service.reconciler.assigned
        outcome = self.kit.driver.run(assignment.step)
        return StepReport(key=assignment.key, revision=assignment.revision, outcome=outcome, took_s=0.01)


async def test_a_question_about_a_volume_is_asked_by_the_agent_of_this_process() -> None:
    async with running_kit() as kit:
        near = Near(kit)
        kit.is_calling = False
        await register(kit)
        kit.driver.fail(steps.ValidateVolume, fault("NOT_FOUND", final=True))
        with pytest.raises(Rejected, match="could not be found"):
            await register(kit, 2)
        assert [type(a.step) for a in near.asked] == [steps.ValidateVolume] * 2
        assert not kit.service.reconciler.assigned


async def test_a_question_that_has_to_wait_or_to_be_tried_again_goes_the_way_of_every_call() -> None:
    async with running_kit() as kit:
        near = Near(kit)
        near.is_free = False
        await register(kit)
        assert [a.revision for a in near.asked] == [1]
        near.is_free = True
        kit.driver.fail(steps.ValidateVolume, fault("UNAVAILABLE", final=False))
        began_s = anyio.current_time()
        await register(kit, 2)
        # The second try came after the pause, and not to the agent of this process by name.
        assert anyio.current_time() - began_s >= 0.2
        assert len(near.asked) == 2
        assert len(kit.driver.calls) == 3
        assert not kit.service.reconciler.assigned


async def test_a_question_that_is_not_this_processs_or_about_no_volume_is_handed_out() -> None:
    async with running_kit() as kit:
        near = Near(kit, OTHER)
        await register(kit)
        near = Near(kit)
        await list_volumes(kit)
        assert not near.asked
        assert len(kit.driver.calls) == 2


async def test_a_question_asked_here_takes_no_longer_than_its_caller_waits() -> None:
    async with running_kit(request_s=0.5) as kit:
        near = Near(kit)
        await register(kit)
        assert [a.timeout_s for a in near.asked] == [0.5]
