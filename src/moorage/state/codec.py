"""Records as stored bytes and back, with a format version.

A value is the version as ASCII digits, a newline, and the JSON of the record: ``1\\n{"id":…}``. A version belongs to
its class. A value of an older version is brought forward one version at a time by steps over plain dicts, so a step
never needs an old class. What was once written is readable for ever: tests/upgrade/data holds one of each.
Never: I/O, clock; contents of a record in an error, because records hold secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from moorage.errors import StoreUnavailable
from moorage.model.acl import Bootstrap, Policy, Token
from moorage.model.claim import Allocation, Claim
from moorage.model.namespace import Namespace
from moorage.model.node import Node
from moorage.model.operation import Operation
from moorage.model.plugin import Plugin
from moorage.model.volume import Volume
from moorage.state import keys

R = TypeVar("R", bound=msgspec.Struct)
Step = Callable[[dict[str, Any]], dict[str, Any]]

_DIGITS_MAX = 9


class Codec:
    """Encoders and decoders for a set of record classes.

    ``versions``: each class with the version that is written. ``upgrades``: (class, version) with the step from that
    version to the next. Raises ValueError at once when a step is missing.
    """

    def __init__(self, versions: Mapping[type[msgspec.Struct], int], upgrades: Mapping[tuple[type, int], Step]) -> None:
        for cls, version in versions.items():
            missing = [old for old in range(1, version) if (cls, old) not in upgrades]
            if missing:
                raise ValueError(f"{cls.__name__}: no step from version {missing[0]} to {missing[0] + 1}")
        self._versions = dict(versions)
        self._upgrades = dict(upgrades)
        self._headers = {cls: f"{version}\n".encode() for cls, version in versions.items()}
        self._decoders: dict[type, msgspec.json.Decoder[Any]] = {cls: msgspec.json.Decoder(cls) for cls in versions}
        self._encoder = msgspec.json.Encoder()

    def encode(self, record: msgspec.Struct) -> bytes:
        """The record's value. Raises KeyError for a class that is no record."""
        return self._headers[type(record)] + self._encoder.encode(record)

    def decode(self, cls: type[R], data: bytes) -> R:
        """The record in a value.

        Raises StoreUnavailable: written by a newer moorage (names the versions), or damaged.
        """
        header = self._headers[cls]
        body = memoryview(data)[len(header) :] if data.startswith(header) else self._upgrade(cls, data)
        try:
            record: R = self._decoders[cls].decode(body)
        except msgspec.MsgspecError as error:
            raise _damaged(cls, str(error)) from error
        return record

    def _upgrade(self, cls: type[msgspec.Struct], data: bytes) -> bytes:
        digits, newline, body = data.partition(b"\n")
        if not newline or not digits.isdigit() or len(digits) > _DIGITS_MAX or int(digits) < 1:
            raise _damaged(cls, "it does not begin with a version")
        found, known = int(digits), self._versions[cls]
        if found > known:
            raise StoreUnavailable(
                f"a {cls.__name__} record has version {found}, which a newer moorage wrote; this one knows versions up "
                f"to {known}: start the newer version again",
                record=cls.__name__,
                version=str(found),
            )
        try:
            plain = msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise _damaged(cls, str(error)) from error
        for version in range(found, known):
            plain = self._upgrades[cls, version](plain)
        return self._encoder.encode(plain)


def _damaged(cls: type, text: str) -> StoreUnavailable:
    return StoreUnavailable(f"a {cls.__name__} record cannot be read ({text}): restore a backup", record=cls.__name__)


# Table → class of its records.
RECORDS: Mapping[str, type[msgspec.Struct]] = {
    keys.VOLUMES: Volume,
    keys.CLAIMS: Claim,
    keys.ALLOCATIONS: Allocation,
    keys.PLUGINS: Plugin,
    keys.NODES: Node,
    keys.OPERATIONS: Operation,
    keys.NAMESPACES: Namespace,
    keys.ACL_TOKENS: Token,
    keys.ACL_POLICIES: Policy,
    keys.ACL_BOOTSTRAP: Bootstrap,
}
VERSIONS: Mapping[type[msgspec.Struct], int] = dict.fromkeys(RECORDS.values(), 1)
UPGRADES: Mapping[tuple[type, int], Step] = {}

_codec = Codec(VERSIONS, UPGRADES)
encode = _codec.encode
decode = _codec.decode


def decode_key(key: str, data: bytes) -> msgspec.Struct:
    """The record in a key's value, of the class of the key's table.

    Raises StoreUnavailable as ``decode`` does, and for a table that this version does not know.
    """
    table = keys.table_of(key)
    cls = RECORDS.get(table)
    if cls is None:
        raise StoreUnavailable(f"the store has a table {table!r} that this moorage does not know", table=table)
    return decode(cls, data)
