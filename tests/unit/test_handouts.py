"""Lists of claims and steps by what is new: whoever follows them has what the whole list would say."""

from __future__ import annotations

import anyio
import pytest
from engine_kit import NODE, PLUGIN, Kit, running_kit
from hypothesis import given
from hypothesis import strategies as st
from lost_node_kit import start_use, status_of, wait_for

from moorage.agent.standing import StandingNews
from moorage.engine import handouts as module
from moorage.engine.handouts import Handouts
from moorage.engine.reconciler import claims_topic
from moorage.model.assignment import ClaimAssignment, ClaimAssignments, StepAssignments, UnmountedReport
from moorage.model.ids import ClaimId, NodeId
from moorage.model.node import Node
from moorage.rules.nodes import FencingSettings
from moorage.testing.scripted import ScriptedDriver

pytestmark = pytest.mark.anyio


@given(st.lists(st.one_of(st.sampled_from("abcde"), st.just(""), st.just("ask"), st.just("lose"))))
def test_a_follower_has_what_the_whole_list_has(moves: list[str]) -> None:
    """Entries come and go; a follower asks now and then, and some of its answers are lost."""
    found, whole = Handouts(100), dict[str, int]()
    has, index = dict[str, int](), 100
    for number, move in enumerate(moves):
        if move in ("ask", "lose"):
            found.forget(index)
            changed = found.find_since(index)
            assert changed is not None, "one follower never loses its place"
            assert len(set(changed)) == len(changed)
            if move == "ask":
                has.update({key: whole[key] for key in changed if key in whole})
                for key in changed:
                    if key not in whole:
                        has.pop(key, None)
                index = found.version
                assert has == whole
        else:
            if move and whole.pop(move, None) is None:
                whole[move] = number
            found.note(move)


def test_what_is_not_known_any_more_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHANGES_MAX", 3)
    found = Handouts(100)
    for key in "abcd":
        found.note(key)
    assert (len(found), found.version) == (3, 104)
    assert found.find_since(100) is None, "a was forgotten"
    assert found.find_since(101) == ("b", "c", "d")
    found.forget(103)
    assert (len(found), found.find_since(102), found.find_since(103)) == (1, None, ("d",))
    assert found.find_since(105) is None
    assert found.find_since(99) is None


async def ask(kit: Kit, page: ClaimAssignments | None, wait_s: float = 5.0) -> ClaimAssignments:
    index, epoch = (page.index, page.epoch) if page else (0, 0)
    return await kit.service.nodes.wait_claims(NODE, index=index, wait_s=wait_s, epoch=epoch)


async def test_an_answer_names_only_what_is_new() -> None:
    async with running_kit() as kit:
        kit.is_mounting = False
        first, second = await start_use(kit, name="one"), await start_use(kit, name="two")
        await wait_for(lambda: all(status_of(kit, use) != "gone" for use in (first, second)))
        page = await ask(kit, None)
        while len(page.claims) < 2 or any(type(c.claim.state).__name__ != "Attached" for c in page.claims):
            page = await kit.service.nodes.wait_claims(NODE, index=page.index, wait_s=5)
        assert not page.is_delta
        await kit.service.allocations.stop(first)
        news = await ask(kit, page)
        assert news.is_delta
        assert [c.claim.allocation_id for c in news.claims] == [first]
        again = await ask(kit, page)
        assert (again.is_delta, again.claims) == (True, news.claims), "a lost answer is given again"
        whole = await kit.service.nodes.wait_claims(NODE, index=0, wait_s=5, epoch=page.epoch + 1)
        assert (whole.is_delta, len(whole.claims)) == (False, 2)
        kit.is_mounting = True
        await kit.service.nodes.report(NODE, ())
        for assigned in whole.claims:
            if assigned.claim.allocation_id == first:
                await release(kit, assigned)
        gone: set[ClaimId] = set()
        while not gone:
            news = await ask(kit, news)
            gone |= set(news.gone)
        assert gone == {ClaimId(f"{first}/data")}


