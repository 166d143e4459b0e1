"""Allocations: which volume a request means."""

from __future__ import annotations

import pytest

from moorage.errors import BadRequest
from moorage.model.claim import VolumeRequest
from moorage.model.ids import VolumeId
from moorage.rules.allocations import choose_volume


def a_request(source: str, *, per_alloc: bool = True) -> VolumeRequest:
    return VolumeRequest(name="data", source=VolumeId(source), per_alloc=per_alloc)


@pytest.mark.parametrize(
    ("source", "name", "volume"),
    [
        ("data", "web.db[3]", "data[3]"),
        ("data", "web.db[0]", "data[0]"),
        ("data", "[12]", "data[12]"),
        ("a[b]", "web[x].db[7]", "a[b][7]"),
    ],
)
def test_the_index_of_the_name_goes_to_the_source(source: str, name: str, volume: str) -> None:
    assert choose_volume(a_request(source), name) == volume


@pytest.mark.parametrize("name", ["", "web.db", "web.db[x]", "web.db[]", "web.db[3] ", "web.db[3]\n", "web.db[-1]"])
def test_a_name_without_an_index_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match=r"PerAlloc takes the index from the allocation's Name.* has none"):
        choose_volume(a_request("data"), name)
    assert choose_volume(a_request("data", per_alloc=False), name) == "data"


def test_a_source_with_an_index_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"Source 'data\[1\]' has an index already"):
        choose_volume(a_request("data[1]"), "web.db[3]")
    assert choose_volume(a_request("data[1]", per_alloc=False), "web.db[3]") == "data[1]"
