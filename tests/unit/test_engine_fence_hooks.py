"""When the fence hook runs: for whom, how many at a time, when again, and what its word is worth."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from engine_kit import NODE, running_kit
from lost_node_kit import QUICK, is_down, silence, start_use, status_of, wait_for

from moorage.engine.fence_hooks import FenceHooks
from moorage.engine.ports import HookAnswer
from moorage.errors import Unavailable
from moorage.model.ids import NodeId
from moorage.model.node import Node
from moorage.rules.nodes import FencingSettings, replace
from moorage.rules.why_claims import describe_hook
from moorage.testing.clock import SeededChance

pytestmark = pytest.mark.anyio
_SECOND = 1_000_000_000
SETTINGS = FencingSettings(hook_retry_first_s=4.0, hook_retry_cap_s=10.0, hook_runs_max=2)


class StandingClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000 * _SECOND

    def now_ns(self) -> int:
        return self.now

    def monotonic_ns(self) -> int:
        return self.now


class ScriptedHook:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Node] = []
        self.answers: dict[str, HookAnswer] = {}
        self._told = anyio.Event()

    def tell(self, name: str, answer: HookAnswer) -> None:
        self.answers[name] = answer
        self._told.set()
        self._told = anyio.Event()

    async def fence(self, node: Node) -> HookAnswer:
        self.asked.append(node)
        while node.name not in self.answers:
            await self._told.wait()
        return self.answers.pop(node.name)


FAILED = HookAnswer(is_fenced=False, text="no outlet", exit_code=1)
DONE = HookAnswer(is_fenced=True, text="outlet 7 is off", exit_code=0)


def lost(name: str, lost_at_ns: int = 1) -> Node:
    return Node(id=NodeId(name), name=name, status="down", lost_at_ns=lost_at_ns)


class Bench:
    """Hooks with everything around them, and the words that were taken."""

    def __init__(self, group: anyio.abc.TaskGroup) -> None:
        self.clock = StandingClock()
        self.hook = ScriptedHook()
        self.hooks = FenceHooks(self.hook, self.clock, SeededChance(), SETTINGS)
        self.words: list[tuple[str, str]] = []
        self.is_store_away = False
        self._group = group

    def look(self, *nodes: Node) -> None:
        for node in nodes:
            self.hooks.start_due(node, self._group, self.take)

    async def take(self, node: Node, reason: str) -> None:
        if self.is_store_away:
            raise Unavailable("the disk is full")
        self.words.append((node.name, reason))

    async def settle(self) -> None:
        await anyio.wait_all_tasks_blocked()


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    async with anyio.create_task_group() as group:
        yield Bench(group)
        group.cancel_scope.cancel()


async def test_no_more_runs_at_a_time_than_allowed_and_one_a_node() -> None:
    async with bench() as b:
        for _ in range(3):
            b.look(lost("a"), lost("b"), lost("c"))
            await b.settle()
        assert [n.name for n in b.hook.asked] == ["a", "b"]
        b.hook.tell("a", DONE)
        await b.settle()
        b.look(lost("b"), lost("c"))
        await b.settle()
        assert [n.name for n in b.hook.asked] == ["a", "b", "c"]
        assert b.words == [("a", "outlet 7 is off")]


async def test_a_failed_hook_is_tried_again_after_growing_pauses_up_to_the_cap() -> None:
    pauses = []
    async with bench() as b:
        for count in range(1, 5):
            b.look(lost("a"))
            await b.settle()
            assert len(b.hook.asked) == count
            b.hook.tell("a", FAILED)
            await b.settle()
            tries = b.hooks.find(NodeId("a"))
            assert tries is not None
            assert (tries.attempts, tries.exit_code, tries.text, tries.is_running) == (count, 1, "no outlet", False)
            pauses.append((tries.next_try_ns - b.clock.now) / _SECOND)
            b.clock.now = tries.next_try_ns - 1
            b.look(lost("a"))
            await b.settle()
            assert len(b.hook.asked) == count, "tried before its time"
            b.clock.now += 1
    for pause, full in zip(pauses, (4.0, 8.0, 10.0, 10.0), strict=True):
        assert full / 2 <= pause <= full


async def test_a_new_loss_is_a_new_first_try() -> None:
    async with bench() as b:
        b.look(lost("a"))
        await b.settle()
        b.hook.tell("a", FAILED)
        await b.settle()
        b.look(lost("a", lost_at_ns=2))
        await b.settle()
        assert [n.lost_at_ns for n in b.hook.asked] == [1, 2]
        tries = b.hooks.find(NodeId("a"))
        assert tries is not None
        assert (tries.attempts, tries.is_running) == (1, True)
        b.hooks.forget(NodeId("a"))
        b.hook.tell("a", FAILED)
        await b.settle()
        assert b.hooks.find(NodeId("a")) is None, "the node is back: what the old run says is of no interest"


async def test_a_word_that_could_not_be_written_is_asked_for_again() -> None:
    async with bench() as b:
        b.is_store_away = True
        b.look(lost("a"))
        await b.settle()
        b.hook.tell("a", DONE)
        await b.settle()
        tries = b.hooks.find(NodeId("a"))
        assert tries is not None
        assert tries.text == "it could not be put on record: the disk is full"
        b.is_store_away, b.clock.now = False, tries.next_try_ns
        b.look(lost("a"))
        await b.settle()
        b.hook.tell("a", DONE)
        await b.settle()
        assert b.words == [("a", "outlet 7 is off")]


async def test_what_it_did_is_told() -> None:
    async with bench() as b:
        b.look(lost("a"))
        await b.settle()
        tries = b.hooks.find(NodeId("a"))
        assert tries is not None
        text = describe_hook(tries, now_ns=b.clock.now)
        assert text == "the fence hook runs for it since 2023-11-14T22:13:20Z (try 1)"
        b.hook.tell("a", FAILED)
        await b.settle()
        tries = b.hooks.find(NodeId("a"))
        assert tries is not None
        text = describe_hook(replace(tries, attempts=2), now_ns=b.clock.now)
        assert text.startswith(
            "the fence hook, started at 2023-11-14T22:13:20Z, tried 2 times, failed with exit code 1: no outlet; the "
            "next try is due at 2023-11-14T22:13:2"
        )
        assert describe_hook(replace(tries, exit_code=None, text="", next_try_ns=0), now_ns=b.clock.now).endswith(
            "failed with no exit code"
        )


# -- in the engine ---------------------------------------------------------------------------------------------------


async def test_the_hooks_word_frees_a_writer_on_a_lost_node() -> None:
    hook = ScriptedHook()
    async with running_kit(fencing=QUICK, hook=hook) as kit:
        use = await start_use(kit)
        await wait_for(lambda: status_of(kit, use) == "running")
        await silence(kit)
        await wait_for(lambda: hook.asked)
        found = kit.service.why.explain_node(NODE)
        assert found is not None
        assert any("the fence hook runs for it since" in text for text in found.blocks)
        assert status_of(kit, use) == "running"
        hook.tell("n1", DONE)
        await wait_for(lambda: status_of(kit, use) == "lost")
        node = kit.service.reads.find_node(NODE)
        assert node is not None
        assert node.value.fence is not None
        assert (node.value.fence.kind, node.value.fence.reason) == ("hook", "outlet 7 is off")


async def test_the_hook_leaves_a_node_alone_that_holds_nothing_that_waits() -> None:
    hook = ScriptedHook()
    slow = replace(QUICK, grace_s=1.0)
    async with running_kit(fencing=slow, hook=hook) as kit:
        use = await start_use(kit, read_only=True)
        await wait_for(lambda: status_of(kit, use) == "running")
        await silence(kit)
        await wait_for(lambda: status_of(kit, use) == "lost")
        assert hook.asked == []


async def test_a_word_about_an_earlier_loss_frees_nothing() -> None:
    """The hook was started, the node came back meanwhile, mounted on, and is lost again."""
    hook = ScriptedHook()
    async with running_kit(fencing=QUICK, hook=hook) as kit:
        use = await start_use(kit)
        await wait_for(lambda: status_of(kit, use) == "running")
        await silence(kit)
        await wait_for(lambda: hook.asked)
        page = await kit.service.nodes.wait_claims(NODE, index=0, wait_s=0)
        await kit.service.nodes.register(Node(id=NODE, name="n1", boot_id="b1"), clean_by=page.node_revision)
        assert not is_down(kit)
        await wait_for(lambda: is_down(kit))
        await wait_for(lambda: len(hook.asked) == 2)
        hook.tell("n1", DONE)  # the older run takes it: it waited first
        await anyio.wait_all_tasks_blocked()
        node = kit.service.reads.find_node(NODE)
        assert node is not None
        assert hook.asked[0].lost_at_ns != node.value.lost_at_ns
        assert node.value.fence is None
        assert status_of(kit, use) == "running"
        hook.tell("n1", DONE)
        await wait_for(lambda: status_of(kit, use) == "lost")
