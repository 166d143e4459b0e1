"""Keys of the seal: 256 bits each, named by what they are. Pure.

A key's text is its 32 bytes in base64. A key's ID is made of the key, so that the same key has the same ID wherever it
is written down, and nothing about the key can be learned from it. Never: I/O; a key in a text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable

import msgspec

from moorage.errors import BadRequest

KEY_BYTES = 32
_ID_PURPOSE = b"moorage key id\0"
_ID_CHARACTERS = 12


class SealKey(msgspec.Struct, frozen=True):
    """One key. ``id`` may be shown, ``secret`` never is."""

    id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"SealKey({self.id})"

    __str__ = __repr__


class Keyring(msgspec.Struct, frozen=True, kw_only=True):
    """The key that seals, and those that only open. ``lost``: IDs of keys that nobody has any more; what they sealed
    is given up."""

    active: SealKey
    others: tuple[SealKey, ...] = ()
    lost: frozenset[str] = frozenset()

    @property
    def keys(self) -> tuple[SealKey, ...]:
        """All keys, the active one first."""
        return (self.active, *self.others)


def make_key(secret: bytes) -> SealKey:
    """A key of its 32 bytes."""
    return SealKey(hashlib.sha256(_ID_PURPOSE + secret).hexdigest()[:_ID_CHARACTERS], secret)


def write_key(key: SealKey) -> str:
    """The key's text, for a key file."""
    return base64.b64encode(key.secret).decode()


def parse_keys(text: str, where: str) -> tuple[SealKey, ...]:
    """The keys in a text: one a line, or parted by blanks or commas; ``#`` begins a comment; the first is the active
    one. Raises BadRequest that names ``where`` and the place, and never the text."""
    found: list[SealKey] = []
    words = [word for line in text.splitlines() for word in re.split(r"[\s,]+", line.partition("#")[0]) if word]
    for number, word in enumerate(words, start=1):
        try:
            secret = base64.b64decode(word, validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if len(secret) != KEY_BYTES:
            raise BadRequest(
                f"{where}: key {number} of {len(words)} is not 32 bytes in base64; `head -c 32 /dev/urandom | base64` "
                "makes one"
            )
        found.append(make_key(secret))
    if not found:
        raise BadRequest(f"{where} holds no key; `head -c 32 /dev/urandom | base64` makes one")
    return tuple(found)


def join_keys(active: Iterable[SealKey], old: Iterable[SealKey], lost: Iterable[str] = ()) -> Keyring:
    """A ring of these keys; each once, the first one seals."""
    keys = list({key.id: key for key in (*active, *old)}.values())
    return Keyring(active=keys[0], others=tuple(keys[1:]), lost=frozenset(lost))
