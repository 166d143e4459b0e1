"""The agent's pages, by each way that an agent has to its server: over HTTP, and in the server's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from moorage.client.api import AgentPages, Client
from moorage.client.transport import CallTransport, HttpTransport
from moorage.errors import Conflict, Forbidden, MoorageError, NotFound, StoreUnavailable, Unavailable
from moorage.model.assignment import PluginReport, StepReport
from moorage.model.ids import NodeId, OperationId, PluginId, Revision
from moorage.model.node import Node
from moorage.model.operation import Operation
from moorage.model.plugin import ControllerInfo, Instance, NodeInfo
from moorage.model.steps import CapacityTold, CreateSnapshot, Done, GetCapacity
from moorage.serve.embedded import EmbeddedClient, make_handle
from moorage.serve.server import Running, open_server
from moorage.state import keys
from moorage.state.repo import Write

pytestmark = pytest.mark.anyio

NODE = Node(id=NodeId("11111111-2222-3333-4444-555555555555"), name="n1", boot_id="b1")
PLUGIN = PluginId("local")
SECRET, OTHER = (f"moorage-node-{letter * 43}" for letter in "ab")
INSTANCE = Instance(node_id=NODE.id, healthy=True, controller=ControllerInfo(), node=NodeInfo(external_id="n1"))

Connect = Callable[[Running, str], AgentPages]


def by_http(server: Running, secret: str) -> AgentPages:
    return Client(HttpTransport(server.url, token=secret))


def by_calls(server: Running, secret: str) -> AgentPages:
    return Client(CallTransport(make_handle(server.app, secret)))


def embedded(server: Running, secret: str) -> AgentPages:
    return EmbeddedClient(server.app, server.service, secret)


@pytest.fixture(params=[by_http, by_calls, embedded], ids=lambda connect: connect.__name__)
def connect(request: pytest.FixtureRequest) -> Connect:
    found: Connect = request.param
    return found


@asynccontextmanager
async def serving(place: Path, connect: Connect) -> AsyncIterator[tuple[Running, AgentPages]]:
    """A server, and the pages of an agent that has not joined yet."""
    with anyio.fail_after(30):
        async with open_server("127.0.0.1:0", place / "data") as server:
            pages = connect(server, SECRET)
            try:
                yield server, pages
            finally:
                transport = getattr(pages, "_transport", None)
                if isinstance(transport, HttpTransport):
                    await transport.aclose()


async def start(pages: AgentPages) -> None:
    """Join, register, tell the driver."""
    await pages.join(NODE.id, NODE.name)
    await pages.register_node(NODE)
    await pages.report_plugins(NODE.id, PluginReport(instances={PLUGIN: INSTANCE}))


async def put_operation(server: Running, number: int) -> str:
    """Put a call on record; its key."""
    operation = Operation(
        id=OperationId(f"op-{number}"),
        plugin_id=PLUGIN,
        step=CreateSnapshot(external_source_id="e", name=f"s{number}"),
        created_at_ns=1,
        expires_at_ns=2**62,
    )
    key = keys.operation_key(operation.id)
    await server.service.operations._repo.commit(Write().put(key, operation, revision=0))
    return key


async def caught(asking: Any) -> MoorageError:
    with pytest.raises(MoorageError) as found:
        await asking
    return found.value


async def test_who_has_not_joined_is_told_nothing(tmp_path: Path, connect: Connect) -> None:
    async with serving(tmp_path, connect) as (server, pages):
        for asking in (
            pages.wait_steps(NODE.id, 0, 1.0),
            pages.wait_claims(NODE.id, 0, 1.0),
            pages.report(NODE.id, []),
            pages.report_plugins(NODE.id, PluginReport(instances={})),
            pages.register_node(NODE),
        ):
            error = await caught(asking)
            assert type(error) is Forbidden
            assert "this is not the token of node" in error.message
        assert len(server.service.reads.list_nodes()) == 0


async def test_a_node_that_is_not_registered_is_not_found(tmp_path: Path, connect: Connect) -> None:
    async with serving(tmp_path, connect) as (_, pages):
        assert (await pages.join(NODE.id, NODE.name)).joined_by
        for asking in (
            pages.wait_steps(NODE.id, 0, 1.0),
            pages.wait_claims(NODE.id, 0, 1.0),
            pages.report(NODE.id, []),
        ):
            error = await caught(asking)
            assert type(error) is NotFound
            assert error.message == f'node "{NODE.id}" is not registered'


async def test_steps_come_whole_first_then_only_what_is_new(tmp_path: Path, connect: Connect) -> None:
    async with serving(tmp_path, connect) as (server, pages):
        await start(pages)
        first = await put_operation(server, 1)
        whole = await pages.wait_steps(NODE.id, 0, 5.0)
        assert [s.key for s in whole.steps] == [first]
        assert isinstance(whole.steps[0].step, CreateSnapshot)
        assert (whole.is_delta, whole.epoch) == (False, server.service.reconciler.epoch)
        second = await put_operation(server, 2)
        news = await pages.wait_steps(NODE.id, whole.index, 5.0, whole.epoch)
        assert ([s.key for s in news.steps], news.is_delta, news.gone) == ([second], True, ())
        again = await pages.wait_steps(NODE.id, whole.index, 5.0)
        assert ([s.key for s in again.steps], again.is_delta) == ([first, second], False)


async def test_a_wait_ends_with_news_or_with_its_time(tmp_path: Path, connect: Connect) -> None:
    async with serving(tmp_path, connect) as (server, pages):
        await start(pages)
        before = await pages.wait_steps(NODE.id, 0, 0.1)
        began_s = anyio.current_time()
        assert (await pages.wait_steps(NODE.id, before.index, 0.2, before.epoch)).index == before.index
        assert 0.19 <= anyio.current_time() - began_s < 5.0
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                found = await pages.wait_steps(NODE.id, before.index, 20.0, before.epoch)
                assert [s.key for s in found.steps] == [keys.operation_key(OperationId("op-3"))]
                group.cancel_scope.cancel()

            group.start_soon(wait)
            await anyio.sleep(0.1)
            await put_operation(server, 3)
            await anyio.sleep(20)
        claims = await pages.wait_claims(NODE.id, 0, 0.1)
        assert (claims.claims, claims.node_revision > 0) == ((), True)


async def test_what_is_reported_is_folded_and_noted(tmp_path: Path, connect: Connect) -> None:
    async with serving(tmp_path, connect) as (server, pages):
        await start(pages)
        key = await put_operation(server, 4)
        (step,) = (await pages.wait_steps(NODE.id, 0, 5.0)).steps
        await pages.report(NODE.id, iter([StepReport(key=key, revision=step.revision, outcome=Done(), took_s=0.5)]))
        assert (await pages.wait_steps(NODE.id, 0, 0.1)).steps == ()
        assert [(c.node_id, c.record, c.outcome) for c in server.service.diagnostics.calls] == [(NODE.id, key, "Done")]
        # A stale one is dropped without a word.
        await pages.report(NODE.id, [StepReport(key=key, revision=Revision(1), outcome=Done())])


async def test_a_question_is_answered(tmp_path: Path, connect: Connect) -> None:
    async with serving(tmp_path, connect) as (server, pages):
        await start(pages)
        answer = CapacityTold(available_bytes=7)
        async with anyio.create_task_group() as group:

            async def serve() -> None:
                found = await pages.wait_steps(NODE.id, 0, 5.0)
                while not found.steps:
                    found = await pages.wait_steps(NODE.id, found.index, 5.0, found.epoch)
                (step,) = found.steps
                await pages.report(NODE.id, [StepReport(key=step.key, revision=step.revision, outcome=answer)])

            group.start_soon(serve)
            assert await server.service.operations.run(PLUGIN, GetCapacity()) == answer


async def test_an_identity_that_is_taken_away_is_known_no_more(tmp_path: Path, connect: Connect) -> None:
    async with serving(tmp_path, connect) as (server, pages):
        await start(pages)
        await pages.report(NODE.id, [])
        await server.service.identities.reset(NODE.id, reason="lost", by="me")
        for asking in (pages.wait_steps(NODE.id, 0, 1.0), pages.report(NODE.id, [])):
            assert type(await caught(asking)) is Forbidden
        other = connect(server, OTHER)
        assert type(await caught(other.report(NODE.id, []))) is Forbidden
        await other.join(NODE.id, NODE.name)
        await other.report(NODE.id, [])
        assert type(await caught(pages.report(NODE.id, []))) is Forbidden
        if isinstance(transport := getattr(other, "_transport", None), HttpTransport):
            await transport.aclose()


async def test_a_lost_node_is_refused_until_it_is_clean(tmp_path: Path, connect: Connect) -> None:
    async with serving(tmp_path, connect) as (server, pages):
        await start(pages)
        found = server.service.reads.find_node(NODE.id)
        assert found is not None
        lost = msgspec.structs.replace(found.value, status="down")
        key = keys.node_key(NODE.id)
        revision = await server.service.operations._repo.commit(Write().put(key, lost, revision=found.modified))
        assert type(await caught(pages.register_node(NODE))) is Conflict
        assert type(await caught(pages.wait_steps(NODE.id, 0, 1.0))) is NotFound
        assert (await pages.wait_claims(NODE.id, 0, 1.0)).node_revision == revision


async def test_trouble_with_the_store_is_told_as_trouble(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, connect) as (server, pages):
        await start(pages)
        key = await put_operation(server, 5)
        (step,) = (await pages.wait_steps(NODE.id, 0, 5.0)).steps
        report = StepReport(key=key, revision=step.revision, outcome=Done())

        async def full(reports: object) -> None:
            raise StoreUnavailable("the disk is full", retry_after_s=3.0)

        async def broken(reports: object) -> None:
            raise ValueError("nobody foresaw this")

        outcomes = server.service.reconciler.outcomes
        monkeypatch.setattr(outcomes, "fold_reports", full)
        error = await caught(pages.report(NODE.id, [report]))
        assert (type(error), error.message, error.retry_after_s) == (Unavailable, "the disk is full", 3.0)  # type: ignore[attr-defined]
        monkeypatch.setattr(outcomes, "fold_reports", broken)
        error = await caught(pages.report(NODE.id, [report]))
        assert type(error) is Unavailable
        assert error.message.startswith("internal error; the server's log has it as incident ")
        assert "foresaw" not in error.message


async def test_an_agent_whose_identity_goes_while_it_waits_learns_nothing(tmp_path: Path) -> None:
    """Over HTTP access control sees to that; in the server's process the pages themselves do."""
    async with serving(tmp_path, embedded) as (server, pages):
        await start(pages)
        before = await pages.wait_steps(NODE.id, 0, 0.1)
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                assert type(await caught(pages.wait_steps(NODE.id, before.index, 20.0, before.epoch))) is Forbidden
                group.cancel_scope.cancel()

            group.start_soon(wait)
            await anyio.sleep(0.05)
            await server.service.identities.reset(NODE.id, reason="lost", by="me")
            await put_operation(server, 6)
            await anyio.sleep(20)


async def test_a_refused_question_is_in_the_audit_log(tmp_path: Path, connect: Connect) -> None:
    async with serving(tmp_path, connect) as (_, pages):
        await caught(pages.report(NODE.id, []))
    (line,) = [line for line in (tmp_path / "data" / "audit.log").read_text().splitlines() if "/reports" in line]
    assert '"refused"' in line
