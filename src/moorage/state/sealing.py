"""The seal: AES-256-GCM over what a record hides, bound to all that the record shows and to its key in the store.

A sealed value ends in a line of its own: the key's ID, a blank, and base64 of salt, counter and ciphertext. Changing
or swapping anything of the value, its place included, breaks the seal.
Each process seals with keys of its own, made of the ring's key and a salt (HKDF-SHA256), and counts its messages: no
pair of key and nonce comes twice, however often records are written.
Never: a key or what was sealed in a text.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections import OrderedDict
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from moorage.errors import StoreUnavailable
from moorage.state.keyring import KEY_BYTES, Keyring, SealKey

SALT_BYTES = 16
NONCE_BYTES = 12
_PURPOSE = b"moorage record seal 1"
_CIPHERS_MAX = 1024


class Sealer:
    """Seals and opens with a ring of keys. ``where``: the place of the keys, for people.

    For the event loop and one thread beside it: opening is safe from any thread.
    """

    def __init__(self, keyring: Keyring, where: str, *, make_salt: Callable[[int], bytes] = os.urandom) -> None:
        self.where = where
        self._make_salt = make_salt
        self._ciphers: OrderedDict[tuple[str, bytes], AESGCM] = OrderedDict()
        self.use(keyring)

    @property
    def keyring(self) -> Keyring:
        """The keys in use."""
        return self._keyring

    def use(self, keyring: Keyring) -> None:
        """Seal with this ring's active key from now on, and open with all of its keys."""
        self._keyring = keyring
        self._keys = {key.id: key for key in keyring.keys}
        self._ciphers.clear()
        self._salt = self._make_salt(SALT_BYTES)
        self._active = _make_cipher(keyring.active, self._salt)
        self._prefix = keyring.active.id.encode() + b" "
        self._count = 0

    def seal(self, plain: bytes, shown: bytes) -> bytes:
        """The line that hides ``plain``, bound to ``shown``."""
        self._count += 1
        nonce = self._count.to_bytes(NONCE_BYTES, "big")
        box = self._salt + nonce + self._active.encrypt(nonce, plain, shown)
        return self._prefix + base64.b64encode(box)

    def key_id(self, line: bytes) -> str:
        """The ID of the key that sealed a line."""
        return line.partition(b" ")[0].decode("ascii", "replace")

    def open(self, line: bytes, shown: bytes, record: str) -> bytes | None:
        """What a line hides; None when its key is given up as lost.

        Raises StoreUnavailable: the key is not in the ring (names its ID and what to do), or the value was changed.
        """
        key_id = self.key_id(line)
        key = self._keys.get(key_id)
        if key is None:
            if key_id in self._keyring.lost:
                return None
            raise StoreUnavailable(self._explain_missing(key_id, record), code="key_missing", key_id=key_id)
        try:
            box = base64.b64decode(line[len(key_id) + 1 :], validate=True)
            salt, nonce = box[:SALT_BYTES], box[SALT_BYTES : SALT_BYTES + NONCE_BYTES]
            return self._find_cipher(key, salt).decrypt(nonce, box[SALT_BYTES + NONCE_BYTES :], shown)
        except (InvalidTag, binascii.Error, ValueError) as error:
            raise StoreUnavailable(
                f"record {record}: its seal (key {key_id}) is broken: the record was changed or moved by something "
                "other than moorage, or the disk is damaged: restore a backup",
                code="seal_broken",
                key_id=key_id,
            ) from error

    def _explain_missing(self, key_id: str, record: str) -> str:
        there = ", ".join(key.id for key in self._keyring.keys)
        return (
            f"record {record} is sealed with key {key_id}, which is not at hand; {self.where} has {there}. Nothing was "
            f"changed. Put key {key_id} back there, or name its place in secrets.old_keys. If it is lost for good, "
            f"secrets.lost_keys = [{key_id!r}] gives up what it sealed and keeps the records"
        )

    def _find_cipher(self, key: SealKey, salt: bytes) -> AESGCM:
        if salt == self._salt and key.id == self._keyring.active.id:
            return self._active
        found = self._ciphers.get((key.id, salt))
        if found is None:
            found = _make_cipher(key, salt)
            self._ciphers[key.id, salt] = found
            while len(self._ciphers) > _CIPHERS_MAX:
                self._ciphers.popitem(last=False)
        return found


def _make_cipher(key: SealKey, salt: bytes) -> AESGCM:
    derived = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=_PURPOSE).derive(key.secret)
    return AESGCM(derived)
