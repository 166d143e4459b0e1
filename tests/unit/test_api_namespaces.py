"""Namespaces: their pages, and that no volume is ever left in one that is deleted."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.lowlevel
import pytest
from app_asking import a_body, ask, read, text_of
from engine_kit import Kit, running_kit

from moorage.model.namespace import Namespace
from moorage.state import keys
from moorage.state.memory import MemoryStore
from moorage.state.repo import Write
from moorage.state.store import Compare, Delete, Op, Put, TxnResult

pytestmark = pytest.mark.anyio
NAMESPACE_KEY = "namespaces/team"
IN_USE = '1 error occurred:\n\t* namespace "team" has volumes associated with it in regions: [global]\n\n'


async def make(kit: Kit, name: str = "team", **members: object) -> None:
    answer = await ask(kit, "PUT", f"/v1/namespace/{name}", {"Name": name, **members})
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["X-Nomad-Index"]) > 0


# -- pages -----------------------------------------------------------------------------------------------------------


async def test_default_is_there_from_the_start() -> None:
    async with running_kit() as kit:
        answer = await ask(kit, "GET", "/v1/namespaces")
        (row,) = json.loads(answer.body)
        assert int(answer.headers["X-Nomad-Index"]) >= 1
        assert (row["Name"], row["ID"], row["Description"]) == ("default", "default", "Default shared namespace")
        assert row["Capabilities"] is None
        assert row["Meta"] is None


# Recorded fingerprints: they are made of name, description and quota, one after the other.
@pytest.mark.parametrize(
    ("name", "members", "fingerprint"),
    [
        ("default", {}, "C7UbjDwBK0dK8wQq7Izg7SJIzaV+lIo2X7wRtzY3pSw="),
        ("team-a", {"Description": "A"}, "ikKjXZDvRYasWBpsKdibowndovlZap2o4XHVTDUqLpk="),
    ],
)
async def test_fingerprints_are_the_recorded_ones(name: str, members: dict[str, str], fingerprint: str) -> None:
    async with running_kit() as kit:
        if members:
            await make(kit, name, **members)
        assert (await read(kit, "GET", f"/v1/namespace/{name}"))["Hash"] == fingerprint


async def test_what_a_client_sends_comes_back() -> None:
    async with running_kit() as kit:
        sent = {
            "Description": "for the team",
            "Meta": {"owner": "Ann"},
            "Capabilities": {"EnabledTaskDrivers": ["exec"], "DisabledTaskDrivers": None},
            "NodePoolConfiguration": {"Default": "default"},
        }
        await make(kit, **sent)
        found = await read(kit, "GET", "/v1/namespace/team")
        assert {k: found[k] for k in sent} == sent
        assert found["VaultConfiguration"] is None
        await make(kit, **(sent | {"Meta": {"owner": "Bob"}}))
        after = await read(kit, "GET", "/v1/namespace/team")
        assert after["Meta"] == {"owner": "Bob"}
        assert after["CreateIndex"] == found["CreateIndex"]
        assert after["ModifyIndex"] > found["ModifyIndex"]
        assert after["Hash"] != found["Hash"]


async def test_prefix_and_order() -> None:
    async with running_kit() as kit:
        for name in ("zeta", "team", "team-b"):
            await make(kit, name)
        rows = await read(kit, "GET", "/v1/namespaces")
        assert [r["Name"] for r in rows] == ["default", "team", "team-b", "zeta"]
        rows = await read(kit, "GET", "/v1/namespaces?prefix=team")
        assert [r["Name"] for r in rows] == ["team", "team-b"]


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/v1/namespace", {"Name": "bad name"}, 500, 'invalid name "bad name"'),
        ("/v1/namespace", {"Name": "a/b"}, 500, 'invalid name "a/b"'),
        ("/v1/namespace", {"Name": "x" * 129}, 500, "1 to 128 letters, digits and hyphens"),
        ("/v1/namespace", {}, 500, 'invalid name ""'),
        ("/v1/namespace", {"Name": "a", "Description": "x" * 257}, 500, "description longer than 256"),
        ("/v1/namespace/b", {"Name": "a"}, 400, "Namespace name does not match request path"),
        ("/v1/namespace", {"Name": "a", "Capabilities": [1]}, 400, "Capabilities must be an object"),
        ("/v1/namespace", {"Name": "a", "Meta": {"k": 1}}, 400, "json: "),
        ("/v1/namespace", None, 400, "Request body is empty"),
    ],
)
async def test_bad_namespaces_are_refused(path: str, body: object, status: int, text: str) -> None:
    async with running_kit() as kit:
        answer = await ask(kit, "POST", path, body)
        assert answer.status == status
        assert text in text_of(answer)
        assert [r["Name"] for r in await read(kit, "GET", "/v1/namespaces")] == ["default"]


async def test_name_may_be_in_the_path_alone() -> None:
    async with running_kit() as kit:
        assert (await ask(kit, "POST", "/v1/namespace/team", {"Description": "d"})).status == 200
        assert (await read(kit, "GET", "/v1/namespace/team"))["Description"] == "d"


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v1/namespace/none", 404, "Namespace not found"),
        ("DELETE", "/v1/namespace/none", 500, "namespace not found"),
        ("DELETE", "/v1/namespace/default", 500, "can not delete default namespace"),
        ("GET", "/v1/namespace/", 400, "Missing Namespace Name"),
        ("DELETE", "/v1/namespace/", 400, "Missing Namespace Name"),
        ("GET", "/v1/namespace", 405, "Invalid method"),
        ("PATCH", "/v1/namespace/default", 405, "Invalid method"),
    ],
)
async def test_recorded_refusals(method: str, path: str, status: int, text: str) -> None:
    async with running_kit() as kit:
        answer = await ask(kit, method, path)
        assert (answer.status, text_of(answer)) == (status, text)


async def test_a_waiting_read_wakes_when_the_namespace_appears() -> None:
    async with running_kit() as kit:
        index = (await ask(kit, "GET", "/v1/namespaces")).headers["X-Nomad-Index"]
        found: list[int] = []

        async def wait() -> None:
            found.append((await ask(kit, "GET", f"/v1/namespace/team?index={index}&wait=60s")).status)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                # There is no event for a waiter that has arrived.
                while kit.repo.feed.signals.count() == 0:
                    await anyio.sleep(0.005)
                await make(kit)
        assert found == [200]


# -- deletion against new volumes ------------------------------------------------------------------------------------


async def test_a_namespace_with_volumes_stays() -> None:
    async with running_kit() as kit:
        await make(kit)
        await read(kit, "PUT", "/v1/volume/csi/web/create?namespace=team", a_body("web"))
        before = await read(kit, "GET", "/v1/namespace/team")
        answer = await ask(kit, "DELETE", "/v1/namespace/team")
        assert (answer.status, text_of(answer)) == (500, IN_USE)
        assert await read(kit, "GET", "/v1/namespace/team") == before
        assert (await ask(kit, "DELETE", "/v1/volume/csi/web/delete?namespace=team")).status == 200
        assert (await ask(kit, "DELETE", "/v1/namespace/team")).status == 200
        assert (await ask(kit, "GET", "/v1/namespace/team")).status == 404


class InterruptedStore(MemoryStore):
    """A store that once lets something else happen, just before a transaction with an operation that is picked."""

    def __init__(self) -> None:
        super().__init__()
        self.is_at: Callable[[Op], bool] = lambda op: False
        self.interrupt: Callable[[], Awaitable[object]] | None = None

    async def transact(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        if self.interrupt is not None and any(self.is_at(op) for op in then):
            interrupt, self.interrupt = self.interrupt, None
            await interrupt()
        return await super().transact(compares, then, otherwise)


def is_mark(op: Op) -> bool:
    return isinstance(op, Put) and op.key == NAMESPACE_KEY


def is_removal(op: Op) -> bool:
    return isinstance(op, Delete) and op.key == NAMESPACE_KEY


@pytest.mark.parametrize("is_at", [is_mark, is_removal])
@pytest.mark.parametrize("verb", ["", "/create"])
async def test_a_volume_that_comes_during_the_deletion_keeps_the_namespace(
    verb: str, is_at: Callable[[Op], bool]
) -> None:
    store = InterruptedStore()
    async with running_kit(store) as kit:
        await make(kit)
        kit.driver.volumes.clear()

        async def add() -> None:
            await read(kit, "PUT", f"/v1/volume/csi/web{verb}?namespace=team", a_body("web", ExternalID="ext"))

        store.is_at, store.interrupt = is_at, add
        answer = await ask(kit, "DELETE", "/v1/namespace/team")
        assert store.interrupt is None
        assert (answer.status, text_of(answer)) == (500, IN_USE)
        assert (await ask(kit, "GET", "/v1/namespace/team")).status == 200
        assert (await ask(kit, "GET", "/v1/volume/csi/web?namespace=team")).status == 200


@pytest.mark.parametrize("verb", ["", "/create"])
async def test_a_volume_that_comes_after_the_deletion_is_refused(verb: str) -> None:
    store = InterruptedStore()
    async with running_kit(store) as kit:
        await make(kit)

        async def delete() -> None:
            assert (await ask(kit, "DELETE", "/v1/namespace/team")).status == 200

        store.is_at = lambda op: isinstance(op, Put) and op.key == "volumes/team/web"
        store.interrupt = delete
        answer = await ask(kit, "PUT", f"/v1/volume/csi/web{verb}?namespace=team", a_body("web", ExternalID="ext"))
        assert store.interrupt is None
        assert answer.status == 500
        assert "volume web is in nonexistent namespace team" in text_of(answer)
        assert list(kit.repo.view.volumes) == []
        assert "web" not in [v.name for v in kit.driver.volumes.values()]


async def test_a_mark_that_a_crash_left_hinders_nobody() -> None:
    store = MemoryStore()
    async with running_kit(store) as kit:
        await make(kit)
        found = kit.repo.view.namespaces.find(NAMESPACE_KEY)
        marked = Namespace(name=found.value.name, is_closing=True)
        await kit.repo.commit(Write().put(NAMESPACE_KEY, marked, revision=found.modified))
    async with running_kit(store) as kit:
        assert [r["Name"] for r in await read(kit, "GET", "/v1/namespaces")] == ["default", "team"]
        await read(kit, "PUT", "/v1/volume/csi/web/create?namespace=team", a_body("web"))
        assert not kit.repo.view.namespaces.find(NAMESPACE_KEY).value.is_closing
        assert text_of(await ask(kit, "DELETE", "/v1/namespace/team")) == IN_USE


class JitteryStore(MemoryStore):
    """A store whose transactions come in an order that a seed chooses."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)

    async def transact(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        for _ in range(self._random.randrange(6)):
            await anyio.lowlevel.checkpoint()
        return await super().transact(compares, then, otherwise)


@pytest.mark.parametrize("seed", range(12))
async def test_no_volume_is_left_without_its_namespace(seed: int) -> None:
    async with running_kit(JitteryStore(seed)) as kit:
        await make(kit)
        outcomes: list[tuple[str, int]] = []

        async def delete() -> None:
            outcomes.append(("delete", (await ask(kit, "DELETE", "/v1/namespace/team")).status))

        async def create(number: int) -> None:
            target = f"/v1/volume/csi/v{number}/create?namespace=team"
            outcomes.append(("create", (await ask(kit, "PUT", target, a_body(f"v{number}"))).status))

        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(create, number)
                group.start_soon(delete)
        is_there = kit.repo.view.namespaces.find(NAMESPACE_KEY) is not None
        volumes = [r for r in kit.repo.view.volumes if keys.volume_key(*r.value.key).startswith("volumes/team/")]
        assert is_there or not volumes
        assert (("create", 200) in outcomes) == is_there