async def release(kit: Kit, assigned: ClaimAssignment) -> None:
    await kit.service.nodes.report(NODE, (UnmountedReport(claim_id=assigned.claim.id, revision=assigned.revision),))


async def test_a_change_of_the_plugin_is_no_news_of_claims() -> None:
    async with running_kit() as kit:
        versions = kit.service.reconciler.handouts(claims_topic(NODE))
        before = versions.version
        other = NodeId("99999999-2222-3333-4444-555555555555")
        await kit.service.nodes.register(Node(id=other, name="n2", boot_id="b1"))
        await kit.service.nodes.report_plugins(other, {PLUGIN: ScriptedDriver().instance(other)})
        assert versions.version == before


async def test_reports_of_many_agents_share_writes() -> None:
    """Every write of a plugin's record costs as much as there are nodes."""
    async with running_kit() as kit:
        others = [NodeId(f"{n:08d}-2222-3333-4444-555555555555") for n in range(200)]
        for node_id in others:
            await kit.service.nodes.register(Node(id=node_id, name=f"n{node_id[:8]}", boot_id="b1"))
        before = await kit.store.revision()
        async with anyio.create_task_group() as group:
            for node_id in others:
                group.start_soon(
                    kit.service.nodes.report_plugins, node_id, {PLUGIN: ScriptedDriver().instance(node_id)}
                )
        found = kit.service.reads.find_plugin(PLUGIN)
        assert found is not None
        assert set(found.value.instances) == {NODE, *others}
        assert await kit.store.revision() - before <= 3


async def test_a_report_that_is_cut_off_is_written_by_the_next() -> None:
    async with running_kit() as kit:
        others = [NodeId(f"{n:08d}-2222-3333-4444-555555555555") for n in range(3)]
        for node_id in others:
            await kit.service.nodes.register(Node(id=node_id, name=f"n{node_id[:8]}", boot_id="b1"))
        async with anyio.create_task_group() as group:
            scopes = []
            for node_id in others:
                scope = anyio.CancelScope()
                scopes.append(scope)

                async def report(node_id: NodeId = node_id, scope: anyio.CancelScope = scope) -> None:
                    with scope:
                        instances = {PLUGIN: ScriptedDriver().instance(node_id)}
                        await kit.service.nodes.report_plugins(node_id, instances)

                group.start_soon(report)
            await anyio.lowlevel.checkpoint()
            scopes[0].cancel()
        found = kit.service.reads.find_plugin(PLUGIN)
        assert found is not None
        assert {*others[1:]} <= set(found.value.instances)


async def test_the_whole_list_is_asked_for_again_from_time_to_time() -> None:
    news = StandingNews(whole_s=0.1, random=lambda: 0.5)
    assert news.find_epoch() == 0
    news.note(StepAssignments(index=1, steps=(), epoch=7))
    assert news.find_epoch() == 7
    news.note(StepAssignments(index=2, steps=(), epoch=7, is_delta=True))
    await anyio.sleep(0.12)
    assert news.find_epoch() == 0
    news.note(StepAssignments(index=2, steps=(), epoch=8))
    assert news.find_epoch() == 8


async def test_nodes_that_fall_silent_together_are_lost_together() -> None:
    async with running_kit(fencing=FencingSettings(lease_s=0.3, grace_s=60.0)) as kit:
        others = [NodeId(f"{n:08d}-2222-3333-4444-555555555555") for n in range(30)]
        async with anyio.create_task_group() as group:
            for node_id in others:
                group.start_soon(kit.service.nodes.register, Node(id=node_id, name=f"n{node_id[:8]}", boot_id="b1"))
        for node_id in others:
            await kit.service.nodes.report_plugins(node_id, {PLUGIN: ScriptedDriver().instance(node_id)})
            await kit.service.nodes.register(Node(id=node_id, name=f"n{node_id[:8]}", boot_id="b1"))
        before = await kit.store.revision()
        await wait_for(lambda: all(r.value.status == "down" for r in kit.service.reads.list_nodes()))
        assert await kit.store.revision() - before <= 6
        found = kit.service.reads.find_plugin(PLUGIN)
        assert found is not None
        assert not any(i.healthy for i in found.value.instances.values())
