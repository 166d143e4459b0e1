"""Search by prefix and by text."""

from __future__ import annotations

import pytest
from app_asking import a_body, ask, read, text_of
from engine_kit import NODE, Kit, running_kit

from moorage.rules.search import CONTEXTS

pytestmark = pytest.mark.anyio


async def find(kit: Kit, prefix: str, context: str = "volumes", query: str = "") -> object:
    answer = await read(kit, "POST", f"/v1/search{query}", {"Prefix": prefix, "Context": context})
    return answer["Matches"][context]


async def add(kit: Kit, *volume_ids: str, namespace: str = "default") -> None:
    for volume_id in volume_ids:
        body = a_body(volume_id, ExternalID=f"{namespace}-{volume_id}")
        await read(kit, "PUT", f"/v1/volume/csi/{volume_id}?namespace={namespace}", body)


async def test_whole_answer() -> None:
    async with running_kit() as kit:
        found = await read(kit, "PUT", "/v1/search", {"Prefix": "host", "Context": "plugins"})
        assert found.pop("Index") > 0
        assert found == {
            "KnownLeader": True,
            "LastContact": 0,
            "Matches": {"plugins": ["hostpath"]},
            "NextToken": "",
            "Truncations": {"plugins": False},
        }


async def test_each_context_and_all() -> None:
    async with running_kit() as kit:
        await add(kit, "11-web")
        started = await read(
            kit,
            "PUT",
            "/v1/allocations",
            {"Allocation": {"ID": f"11{NODE[2:]}", "Volumes": [{"Name": "d", "Source": "11-web"}]}},
        )
        assert (await ask(kit, "PUT", "/v1/namespace", {"Name": "11-team"})).status == 200
        found = await read(kit, "PUT", "/v1/search", {"Prefix": "11", "Context": "all"})
        assert set(found["Matches"]) == set(CONTEXTS)
        assert {k: v for k, v in found["Matches"].items() if v} == {
            "allocs": [started["ID"]],
            "namespaces": ["11-team"],
            "nodes": [NODE],
            "volumes": ["11-web"],
        }
        assert found["Matches"]["jobs"] is None
        assert not any(found["Truncations"].values())


@pytest.mark.parametrize("context", sorted(set(CONTEXTS) - {"allocs", "nodes", "plugins", "volumes", "namespaces"}))
async def test_what_moorage_has_not_is_empty(context: str) -> None:
    async with running_kit() as kit:
        assert await find(kit, "", context) is None


async def test_ascending_and_at_most_twenty() -> None:
    async with running_kit() as kit:
        await add(kit, *(f"v{n:02}" for n in reversed(range(21))), "other")
        found = await read(kit, "PUT", "/v1/search", {"Prefix": "v", "Context": "volumes"})
        assert found["Matches"]["volumes"] == [f"v{n:02}" for n in range(20)]
        assert found["Truncations"] == {"volumes": True}
        found = await read(kit, "PUT", "/v1/search", {"Prefix": "v0", "Context": "volumes"})
        assert (len(found["Matches"]["volumes"]), found["Truncations"]) == (10, {"volumes": False})
        found = await read(kit, "PUT", "/v1/search", {"Prefix": "", "Context": "volumes"})
        assert found["Matches"]["volumes"][0] == "other"
        assert found["Truncations"] == {"volumes": True}


async def test_namespace_of_the_query() -> None:
    async with running_kit() as kit:
        assert (await ask(kit, "PUT", "/v1/namespace", {"Name": "team"})).status == 200
        await add(kit, "web", "db")
        await add(kit, "web", "web2", namespace="team")
        assert await find(kit, "w") == ["web"]
        assert await find(kit, "w", query="?namespace=team") == ["web", "web2"]
        assert await find(kit, "w", query="?namespace=*") == ["web", "web2"]
        assert await find(kit, "w", query="?namespace=none") is None
        body = {"Prefix": "w", "Context": "volumes", "Namespace": "team"}
        assert (await read(kit, "PUT", "/v1/search", body))["Matches"]["volumes"] == ["web", "web2"]


@pytest.mark.parametrize("path", ["/v1/search", "/v1/search/fuzzy"])
async def test_unknown_context(path: str) -> None:
    async with running_kit() as kit:
        answer = await ask(kit, "POST", path, {"Prefix": "h", "Text": "host", "Context": "bad"})
        known = (
            "allocs jobs nodes node_pools evals deployment plugins volumes scaling_policy vars namespaces host_volumes"
        )
        text = f"context must be one of [{known}] or 'all' for all contexts; got \"bad\""
        assert (answer.status, text_of(answer)) == (500, text)


async def test_fuzzy() -> None:
    async with running_kit() as kit:
        await add(kit, "my-data", "data", "Datastore", "other")

        async def fuzzy(text: str, context: str) -> object:
            found = await read(kit, "POST", "/v1/search/fuzzy", {"Text": text, "Context": context})
            return found["Matches"][context]

        assert await fuzzy("path", "plugins") == [{"ID": "hostpath"}]
        assert await fuzzy("data", "volumes") == [{"ID": "Datastore"}, {"ID": "data"}, {"ID": "my-data"}]
        assert await fuzzy("N1", "nodes") == [{"ID": "n1", "Scope": [NODE]}]
        assert await fuzzy("zz", "volumes") is None
        everything = await read(kit, "POST", "/v1/search/fuzzy", {"Text": "data", "Context": "all"})
        assert {k for k, v in everything["Matches"].items() if v} == {"volumes"}
        short = await ask(kit, "POST", "/v1/search/fuzzy", {"Text": "d", "Context": "volumes"})
        assert (short.status, "at least 2 characters" in text_of(short)) == (500, True)


async def test_bodies_are_checked() -> None:
    async with running_kit() as kit:
        assert (await ask(kit, "PUT", "/v1/search")).status == 400
        assert (await ask(kit, "PUT", "/v1/search", {"Prefix": 1, "Context": "volumes"})).status == 400
        assert (await ask(kit, "GET", "/v1/search")).status == 405


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("zz", "encoding/hex: invalid byte: U+007A 'z'"),
        ("ab%C3%A9", "encoding/hex: invalid byte: U+00C3 'Ã'"),
        ("1%01", "encoding/hex: invalid byte: U+0001"),
    ],
)
async def test_node_prefix_is_hexadecimal(prefix: str, text: str) -> None:
    async with running_kit() as kit:
        answer = await ask(kit, "GET", f"/v1/nodes?prefix={prefix}")
        expected = f"node lookup failed: index error: Invalid UUID: {text}"
        assert (answer.status, text_of(answer)) == (500, expected)


@pytest.mark.parametrize(("prefix", "count"), [("", 1), ("1", 1), ("11111111-2", 1), ("AB", 0), ("12", 0)])
async def test_node_prefix_finds(prefix: str, count: int) -> None:
    async with running_kit() as kit:
        assert len(await read(kit, "GET", f"/v1/nodes?prefix={prefix}")) == count
