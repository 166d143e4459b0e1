"""Records of a disk, counted as they come and go, against looking at all of them."""

from __future__ import annotations

import random

import msgspec
from many_volumes import a_volume

from moorage.model.ids import PluginId, Revision
from moorage.model.volume import Volume
from moorage.state import keys
from moorage.state.view import Record, Volumes

PLUGIN = PluginId("p")


def test_counts_are_those_of_the_records() -> None:
    chance = random.Random(3)
    table = Volumes()
    for step in range(3000):
        volume = msgspec.structs.replace(
            a_volume(chance.randrange(12), namespace=chance.choice("ab"), plugin_id=PLUGIN),
            external_id=chance.choice(("", "x", "y")),
            wanted=chance.choice(("present", "absent")),
        )
        key = keys.volume_key(volume.namespace, volume.id)
        if chance.random() < 0.6:
            table.put(key, Record(volume, Revision(1), Revision(step)))
        else:
            table.drop(key)
        for external_id in ("x", "y", "z"):
            there: dict[str, Volume] = {
                keys.volume_key(r.value.namespace, r.value.id): r.value
                for r in table
                if r.value.external_id == external_id
            }
            counted = table.count_disk(PLUGIN, external_id)
            assert set(counted.keys()) == set(there)
            assert counted.count == len(there)
            assert counted.leaving == sum(v.wanted == "absent" for v in there.values())
            assert set(counted.by_namespace) == {v.namespace for v in there.values()}
            assert {r.value.key for r in table.of_disk(PLUGIN, external_id)} == {v.key for v in there.values()}
