"""Lists of volumes: asked for, made plainly of the records, and changed at random."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
from many_volumes import NODE, PLUGIN, Kit, a_volume

from moorage.api import answers
from moorage.api.http import Request, encode
from moorage.api.params import find_query
from moorage.model.claim import Claim
from moorage.model.ids import AllocationId, ClaimId, PluginId
from moorage.model.volume import Topology, Volume
from moorage.state import keys
from moorage.state.store import Delete, Op, Put

NAMESPACES = ("default", "a", "ops", "zz")


async def list_bytes(kit: Kit, query: str, **headers: str) -> tuple[bytes, str]:
    """A list's body, and the token of the next page."""
    target = "/v1/volumes"
    request = Request(
        method="GET", path=target, parts=("v1", "volumes"), query=find_query(query.encode()), headers=headers
    )
    answer = await kit.app.answer(request)
    assert answer.status == 200, answer.body
    return answer.whole(), answer.headers.get("X-Nomad-NextToken", "")


def list_plainly(kit: Kit, query: dict[str, str]) -> tuple[bytes, str]:
    """The same made of the records one by one, as it was before there was a shelf."""
    token = query.get("next_token", "")
    start = tuple(token.split(".", 1)) if token else None
    found = kit.service.reads.list_volumes(
        query.get("namespace", "default"),
        query.get("prefix", ""),
        start=start,  # type: ignore[arg-type]
        is_reversed=query.get("reverse") == "true",
    )
    per_page, plugin_id = int(query.get("per_page", 0)), query.get("plugin_id", "")
    page: list[Any] = []
    for read in found:
        volume = read.record.value
        if plugin_id and volume.plugin_id != plugin_id:
            continue
        node_id = query.get("node_id", "")
        if node_id and not any(c.node_id.startswith(node_id) for c in read.claims):
            continue
        if per_page and len(page) == per_page:
            return encode(page), ".".join(volume.key)
        page.append(answers.volume_stub(read))
    return encode(page), ""


def a_claim(volume: Volume, number: int) -> Claim:
    allocation = AllocationId(f"alloc-{number}")
    return Claim(
        id=ClaimId(f"{allocation}/data"),
        allocation_id=allocation,
        name="data",
        namespace=volume.namespace,
        volume_id=volume.id,
        plugin_id=volume.plugin_id,
        external_id=volume.external_id,
        node_id=NODE,
        external_node_id="n1",
        read_only=bool(number % 2),
        access_mode="single-node-writer",
        attachment_mode="file-system",
    )


@asynccontextmanager
async def looking(look: Callable[[], None]) -> AsyncIterator[None]:
    """Look in each turn of the loop while the block runs."""

    async def look_on() -> None:
        while True:
            look()
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(look_on)
        await anyio.lowlevel.checkpoint()
        yield
        group.cancel_scope.cancel()


async def transact(kit: Kit, *ops: Op) -> None:
    result = await kit.store.transact((), ops)
    await kit.repo.feed.reach(result.revision)


async def change_at_random(kit: Kit, chance: random.Random, volumes: dict[str, Volume]) -> None:
    """Put, change or remove a volume or a claim."""
    records = kit.repo.feed.records
    number, what = chance.randrange(900), chance.randrange(10)
    volume = a_volume(
        number,
        namespace=chance.choice(NAMESPACES),
        plugin_id=PluginId(chance.choice((PLUGIN, "other", "gone"))),
        name=chance.choice(("é", '",{', "x" * 50)),
    )
    key = keys.volume_key(volume.namespace, volume.id)
    if what < 3 and volumes:
        key = chance.choice(list(volumes))
        del volumes[key]
        await transact(kit, Delete(key))
    elif what == 3 and volumes:
        claim = a_claim(volumes[chance.choice(list(volumes))], chance.randrange(5))
        await transact(kit, Put(keys.claim_key(claim.id), records.encode(keys.claim_key(claim.id), claim)))
    elif what == 4:
        claim_key = keys.claim_key(a_claim(volume, chance.randrange(5)).id)
        if kit.repo.view.claims.find(claim_key) is not None:
            await transact(kit, Delete(claim_key))
    else:
        changed = msgspec.structs.replace(
            volume,
            state=chance.choice(("ready", "ready", "ready", "absent")),
            provider=chance.choice(("", "p1")),
            controller_required=chance.random() < 0.5,
            topologies=chance.choice(((), (Topology(segments={"ControllerRequired": "z"}),))),
        )
        volumes[key] = changed
        await transact(kit, Put(key, records.encode(key, changed)))


def a_query(chance: random.Random, volumes: dict[str, Volume]) -> dict[str, str]:
    """A list's conditions."""
    query: dict[str, str] = {"type": "csi", "namespace": chance.choice((*NAMESPACES, "*", "*", "none"))}
    if chance.random() < 0.4:
        query["prefix"] = chance.choice(("vol-", "vol-0001", "vol-0002", "w", "", "vol-000300"))
    if chance.random() < 0.6:
        query["per_page"] = str(chance.choice((0, 1, 2, 10, 300)))
    if chance.random() < 0.4 and volumes:
        volume_id = chance.choice((chance.choice(list(volumes.values())).id, "vol-000500x", "", "zzz"))
        query["next_token"] = f"{chance.choice(NAMESPACES)}.{volume_id}"
    if chance.random() < 0.3:
        query["reverse"] = "true"
    if chance.random() < 0.2:
        query["plugin_id"] = chance.choice((PLUGIN, "other", "none"))
    if chance.random() < 0.1:
        query["node_id"] = chance.choice((NODE[:4], "f"))
    return query
