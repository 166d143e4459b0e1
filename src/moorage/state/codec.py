"""Records as stored bytes and back, with a format version.

A value is the version as ASCII digits, a newline, and the JSON of the record: ``1\\n{"id":…}``. A version belongs to
its class. What a record hides (``state.hiding``) is not in that JSON: it follows, sealed, after one more newline.
Without a sealer, in tests, records are written plain. A value of an older version is brought forward one version at a
time by steps over plain dicts, so a step never needs an old class. What was once written is readable for ever:
tests/upgrade/data holds one of each.
Never: I/O, clock; contents of a record in an error, because records hold secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from moorage.errors import StoreUnavailable
from moorage.model.acl import Bootstrap, Policy, Token
from moorage.model.claim import Allocation, Claim
from moorage.model.identity import Identity, JoinToken
from moorage.model.namespace import Namespace
from moorage.model.node import Node, Turnstile
from moorage.model.operation import Operation
from moorage.model.plugin import Plugin
from moorage.model.volume import Volume
from moorage.state import hiding, keys
from moorage.state.sealing import Sealer

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
    keys.IDENTITIES: Identity,
    keys.JOIN_TOKENS: JoinToken,
    keys.TURNSTILES: Turnstile,
}
VERSIONS: Mapping[type[msgspec.Struct], int] = {cls: 2 if cls in hiding.HIDING else 1 for cls in RECORDS.values()}


def _keep(plain: dict[str, Any]) -> dict[str, Any]:
    """From version 1 to 2 of what hides: a plain record is one whose seal is not there yet."""
    return plain


UPGRADES: Mapping[tuple[type, int], Step] = {(cls, 1): _keep for cls in RECORDS.values() if cls in hiding.HIDING}

_codec = Codec(VERSIONS, UPGRADES)
_hidden_encoder = msgspec.json.Encoder()
_hidden_decoder = msgspec.json.Decoder(hiding.Hidden)


class Records:
    """Records to values and back, for all tables. ``sealer`` None: nothing is sealed (tests)."""

    def __init__(self, sealer: Sealer | None = None) -> None:
        self.sealer = sealer

    def encode(self, key: str, record: msgspec.Struct) -> bytes:
        """The record's value under this key of the store."""
        if self.sealer is None or type(record) not in hiding.HIDING:
            return _codec.encode(record)
        shown, hidden = hiding.split(record)
        value = _codec.encode(shown)
        if hidden is hiding.NOTHING:
            return value
        return b"%s\n%s" % (value, self.sealer.seal(_hidden_encoder.encode(hidden), _bind(key, value)))

    def decode(self, key: str, data: bytes) -> msgspec.Struct:
        """The record in a key's value, of the class of the key's table.

        Raises StoreUnavailable: written by a newer version, damaged, of a table that this version does not know, or
        sealed with a key that is not at hand.
        """
        cls = _class_of(key)
        if cls not in hiding.HIDING:
            return decode(cls, data)
        line = _find_seal(data)
        if not line:
            return decode(cls, data)
        value = data[: -len(line) - 1]
        if self.sealer is None:
            raise StoreUnavailable(f"record {key} is sealed, and no key is at hand", code="key_missing")
        plain = self.sealer.open(line, _bind(key, value), key)
        record = decode(cls, value)
        return record if plain is None else hiding.join(record, _hidden_decoder.decode(plain))

    def is_stale(self, key: str, data: bytes) -> bool:
        """Whether a value holds something to hide that the active key has not sealed."""
        cls = RECORDS.get(keys.table_of(key))
        if self.sealer is None or cls not in hiding.HIDING:
            return False
        line = _find_seal(data)
        if line:
            return self.sealer.key_id(line) != self.sealer.keyring.active.id
        return hiding.split(decode(cls, data))[1] is not hiding.NOTHING


def find_seal_key(data: bytes) -> str:
    """The ID of the key that sealed a value; empty for one that is not sealed."""
    return _find_seal(data).partition(b" ")[0].decode("ascii", "replace")


def _find_seal(data: bytes) -> bytes:
    """The line of the seal, or nothing. JSON as we write it holds no newline."""
    last = data.rfind(b"\n")
    return data[last + 1 :] if last > data.find(b"\n") else b""


def _bind(key: str, value: bytes) -> bytes:
    return b"%s\n%s" % (key.encode(), value)


def _class_of(key: str) -> type[msgspec.Struct]:
    table = keys.table_of(key)
    cls = RECORDS.get(table)
    if cls is None:
        raise StoreUnavailable(f"the store has a table {table!r} that this moorage does not know", table=table)
    return cls


encode = _codec.encode
decode = _codec.decode
decode_key = Records().decode
