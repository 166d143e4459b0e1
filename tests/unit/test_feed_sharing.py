"""Records of one key share what is equal in them, so that history is small; what differs stays as it was written."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from engine_kit import PLUGIN, running_kit

from moorage.model.ids import NamespaceName, VolumeId
from moorage.model.volume import Capability, Progress, Secrets, Topology, Volume
from moorage.state import codec, keys
from moorage.state.feed import Change, share_parts
from moorage.state.repo import Write

VOLUME = Volume(
    id=VolumeId("web-volume"),
    namespace=NamespaceName("team-namespace"),
    plugin_id=PLUGIN,
    name="a name",
    external_id="an external name",
    capabilities=(Capability(access_mode="single-node-writer", attachment_mode="file-system"),),
    topologies=(Topology(segments={"rack": "r1"}),),
    parameters={"tier": "fast"},
    context={"a": "b"},
    secrets=Secrets({"k": "v"}),
    state="ready",
)
KEY = keys.volume_key(VOLUME.namespace, VOLUME.id)


def copy_of(volume: Volume) -> Volume:
    return codec.decode(Volume, codec.encode(volume))


def parts_of(volume: Volume) -> dict[str, Any]:
    return {name: getattr(volume, name) for name in volume.__struct_fields__}


CHANGES: list[dict[str, Any]] = [
    {},
    {"context": {"a": "c"}},
    {"secrets": Secrets({"k": "w"})},
    {"capabilities": None},
    {"topologies": ()},
    {"progress": Progress(attempts=3)},
    {"requested_min_bytes": 2**40, "state": "absent"},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_what_is_equal_is_one_object_and_what_differs_is_kept(changes: dict[str, Any]) -> None:
    old, written = copy_of(VOLUME), msgspec.structs.replace(VOLUME, **changes)
    new = copy_of(written)
    apart = {n for n, part in parts_of(new).items() if part is not getattr(old, n)}
    assert {"external_id", "topologies", "parameters"} - changes.keys() <= apart, "a decoded record shares nothing"
    share_parts(old, new)
    assert new == written
    assert codec.encode(new) == codec.encode(written)
    assert old == VOLUME
    assert {n for n, part in parts_of(new).items() if part is not getattr(old, n)} == set(changes)


@pytest.mark.anyio
async def test_the_feed_shares() -> None:
    async with running_kit() as kit:
        seen: list[Change] = []
        kit.repo.feed.subscribe(lambda change: seen.append(change) if change.key == KEY else None)
        first = await kit.repo.commit(Write().put(KEY, VOLUME, revision=0))
        changed = msgspec.structs.replace(VOLUME, context={"a": "c"})
        await kit.repo.commit(Write().put(KEY, changed, revision=first))
        before, after = seen[1].before, seen[1].after
        assert isinstance(before, Volume)
        assert isinstance(after, Volume)
        assert (before, after) == (VOLUME, changed)
        apart = {name for name, part in parts_of(after).items() if part is not getattr(before, name)}
        assert apart == {"context"}
